"""Output of the command line: plain text, and errors without a traceback."""

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
    terminal_wording,
)

TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
"""Pattern of an access token of the hub. Tokens are never printed."""


def make_console(*, stderr: bool = False) -> Any:
    """Return a console that prints text as it is, without markup, emoji codes or highlighting."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def plain(text: str) -> str:
    r"""Escape control and bidirectional characters, so that a text cannot control the terminal.

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
def exit_on_error(advice: Callable[[], str]) -> Iterator[None]:
    """Exit with one message and an exit code on Ctrl-C and on starlearn's own errors.

    `advice` returns the message after Ctrl-C or SIGTERM: which results are kept, and the next
    command.
    """
    try:
        with _sigterm_as_interrupt(), terminal_wording():
            yield
    except StarlearnError as error:
        _print_error(f"Error: {error}")
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt:
        _print_error(f"Stopped. {advice()}")
        raise typer.Exit(130) from None
    except RuntimeError as error:
        if not _is_accelerator_error(error):
            raise
        first = str(error).strip().partition("\n")[0]
        _print_error(
            f"Error: the accelerator failed ({first}), and this process cannot use it again. "
            f"Restart the process. {advice()}"
        )
        raise typer.Exit(5) from None


def _print_error(text: str) -> None:
    make_console(stderr=True).print(plain(TOKEN.sub("hf_***", text)))


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM, which ends jobs on clusters, like Ctrl-C. A second SIGTERM kills."""
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


def _is_accelerator_error(error: RuntimeError) -> bool:
    """Whether the driver failed, so that the process is lost. Does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.AcceleratorError)


def exit_code(error: StarlearnError) -> int:
    """Return the exit code of an error.

    2: bad input. 3: another process holds the lock. 4: the disk, or damaged files of a campaign.
    5: a model that cannot be used or trained. 6: a server. 1: anything else.
    """
    model_errors = (
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
        model_errors: 5,
        ServerError: 6,
    }
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 1)
