"""Labelling in the terminal: each response is saved before the next item is shown."""

import os
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from typing import Any
from uuid import uuid4

from starlearn.campaign.annotation import (
    Action,
    entry_of,
    has_single_keys,
    leading_number,
    require_batch,
    shortcuts,
    store_entry,
    undo_last,
    whole_number,
)
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.items import composed
from starlearn.campaign.responses import checked_name
from starlearn.console import plain
from starlearn.errors import CampaignLockedError, InputError, StorageError

COMMANDS = {"u": "undo", "s": "skip", "f": "flag", "q": "quit", "?": "help"}
LONGEST_LIST = 160
"""Longest list of choices that is shown with every item, in characters."""
CTRL_D = "\x04"


class Keyboard:
    """Single keys of the terminal at the standard input; Ctrl-C still interrupts."""

    def __init__(self) -> None:
        self._handle = sys.stdin.fileno()

    @contextmanager
    def single_keys(self) -> Iterator[None]:
        """Read keys one by one and without echo, and restore the terminal at the end."""
        before = termios.tcgetattr(self._handle)
        tty.setcbreak(self._handle, termios.TCSANOW)
        try:
            yield
        finally:
            termios.tcsetattr(self._handle, termios.TCSANOW, before)

    def flush(self) -> None:
        """Drop keys that were pressed before the item was shown."""
        termios.tcflush(self._handle, termios.TCIFLUSH)

    def key(self) -> str | None:
        """Return the next key; None for Ctrl-D or when the terminal is closed.

        Characters that arrive together are one key: an arrow sends several characters, with
        digits among them, and pasted text must not act letter by letter.
        """
        found = os.read(self._handle, 4096).decode(errors="replace")
        return None if found in ("", CTRL_D) else found

    def line(self, prompt: str) -> str | None:
        """Read a line with echo, then return to single keys; None for Ctrl-D."""
        now = termios.tcgetattr(self._handle)
        usual = [*now[:3], now[3] | termios.ICANON | termios.ECHO, *now[4:]]
        termios.tcsetattr(self._handle, termios.TCSANOW, usual)
        try:
            return input(prompt)
        except EOFError:
            return None
        finally:
            termios.tcsetattr(self._handle, termios.TCSANOW, now)


def parse_line(line: str, choices: list[str] | None) -> Action:
    """Return the action of a line.

    A line is, in this order: a complete choice; a command (``u``, ``s``, ``f`` with a note,
    ``q``, ``?``, or the whole word, optionally after a colon); the number of a choice; the
    beginning of exactly one choice. For free-form answers, commands need the colon, and two colons
    mean one.

    Raises
    ------
    InputError
        When the line fits nothing, or more than one choice. Nothing is then stored.
    """
    text = composed(line.strip())
    if choices is None:
        if text.startswith(":") and not text.startswith("::"):
            return _command(text) or _refuse(text, "is not a command: :u, :s, :f, :q or :?")
        answer = line.replace("::", ":", 1) if text.startswith("::") else line
        return Action("label", answer) if text else _refuse(text, "is not an answer; :s skips")
    if text in choices:
        return Action("label", text)
    command = _command(text)
    if command is not None:
        return command
    number = whole_number(text)
    if number is not None and number in shortcuts(choices):
        return Action("label", shortcuts(choices)[number])
    key = text.casefold()
    found = [choice for choice in choices if choice.casefold() == key]
    if not found and number is not None:  # 1 is not the beginning of "10: all"
        found = [choice for choice in choices if leading_number(choice) == number]
    elif not found and key:
        found = [choice for choice in choices if choice.casefold().startswith(key)]
    if len(found) == 1:
        return Action("label", found[0])
    if found:
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        return _refuse(text, f"fits {len(found)} choices: {some}")
    close = get_close_matches(key, [choice.casefold() for choice in choices], n=1)
    hint = f"did you mean {close[0]}?" if close else "? for help"
    return _refuse(text, f"is not a choice; {hint}")


def _command(text: str) -> Action | None:
    name, _, rest = text.removeprefix(":").partition(" ")
    kind = COMMANDS.get(name.lower(), name.lower())
    if kind not in COMMANDS.values() or (rest and kind != "flag"):
        return None
    return Action(kind, rest.strip() or None)


def _refuse(text: str, why: str) -> Action:
    raise InputError(f"{text!r:.40} {why}.")


