"""Status of a campaign, records of its rounds, and the next command."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from starlearn.campaign import events, rounds
from starlearn.campaign.event_log import Event, log_of
from starlearn.campaign.folder import CampaignFolder
from starlearn.campaign.rounds import Round
from starlearn.storage.lock import holder


@dataclass(frozen=True)
class Status:
    """Status of a campaign; ``dataclasses.asdict`` makes it ready for JSON."""

    folder: str
    campaign: str
    """Id of the campaign."""
    n_items: int
    """Number of different items in the pool, m."""
    n_duplicates: int
    n_labelled: int
    """Items with a label under the campaign's resolution."""
    round: int | None
    state: str | None
    """State of the newest round; None before the first."""
    batch: int
    """Number of items in its batch."""
    done: int
    """Items of the batch with enough responses."""
    skipped: int
    flagged: int
    """Items of the whole campaign that an annotator currently skips or flags."""
    annotators: dict[str, int]
    """Number of items with a response, by annotator."""
    adapter: str | None
    """Adapter of the newest published round."""
    error: str | None
    """Why the newest round failed."""
    holder: str | None
    """The process that holds the campaign now."""
    next: str
    """The next command."""


@dataclass(frozen=True)
class RoundRecord:
    """Record of one round; ``dataclasses.asdict`` makes it ready for JSON."""

    round: int
    state: str
    n_instances: int
    n_answered: int
    """Items of its batch with a label."""
    n_labels: int | None
    """Labels of the whole campaign that its adapter was trained on."""
    adapter: str | None
    mean_score: float | None
    query_seconds: float | None
    teach_seconds: float | None
    train_loss: float | None
    label_seconds: float | None
    """Time that annotators spent on its batch, if known."""
    error: str | None
    began: str
    changed: str


MEASUREMENTS = ("n_labels", "mean_score", "query_seconds", "teach_seconds", "train_loss")


def status_of(campaign: CampaignFolder) -> Status:
    """Return the status of a campaign."""
    store, options, facts = campaign.store, campaign.options, campaign.pool_facts
    with store.mutex:
        log = log_of(store)
        last = rounds.current(store)
        batch = rounds.issued_by_id(store, last.id) if last else {}
        done = len(batch.keys() & log.items_with(options["per_item"]))
        published = campaign.published()
        n_labelled = log.n_labelled(options["resolution"])
        left = facts["n_items"] - facts["n_known"] - len(log.by_item)
        skipped, flagged = log.n_items("skip"), log.n_items("flag")
        annotators = log.items_per_annotator()
    held_by = holder(campaign.paths.lock, campaign.folder)
    return Status(
        folder=str(campaign.folder),
        campaign=campaign.id,
        n_items=facts["n_items"],
        n_duplicates=facts["n_rows"] - facts["n_items"],
        n_labelled=n_labelled,
        round=last.id if last else None,
        state=last.state if last else None,
        batch=len(batch),
        done=done,
        skipped=skipped,
        flagged=flagged,
        annotators=annotators,
        adapter=published.adapter if published else None,
        error=last.error if last else None,
        holder=str(held_by) if held_by else None,
        next=next_command(campaign.folder, last, len(batch), left, n_labelled),
    )


def next_command(folder: Path, last: Round | None, batch: int, left: int, n_labelled: int) -> str:
    """Return the next command in the campaign's state."""
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
    """Return the options of the engine that scoring began with: its finished chunks are kept."""
    settings = last.record.get("engine")
    if settings is None:
        return ""
    given = {name: settings[name] for name in ("workers", "gpus", "address") if settings[name]}
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return " " + shlex.join(["--engine", "ray", *options])


def history_of(campaign: CampaignFolder) -> list[RoundRecord]:
    """Return a record of each round, oldest first."""
    store, log = campaign.store, events.events(campaign.store)
    answered = campaign.labels()
    return [
        RoundRecord(
            round=found.id,
            state=found.state,
            n_instances=found.n,
            n_answered=sum(i.item in answered for i in rounds.batch_of(store, found.id)),
            adapter=found.adapter,
            **{name: found.record.get(name) for name in MEASUREMENTS},
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
