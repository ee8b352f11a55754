"""Errors that starlearn raises on purpose. Each says what is wrong and what to type."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

_in_terminal: ContextVar[bool] = ContextVar("in_terminal", default=False)
"""Whether a command of the command line runs, so that messages name options and commands."""


class StarlearnError(Exception):
    """Base class of all errors raised by starlearn on purpose."""


class InputError(StarlearnError, ValueError):
    """An invalid item, label or parameter, found before the model runs."""


class ModelMismatchError(StarlearnError, ValueError):
    """An adapter that was trained on another base model, or does not fit this one."""


class TrainingDivergedError(StarlearnError, ArithmeticError):
    """A loss or a weight that became NaN or infinite; the previous adapter is kept."""


class NotFiniteError(StarlearnError, ArithmeticError):
    """A model whose probabilities are not finite."""


class OutOfMemoryError(StarlearnError, RuntimeError):
    """One item that does not fit into memory.

    Parameters
    ----------
    index : int
        Row of the item.
    length : int
        Its padded length in tokens, answer included.
    n_passes : int
        K, the number of passes that were computed at once.
    while_training : bool
        Whether memory ran out in training.
    """

    def __init__(
        self, index: int, length: int, n_passes: int, *, while_training: bool = False
    ) -> None:
        self.index, self.length, self.n_passes = index, length, n_passes
        self._while_training = while_training
        if while_training:
            super().__init__(
                f"Memory ran out while training on one item at a time; the longest is row {index} "
                f"with {length} tokens. The learner is unchanged. Use "
                "Training(gradient_checkpointing=True), a smaller LoRA(r=...), "
                "quantization='nf4', shorter items, or a smaller model, and call again."
            )
            return
        passes = f" in {n_passes} passes at once" if n_passes > 1 else ""
        fewer = "Acquisition(n_passes=...) with fewer passes, " if n_passes > 1 else ""
        super().__init__(
            f"Memory ran out for one item alone: row {index}, {length} tokens with its answer"
            f"{passes}. Finished chunks are kept. Shorten or remove the item, or use "
            f"{fewer}quantization='nf4', or a smaller model, and call again."
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Make the error picklable: its constructor takes numbers, not the message."""
        kind = partial(type(self), while_training=self._while_training)
        return kind, (self.index, self.length, self.n_passes)


class UntrustedFileError(StarlearnError, ValueError):
    """A file that could run code, or differs from its manifest."""


class MissingDependencyError(StarlearnError, ImportError):
    """An optional library that is needed and not installed."""


class WorkerError(StarlearnError, RuntimeError):
    """A failure in another process; names the rows that were not scored."""


class ServerError(StarlearnError, ConnectionError):
    """A server that cannot be reached, refuses a request, or sends an invalid response."""


class StorageError(StarlearnError, OSError):
    """A disk that is full, read-only or failing; saved labels are kept."""


class CampaignLockedError(StarlearnError, RuntimeError):
    """A campaign that another process is using."""


class CampaignCorruptError(StarlearnError, RuntimeError):
    """A campaign whose files are damaged or missing."""


def listed(rows: Sequence[str]) -> str:
    """Join messages about rows: the first five in full, and the number of the others."""
    shown = "; ".join(rows[:5])
    return shown if len(rows) <= 5 else f"{shown}; and {len(rows) - 5} more"


def row_lines(rows: Sequence[str]) -> str:
    r"""Return messages about rows, one per line: the first five, and the number of the others.

    Examples
    --------
    >>> row_lines(["row 0: empty", "row 3: empty"])
    '\n  row 0: empty\n  row 3: empty\n'
    """
    more = [f"and {len(rows) - 5} more"] if len(rows) > 5 else []
    return "".join(f"\n  {row}" for row in (*rows[:5], *more)) + "\n"


@contextmanager
def terminal_wording() -> Iterator[None]:
    """Word messages for people at a command line while the block runs."""
    token = _in_terminal.set(True)
    try:
        yield
    finally:
        _in_terminal.reset(token)


def worded(*, python: str, terminal: str) -> str:
    """Return the text for the interface in use: Python by default, or the command line."""
    return terminal if _in_terminal.get() else python
