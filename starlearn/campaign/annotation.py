"""Labelling actions that the terminal and the web page share."""

import re
import unicodedata
from collections.abc import Container, Mapping
from dataclasses import dataclass

from starlearn.campaign import events, rounds
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.event_log import Event, EventLog, log_of
from starlearn.campaign.events import Entry
from starlearn.campaign.responses import checked_answer, checked_name
from starlearn.campaign.rounds import Issued
from starlearn.errors import InputError

NUMBER = re.compile(r"(?:(?<!\w)[+\-\u2212])?\d+(?:\s*[\-\u2013\u2014]\s*\d+|[.,:/\u2044]\d+)*")
"""A number as people read it: -1, 1.5, 1/2 and the range 1-3 are one number each."""


@dataclass(frozen=True)
class Action:
    """One parsed input of an annotator."""

    kind: str
    """label, skip, flag or undo; in the terminal also quit and help."""
    text: str | None = None
    """The answer of a label or the note of a flag."""


def whole_number(text: str) -> str | None:
    """Return a text of digits of any script as ASCII digits without leading zeros, else None.

    Examples
    --------
    >>> whole_number("07"), whole_number("\u0663"), whole_number("7 days")
    ('7', '3', None)
    """
    if not text.isdecimal():
        return None
    return "".join(str(unicodedata.decimal(digit)) for digit in text).lstrip("0") or "0"


def leading_number(choice: str) -> str | None:
    """Return the whole number that a choice begins with, after an opening bracket at most.

    Examples
    --------
    >>> leading_number("(2) severe"), leading_number("2.5 mg"), leading_number("level 2")
    ('2', None, None)
    """
    text = unicodedata.normalize("NFKC", choice)
    found = NUMBER.search(text)
    if found is None or any(c.isalnum() for c in text[: found.start()]):
        return None
    return whole_number(found.group())


def shortcuts(choices: list[str]) -> dict[str, str]:
    """Return the number to type for each choice; empty where a number could mean another choice.

    Without a number in the choices, a choice's number is its place. Otherwise it is the number
    that the choice begins with, or its only number. All choices must then have one.

    Examples
    --------
    >>> shortcuts(["no", "yes"])
    {'1': 'no', '2': 'yes'}
    >>> shortcuts(["0: none", "1: mild"])  # 1 must never mean "0: none"
    {'0': '0: none', '1': '1: mild'}
    >>> shortcuts(["1-3 days", "4-6 days"])
    {}
    """
    if not any(_has_number(choice) for choice in choices):
        return {str(number): choice for number, choice in enumerate(choices, start=1)}
    numbers = [_own_number(choice) for choice in choices]
    if None in numbers or len(set(numbers)) < len(numbers):
        return {}
    return {str(number): choice for number, choice in zip(numbers, choices, strict=True)}


def has_single_keys(choices: list[str] | None) -> bool:
    """Whether each choice has a number of one digit, so that one key is enough."""
    typed = shortcuts(choices or [])
    return bool(typed) and all(len(number) == 1 for number in typed)


def _has_number(choice: str) -> bool:
    return any(unicodedata.category(character).startswith("N") for character in choice)


def _own_number(choice: str) -> str | None:
    first = leading_number(choice)
    found = NUMBER.findall(unicodedata.normalize("NFKC", choice))
    return whole_number(found[0]) if first is None and len(found) == 1 else first


def open_batch(campaign: Campaign) -> list[BatchItem]:
    """Return the newest batch while it can be labelled; empty after its round has ended."""
    return campaign.batch() if issued_now(campaign) else []


def issued_now(campaign: Campaign) -> Mapping[str, Issued]:
    """Return the items of the open batch by their ids; empty after its round has ended."""
    newest = rounds.current(campaign.store)
    ended = newest is None or newest.state in ("scoring", "published")
    return {} if ended or newest is None else rounds.issued_by_id(campaign.store, newest.id)


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


def store_entry(campaign: Campaign, entry: Entry) -> Event:
    """Store a label, a skip or a flag; it is on the disk when the call returns.

    Raise InputError when the item's batch has ended.
    """
    with campaign.holding("label"):
        if (end := end_of_batch(campaign, entry.item)) is not None:
            raise InputError(f"{end} This was not saved.")
        return campaign.record([entry])[0]


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
