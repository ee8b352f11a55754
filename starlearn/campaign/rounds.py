"""Rounds in the label store: the state of each, its batch, and its adapter."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlearn.campaign.event_log import EventLog
from starlearn.campaign.integrity import checksum
from starlearn.campaign.schema import ISSUED, ROUND, seal_batch, seal_round
from starlearn.campaign.store import Store, now

STATES = ("scoring", "issued", "labelled", "training", "published", "failed")


@dataclass(frozen=True)
class Round:
    """One round: a batch, its labels, and the adapter trained on them."""

    id: int
    """1, 2, 3, ...; round 0 is the trained learner that a campaign began with, if any."""
    state: str
    n: int
    """Requested size of the batch."""
    seen: int
    """The newest event when scoring began. Items with a response by then are not scored."""
    params: dict[str, Any]
    """Seed, adapter and settings, which determine the batch."""
    attempt: int
    """Number of trainings that were started."""
    taught: int | None
    """The newest event before the last training."""
    adapter: str | None
    manifest: str | None
    """SHA-256 of the adapter's manifest."""
    record: dict[str, Any]
    """Measurements of scoring and training."""
    error: str | None
    began: str
    changed: str
    batch: int
    """Checksum of its issued items."""


@dataclass(frozen=True)
class Issued:
    """One item of a batch, with its score and the reason for its choice."""

    item: str
    content: str
    place: int
    """Rank in the batch; the label of item 0 is worth most."""
    score: float | None
    reason: str


SELECT = f"SELECT {ROUND}, crc FROM round"  # noqa: S608 - names of our own


def rounds(store: Store) -> list[Round]:
    """Return all rounds, oldest first."""
    return [_round(store, row) for row in store.execute(f"{SELECT} ORDER BY id")]


def published(store: Store) -> list[Round]:
    """Return the rounds whose adapter is published, oldest first."""
    return [found for found in rounds(store) if found.state == "published"]


def newest_published(store: Store) -> Round | None:
    """Return the newest round whose adapter is published; None before the first."""
    found = store.execute(f"{SELECT} WHERE state = 'published' ORDER BY id DESC LIMIT 1")
    return _round(store, found[0]) if found else None


def current(store: Store) -> Round | None:
    """Return the newest round; None before the first."""
    found = store.execute(f"{SELECT} ORDER BY id DESC LIMIT 1")
    return _round(store, found[0]) if found else None


def begin(store: Store, n: int, params: dict[str, Any]) -> Round:
    """Add a round in the state scoring, and return it."""
    with store.transaction():
        last = current(store)
        round_id = last.id + 1 if last else 1
        store.execute(
            "INSERT INTO round (id, state, n, seen, params, began, changed) "
            "VALUES (?, 'scoring', ?, (SELECT coalesce(max(seq), 0) FROM event), ?, ?, ?)",
            (round_id, n, json.dumps(params), now(), now()),
        )
        _seal(store, round_id, with_batch=True)
    return rounds(store)[-1]


def add_first(store: Store, adapter: str, manifest: str, n_labels: int) -> None:
    """Add round 0, the adapter that the campaign begins with; call it inside a transaction."""
    store.execute(
        "INSERT INTO round (id, state, n, seen, params, attempt, taught, adapter, manifest, "
        "record, began, changed) VALUES (0, 'published', 0, 0, '{}', 1, 0, ?, ?, ?, ?, ?)",
        (adapter, manifest, json.dumps({"n_labels": n_labels}), now(), now()),
    )
    _seal(store, 0, with_batch=True)


def change(store: Store, round_id: int, **values: Any) -> None:
    """Write columns of a round in one transaction."""
    with store.transaction():
        _write(store, round_id, values)


def _write(store: Store, round_id: int, values: dict[str, Any]) -> None:
    _of_id(store, round_id)  # a damaged row must not get a new checksum
    values |= {key: json.dumps(values[key]) for key in ("record", "params") if key in values}
    columns = ", ".join(f"{name} = :{name}" for name in values)
    store.execute(
        f"UPDATE round SET {columns}, changed = :now WHERE id = :id",  # noqa: S608 - our own names
        {**values, "now": now(), "id": round_id},
    )
    _seal(store, round_id)


