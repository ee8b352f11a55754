"""Conversion of items to tasks of Label Studio, and of its annotations to responses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlearn.campaign import rounds
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.importing import (
    ANNOTATOR,
    CAMPAIGN,
    ID,
    LABEL,
    ImportResult,
    LabelImport,
    Row,
    column_of,
)
from starlearn.campaign.labelstudio.interface import CONTROL, keys_of
from starlearn.campaign.labelstudio.payload import Annotation, LabelStudioTask, User
from starlearn.errors import InputError

UUID = "labelstudio"
"""Prefix of a response's uuid, before project, annotation, creation time and change time."""

UNKNOWN_USER = "label-studio"
"""The annotator of an annotation whose account was deleted."""


@dataclass(frozen=True)
class Prediction:
    """A model's answer to an item, shown to annotators before they answer."""

    answer: str
    version: str
    """Name of the model."""
    probability: float | None = None
    """Probability of the answer, if it was computed."""


def items_to_send(campaign: Campaign, round_id: int | None = None) -> tuple[int, list[BatchItem]]:
    """Return a round and those of its items that still need responses; InputError without any."""
    last = rounds.current(campaign.store)
    number = round_id if round_id is not None else last.id if last else 0
    batch = campaign.batch(number)
    if not batch:
        raise InputError(
            f"Round {number} has no batch. Query one first: starlearn query "
            f"{campaign.folder} -n 50."
        )
    needed = campaign.options["per_item"]
    waiting = [item for item in batch if len(item.responses) < needed]
    if not waiting:
        raise InputError(
            f"All {len(batch)} items of round {number} have enough responses. Type: "
            f"{campaign.status().next}"
        )
    return number, waiting


def stored_predictions(campaign: Campaign, round_id: int) -> dict[str, Prediction]:
    """Return the model's answers from the scoring of a round's pool, by item.

    They cost nothing and have no probability. Empty where no scores were kept.
    """
    scores = campaign.scores(round_id)
    if scores is None:
        return {}
    published = [found.id for found in rounds.published(campaign.store) if found.id < round_id]
    version = _version(max(published, default=0))
    pairs = zip(scores["id"].to_pylist(), scores["answer"].to_pylist(), strict=True)
    return {item: Prediction(answer, version) for item, answer in pairs}


def computed_predictions(campaign: Campaign, items: Sequence[BatchItem]) -> dict[str, Prediction]:
    """Return the newest adapter's answers to items; for choices, with probabilities."""
    newest = campaign.published()
    if newest is None:
        raise InputError(
            "No adapter is trained yet, so no prediction can be computed. Use the base model's "
            "answers from the query: --predictions stored."
        )
    learner = campaign.learner()
    fields = [item.fields for item in items]
    if campaign.choices is None:
        answers, chances = learner.predict(fields).tolist(), [None] * len(items)
    else:
        found = learner.predict_proba(fields)
        answers = learner.classes_[found.argmax(axis=1)].tolist()
        chances = found.max(axis=1).tolist()
    version = _version(newest.id)
    return {
        item.id: Prediction(answer, version, probability)
        for item, answer, probability in zip(items, answers, chances, strict=True)
    }


def task_of(
    campaign: Campaign, round_id: int, item: BatchItem, prediction: Prediction | None = None
) -> dict[str, Any]:
    """Return an item as a task: id, fields, the reason for its choice, the model's answer."""
    keys = keys_of(item.fields)
    data: dict[str, Any] = {keys[name]: text for name, text in item.fields.items()}
    data |= {"id": item.id, "campaign": campaign.id, "round": round_id, "place": item.place}
    data |= {"score": item.score, "why": item.reason}
    task: dict[str, Any] = {"data": data}
    known = campaign.choices
    if (
        prediction is not None
        and prediction.answer.strip()
        and (known is None or prediction.answer in known)
    ):
        kind, value = ("choices", "choices") if known is not None else ("textarea", "text")
        result = {
            "from_name": CONTROL,
            "to_name": next(iter(keys.values())),
            "type": kind,
            "value": {value: [prediction.answer]},
        }
        score = {} if prediction.probability is None else {"score": prediction.probability}
        task["predictions"] = [{"model_version": prediction.version, "result": [result], **score}]
    return task


