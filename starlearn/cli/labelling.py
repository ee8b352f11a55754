"""Labelling in the terminal: an item, why it was chosen, a key; saved before the next is shown."""

import sys
import time
from contextlib import nullcontext
from difflib import get_close_matches
from typing import Any
from uuid import uuid4

from starlearn.campaign.annotation import (
    MOST_KEYS,
    Said,
    by_key,
    require_batch,
    shortcuts,
    store,
    take_back,
)
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.responses import checked_name
from starlearn.cli.keyboard import Keyboard
from starlearn.console import plain
from starlearn.errors import CampaignLockedError, InputError, StorageError

COMMANDS = {"u": "undo", "s": "skip", "f": "flag", "q": "quit", "?": "help"}
LONGEST_LIST = 160
"""Characters of choices that are shown with every item."""


def understood(line: str, choices: list[str] | None) -> Said:
    """Return what a line means.

    A choice in full comes first; then a command (``u``, ``s``, ``f`` with a note, ``q``, ``?``,
    or the whole word, with or without a colon before it); then a choice's number; then the
    beginning of one choice alone. Where any answer will do, only what begins with a colon is a
    command, and two colons stand for one.

    Raises
    ------
    InputError
        When it means nothing, or more than one choice; nothing is then stored.
    """
    text = line.strip()
    if choices is None:
        if text.startswith(":") and not text.startswith("::"):
            return _command(text) or _refused(text, "is no command: :u, :s, :f, :q or :?")
        answer = line.replace("::", ":", 1) if text.startswith("::") else line
        return Said("label", answer) if text else _refused(text, "is no answer; :s to skip")
    if text in choices:
        return Said("label", text)
    command = _command(text)
    if command is not None:
        return command
    typed = shortcuts(choices)
    if text in typed:
        return Said("label", typed[text])
    key = text.casefold()
    same = [choice for choice in choices if choice.casefold() == key]
    found = same or [c for c in choices if key and c.casefold().startswith(key)]
    if len(found) == 1:
        return Said("label", found[0])
    if found:
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        return _refused(text, f"may be {len(found)} choices: {some}")
    close = get_close_matches(key, [choice.casefold() for choice in choices], n=1)
    return _refused(
        text, f"is no choice{f'; did you mean {close[0]}?' if close else '; ? for help'}"
    )


def _command(text: str) -> Said | None:
    word, _, rest = text.removeprefix(":").partition(" ")
    kind = COMMANDS.get(word.lower(), word.lower())
    if kind not in COMMANDS.values() or (rest and kind != "flag"):
        return None
    return Said(kind, rest.strip() or None)


def _refused(text: str, why: str) -> Said:
    raise InputError(f"{text!r:.40} {why}.")


