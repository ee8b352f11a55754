"""Conversion of items to tasks of Label Studio, and of its annotations to responses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlearn.campaign import events, rounds
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.chronology import Statement, statement_of
from starlearn.campaign.event_log import log_of
from starlearn.campaign.events import Entry, Event
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
from starlearn.campaign.labelstudio.authors import UNKNOWN_USER, Authors, Note, is_numbered
from starlearn.campaign.labelstudio.interface import CONTROL, keys_of
from starlearn.campaign.labelstudio.payload import Annotation, LabelStudioTask
from starlearn.errors import InputError, listed


@dataclass
class Irregular:
    """Annotations of an import that need a message."""

    emptied: list[tuple[str, str, Statement]]
    """Item, annotator and statement of those without an answer."""
    n_conflicts: int = 0
    """Those with another answer than the one stored for the same time."""


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
    *,
    names: Mapping[int, str] | None = None,
    server: str = "",
    relabel: Mapping[str, str] | None = None,
) -> ImportResult:
    """Store annotations: all of them, or none; a second import changes nothing.

    Each state of an annotation is one response of its annotator, with the time of its last change.
    The newest response counts, in whatever order states are imported. A task that was skipped is a
    skip. Drafts, predictions and the mark for ground truth are ignored.

    Errors name `where` the tasks come from, and the `remedy` for annotations that cannot be used.
    `names` holds the names of users by number, and `server` is the address of a server that was
    asked. `relabel` maps spellings to choices.
    """
    with campaign.holding("import"):
        importer = LabelImport(campaign, UNKNOWN_USER, relabel)
        ours = [task for task in tasks if _is_ours(task, importer)]
        if tasks and not ours:
            raise InputError(
                f"{where}: none of its {len(tasks)} tasks belongs to the campaign in "
                f"{campaign.folder}. Check the project or the file. Nothing was imported."
            )
        found = _statements(ours, importer)
        authors = Authors(campaign, found, names or {}, server)
        added = _add_rows(found, importer, authors)
        importer.require_usable(where, "annotations", remedy)
        moves = authors.moves()
        if moves:
            events.reassign(campaign.store, moves, campaign.options["per_item"])
        done = importer.store()
        authors.remember()
        if len(ours) < len(tasks):
            done.notes.append(
                f"{len(tasks) - len(ours)} tasks are not of this campaign and were ignored."
            )
        done.notes.extend(_notes(campaign, importer.entries, moves, added))
    return done


def _statements(tasks: Sequence[LabelStudioTask], importer: LabelImport) -> list[Note]:
    """Return the annotations with their times, oldest change first."""
    found: list[Note] = []
    for task in tasks:
        for note in task.annotations or ():
            created, updated = note.created_at, note.updated_at
            created, updated = created or updated, updated or created
            if created is None or updated is None:
                importer.errors.append(
                    f"{_place(task, note)}: it has neither updated_at nor created_at, so it is "
                    "unknown which answer is the newest"
                )
                continue
            found.append((task, note, Statement(task.project, note.id, created, updated)))
    return sorted(found, key=lambda note: (note[2].updated, note[2].uuid))


def _add_rows(notes: Sequence[Note], importer: LabelImport, authors: Authors) -> Irregular:
    """Add the annotations that are not stored yet to the import, each state once."""
    log = events.events(importer.campaign.store)
    stored = {statement_of(event.uuid): event.answer for event in log if event.kind != "undo"}
    found = Irregular([])
    seen = set()
    for task, note, statement in notes:
        place = _place(task, note)
        try:
            row = _row(task, note, importer)
            annotator = authors.author(str(row[ID]), note, statement)
        except InputError as error:
            importer.errors.append(f"{place}: {error}")
            continue
        if statement in stored:
            importer.n_same += statement not in seen
            found.n_conflicts += _conflicts(row[LABEL], stored[statement], importer)
        else:
            kind = "skip" if note.was_cancelled else "label"
            ms = None if note.lead_time is None else round(1000 * note.lead_time)
            importer.add_row(place, row | {ANNOTATOR: annotator}, kind, statement.uuid, ms)
            if kind == "label" and row[LABEL] is None:
                found.emptied.append((str(row[ID]), annotator, statement))
            else:
                stored[statement] = importer.relabelled(row[LABEL])
        seen.add(statement)
    return found


def _conflicts(label: str | None, stored: str | None, importer: LabelImport) -> bool:
    """Whether a label differs from the stored one; another spelling of it does not."""
    label = importer.relabelled(label)
    if label is None or stored is None:
        return label != stored
    known = importer.choices
    return label.strip() != stored.strip() and (known is None or label.strip() in known)


def _notes(
    campaign: Campaign,
    entries: Sequence[Entry],
    moves: Sequence[tuple[Event, str]],
    irregular: Irregular,
) -> list[str]:
    """Return messages about what an import did besides storing new responses."""
    new = {entry.uuid for entry in entries}
    current = {(event.item, event.annotator): event for event in log_of(campaign.store).responses()}
    found = []
    n_older = sum(current[entry.item, entry.annotator].uuid not in new for entry in entries)
    if n_older:
        found.append(
            f"{n_older} annotations are older than another response of their annotator. They are "
            "stored, and the newest response counts."
        )
    if irregular.n_conflicts:
        found.append(
            f"{irregular.n_conflicts} annotations have another answer than the stored one, but no "
            "newer time. The stored answer is kept."
        )
    n_emptied = 0
    for item, annotator, statement in irregular.emptied:
        event = current.get((item, annotator))
        earlier = statement_of(event.uuid) if event is not None and event.kind == "label" else None
        n_emptied += earlier is not None and earlier.updated < statement.updated
    if n_emptied:
        found.append(
            f"In {n_emptied} annotations the answer was removed. The earlier answer still counts. "
            "To withdraw it, skip the task in Label Studio."
        )
    known = sorted({f"{event.annotator} is {name}" for event, name in moves})
    if known:
        found.append(f"Stored responses were given to the annotators known now: {listed(known)}.")
    numbered = sorted({entry.annotator for entry in entries if is_numbered(entry.annotator)})
    if numbered:
        found.append(
            f"Only the numbers of these users are known: {listed(numbered)}. A user who also "
            "labels under a name counts as two annotators. A pull with a key that can read names "
            "makes them one."
        )
    return found


def _place(task: LabelStudioTask, note: Annotation) -> str:
    return f"task {task.id}, annotation {note.id}"


def _is_ours(task: LabelStudioTask, importer: LabelImport) -> bool:
    owner = task.data.get(CAMPAIGN)
    if owner is None:  # a CSV export that was uploaded to Label Studio by hand
        key = task.data.get(ID)
        return isinstance(key, str) and key in importer.items
    return bool(owner == importer.campaign.id)


def _row(task: LabelStudioTask, note: Annotation, importer: LabelImport) -> Row:
    key, owner = task.data.get(ID), task.data.get(CAMPAIGN)
    if not isinstance(key, str):
        raise InputError(f"its id is {type(key).__name__}, not text")
    row: Row = {ID: key, CAMPAIGN: owner, LABEL: None}
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


def _version(number: int) -> str:
    return f"starlearn, adapter of round {number}" if number else "starlearn, base model"