def import_annotations(
    campaign: Campaign,
    tasks: Sequence[LabelStudioTask],
    where: str,
    remedy: str,
    names: Mapping[int, str] | None = None,
    relabel: Mapping[str, str] | None = None,
) -> ImportResult:
    """Store annotations: all of them, or none; a second import changes nothing.

    Each state of an annotation is one response of its annotator, in the order of the changes. A
    task that was skipped is a skip. Drafts, predictions and the mark for ground truth are ignored.

    Errors name `where` the tasks come from, and the `remedy` for annotations that cannot be used.
    `names` maps numbers of users to names of annotators, and `relabel` spellings to choices.
    """
    importer = LabelImport(campaign, UNKNOWN_USER, relabel)
    ours = [task for task in tasks if _is_ours(task, importer)]
    if tasks and not ours:
        raise InputError(
            f"{where}: none of its {len(tasks)} tasks belongs to the campaign in "
            f"{campaign.folder}. Check the project or the file. Nothing was imported."
        )
    notes = [(n.updated_at, n.id, task, n) for task in ours for n in task.annotations or ()]
    for _, number, task, note in sorted(notes, key=lambda found: found[:2]):
        place = f"task {task.id}, annotation {number}"
        try:
            row = _row(task, note, importer, names or {})
        except InputError as error:
            importer.errors.append(f"{place}: {error}")
            continue
        kind = "skip" if note.was_cancelled else "label"
        ms = None if note.lead_time is None else round(1000 * note.lead_time)
        importer.add_row(place, row, kind, uuid_of(task, note), ms)
    importer.require_usable(where, "annotations", remedy)
    done = importer.store()
    if len(ours) < len(tasks):
        done.notes.append(
            f"{len(tasks) - len(ours)} tasks are not of this campaign and were ignored."
        )
    return done


def uuid_of(task: LabelStudioTask, note: Annotation) -> str:
    """Return the uuid of one state of an annotation, equal for a server and its export."""
    return f"{origin_of(task, note)}|{note.updated_at.isoformat()}"


def origin_of(task: LabelStudioTask, note: Annotation) -> str:
    """Return the part of the uuid that all states of an annotation share."""
    return f"{UUID}|{task.project}|{note.id}|{note.created_at.isoformat()}"


def _is_ours(task: LabelStudioTask, importer: LabelImport) -> bool:
    owner = task.data.get(CAMPAIGN)
    if owner is None:  # a CSV export that was uploaded to Label Studio by hand
        key = task.data.get(ID)
        return isinstance(key, str) and key in importer.items
    return bool(owner == importer.campaign.id)


def _row(
    task: LabelStudioTask, note: Annotation, importer: LabelImport, names: Mapping[int, str]
) -> Row:
    key, owner = task.data.get(ID), task.data.get(CAMPAIGN)
    if not isinstance(key, str):
        raise InputError(f"its id is {type(key).__name__}, not text")
    row: Row = {ID: key, CAMPAIGN: owner, LABEL: None, ANNOTATOR: _name(note.completed_by, names)}
    item = importer.items.get(key)
    for name, place in keys_of(item.fields if item else ()).items():
        if place in task.data:
            value = task.data[place]
            row[column_of(name)] = value if isinstance(value, str) else json.dumps(value)
    if not note.was_cancelled:
        row[LABEL] = _answer(note, closed=importer.choices is not None)
    return row


def _answer(note: Annotation, closed: bool) -> str | None:
    """Return the answer of an annotation; None where its control is empty."""
    kind = "choices" if closed else "textarea"
    answers: list[str] = []
    for result in note.result or ():
        if result.from_name == CONTROL and result.type == kind and result.value is not None:
            given = (result.value.choices if closed else result.value.text) or []
            answers += [given] if isinstance(given, str) else given
    if len(answers) > 1:
        raise InputError(f"it holds {len(answers)} answers, but an item takes one")
    return answers[0] if answers else None


def _name(user: int | User | None, names: Mapping[int, str]) -> str | None:
    if isinstance(user, User):
        return user.name
    return None if user is None else names.get(user, f"user-{user}")


def _version(number: int) -> str:
    return f"starlearn, adapter of round {number}" if number else "starlearn, base model"
