"""Answers of annotators: checked against the task, and resolved where annotators differ."""

import json
import shlex
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from starlearn.campaign.events import Event
from starlearn.campaign.items import SURROGATE, composed
from starlearn.errors import InputError

RESOLUTIONS = ("majority", "latest", "unanimous")
"""How the answers of several annotators to one item become one label.

majority: the most frequent answer; of equally frequent answers, the latest one.
latest: the latest answer.
unanimous: an item on which annotators differ has no label."""

LONGEST_ANSWER = 1_000_000


def choices_of(settings: str) -> list[str] | None:
    """Return the task's closed set of answers from a learner's settings; None for free form."""
    found = json.loads(settings)["task"].get("choices")
    # Settings of an earlier version can hold a choice in two Unicode forms.
    return None if found is None else list(dict.fromkeys(composed(str(c)) for c in found))


def checked_answer(answer: Any, choices: list[str] | None, folder: str | Path = "FOLDER") -> str:
    """Return an answer as it is stored; the error names the command that adds a choice.

    The answer is stored in Unicode's form NFC, and a choice without outer spaces.
    """
    if not isinstance(answer, str):
        raise InputError(
            f"A label is text, got {type(answer).__name__} ({answer!r:.40}): 1 and '1' are two "
            "labels. Write it in quotes. To skip an item, use skip(item)."
        )
    if not answer.strip():
        raise InputError("The label is empty. To skip an item, use skip(item).")
    if SURROGATE.search(answer):
        raise InputError(f"The label {answer!r:.40} is not valid Unicode (lone surrogate).")
    if len(answer) > LONGEST_ANSWER:
        raise InputError(f"The label has {len(answer):,} characters; at most {LONGEST_ANSWER:,}.")
    answer = composed(answer)
    if choices is None or answer in choices:
        return answer
    new = answer.strip()
    if new in choices:
        return new
    command = ["starlearn", "add-choice", str(folder), new if len(new) <= 60 else "CHOICE"]
    raise InputError(
        f"{answer!r:.60} is not among the choices {choices[:8]!r}"
        f"{' and more' if len(choices) > 8 else ''}.{_hint(answer, choices)} To add it: "
        f"{shlex.join(command)}, campaign.add_choice(...)."
    )


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


def _hint(answer: str, choices: list[str]) -> str:
    key = answer.strip().casefold()
    same: Mapping[str, str] = {choice.casefold(): choice for choice in choices}
    bare = {choice.lstrip("0"): choice for choice in choices if choice.lstrip("0") != choice}
    if key in same:
        return f" Did you mean {same[key]!r}?"
    if key in bare:
        return f" Did you mean {bare[key]!r}? Spreadsheets remove leading zeros."
    close = get_close_matches(key, list(same), n=1)
    return f" Did you mean {same[close[0]]!r}?" if close else ""
