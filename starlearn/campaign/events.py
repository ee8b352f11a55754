"""What annotators said, event by event: appended, never changed, each only once."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from uuid import uuid4

from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.store import Store, checksum
from starlearn.errors import InputError


@dataclass(frozen=True)
class Event:
    """One thing that one annotator said about one item."""

    seq: int
    """1, 2, 3, ... without gaps: the order of events, whatever the clock says."""
    uuid: str
    """Given by the client, so that what is sent twice is stored once."""
    kind: str
    """label, skip, flag or undo."""
    item: str
    annotator: str
    answer: str | None
    """Only of a label."""
    note: str | None
    undoes: int | None
    """Only of an undo: the event that no longer counts."""
    round: int
    """The round in which the item was issued last."""
    ms: int | None
    """Milliseconds that the annotator took, where the client tells."""
    at: str
    """UTC; for people to read, never to order by."""


COLUMNS = ", ".join(field.name for field in fields(Event))
INSERT = f"INSERT INTO event ({COLUMNS}, crc) VALUES ({', '.join('?' * (len(fields(Event)) + 1))})"  # noqa: S608 - names of our own
LAST_SEQ = "SELECT coalesce(max(seq), 0) FROM event"
BY_UUID = f"SELECT {COLUMNS} FROM event WHERE uuid = ?"  # noqa: S608
ROUND_OF = "SELECT max(round) FROM issued WHERE item = ?"
LAST_WORD = (
    f"SELECT {COLUMNS} FROM event WHERE annotator = ? AND kind <> 'undo' AND NOT EXISTS "  # noqa: S608
    "(SELECT 1 FROM event AS later WHERE later.undoes = event.seq) ORDER BY seq DESC LIMIT 1"
)
# A round is labelled when enough annotators have had their say on each of its items.
SETTLE = """UPDATE round SET changed = :now, state = :after WHERE state = :before AND :complete =
    NOT EXISTS (SELECT 1 FROM issued WHERE issued.round = round.id AND :per_item >
        (SELECT count(DISTINCT annotator) FROM event WHERE event.item = issued.item
            AND kind <> 'undo' AND NOT EXISTS
                (SELECT 1 FROM event AS later WHERE later.undoes = event.seq)))"""


@dataclass(frozen=True)
class Entry:
    """What an annotator sends: an event that is not stored yet."""

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
    """Store entries in one transaction: when this returns, all of them are on the disk.

    Parameters
    ----------
    store : Store
    entries : sequence of Entry
    per_item : int
        How many annotators an item needs.

    Returns
    -------
    list of Event
        An entry that was stored before, with the same uuid, gives the event of then.

    Raises
    ------
    InputError
        When an item was never issued, or a uuid was used for something else.
    """
    with store.transaction():
        events = [_append_one(store, entry) for entry in entries]
        settle(store, per_item)
        failpoint("label_written")
    failpoint("label_committed")
    return events


def undo(store: Store, annotator: str, uuid: str | None, per_item: int) -> Event | None:
    """Take back the annotator's last word that still counts; None when there is none.

    Returns
    -------
    Event or None
        The undo. With a uuid that was used before, the undo of then.
    """
    with store.transaction():
        before = known(store, uuid)
        if before is not None:
            return _same(before, Entry("undo", before.item, annotator, uuid=uuid))
        found = store.execute(LAST_WORD, (annotator,))
        if not found:
            return None
        last = Event(*found[0])
        entry = Entry("undo", last.item, annotator, uuid=uuid)
        event = _append_one(store, entry, undoes=last.seq)
        settle(store, per_item)
        failpoint("label_written")
    failpoint("label_committed")
    return event


def known(store: Store, uuid: str | None) -> Event | None:
    """Return the event that a client sent with this uuid; None when there is none."""
    found = store.execute(BY_UUID, (uuid,))
    return Event(*found[0]) if found else None


def settle(store: Store, per_item: int) -> None:
    """Move rounds between issued and labelled, as what was said makes it; in a transaction."""
    for before, after, complete in (("issued", "labelled", 1), ("labelled", "issued", 0)):
        values = {"before": before, "after": after, "complete": complete, "per_item": per_item}
        store.execute(SETTLE, {**values, "now": now()})


def events(store: Store, after: int = 0) -> list[Event]:
    """Return the events behind a sequence number, each as it was written.

    Raises
    ------
    CampaignCorruptError
        When an event is missing or is not the one that was written.
    """
    statement = f"SELECT {COLUMNS}, crc FROM event WHERE seq > ? ORDER BY seq"  # noqa: S608
    found = []
    for expected, (*row, crc) in enumerate(store.execute(statement, (after,)), start=after + 1):
        if row[0] != expected:
            raise store.corrupt(f"event {expected} is missing")
        if checksum(*row) != crc:
            raise store.corrupt(f"event {expected} is not the one that was written")
        found.append(Event(*row))
    return found


def standing(history: Iterable[Event]) -> list[Event]:
    """Return the last word of each annotator on each item, in the order of speaking.

    The same as the view `word` of the store, from checked events.
    """
    history = list(history)
    undone = {event.undoes for event in history if event.undoes is not None}
    words: dict[tuple[str, str], Event] = {}
    for event in history:
        if event.kind != "undo" and event.seq not in undone:
            words[event.item, event.annotator] = event
    return sorted(words.values(), key=lambda event: event.seq)


def last_seq(store: Store) -> int:
    """Return the number of the newest event, 0 when there is none."""
    return int(store.execute(LAST_SEQ)[0][0])


def _append_one(store: Store, entry: Entry, undoes: int | None = None) -> Event:
    before = known(store, entry.uuid)
    if before is not None:
        return _same(before, entry)
    ((in_round,),) = store.execute(ROUND_OF, (entry.item,))
    if in_round is None:
        raise InputError(
            f"Item {entry.item!r:.60} was never issued in this campaign, so it can take no label. "
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


def _same(stored: Event, entry: Entry) -> Event:
    """Return the stored event of a uuid, when it says what the entry says."""
    said = (stored.kind, stored.item, stored.annotator, stored.answer, stored.note)
    if said != (entry.kind, entry.item, entry.annotator, entry.answer, entry.note):
        raise InputError(
            f"The uuid {entry.uuid!r:.60} was used before, for {said[0]!r} of item {said[1]!r} by "
            f"{said[2]!r:.40}. Give every entry a uuid of its own: uuid.uuid4().hex."
        )
    return stored
