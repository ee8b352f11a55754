"""Ctrl-C and SIGTERM during a training, held back until the current step is finished."""

import os
import signal
import threading
from typing import Any, Self

WAITING = b"\nStopping after the current step, which is kept. Ctrl-C again stops at once.\n"


class HeldSignals:
    """Context that holds back the first Ctrl-C or SIGTERM; the second one acts at once.

    Outside the main thread, and for signals that the process ignores, it changes nothing.
    """

    def __init__(self) -> None:
        self._earlier: dict[int, Any] = {}
        self._number: int | None = None

    @property
    def pending(self) -> bool:
        """Whether a signal is held back."""
        return self._number is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                earlier = signal.getsignal(number)
                if earlier not in (None, signal.SIG_IGN):  # None: a handler in C
                    self._earlier[number] = earlier
                    signal.signal(number, self._hold)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore_handlers()
        self.release()

    def release(self) -> None:
        """Pass a signal that is held back on to its earlier handler."""
        number, self._number = self._number, None
        if number is not None:
            self._restore_handlers()
            signal.raise_signal(number)

    def _restore_handlers(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def _hold(self, number: int, _: object) -> None:
        if self.pending:
            self.release()
            return
        self._number = number
        os.write(2, WAITING)  # print could be interrupted in the middle of a print