class Session:
    """One annotator at one terminal; every word is on the disk before the next item is shown.

    Parameters
    ----------
    campaign : Campaign
    annotator : str
    console : rich.console.Console
    interactive : bool
        Read single keys, or edited lines where there are too many choices; otherwise lines of
        the standard input, so that a session can be scripted.
    """

    def __init__(self, campaign: Campaign, annotator: str, console: Any, interactive: bool) -> None:
        self.campaign, self.console = campaign, console
        self.annotator = checked_name(annotator)
        self.choices = campaign.choices
        self.interactive = interactive
        self.keyboard = Keyboard() if interactive and by_key(self.choices) else None
        self.saved = 0

    def run(self) -> int:
        """Go through the open items until none is left or the annotator quits; words saved."""
        require_batch(self.campaign)
        with self.keyboard.by_key() if self.keyboard else nullcontext():
            self._go_through()
        return self.saved

    def _go_through(self) -> None:
        again: BatchItem | None = None
        while True:
            item = again or next(iter(self.campaign.open_items(self.annotator)), None)
            said = self._asked(item)
            if said.kind == "quit":
                return
            if said.kind == "undo":
                again = self._undo() or again
            elif item is not None:
                again = None

    def _asked(self, item: BatchItem | None) -> Said:
        """Show an item, and store what is said about it; without an item, undo or the end."""
        if self.keyboard:
            self.keyboard.forget()
        if item is None:
            self._print(
                "No item of this batch waits for you. u takes the last word back; Enter ends."
            )
            line = self._read()
            undo = line is not None and line.strip().lower() in ("u", ":u", "undo", ":undo")
            return Said("undo" if undo else "quit")
        self._show(item)
        shown = time.monotonic()
        while True:
            line = self._read()
            if line is None:
                return Said("quit")
            try:
                said = understood(line, self.choices)
            except InputError as error:
                self._print(f"  {error} Not saved.")
                continue
            if said.kind == "help":
                self._help()
                continue
            self._store(item, said, int(1000 * (time.monotonic() - shown)))
            return said

    def _store(self, item: BatchItem, said: Said, ms: int) -> None:
        if said.kind not in ("label", "skip", "flag"):
            return
        if said.kind == "flag" and said.text is None and self.keyboard:
            said = Said("flag", self.keyboard.line("  note (Enter for none): "))
        spent = ms if self.interactive and said.kind == "label" else None
        uuid = uuid4().hex  # stored once, however often it is tried
        while True:
            try:
                store(self.campaign, item, said, self.annotator, ms=spent, uuid=uuid)
                break
            except (CampaignLockedError, StorageError) as error:
                can_wait = self.interactive and not self.campaign.store.is_broken
                if not can_wait or not self._again(error):
                    raise
        done = {"label": str(said.text), "skip": "skipped", "flag": "flagged"}[said.kind]
        self.saved += 1
        self._print(f"  {done} (saved)")

    def _again(self, error: Exception) -> bool:
        """Ask whether to try again: another process is done at last, or the disk has room."""
        self._print(f"  Not saved yet: {error}")
        prompt = "  What you said is kept. Enter tries again, Ctrl-D gives it up: "
        line = self.keyboard.line(prompt) if self.keyboard else self._line(prompt)
        return line is not None

    def _undo(self) -> BatchItem | None:
        """Take the last word of this batch back, and return its item to show it again."""
        word = take_back(self.campaign, self.annotator)
        if word is None:
            self._print("  Nothing of yours in this batch to take back.")
            return None
        self._print(f"  taken back: {word.answer or word.kind} (saved)")
        return next(item for item in self.campaign.batch() if item.id == word.item)

    # The screen and the keyboard

    def _show(self, item: BatchItem) -> None:
        status = self.campaign.status()
        self._print(
            f"\n[{item.place + 1} of {status.batch}] round {status.round}, chosen because: "
            f"{item.reason}"
        )
        for name, text in item.fields.items():
            if len(item.fields) > 1:
                self._print(f"  {name}:")
            # The bar keeps a text from passing for a line of ours.
            for line in text.split("\n"):
                self._print(f"  | {line}")
        if self.annotator in item.answers:
            self._print(f"  your answer so far: {item.answers[self.annotator]}")
        self._hint()

    def _hint(self) -> None:
        if self.choices is None:
            self._print(
                "  Type the answer (a \\ at the end continues it on the next line). "
                ":s skip  :f flag  :u undo  :q quit"
            )
        elif len(self.choices) > MOST_KEYS:
            listed = self._listed("  ")
            if len(listed) <= LONGEST_LIST:
                self._print(f"  {listed}")
            self._print(
                f"  Type the number or the beginning of one of {len(self.choices)} choices "
                "(? lists them).  s skip  f flag  u undo  q quit"
            )
        else:
            self._print(f"  {self._listed('  ')}    s skip  f flag  u undo  q quit")

    def _help(self) -> None:
        if self.choices is not None:
            self._print(f"  {self._listed(chr(10) + '  ')}")
        self._print(
            "  s: pass over the item. f: it needs another look (f with a note). u: take the last "
            "word back. q: end; what was said is saved."
        )

    def _listed(self, between: str) -> str:
        typed = shortcuts(self.choices or [])
        return between.join(t if t == choice else f"{t} {choice}" for t, choice in typed.items())

    def _print(self, text: str) -> None:
        self.console.print(plain(text))

    def _read(self) -> str | None:
        if self.keyboard:
            return self.keyboard.key()
        line = self._line("> ")
        # A long answer may have several lines.
        while line is not None and self.choices is None and line.endswith("\\"):
            more = self._line("... ")
            line = line[:-1] + ("" if more is None else f"\n{more}")
        return line

    def _line(self, prompt: str) -> str | None:
        if self.interactive:
            try:
                return input(prompt)
            except EOFError:
                return None
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None
