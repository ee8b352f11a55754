"""Answers of people: checked against the task at the door, and resolved where people differ."""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from starlearn.campaign.events import Event
from starlearn.campaign.items import SURROGATE
from starlearn.errors import InputError

RESOLUTIONS = ("majority", "latest", "unanimous")
"""How several annotators' answers to one item become one label.

majority: the answer that most gave; between equally many, the one that was given latest.
latest: the answer that was given latest.
unanimous: an item on which annotators differ has no label."""

LONGEST_ANSWER = 1_000_000


def choices_of(recipe: str) -> list[str] | None:
    """Return the task's closed set of answers from a learner's settings; None where any will do."""
    found = json.loads(recipe)["task"].get("choices")
    return None if found is None else [str(choice) for choice in found]


def checked_answer(answer: Any, choices: list[str] | None, folder: str | Path = "FOLDER") -> str:
    """Return an answer as it is stored.

    Parameters
    ----------
    answer : str
        One of the choices, outer spaces aside; for free-form answers any text, byte for byte.
    choices : list of str or None
    folder : path
        The campaign's, for what to type next.

    Raises
    ------
    InputError
        When it is not text, empty, or not among the choices; with the choice that it may mean.
    """
    if not isinstance(answer, str):
        raise InputError(
            f"A label is text, got {type(answer).__name__} ({answer!r:.40}): 1 and '1' are two "
            "labels. Write it in quotes; to pass over an item, use skip(item)."
        )
    if not answer.strip():
        raise InputError("The label is empty. To pass over an item, use skip(item).")
    if SURROGATE.search(answer):
        raise InputError(f"The label {answer!r:.40} is not valid Unicode (lone surrogate).")
    if len(answer) > LONGEST_ANSWER:
        raise InputError(f"The label has {len(answer):,} characters; {LONGEST_ANSWER:,} is most.")
    if choices is None or answer in choices:
        return answer
    if answer.strip() in choices:
        return answer.strip()
    new = answer.strip()
    typed = ["starlearn", "add-choice", str(folder), new if len(new) <= 60 else "CHOICE"]
    raise InputError(
        f"{answer!r:.60} is not among the choices {choices[:8]!r}"
        f"{' and more' if len(choices) > 8 else ''}.{_hint(answer, choices)} To add it: "
        f"{shlex.join(typed)}, campaign.add_choice(...)."
    )


def checked_name(annotator: Any) -> str:
    """Return the name of an annotator; InputError when it is not a short printable text."""
    usable = isinstance(annotator, str) and annotator.strip() and annotator.isprintable()
    if not usable or len(annotator) > 100:
        raise InputError(
            f"annotator must be a name of 1 to 100 printable characters, got {annotator!r:.40}."
        )
    return str(annotator.strip())


def resolved(words: Iterable[Event], resolution: str) -> dict[str, str]:
    """Return one answer for each item that has one, in the order of the latest answers.

    Parameters
    ----------
    words : iterable of Event
        The last word of each annotator on each item, oldest first. Items that an annotator
        skipped or flagged have no answer of theirs.
    resolution : {"majority", "latest", "unanimous"}
    """
    votes: dict[str, list[str]] = {}
    for event in words:
        if event.answer is not None:
            given = votes.pop(event.item, [])  # so that the order is that of the latest answer
            votes[event.item] = [*given, event.answer]
    if resolution == "unanimous":
        return {item: given[-1] for item, given in votes.items() if len(set(given)) == 1}
    if resolution == "latest":
        return {item: given[-1] for item, given in votes.items()}
    return {item: _most_given(given) for item, given in votes.items()}


def _most_given(answers: list[str]) -> str:
    counts = Counter(answers)
    return max(reversed(answers), key=lambda answer: counts[answer])


def _hint(answer: str, choices: list[str]) -> str:
    key = answer.strip().casefold()
    same: Mapping[str, str] = {choice.casefold(): choice for choice in choices}
    bare = {choice.lstrip("0"): choice for choice in choices if choice.lstrip("0") != choice}
    if key in same:
        return f" Did you mean {same[key]!r}?"
    if key in bare:
        return f" Did you mean {bare[key]!r}? A spreadsheet takes leading zeros away."
    close = get_close_matches(key, list(same), n=1)
    return f" Did you mean {same[close[0]]!r}?" if close else ""
