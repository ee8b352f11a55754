"""Answers of annotators: checked against the task, and resolved where annotators differ."""

import json
import re
import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from starlearn.campaign.events import Event
from starlearn.campaign.items import SURROGATE, composed
from starlearn.errors import InputError, worded

RESOLUTIONS = ("majority", "latest", "unanimous")
"""How the answers of several annotators to one item become one label.

majority: the most frequent answer; of equally frequent answers, the latest one.
latest: the latest answer.
unanimous: an item on which annotators differ has no label."""

LONGEST_ANSWER = 1_000_000

CONTROL = re.compile("[\x80-\x9f]")
"""The control characters C1. No keyboard types them."""


def choices_of(settings: str) -> list[str] | None:
    """Return the task's closed set of answers from a learner's settings; None for free form."""
    found = json.loads(settings)["task"].get("choices")
    # Settings of an earlier version can hold a choice in two Unicode forms.
    return None if found is None else list(dict.fromkeys(composed(str(c)) for c in found))


def checked_answer(answer: Any, choices: list[str] | None, folder: str | Path = "FOLDER") -> str:
    """Return an answer as it is stored; the error names the command that adds a choice.

    The answer is stored in Unicode's form NFC, and a choice without outer spaces.
    """
    text = checked_text(answer)
    for given in (text, text.strip()):
        if choices is not None and given in choices:
            return given
    require_no_control(text)
    if choices is None:
        return text
    raise InputError(f"{outside(text, choices)} {choices_remedy(choices, folder, text.strip())}")


def checked_text(answer: Any) -> str:
    """Return an answer in form NFC; InputError unless it is a text that can be stored."""
    if answer is None or (isinstance(answer, str) and not answer.strip()):
        skip = worded(python="campaign.skip(item)", terminal="s")
        raise InputError(f"The label is empty. To skip an item: {skip}.")
    if not isinstance(answer, str):
        raise InputError(
            f"A label is text, got {type(answer).__name__} ({answer!r:.40}): 1 and '1' are two "
            "labels. Write it in quotes."
        )
    if SURROGATE.search(answer):
        raise InputError(f"The label {answer!r:.40} is not valid Unicode (lone surrogate).")
    if len(answer) > LONGEST_ANSWER:
        raise InputError(f"The label has {len(answer):,} characters; at most {LONGEST_ANSWER:,}.")
    return composed(answer)


def require_no_control(text: str) -> None:
    """Raise InputError for the control characters that a file in a wrong encoding contains."""
    found = CONTROL.search(text)
    if found is not None:
        remedy = worded(python="encoding='cp1252'", terminal="--encoding cp1252")
        raise InputError(
            f"The label {text!r:.40} has the control character U+{ord(found.group()):04X}, as in a "
            f"file of Windows that is read as latin-1. For such a file: {remedy}."
        )


def spelled_alike(text: str, choices: list[str]) -> list[str]:
    """Return the choices that differ from a text only in case, spaces or leading zeros."""
    return [choice for choice in choices if _spelling(choice) == _spelling(text)]


def outside(text: str, choices: list[str]) -> str:
    """Return the message that a label is not among the choices, with the one that is meant."""
    alike = spelled_alike(text, choices)
    close = get_close_matches(_spelling(text), [_spelling(choice) for choice in choices], n=1)
    alike = alike or [choice for choice in choices if _spelling(choice) in close]
    hint = f" Did you mean {' or '.join(map(repr, alike[:3]))}?" if alike else ""
    return f"{text!r:.60} is not among the choices.{hint}"


def choices_remedy(choices: list[str], folder: str | Path, new: str = "CHOICE") -> str:
    """Return the choices, and the call or command that adds one."""
    new = new if len(new) <= 60 else "CHOICE"
    more = " and more" if len(choices) > 8 else ""
    add = worded(
        python=f"campaign.add_choice({new!r})",
        terminal=shlex.join(["starlearn", "add-choice", str(folder), new]),
    )
    return f"The choices are {', '.join(map(repr, choices[:8]))}{more}. To add one: {add}."


def checked_name(annotator: Any) -> str:
    """Return the name of an annotator in form NFC; InputError unless it is short and printable."""
    usable = isinstance(annotator, str) and annotator.strip() and annotator.isprintable()
    if not usable or len(annotator) > 100:
        raise InputError(
            f"annotator must be a name of 1 to 100 printable characters, got {annotator!r:.40}."
        )
    return composed(annotator.strip())


def resolved(responses: Iterable[Event], resolution: str) -> dict[str, str]:
    """Return one answer per labelled item, in the order of the latest answers.

    `responses` are the current response of each annotator to each item, oldest first. Skips and
    flags hold no answer.
    """
    votes: dict[str, list[str]] = {}
    for event in responses:
        if event.answer is not None:
            given = votes.pop(event.item, [])  # so that items are ordered by their latest answer
            votes[event.item] = [*given, event.answer]
    if resolution == "unanimous":
        return {item: given[-1] for item, given in votes.items() if len(set(given)) == 1}
    if resolution == "latest":
        return {item: given[-1] for item, given in votes.items()}
    # Of equally frequent answers, `max` returns the first one, which is the latest.
    return {item: max(reversed(given), key=given.count) for item, given in votes.items()}


def _spelling(text: str) -> str:
    """Return a text without what spreadsheets and people change."""
    bare = " ".join(composed(text.casefold()).split())
    return bare.lstrip("0") or "0" if bare.isdecimal() else bare
