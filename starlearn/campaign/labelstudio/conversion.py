"""Items to tasks of Label Studio and its annotations to words: the same for a server and a file."""

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
    Imported,
    Intake,
    Row,
    Word,
    column_of,
)
from starlearn.campaign.labelstudio.interface import CONTROL, keys_of
from starlearn.campaign.labelstudio.payload import Annotation, Task, User
from starlearn.errors import InputError, listed

UUID = "labelstudio"
"""The uuid of a word begins so; then project, annotation, when it was made and when changed."""


NOBODY = "label-studio"
"""The annotator, where an account was deleted and what it said was kept."""


@dataclass(frozen=True)
class Prediction:
    """What a model answers for an item, to be shown to annotators before they answer."""

    answer: str
    version: str
    """Which model."""
    probability: float | None = None
    """Of the answer, where it was computed."""


def open_batch(campaign: Campaign, round_id: int | None = None) -> tuple[int, list[BatchItem]]:
    """Return a round and those of its items that still wait for a word.

    Raises
    ------
    InputError
        When there is no batch, or nothing of it is open.
    """
    last = rounds.current(campaign.store)
    number = round_id if round_id is not None else last.id if last else 0
    batch = campaign.batch(number)
    if not batch:
        raise InputError(
            f"Round {number} has no batch. Ask for one first: starlearn query "
            f"{campaign.folder} -n 50."
        )
    needed = campaign.options["per_item"]
    waiting = [item for item in batch if len(item.said) < needed]
    if not waiting:
        raise InputError(
            f"All {len(batch)} items of round {number} have had their say. Type: "
            f"{campaign.status().next}"
        )
    return number, waiting


def stored_predictions(campaign: Campaign, round_id: int) -> dict[str, Prediction]:
    """Return the answers that the model gave when it scored a round's pool, by item.

    They cost nothing, and say no probability. Empty where a round was drawn without scores.
    """
    scores = campaign.scores(round_id)
    if scores is None:
        return {}
    published = [r.id for r in rounds.rounds(campaign.store) if r.state == "published"]
    version = _version(max((number for number in published if number < round_id), default=0))
    pairs = zip(scores["id"].to_pylist(), scores["answer"].to_pylist(), strict=True)
    return {item: Prediction(answer, version) for item, answer in pairs}


def computed_predictions(campaign: Campaign, items: Sequence[BatchItem]) -> dict[str, Prediction]:
    """Let the newest adapter answer items now; of a choice, with its probability.

    Raises
    ------
    InputError
        When no adapter is published yet.
    """
    newest = campaign.published()
    if newest is None:
        raise InputError(
            "No adapter is trained yet, so no prediction can be computed. The base model's answers "
            "from when it chose are there: --predictions stored."
        )
    learner = campaign.learner()
    fields = [item.fields for item in items]
    if campaign.choices is None:
        answers, sure = learner.predict(fields).tolist(), [None] * len(items)
    else:
        found = learner.predict_proba(fields)
        answers = learner.classes_[found.argmax(axis=1)].tolist()
        sure = found.max(axis=1).tolist()
    version = _version(newest.id)
    return {
        item.id: Prediction(answer, version, probability)
        for item, answer, probability in zip(items, answers, sure, strict=True)
    }


def task_of(
    campaign: Campaign, round_id: int, item: BatchItem, prediction: Prediction | None = None
) -> dict[str, Any]:
    """Return an item as a task: id, fields, why it was chosen, and the model's answer."""
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


