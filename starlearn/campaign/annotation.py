"""Labelling actions that the terminal and the web page share."""

from collections.abc import Container, Mapping
from dataclasses import dataclass

from starlearn.campaign import events, rounds
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.event_log import Event, EventLog, log_of
from starlearn.campaign.events import Entry
from starlearn.campaign.responses import checked_answer, checked_name
from starlearn.campaign.rounds import Issued
from starlearn.errors import InputError

MAX_KEYS = 9


@dataclass(frozen=True)
class Action:
    """One parsed input of an annotator."""

    kind: str
    """label, skip, flag or undo; in the terminal also quit and help."""
    text: str | None = None
    """The answer of a label or the note of a flag."""


def shortcuts(choices: list[str]) -> dict[str, str]:
    """Return the input for each choice: its number, or the choice itself where it is a number.

    Examples
    --------
    >>> shortcuts(["no", "yes"])
    {'1': 'no', '2': 'yes'}
    >>> shortcuts(["0", "1"])  # 1 must never mean "0"
    {'0': '0', '1': '1'}
    """
    if any(choice.strip().isdecimal() for choice in choices):
        return {choice: choice for choice in choices}
    return {str(number): choice for number, choice in enumerate(choices, start=1)}


def has_single_keys(choices: list[str] | None) -> bool:
    """Whether one key is enough for every choice."""
    if choices is None or len(choices) > MAX_KEYS:
        return False
    return all(len(typed) == 1 for typed in shortcuts(choices))


def open_batch(campaign: Campaign) -> list[BatchItem]:
    """Return the newest batch while it can be labelled; empty after its round has ended."""
    return campaign.batch() if issued_now(campaign) else []


def issued_now(campaign: Campaign) -> Mapping[str, Issued]:
    """Return the items of the open batch by their ids; empty after its round has ended."""
    newest = rounds.current(campaign.store)
    ended = newest is None or newest.state in ("scoring", "published")
    return {} if ended or newest is None else rounds.issued_by_id(campaign.store, newest.id)


def require_batch(campaign: Campaign) -> None:
    """Check before the first input that there is a batch and that the lock can be taken."""
    if not open_batch(campaign):
        raise InputError(f"There is no batch to label now. Type: {campaign.status().next}")
    with campaign.holding("label"):
        pass


def store_action(
    campaign: Campaign,
    item: str | BatchItem,
    action: Action,
    annotator: str,
    *,
    ms: int | None = None,
    uuid: str | None = None,
) -> Event:
    """Store a label, a skip or a flag; it is on the disk when the call returns."""
    return campaign.record([entry_of(campaign, item, action, annotator, ms=ms, uuid=uuid)])[0]


def entry_of(
    campaign: Campaign,
    item: str | BatchItem,
    action: Action,
    annotator: str,
    *,
    ms: int | None = None,
    uuid: str | None = None,
) -> Entry:
    """Return the checked entry of a label, a skip or a flag."""
    key = item.id if isinstance(item, BatchItem) else item
    is_label = action.kind == "label"
    answer = checked_answer(action.text, campaign.choices, campaign.folder) if is_label else None
    note = action.text or None if action.kind == "flag" else None
    name = checked_name(annotator)
    return events.checked(Entry(action.kind, key, name, answer=answer, note=note, ms=ms, uuid=uuid))


def last_response(log: EventLog, batch: Container[str], annotator: str) -> Event | None:
    """Return the annotator's last response that counts; None unless it is to a batch item."""
    last = log.last_response(annotator)
    return last if last is not None and last.item in batch else None


def undo_last(campaign: Campaign, annotator: str) -> Event | None:
    """Undo the annotator's last response to the open batch, and return that response."""
    response = last_response(log_of(campaign.store), issued_now(campaign), annotator)
    if response is not None:
        campaign.undo(annotator)
    return response
