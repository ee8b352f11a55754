"""HTML pages from templates, which escape all text and show control characters."""

import re
import unicodedata
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from starlearn.campaign.annotation import has_single_keys, shortcuts, whole_number
from starlearn.campaign.events import Event
from starlearn.campaign.web.service import AnnotatorView

HERE = Path(__file__).parent
STATIC = HERE / "static"

LEGIBLE = set("\n\t\u200c\u200d")
"""Harmless control and format characters: line breaks, tabs, and the joiners that Persian, many
Indic scripts and emoji need."""

PAST_TENSE = {"label": "saved", "skip": "skipped", "flag": "flagged"}


def shown(text: str) -> Markup:
    r"""Return escaped text in which control and bidirectional characters are spelled out.

    Examples
    --------
    >>> print(shown("<b>\x1b</b>"))
    &lt;b&gt;<span class="odd">\x1b</span>&lt;/b&gt;
    """
    parts = []
    for odd, group in groupby(text.replace("\r\n", "\n"), _is_odd):
        run = "".join(group)
        spelled = run.encode("unicode_escape").decode() if odd else run
        parts.append(
            Markup('<span class="odd">{}</span>').format(spelled) if odd else escape(spelled)
        )
    return Markup("").join(parts)


def breakable(text: str) -> Markup:
    """Return a name as `shown` that can break after its underscores."""
    return shown(text).replace("_", Markup("_<wbr>"))


@dataclass(frozen=True)
class ChoiceButton:
    """The button of one choice."""

    place: int
    """Index among the task's choices. Forms send it, because they change some texts."""
    text: str
    number: str
    """The number to type, see `shortcuts`; empty without one."""

    @property
    def spellings(self) -> list[str]:
        """The number, and its spelling in the choice, such as 07 or a digit of another script."""
        found = re.findall(r"\d+", self.text)
        same = [one for one in found if one != self.number and whole_number(one) == self.number]
        return [self.number, *same[:1]] if self.number else []

    @property
    def keys(self) -> list[str]:
        """The spellings of one digit, which are keys."""
        return [spelling for spelling in self.spellings if len(spelling) == 1]


def summary(event: Event) -> str:
    """Return an annotator's response in at most 60 characters."""
    text = event.answer if event.answer is not None else event.kind
    return text if len(text) <= 60 else f"{text[:59]}…"


def feedback(view: AnnotatorView) -> str:
    """Return the message about the annotator's newest response or undo."""
    if view.undone is not None:
        return f"Undone: {summary(view.undone)}"
    if view.newest is None or view.newest.kind == "undo":
        return ""
    if view.newest.kind == "label":
        return f"Saved: {summary(view.newest)}"
    return f"Saved: {PAST_TENSE[view.newest.kind]}"


class Pages:
    """The pages' templates."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(shown=shown, breakable=breakable, summary=summary)

    def item(self, view: AnnotatorView) -> str:
        """Return the page with an item and its choices, or the page without an item."""
        numbers = {choice: number for number, choice in shortcuts(view.choices or []).items()}
        return self._filled(
            "item.html" if view.item else "nothing.html",
            view=view,
            status=view.status,
            item=view.item,
            feedback=feedback(view),
            choices=[
                ChoiceButton(place, choice, numbers.get(choice, ""))
                for place, choice in enumerate(view.choices or [])
            ],
            single_keys=has_single_keys(view.choices),
            numbers=sorted(numbers.values()),
            draft=_draft(view),
        )

    def name(self, suggested: str, known: list[str], problem: str = "") -> str:
        """Return the page with the form for the annotator's name."""
        return self._filled("name.html", suggested=suggested, known=known, problem=problem)

    def refused(self, reason: str, form: dict[str, str], sent: str | None, retry: bool) -> str:
        """Return the page with the reason why a response was not stored, and what was sent."""
        return self._filled("refused.html", reason=reason, form=form, sent=sent, retry=retry)

    def _filled(self, name: str, **values: Any) -> str:
        return self._environment.get_template(name).render(values)


def _draft(view: AnnotatorView) -> str:
    """Return the free-form answer to the item that was just undone, for editing."""
    undone = view.undone
    if view.choices is not None or view.item is None or undone is None:
        return ""
    return undone.answer or "" if undone.item == view.item.id else ""


def _is_odd(character: str) -> bool:
    odd = unicodedata.category(character) in ("Cc", "Cf", "Cs")
    return odd and character not in LEGIBLE