class LabellingSession:
    """One annotator at one terminal.

    Parameters
    ----------
    campaign : Campaign
    annotator : str
    console : rich.console.Console
    interactive : bool
        Read single keys, or edited lines where there are too many choices. Otherwise read lines
        of the standard input, for scripts.
    """

    def __init__(self, campaign: Campaign, annotator: str, console: Any, interactive: bool) -> None:
        self.campaign, self.console = campaign, console
        self.annotator = checked_name(annotator)
        self.choices = campaign.choices
        self.interactive = interactive
        self.keyboard = Keyboard() if interactive and has_single_keys(self.choices) else None
        self._saved: set[str] = set()
        """Items with a response of this session that was not undone."""

    def run(self) -> int:
        """Show open items until none is left or the annotator quits.

        Return the number of items with a response of this session; undone responses do not count.
        """
        require_batch(self.campaign)
        with self.keyboard.single_keys() if self.keyboard else nullcontext():
            undone: BatchItem | None = None
            while True:
                item = undone or next(iter(self.campaign.open_items(self.annotator)), None)
                action = self._handle(item)
                if action.kind == "quit":
                    return len(self._saved)
                if action.kind == "undo":
                    undone = self._undo() or undone
                elif item is not None:
                    undone = None

    def _handle(self, item: BatchItem | None) -> Action:
        """Show an item and store the response to it; without an item, read undo or the end."""
        if self.keyboard:
            self.keyboard.flush()
        if item is None:
            self._print("No item of this batch waits for you. u undoes the last one; Enter ends.")
            line = self._read()
            undo = line is not None and line.strip().lower() in ("u", ":u", "undo", ":undo")
            return Action("undo" if undo else "quit")
        self._show(item)
        shown = time.monotonic()
        while True:
            line = self._read()
            if line is None:
                return Action("quit")
            try:
                action = parse_line(line, self.choices)
            except InputError as error:
                self._print(f"  {error} Not saved.")
                continue
            if action.kind == "help":
                self._help()
                continue
            if action.kind in ("label", "skip", "flag"):
                self._store(item, action, int(1000 * (time.monotonic() - shown)))
            return action

    def _store(self, item: BatchItem, action: Action, ms: int) -> None:
        if action.kind == "flag" and action.text is None and self.keyboard:
            action = Action("flag", self.keyboard.line("  note (Enter for none): "))
        spent = ms if self.interactive and action.kind == "label" else None
        uuid = uuid4().hex  # one uuid for all attempts, so that the response is stored once
        while True:
            try:
                entry = entry_of(self.campaign, item, action, self.annotator, ms=spent, uuid=uuid)
                store_entry(self.campaign, entry)
                break
            except (CampaignLockedError, StorageError) as error:
                can_retry = self.interactive and not self.campaign.store.is_broken
                if not can_retry or not self._wants_retry(error):
                    raise
        done = {"label": str(action.text), "skip": "skipped", "flag": "flagged"}[action.kind]
        self._saved.add(item.id)
        self._print(f"  {done} (saved)")

    def _wants_retry(self, error: Exception) -> bool:
        """Ask whether to try again, for example after another process has ended."""
        self._print(f"  Not saved yet: {error}")
        prompt = "  Your response is kept. Enter tries again, Ctrl-D gives it up: "
        line = self.keyboard.line(prompt) if self.keyboard else self._line(prompt)
        return line is not None

    def _undo(self) -> BatchItem | None:
        """Undo the last response to this batch, and return its item to show it again."""
        response = undo_last(self.campaign, self.annotator)
        if response is None:
            self._print("  You have no response in this batch to undo.")
            return None
        self._saved.discard(response.item)
        self._print(f"  undone: {response.answer or response.kind} (saved)")
        return next(item for item in self.campaign.batch() if item.id == response.item)

    # Output and input

    def _show(self, item: BatchItem) -> None:
        status = self.campaign.status()
        self._print(
            f"\n[{item.place + 1} of {status.batch}] round {status.round}, chosen because: "
            f"{item.reason}"
        )
        for name, text in item.fields.items():
            if len(item.fields) > 1:
                self._print(f"  {name}:")
            # The bar distinguishes an item's text from lines of the program.
            for line in text.split("\n"):
                self._print(f"  | {line}")
        if self.annotator in item.answers:
            self._print(f"  your current answer: {item.answers[self.annotator]}")
        self._hint()

    def _hint(self) -> None:
        if self.choices is None:
            self._print(
                "  Type the answer (a \\ at the end continues it on the next line). "
                ":s skip  :f flag  :u undo  :q quit"
            )
        elif not has_single_keys(self.choices):
            listed = self._listed("  ")
            if len(listed) <= LONGEST_LIST:
                self._print(f"  {listed}")
            typed = "the number or the beginning" if shortcuts(self.choices) else "the beginning"
            self._print(
                f"  Type {typed} of one of {len(self.choices)} choices "
                "(? lists them).  s skip  f flag  u undo  q quit"
            )
        else:
            self._print(f"  {self._listed('  ')}    s skip  f flag  u undo  q quit")

    def _help(self) -> None:
        if self.choices is not None:
            self._print(f"  {self._listed(chr(10) + '  ')}")
        self._print(
            "  s: skip the item. f: flag it for another look (f with a note). u: undo the last "
            "response. q: quit; all responses are saved."
        )

    def _listed(self, between: str) -> str:
        choices = self.choices or []
        numbers = {choice: number for number, choice in shortcuts(choices).items()}
        return between.join(
            choice
            if numbers.get(choice) in (None, leading_number(choice))
            else f"{numbers[choice]} {choice}"
            for choice in choices
        )

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
