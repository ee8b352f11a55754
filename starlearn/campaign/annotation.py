"""Labelling actions that the terminal and the web page share."""

from dataclasses import dataclass

from starlearn.campaign import events, rounds
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.events import Event
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
    newest = rounds.current(campaign.store)
    ended = newest is None or newest.state in ("scoring", "published")
    return [] if ended else campaign.batch()


def end_of_batch(campaign: Campaign, item: str) -> str | None:
    """Return how the batch of an issued item has ended; None while it can be labelled."""
    newest, own = rounds.current(campaign.store), rounds.last_round_of(campaign.store, item)
    if newest is None or own is None:
        return None
    if own.id != newest.id:
        return f"The batch of round {own.id} has ended, because round {newest.id} has begun."
    if own.state == "published":
        return (
            f"The batch of round {own.id} has ended: the adapter was trained while this item was "
            "open. If nobody has responded to it, a later query can choose it again."
        )
    return None


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
    """Store a label, a skip or a flag; it is on the disk when the call returns.

    Raise InputError when the item's batch has ended.
    """
    key = item.id if isinstance(item, BatchItem) else item
    with campaign.holding("label"):
        if (end := end_of_batch(campaign, key)) is not None:
            raise InputError(f"{end} This was not saved.")
        if action.kind == "label":
            return campaign.label(item, str(action.text), annotator, ms=ms, uuid=uuid)
        if action.kind == "skip":
            return campaign.skip(item, annotator, uuid=uuid)
        return campaign.flag(item, annotator, note=action.text or None, uuid=uuid)


def last_response(log: list[Event], batch: list[BatchItem], annotator: str) -> Event | None:
    """Return the annotator's last response that counts; None unless it is to a batch item."""
    mine = [event for event in events.current_responses(log) if event.annotator == annotator]
    return mine[-1] if mine and mine[-1].item in {item.id for item in batch} else None


def undo_last(campaign: Campaign, annotator: str) -> Event | None:
    """Undo the annotator's last response to the open batch, and return that response."""
    response = last_response(events.events(campaign.store), open_batch(campaign), annotator)
    if response is not None:
        campaign.undo(annotator)
    return response
