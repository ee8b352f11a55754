"""Single keys of a terminal, without Enter; the terminal is always left as it was."""

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

END = "\x04"
ESCAPE = "\x1b"


class Keyboard:
    """The terminal at the standard input. Ctrl-C stays Ctrl-C."""

    def __init__(self) -> None:
        self._handle = sys.stdin.fileno()
        self._waiting = ""

    @contextmanager
    def by_key(self) -> Iterator[None]:
        """Let keys come one by one and unseen, while this lasts."""
        before = termios.tcgetattr(self._handle)
        tty.setcbreak(self._handle, termios.TCSANOW)
        try:
            yield
        finally:
            termios.tcsetattr(self._handle, termios.TCSANOW, before)

    def forget(self) -> None:
        """Drop what was typed ahead: nobody may answer an item that was not shown yet."""
        termios.tcflush(self._handle, termios.TCIFLUSH)
        self._waiting = ""

    def key(self) -> str | None:
        """Return the next key; None for Ctrl-D, or when the terminal is gone."""
        if not self._waiting:
            self._waiting = os.read(self._handle, 256).decode(errors="replace")
        # The arrow keys and their like are several characters, among them digits.
        n = len(self._waiting) if self._waiting.startswith(ESCAPE) else 1
        found, self._waiting = self._waiting[:n], self._waiting[n:]
        return None if found in ("", END) else found

    def line(self, prompt: str) -> str | None:
        """Read a line with echo, while keys come one by one otherwise; None for Ctrl-D."""
        now = termios.tcgetattr(self._handle)
        usual = [*now[:3], now[3] | termios.ICANON | termios.ECHO, *now[4:]]
        termios.tcsetattr(self._handle, termios.TCSANOW, usual)
        try:
            return input(prompt)
        except EOFError:
            return None
        finally:
            termios.tcsetattr(self._handle, termios.TCSANOW, now)
