"""Rounds in the label store: the state of each, its batch, and its adapter."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlearn.campaign.events import last_seq, now
from starlearn.campaign.store import Store, checksum

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


@dataclass(frozen=True)
class Issued:
    """One item of a batch, with its score and the reason for its choice."""

    item: str
    content: str
    place: int
    """Rank in the batch; the label of item 0 is worth most."""
    score: float | None
    reason: str


SELECT = (
    "SELECT id, state, n, seen, params, attempt, taught, adapter, manifest, record, error, began, "
    "changed FROM round"
)


def rounds(store: Store) -> list[Round]:
    """Return all rounds, oldest first."""
    return [_round(store, row) for row in store.execute(f"{SELECT} ORDER BY id")]


def published(store: Store) -> list[Round]:
    """Return the rounds whose adapter is published, oldest first."""
    return [found for found in rounds(store) if found.state == "published"]


def current(store: Store) -> Round | None:
    """Return the newest round; None before the first."""
    found = store.execute(f"{SELECT} ORDER BY id DESC LIMIT 1")
    return _round(store, found[0]) if found else None


def begin(store: Store, n: int, params: dict[str, Any]) -> Round:
    """Add a round in the state scoring, and return it."""
    with store.transaction():
        last = current(store)
        values = (last.id + 1 if last else 1, n, last_seq(store), json.dumps(params), now(), now())
        store.execute(
            "INSERT INTO round (id, state, n, seen, params, began, changed) "
            "VALUES (?, 'scoring', ?, ?, ?, ?, ?)",
            values,
        )
    return rounds(store)[-1]


def add_first(store: Store, adapter: str, manifest: str, n_labels: int) -> None:
    """Add round 0, the adapter that the campaign begins with; call it inside a transaction."""
    store.execute(
        "INSERT INTO round (id, state, n, seen, params, attempt, taught, adapter, manifest, "
        "record, began, changed) VALUES (0, 'published', 0, 0, '{}', 1, 0, ?, ?, ?, ?, ?)",
        (adapter, manifest, json.dumps({"n_labels": n_labels}), now(), now()),
    )


def change(store: Store, round_id: int, **values: Any) -> None:
    """Write columns of a round in one transaction."""
    with store.transaction():
        _write(store, round_id, values)


def _write(store: Store, round_id: int, values: dict[str, Any]) -> None:
    values |= {key: json.dumps(values[key]) for key in ("record", "params") if key in values}
    columns = ", ".join(f"{name} = :{name}" for name in values)
    store.execute(
        f"UPDATE round SET {columns}, changed = :now WHERE id = :id",  # noqa: S608 - our own names
        {**values, "now": now(), "id": round_id},
    )


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
        _write(store, round_id, {"state": "issued", "record": record, "error": None})


def batch_of(store: Store, round_id: int) -> list[Issued]:
    """Return the batch of a round, most valuable label first."""
    rows = store.execute(
        "SELECT item, place, score, reason FROM issued WHERE round = ? ORDER BY place", (round_id,)
    )
    if not rows:
        return []
    known = contents(store)
    return [Issued(item, known[item], *why) for item, *why in rows]


def last_round_of(store: Store, item: str) -> Round | None:
    """Return the latest round in which an item was issued; None where it never was."""
    where = "WHERE id = (SELECT max(round) FROM issued WHERE item = ?)"
    found = store.execute(f"{SELECT} {where}", (item,))
    return _round(store, found[0]) if found else None


def contents(store: Store) -> dict[str, str]:
    """Return the content of every issued item by its id, verified by its checksum."""
    found = {}
    for item, content, crc in store.execute("SELECT id, content, crc FROM item"):
        if checksum(item, content) != crc:
            raise store.corrupt(f"item {item} is not the one that was written")
        found[item] = content
    return found


def _round(store: Store, row: tuple[Any, ...]) -> Round:
    values = list(row)
    try:
        values[4], values[9] = json.loads(values[4]), json.loads(values[9])
    except ValueError as error:
        raise store.corrupt(f"round {row[0]} is not the one that was written") from error
    return Round(*values)
