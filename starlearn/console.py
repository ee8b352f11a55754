"""What the command line prints: bars, lines, the table by round, and errors without a traceback."""

import re
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from starlearn.errors import (
    CampaignCorruptError,
    CampaignLockedError,
    InputError,
    ModelMismatchError,
    NotFiniteError,
    OutOfMemoryError,
    ServerError,
    StarlearnError,
    StorageError,
    TrainingDivergedError,
    UntrustedFileError,
)

TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
"""An access token of the hub; none is ever printed."""


def make_console(*, stderr: bool = False) -> Any:
    """Make a console that prints text as it is: no markup, no emoji codes, no highlighting."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def plain(text: str) -> str:
    r"""Spell out control and bidirectional characters, so that no text can steer the terminal.

    Examples
    --------
    >>> print(plain("red \x1b[31m text"))
    red \x1b[31m text
    """
    return "".join(
        character
        if character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        else character.encode("unicode_escape").decode()
        for character in text
    )


@contextmanager
def told_plainly(kept: Callable[[], str]) -> Iterator[None]:
    """Turn our own errors into one message and an exit code, and Ctrl-C into what is kept.

    Parameters
    ----------
    kept : callable
        Says, after Ctrl-C or SIGTERM, what is kept and what to type next.
    """
    try:
        with _terminated_like_ctrl_c():
            yield
    except StarlearnError as error:
        _complain(f"Error: {error}")
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt:
        _complain(f"Stopped. {kept()}")
        raise typer.Exit(130) from None
    except RuntimeError as error:
        if not _of_the_accelerator(error):
            raise
        first = str(error).strip().partition("\n")[0]
        _complain(
            f"Error: the accelerator failed ({first}), and this process cannot use it again. "
            f"Restart the process. {kept()}"
        )
        raise typer.Exit(5) from None


def _complain(text: str) -> None:
    make_console(stderr=True).print(plain(TOKEN.sub("hf_***", text)))


@contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, with which clusters end a job, stop a command as Ctrl-C does; a second kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _of_the_accelerator(error: RuntimeError) -> bool:
    """Tell errors of the driver, after which the process is lost; without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.AcceleratorError)


def exit_code(error: StarlearnError) -> int:
    """Return the exit code of an error.

    2: bad input. 3: another process works on the campaign. 4: the disk, or damaged files of a
    campaign. 5: a model that cannot be used or trained. 6: a server. 1: anything else.
    """
    of_the_model = (
        ModelMismatchError,
        NotFiniteError,
        OutOfMemoryError,
        TrainingDivergedError,
        UntrustedFileError,
    )
    codes: dict[type[StarlearnError] | tuple[type[StarlearnError], ...], int] = {
        InputError: 2,
        CampaignLockedError: 3,
        (StorageError, CampaignCorruptError): 4,
        of_the_model: 5,
        ServerError: 6,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 1)