def take_in(
    campaign: Campaign,
    tasks: Sequence[Task],
    where: str,
    remedy: str,
    names: Mapping[int, str] | None = None,
    relabel: Mapping[str, str] | None = None,
) -> Imported:
    """Store what annotations say, all of it or nothing; a second time changes nothing.

    Each state of an annotation is one word of its annotator, in the order of their changes; a
    task that was skipped is a skip. Drafts and predictions say nothing, and whether an annotation
    is marked as ground truth makes no difference.

    Parameters
    ----------
    campaign : Campaign
    tasks : sequence of Task
    where, remedy : str
        Where they come from and what to do about what cannot be used, for errors.
    names : mapping, optional
        Names of annotators by the number of the user.
    relabel : mapping, optional
        Spellings in annotations and the choices that they mean.

    Raises
    ------
    InputError
        Naming task and annotation of what cannot be used, or that nothing is of this campaign.
    """
    intake = Intake(campaign, NOBODY, relabel)
    ours = [task for task in tasks if _is_ours(task, intake)]
    if tasks and not ours:
        raise InputError(
            f"{where}: none of its {len(tasks)} tasks is of the campaign in {campaign.folder}. "
            "Check the project, or the file; nothing was imported."
        )
    said = [(n.updated_at, n.id, task, n) for task in ours for n in task.annotations or ()]
    for _, number, task, note in sorted(said, key=lambda found: found[:2]):
        place = f"task {task.id}, annotation {number}"
        try:
            row = _row(task, note, intake, names or {})
        except InputError as error:
            intake.complaints.append(f"{place}: {error}")
            continue
        kind = "skip" if note.was_cancelled else "label"
        ms = None if note.lead_time is None else round(1000 * note.lead_time)
        intake.read(place, row, Word(kind, uuid_of(task, note), ms))
    if intake.complaints:
        raise InputError(
            f"{where}: {len(intake.complaints)} annotations cannot be imported: "
            f"{listed(intake.complaints)}. Nothing was imported. {remedy}"
        )
    done = intake.stored()
    if len(ours) < len(tasks):
        done.notes.append(f"{len(tasks) - len(ours)} tasks are not of this campaign: passed over.")
    return done


def uuid_of(task: Task, note: Annotation) -> str:
    """Name one state of an annotation, the same from a server and from its export."""
    return f"{origin_of(task, note)}|{note.updated_at.isoformat()}"


def origin_of(task: Task, note: Annotation) -> str:
    """Name an annotation, whatever became of it."""
    return f"{UUID}|{task.project}|{note.id}|{note.created_at.isoformat()}"


def _is_ours(task: Task, intake: Intake) -> bool:
    owner = task.data.get(CAMPAIGN)
    if owner is None:  # a table of ours that somebody brought to Label Studio by hand
        key = task.data.get(ID)
        return isinstance(key, str) and key in intake.items
    return bool(owner == intake.campaign.id)


def _row(task: Task, note: Annotation, intake: Intake, names: Mapping[int, str]) -> Row:
    key, owner = task.data.get(ID), task.data.get(CAMPAIGN)
    if not isinstance(key, str):
        raise InputError(f"its id is {type(key).__name__}, not the text that was sent")
    row: Row = {ID: key, CAMPAIGN: owner, LABEL: None, ANNOTATOR: _name(note.completed_by, names)}
    item = intake.items.get(key)
    for name, place in keys_of(item.fields if item else ()).items():
        if place in task.data:
            value = task.data[place]
            row[column_of(name)] = value if isinstance(value, str) else json.dumps(value)
    if not note.was_cancelled:
        row[LABEL] = _answer(note, closed=intake.choices is not None)
    return row


def _answer(note: Annotation, closed: bool) -> str | None:
    """Return what an annotation answers; None where its control was left empty."""
    kind = "choices" if closed else "textarea"
    answers: list[str] = []
    for result in note.result or ():
        if result.from_name == CONTROL and result.type == kind and result.value is not None:
            given = (result.value.choices if closed else result.value.text) or []
            answers += [given] if isinstance(given, str) else given
    if len(answers) > 1:
        raise InputError(f"it holds {len(answers)} answers, and an item takes one")
    return answers[0] if answers else None


def _name(user: int | User | None, names: Mapping[int, str]) -> str | None:
    if isinstance(user, User):
        return user.email or user.username or f"user-{user.id}"
    return None if user is None else names.get(user, f"user-{user}")


def _version(number: int) -> str:
    return f"starlearn, adapter of round {number}" if number else "starlearn, base model"
