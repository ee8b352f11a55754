"""Events: the responses of annotators, appended to a log that is never changed."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from hashlib import sha256
from uuid import uuid4

from starlearn.campaign.chronology import in_order
from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.items import composed
from starlearn.campaign.store import Store, checksum
from starlearn.errors import InputError


@dataclass(frozen=True)
class Event:
    """One response of one annotator to one item, or the undo of one."""

    seq: int
    """1, 2, 3, ... without gaps. Responses given here are ordered by it, not by the clock."""
    uuid: str
    """Chosen by the client, so that an event that is sent twice is stored once."""
    kind: str
    """label, skip, flag or undo."""
    item: str
    annotator: str
    answer: str | None
    """The answer of a label; None for other kinds."""
    note: str | None
    undoes: int | None
    """For an undo, the event that no longer counts."""
    round: int
    """The latest round in which the item was issued."""
    ms: int | None
    """Time that the annotator took in milliseconds, if known."""
    at: str
    """Time in UTC at which it was stored."""

    def __post_init__(self) -> None:
        # An earlier version stored answers in any Unicode form.
        if self.answer is not None:
            object.__setattr__(self, "answer", composed(self.answer))


COLUMNS = ", ".join(field.name for field in fields(Event))
INSERT = f"INSERT INTO event ({COLUMNS}, crc) VALUES ({', '.join('?' * (len(fields(Event)) + 1))})"  # noqa: S608 - names of our own
BY_UUID = f"SELECT {COLUMNS} FROM event WHERE uuid = ?"  # noqa: S608
# A round is labelled when each of its items has responses of enough annotators.
UPDATE_STATE = """UPDATE round SET changed = :now, state = :after WHERE state = :before
    AND :complete = NOT EXISTS (SELECT 1 FROM issued WHERE issued.round = round.id AND :per_item >
        (SELECT count(DISTINCT annotator) FROM event WHERE event.item = issued.item
            AND kind <> 'undo' AND NOT EXISTS
                (SELECT 1 FROM event AS later WHERE later.undoes = event.seq)))"""


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


def now() -> str:
    """Return the time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def append(store: Store, entries: Sequence[Entry], per_item: int) -> list[Event]:
    """Store entries in one transaction, and return their events.

    All of them are on the disk when the call returns. Where an entry's uuid is known, its event is
    the stored one. `per_item` is the number of annotators that each item needs.
    """
    with store.transaction():
        events = [_append_one(store, entry) for entry in entries]
        update_round_states(store, per_item)
        failpoint("label_written")
    failpoint("label_committed")
    return events


def undo(store: Store, annotator: str, uuid: str | None, per_item: int) -> Event | None:
    """Undo the annotator's last response that counts, and return the undo.

    The undo is the stored one where the uuid is known, and None without a response.
    """
    with store.transaction():
        stored = event_with_uuid(store, uuid)
        if stored is not None:
            return _require_same(stored, Entry("undo", stored.item, annotator, uuid=uuid))
        mine = [one for one in current_responses(events(store)) if one.annotator == annotator]
        if not mine:
            return None
        last = mine[-1]
        entry = Entry("undo", last.item, annotator, uuid=uuid)
        event = _append_one(store, entry, undoes=last.seq)
        update_round_states(store, per_item)
        failpoint("label_written")
    failpoint("label_committed")
    return event


def reassign(store: Store, names: Sequence[tuple[Event, str]], per_item: int) -> None:
    """Give responses to other annotators: each is undone, and stored again under the new name.

    Their times, and so their order, stay the same. The time that the annotator took is not stored
    again, because it would count twice.
    """
    with store.transaction():
        for event, name in names:
            _append_one(store, Entry("undo", event.item, event.annotator), undoes=event.seq)
            statement = "|".join(event.uuid.split("|")[:5])
            uuid = f"{statement}|{sha256(name.encode()).hexdigest()[:16]}"
            _append_one(
                store, Entry(event.kind, event.item, name, event.answer, event.note, uuid=uuid)
            )
        update_round_states(store, per_item)


def event_with_uuid(store: Store, uuid: str | None) -> Event | None:
    """Return the event with this uuid, or None."""
    found = store.execute(BY_UUID, (uuid,))
    return Event(*found[0]) if found else None


def update_round_states(store: Store, per_item: int) -> None:
    """Move rounds between the states issued and labelled; call it inside a transaction."""
    for before, after, complete in (("issued", "labelled", 1), ("labelled", "issued", 0)):
        values = {"before": before, "after": after, "complete": complete, "per_item": per_item}
        store.execute(UPDATE_STATE, {**values, "now": now()})


def events(store: Store, after: int = 0) -> list[Event]:
    """Return the events after a sequence number, each verified by its checksum."""
    statement = f"SELECT {COLUMNS}, crc FROM event WHERE seq > ? ORDER BY seq"  # noqa: S608
    found = []
    for expected, (*row, crc) in enumerate(store.execute(statement, (after,)), start=after + 1):
        if row[0] != expected:
            raise store.corrupt(f"event {expected} is missing")
        if checksum(*row) != crc:
            raise store.corrupt(f"event {expected} is not the one that was written")
        found.append(Event(*row))
    return found


def current_responses(log: Iterable[Event]) -> list[Event]:
    """Return the current response of each annotator to each item, oldest first.

    The view `word` of the label store holds the same rows where nothing was imported from Label
    Studio, without the checks of `events`.
    """
    log = in_order(log)
    undone = {event.undoes for event in log if event.undoes is not None}
    found: dict[tuple[str, str], Event] = {}
    for event in log:
        if event.kind != "undo" and event.seq not in undone:
            found.pop((event.item, event.annotator), None)
            found[event.item, event.annotator] = event
    return list(found.values())


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


def _require_same(stored: Event, entry: Entry) -> Event:
    """Return the stored event of a uuid; InputError when the entry differs from it."""
    before = (stored.kind, stored.item, stored.annotator, stored.answer, stored.note)
    if before != (entry.kind, entry.item, entry.annotator, entry.answer, entry.note):
        raise InputError(
            f"The uuid {entry.uuid!r:.60} was used before, for {before[0]!r} of item "
            f"{before[1]!r} by {before[2]!r:.40}. Give every entry its own uuid: uuid.uuid4().hex."
        )
    return stored
