"""What state a campaign is in, what came of each round, and what to type next."""

import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlearn.campaign import events, rounds
from starlearn.campaign.events import Event
from starlearn.campaign.paths import Place
from starlearn.campaign.responses import resolved
from starlearn.campaign.rounds import Round
from starlearn.campaign.store import Store
from starlearn.storage.lock import holder


@dataclass(frozen=True)
class Status:
    """A campaign at a glance; ``dataclasses.asdict`` makes it ready for JSON."""

    folder: str
    campaign: str
    """Its id."""
    n_items: int
    """m, different items in the pool."""
    n_duplicates: int
    n_labelled: int
    """Items with a label, by the campaign's rule where annotators differ."""
    round: int | None
    state: str | None
    """Of the newest round; None before the first."""
    batch: int
    """Items in its batch."""
    done: int
    """Of these, items on which enough annotators had their say."""
    skipped: int
    flagged: int
    """Items of the whole campaign on which an annotator's last word is a skip or a flag."""
    annotators: dict[str, int]
    """Items on which each had their say."""
    adapter: str | None
    """The adapter of the newest published round."""
    error: str | None
    """Why the newest round failed."""
    holder: str | None
    """The process that works on the campaign now."""
    next: str
    """What to type next."""


@dataclass(frozen=True)
class RoundRecord:
    """What came of one round; ``dataclasses.asdict`` makes it ready for JSON."""

    round: int
    state: str
    n_instances: int
    n_answered: int
    """Items of its batch that have a label."""
    n_labels: int | None
    """Labels of the whole campaign that its adapter was trained on."""
    adapter: str | None
    mean_score: float | None
    query_seconds: float | None
    teach_seconds: float | None
    train_loss: float | None
    label_seconds: float | None
    """What annotators spent on its batch, where the client tells."""
    error: str | None
    began: str
    changed: str


def status_of(
    place: Place, store: Store, options: dict[str, Any], facts: dict[str, Any], campaign: str
) -> Status:
    """Look at everything, and change nothing."""
    words = events.standing(events.events(store))
    last = rounds.current(store)
    batch = rounds.batch_of(store, last.id) if last else []
    said = Counter(event.item for event in words)
    done = sum(said[issued.item] >= options["per_item"] for issued in batch)
    published = [found for found in rounds.rounds(store) if found.state == "published"]
    held_by = holder(place.lock)
    labelled = resolved(words, options["resolution"])
    left = facts["n_items"] - facts["n_known"] - len(said)
    return Status(
        folder=str(place.folder),
        campaign=campaign,
        n_items=facts["n_items"],
        n_duplicates=facts["n_rows"] - facts["n_items"],
        n_labelled=len(labelled),
        round=last.id if last else None,
        state=last.state if last else None,
        batch=len(batch),
        done=done,
        skipped=len({event.item for event in words if event.kind == "skip"}),
        flagged=len({event.item for event in words if event.kind == "flag"}),
        annotators=dict(Counter(event.annotator for event in words)),
        adapter=published[-1].adapter if published else None,
        error=last.error if last else None,
        holder=str(held_by) if held_by else None,
        next=next_command(place.folder, last, len(batch), left, len(labelled)),
    )


def next_command(folder: Path, last: Round | None, batch: int, left: int, n_labelled: int) -> str:
    """Say what to type next, in the state that the campaign is in."""
    campaign = shlex.quote(str(folder))
    if last is not None and last.state == "issued":
        return f"starlearn label {campaign}"
    if last is not None and last.state == "labelled" and n_labelled:
        return f"starlearn teach {campaign}"
    if last is not None and last.state in ("scoring", "training"):
        return f"starlearn resume {campaign}"
    if last is not None and last.state == "failed":
        verb = f"teach {campaign}" if batch else f"query {campaign} -n {last.n}{_engine(last)}"
        return f"starlearn {verb}"
    if left == 0:
        return f"starlearn report {campaign}"
    return f"starlearn query {campaign} -n {min(last.n if last and last.n else 50, left)}"


def _engine(last: Round) -> str:
    """Return the options of the engine that scoring began with: it has finished chunks."""
    settings = last.record.get("engine")
    if settings is None:
        return ""
    given = {name: settings[name] for name in ("workers", "gpus", "address") if settings[name]}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return " " + shlex.join(["--engine", "ray", *words])


def history_of(store: Store, resolution: str) -> list[RoundRecord]:
    """Return what came of each round, oldest first."""
    log = events.events(store)
    answered = resolved(events.standing(log), resolution)
    return [
        RoundRecord(
            round=found.id,
            state=found.state,
            n_instances=found.n,
            n_answered=sum(i.item in answered for i in rounds.batch_of(store, found.id)),
            n_labels=found.record.get("n_labels"),
            adapter=found.adapter,
            mean_score=found.record.get("mean_score"),
            query_seconds=found.record.get("query_seconds"),
            teach_seconds=found.record.get("teach_seconds"),
            train_loss=found.record.get("train_loss"),
            label_seconds=_label_seconds(log, found.id),
            error=found.error,
            began=found.began,
            changed=found.changed,
        )
        for found in rounds.rounds(store)
    ]


def _label_seconds(log: list[Event], round_id: int) -> float | None:
    spent = [event.ms for event in log if event.round == round_id and event.ms is not None]
    return sum(spent) / 1000 if spent else None
