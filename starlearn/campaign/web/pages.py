"""The pages as HTML: templates that escape everything, and text made safe to look at."""

import unicodedata
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from starlearn.campaign.annotation import by_key, shortcuts
from starlearn.campaign.events import Event
from starlearn.campaign.web.service import View

HERE = Path(__file__).parent
STATIC = HERE / "static"

LEGIBLE = set("\n\t\u200c\u200d")
"""Control and format characters that are no danger on a page: line breaks, tabs, and the joiners
without which Persian, many Indic scripts and emoji cannot be read."""

VERBS = {"label": "saved", "skip": "skipped", "flag": "flagged"}


def shown(text: str) -> Markup:
    r"""Escape text, and spell out the control and bidirectional characters in it.

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
    """Return a name as `shown`, that may be broken behind its underscores."""
    return shown(text).replace("_", Markup("_<wbr>"))


def word(event: Event) -> str:
    """Return what an annotator said, in a few words."""
    said = event.answer if event.answer is not None else event.kind
    return said if len(said) <= 60 else f"{said[:59]}…"


def heard(view: View) -> str:
    """Say what became of the newest thing that the annotator did."""
    if view.undone is not None:
        return f"Taken back: {word(view.undone)}"
    if view.heard is None or view.heard.kind == "undo":
        return ""
    if view.heard.kind == "label":
        return f"Saved: {word(view.heard)}"
    return f"Saved: {VERBS[view.heard.kind]}"


class Pages:
    """The templates, ready to be filled."""

    def __init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(shown=shown, breakable=breakable, word=word)

    def item(self, view: View) -> str:
        """Return the page of an annotator: an item with its answers, or what to do without one."""
        choices = view.choices or []
        typed = shortcuts(choices)
        return self._filled(
            "item.html" if view.item else "nothing.html",
            view=view,
            status=view.status,
            item=view.item,
            heard=heard(view),
            # The place of a choice counts, not its text: forms change some characters.
            choices=list(enumerate(typed.items())),
            by_key=by_key(view.choices),
            keys={key for key in typed if by_key(view.choices)},
            draft=_draft(view),
        )

    def name(self, suggested: str, known: list[str], problem: str = "") -> str:
        """Return the page on which a browser chooses its annotator's name."""
        return self._filled("name.html", suggested=suggested, known=known, problem=problem)

    def refused(self, reason: str, form: dict[str, str], said: str | None, again: bool) -> str:
        """Return the page that says why something was not stored, and shows what was typed.

        Parameters
        ----------
        reason : str
        form : dict of str
            What was sent, to be sent again.
        said : str or None
            The answer or note in it.
        again : bool
            Whether sending it again may help.
        """
        return self._filled("refused.html", reason=reason, form=form, said=said, again=again)

    def _filled(self, name: str, **values: Any) -> str:
        return self._environment.get_template(name).render(values)


def _draft(view: View) -> str:
    """Return a free-form answer that was just taken back from the item, to be mended."""
    undone = view.undone
    if view.choices is not None or view.item is None or undone is None:
        return ""
    return undone.answer or "" if undone.item == view.item.id else ""


def _is_odd(character: str) -> bool:
    odd = unicodedata.category(character) in ("Cc", "Cf", "Cs")
    return odd and character not in LEGIBLE
