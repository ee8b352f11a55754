"""Single keys of a terminal, without Enter; the terminal is always left as it was."""

import os
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

END = "\x04"


class Keyboard:
    """The terminal at the standard input. Ctrl-C stays Ctrl-C."""

    def __init__(self) -> None:
        self._handle = sys.stdin.fileno()

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

    def key(self) -> str | None:
        """Return the next key; None for Ctrl-D, or when the terminal is gone.

        What comes at once is one key: the arrows are several characters, with digits among them,
        and a text that was pasted must not act letter by letter.
        """
        found = os.read(self._handle, 4096).decode(errors="replace")
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