def _seal(store: Store, round_id: int, with_batch: bool = False) -> None:
    """Write the checksum of a changed round, and read the round back."""
    if with_batch:
        seal_batch(store.execute, round_id)
    seal_round(store.execute, round_id)
    _of_id(store, round_id)


def _of_id(store: Store, round_id: int) -> Round:
    found = store.execute(f"{SELECT} WHERE id = ?", (round_id,))
    if not found:
        raise store.corrupt(f"round {round_id} is missing")
    return _round(store, found[0])


def update_states(store: Store, log: EventLog, per_item: int) -> None:
    """Move rounds between the states issued and labelled; call it inside a transaction.

    A round is labelled when each of its items has responses of enough annotators.
    """
    states = "SELECT id, state FROM round WHERE state IN ('issued', 'labelled')"
    for round_id, state in store.execute(states):
        complete = issued_by_id(store, round_id).keys() <= log.items_with(per_item)
        if complete != (state == "labelled"):
            _write(store, round_id, {"state": "labelled" if complete else "issued"})


def issue(store: Store, round_id: int, batch: Sequence[Issued], record: dict[str, Any]) -> None:
    """Issue a batch in one transaction: all of its items, or none."""
    with store.transaction():
        for issued in batch:
            store.execute(
                "INSERT INTO item VALUES (?, ?, ?) ON CONFLICT (id) DO NOTHING",
                (issued.item, issued.content, checksum(issued.item, issued.content)),
            )
            store.execute(
                "INSERT INTO issued VALUES (?, ?, ?, ?, ?)",
                (round_id, issued.item, issued.place, issued.score, issued.reason),
            )
        stored = store.execute(ISSUED, (round_id,))
        if sorted(stored) != sorted((i.item, i.place, i.score, i.reason) for i in batch):
            raise store.differs(f"the batch of round {round_id}")
        _write(store, round_id, {"state": "issued", "record": record, "error": None})
        _seal(store, round_id, with_batch=True)


def batch_of(store: Store, round_id: int) -> list[Issued]:
    """Return the batch of a round, most valuable label first."""
    return list(issued_by_id(store, round_id).values())


def issued_by_id(store: Store, round_id: int) -> Mapping[str, Issued]:
    """Return the batch of a round by the items' ids, most valuable label first.

    A batch never changes once it is issued, so each is read and verified once.
    """
    with store.mutex:
        found = store.execute("SELECT batch FROM round WHERE id = ?", (round_id,))
        if not found:
            return {}
        ((expected,),) = found
        kept: dict[int, tuple[int, dict[str, Issued]]] = store.kept.setdefault("batches", {})
        if round_id not in kept or kept[round_id][0] != expected:
            kept[round_id] = expected, _read_batch(store, round_id, expected)
        return kept[round_id][1]


def _read_batch(store: Store, round_id: int, expected: int) -> dict[str, Issued]:
    rows = store.execute(ISSUED, (round_id,))
    if checksum(*rows) != expected:
        raise store.corrupt(f"the batch of round {round_id} is not the one that was issued")
    items = store.execute(
        "SELECT id, content, crc FROM item WHERE id IN (SELECT item FROM issued WHERE round = ?)",
        (round_id,),
    )
    known = _verified(store, items)
    return {item: Issued(item, known[item], *why) for item, *why in rows}


def last_round_of(store: Store, item: str) -> Round | None:
    """Return the latest round in which an item was issued; None where it never was."""
    where = "WHERE id = (SELECT max(round) FROM issued WHERE item = ?)"
    found = store.execute(f"{SELECT} {where}", (item,))
    return _round(store, found[0]) if found else None


def contents(store: Store) -> dict[str, str]:
    """Return the content of every issued item by its id, verified by its checksum."""
    return _verified(store, store.execute("SELECT id, content, crc FROM item"))


def _verified(store: Store, rows: Sequence[tuple[Any, ...]]) -> dict[str, str]:
    found = {}
    for item, content, crc in rows:
        if checksum(item, content) != crc:
            raise store.corrupt(f"item {item} is not the one that was written")
        found[item] = content
    return found


def _round(store: Store, row: tuple[Any, ...]) -> Round:
    *values, crc = row
    if checksum(*values) != crc:
        raise store.corrupt(f"round {row[0]} is not the one that was written")
    values[4], values[9] = json.loads(values[4]), json.loads(values[9])
    return Round(*values)
