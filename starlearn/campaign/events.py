"""Events: the responses of annotators, appended to a log that is never changed."""

import operator
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from hashlib import sha256
from typing import Any
from uuid import uuid4

from starlearn.campaign import rounds
from starlearn.campaign.event_log import COLUMNS, log_of
from starlearn.campaign.event_log import Event as Event
from starlearn.campaign.event_log import current_responses as current_responses
from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.integrity import checksum
from starlearn.campaign.items import SURROGATE, composed
from starlearn.campaign.store import Store, now
from starlearn.errors import InputError

INSERT = f"INSERT INTO event ({COLUMNS}, crc) VALUES ({', '.join('?' * (len(fields(Event)) + 1))})"  # noqa: S608 - names of our own
BY_UUID = f"SELECT {COLUMNS} FROM event WHERE uuid = ?"  # noqa: S608

KINDS = ("label", "skip", "flag")
LONGEST_UUID = 200
LONGEST_TEXT = 1_000_000
LONGEST_MS = 10**12


@dataclass(frozen=True)
class Entry:
    """A response that is not stored yet."""

    kind: str
    item: str
    annotator: str
    answer: str | None = None
    note: str | None = None
    ms: int | None = None
    uuid: str | None = None


def checked(entry: Entry) -> Entry:
    """Return an entry whose values have the types and the Unicode form that the store returns.

    Raise InputError for values of other types, invalid Unicode, and numbers out of range.
    """
    if not isinstance(entry, Entry) or entry.kind not in KINDS:
        raise InputError(
            f"An entry must be an Entry of the kind {', '.join(KINDS)}, got {entry!r:.80}. To undo "
            "a response: campaign.undo(annotator)."
        )
    if (entry.kind == "label") != (entry.answer is not None):
        raise InputError(f"A label needs an answer and a {KINDS[1]} has none: {entry!r:.80}.")
    return _with_checked_values(entry)


def _with_checked_values(entry: Entry) -> Entry:
    return Entry(
        kind=entry.kind,
        item=_checked_text("item", entry.item),
        annotator=composed(_checked_text("annotator", entry.annotator)),
        answer=None if entry.answer is None else composed(_checked_text("answer", entry.answer)),
        note=_text_or_none("note", entry.note),
        ms=_checked_ms(entry.ms),
        uuid=_text_or_none("uuid", entry.uuid),
    )


def _text_or_none(name: str, value: Any) -> str | None:
    return None if value is None else _checked_text(name, value)


def _checked_text(name: str, value: Any) -> str:
    longest = LONGEST_UUID if name == "uuid" else LONGEST_TEXT
    if not isinstance(value, str):
        raise InputError(
            f"{name} must be text, got {type(value).__name__} ({value!r:.40}). Write it in quotes: "
            f"{name}='...'."
        )
    if name in ("uuid", "annotator") and not value:
        raise InputError(f"{name} is empty. Leave it out, or give a text.")
    if len(value) > longest:
        raise InputError(f"{name} has {len(value):,} characters; at most {longest:,} are stored.")
    if SURROGATE.search(value):
        raise InputError(f"{name}={value!r:.40} is not valid Unicode (lone surrogate).")
    return str.__str__(value)


def _checked_ms(value: Any) -> int | None:
    """Return milliseconds as an int, also where a NumPy integer was given."""
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise InputError(
            f"ms must be a whole number of milliseconds, got {type(value).__name__} "
            f"({value!r:.40}). Round it: ms=round(1000 * seconds)."
        ) from None
    if not 0 <= found <= LONGEST_MS:
        raise InputError(f"ms must be between 0 and {LONGEST_MS:,}, got {value!r:.40}.")
    return found


def append(store: Store, entries: Sequence[Entry], per_item: int) -> list[Event]:
    """Store entries in one transaction, and return their events.

    All of them are on the disk when the call returns. Where an entry's uuid is known, its event is
    the stored one. `per_item` is the number of annotators that each item needs.
    """
    entries = [checked(entry) for entry in entries]
    log_of(store)
    with store.transaction():
        made = [_append_one(store, entry) for entry in entries]
        _finish(store, made, per_item)
    failpoint("label_committed")
    return made


