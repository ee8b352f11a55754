"""What terminal and page share: what may be typed, a word stored, a word taken back."""

from dataclasses import dataclass

from starlearn.campaign import events, rounds
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.events import Event
from starlearn.errors import InputError

MOST_KEYS = 9


@dataclass(frozen=True)
class Said:
    """What an annotator said, understood."""

    kind: str
    """label, or a command: undo, skip, flag; in the terminal also quit and help."""
    text: str | None = None
    """The answer of a label, the note of a flag."""


def shortcuts(choices: list[str]) -> dict[str, str]:
    """Return what may be typed for each choice: its number, or the choice where it is a number.

    Examples
    --------
    >>> shortcuts(["no", "yes"])
    {'1': 'no', '2': 'yes'}
    >>> shortcuts(["0", "1"])  # 1 must never stand for "0"
    {'0': '0', '1': '1'}
    """
    if any(choice.strip().isdecimal() for choice in choices):
        return {choice: choice for choice in choices}
    return {str(number): choice for number, choice in enumerate(choices, start=1)}


def by_key(choices: list[str] | None) -> bool:
    """Tell whether one key is enough for every choice."""
    if choices is None or len(choices) > MOST_KEYS:
        return False
    return all(len(typed) == 1 for typed in shortcuts(choices))


def open_batch(campaign: Campaign) -> list[BatchItem]:
    """Return the newest batch while it can be labelled; nothing once its round has ended."""
    newest = rounds.current(campaign.store)
    ended = newest is None or newest.state in ("scoring", "published")
    return [] if ended else campaign.batch()


def require_batch(campaign: Campaign) -> None:
    """Tell before the first key, not after it, that nobody can label now.

    Raises
    ------
    InputError
        When there is no batch.
    CampaignLockedError
        When another process trains or queries.
    """
    if not open_batch(campaign):
        raise InputError(f"There is no batch to label now. Type: {campaign.status().next}")
    with campaign.holding("label"):
        pass


def store(
    campaign: Campaign,
    item: str | BatchItem,
    said: Said,
    annotator: str,
    *,
    ms: int | None = None,
    uuid: str | None = None,
) -> Event:
    """Store a label, a skip or a flag; when this returns, it is on the disk."""
    if said.kind == "label":
        return campaign.label(item, str(said.text), annotator, ms=ms, uuid=uuid)
    if said.kind == "skip":
        return campaign.skip(item, annotator, uuid=uuid)
    return campaign.flag(item, annotator, note=said.text or None, uuid=uuid)


def last_word(campaign: Campaign, annotator: str) -> Event | None:
    """Return the annotator's last word that counts; None where it is not about the open batch."""
    return last_of(events.events(campaign.store), open_batch(campaign), annotator)


def last_of(log: list[Event], batch: list[BatchItem], annotator: str) -> Event | None:
    """Return the annotator's last word that counts, from all events; None if not about a batch."""
    mine = [word for word in events.standing(log) if word.annotator == annotator]
    return mine[-1] if mine and mine[-1].item in {item.id for item in batch} else None


def take_back(campaign: Campaign, annotator: str, uuid: str | None = None) -> Event | None:
    """Take back the annotator's last word about the open batch, and return that word."""
    word = last_word(campaign, annotator)
    if word is not None:
        campaign.undo(annotator, uuid=uuid)
    return word