def undo(store: Store, annotator: str, uuid: str | None, per_item: int) -> Event | None:
    """Undo the annotator's last response that counts, and return the undo.

    The undo is the stored one where the uuid is known, and None without a response.
    """
    asked = _with_checked_values(Entry("undo", "", annotator, uuid=uuid))
    log_of(store)
    with store.transaction():
        stored = event_with_uuid(store, asked.uuid)
        if stored is not None:
            return _require_same(stored, replace(asked, item=stored.item))
        last = log_of(store).last_response(asked.annotator)
        if last is None:
            return None
        event = _append_one(store, replace(asked, item=last.item), undoes=last.seq)
        _finish(store, [event], per_item)
    failpoint("label_committed")
    return event


def reassign(store: Store, names: Sequence[tuple[Event, str]], per_item: int) -> None:
    """Give responses to other annotators: each is undone, and stored again under the new name.

    Their times, and so their order, stay the same. The time that the annotator took is not stored
    again, because it would count twice.
    """
    log_of(store)
    made = []
    with store.transaction():
        for event, name in names:
            undo = Entry("undo", event.item, event.annotator)
            statement = "|".join(event.uuid.split("|")[:5])
            uuid = f"{statement}|{sha256(name.encode()).hexdigest()[:16]}"
            again = Entry(event.kind, event.item, name, event.answer, event.note, uuid=uuid)
            made += [_append_one(store, undo, undoes=event.seq), _append_one(store, again)]
        _finish(store, made, per_item)


def event_with_uuid(store: Store, uuid: str | None) -> Event | None:
    """Return the event with this uuid, or None."""
    found = store.execute(BY_UUID, (uuid,))
    return Event(*found[0]) if found else None


def events(store: Store) -> list[Event]:
    """Return all events, oldest first, each verified by its checksum when it was read."""
    return list(log_of(store).events)


def last_seq(store: Store) -> int:
    """Return the sequence number of the newest event, 0 without events."""
    return int(store.execute("SELECT coalesce(max(seq), 0) FROM event")[0][0])


def _append_one(store: Store, entry: Entry, undoes: int | None = None) -> Event:
    stored = event_with_uuid(store, entry.uuid)
    if stored is not None:
        return _require_same(stored, entry)
    ((in_round,),) = store.execute("SELECT max(round) FROM issued WHERE item = ?", (entry.item,))
    if in_round is None:
        raise InputError(
            f"Item {entry.item!r:.60} was never issued in this campaign, so it cannot be labelled. "
            "Label the items of the batch: campaign.batch(), starlearn label FOLDER."
        )
    event = Event(
        seq=last_seq(store) + 1,
        uuid=entry.uuid or uuid4().hex,
        kind=entry.kind,
        item=entry.item,
        annotator=entry.annotator,
        answer=entry.answer,
        note=entry.note,
        undoes=undoes,
        round=in_round,
        ms=entry.ms,
        at=now(),
    )
    store.execute(INSERT, (*astuple(event), checksum(*astuple(event))))
    return event


def _finish(store: Store, made: Sequence[Event], per_item: int) -> None:
    """Read new events back before the COMMIT, and update the states of their rounds."""
    log = log_of(store)
    for event in made:
        if log.events[event.seq - 1] != event:
            raise store.differs(f"event {event.seq}")
    rounds.update_states(store, log, per_item)
    failpoint("label_written")


def _require_same(stored: Event, entry: Entry) -> Event:
    """Return the stored event of a uuid; InputError when the entry differs from it."""
    before = (stored.kind, stored.item, stored.annotator, stored.answer, stored.note)
    if before != (entry.kind, entry.item, entry.annotator, entry.answer, entry.note):
        raise InputError(
            f"The uuid {entry.uuid!r:.60} was used before, for {before[0]!r} of item "
            f"{before[1]!r} by {before[2]!r:.40}. Give every entry its own uuid: uuid.uuid4().hex."
        )
    return stored
