"""Every error that starlearn raises on purpose: what, where, why, and what to type next."""

from collections.abc import Sequence
from functools import partial


class StarlearnError(Exception):
    """Base class of all errors raised by starlearn on purpose."""


class InputError(StarlearnError, ValueError):
    """An item, a label or a parameter that cannot be used, found before any model work."""


class ModelMismatchError(StarlearnError, ValueError):
    """An adapter that was made for another base model, or that does not fit this one."""


class TrainingDivergedError(StarlearnError, ArithmeticError):
    """The loss or a weight became NaN or infinite; no adapter was published."""


class NotFiniteError(StarlearnError, ArithmeticError):
    """A model whose answers have no finite probability."""


class OutOfMemoryError(StarlearnError, RuntimeError):
    """One item alone that does not fit into memory.

    Parameters
    ----------
    index : int
        Row of the item.
    length : int
        Its padded length in tokens, answer included.
    n_passes : int
        K, passes that were computed at once.
    while_training : bool
        Whether it was for the backward pass.
    """

    def __init__(
        self, index: int, length: int, n_passes: int, *, while_training: bool = False
    ) -> None:
        self.index, self.length, self.n_passes = index, length, n_passes
        self._while_training = while_training
        if while_training:
            super().__init__(
                f"Memory ran out while training on one item at a time; the longest is row {index} "
                f"with {length} tokens. Nothing was published, and the learner is what it was "
                "before. Use Training(gradient_checkpointing=True), a smaller LoRA(r=...), "
                "quantization='nf4', shorter items, or a smaller model, and call again."
            )
            return
        passes = f" in {n_passes} passes at once" if n_passes > 1 else ""
        fewer = "Acquisition(n_passes=...) with fewer passes, " if n_passes > 1 else ""
        super().__init__(
            f"Memory ran out for one item alone: row {index}, {length} tokens with its answer"
            f"{passes}. The chunks that were finished before it are kept. Shorten or remove the "
            f"item, or use {fewer}quantization='nf4', or a smaller model, and call again."
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Travel from a worker's process: not made from the message, as exceptions are."""
        kind = partial(type(self), while_training=self._while_training)
        return kind, (self.index, self.length, self.n_passes)


class UntrustedFileError(StarlearnError, ValueError):
    """A file that could run code or that is not what its manifest says."""


class MissingDependencyError(StarlearnError, ImportError):
    """An optional library that is needed here and is not installed."""


class WorkerError(StarlearnError, RuntimeError):
    """A part of a pool that could not be scored by another process; names its rows."""


class ServerError(StarlearnError, ConnectionError):
    """A server that cannot be reached, refuses, or answers what cannot be used."""


class StorageError(StarlearnError, OSError):
    """A disk that is full, read-only or failing; what was acknowledged before is still there."""


class CampaignLockedError(StarlearnError, RuntimeError):
    """A campaign that another process is working on."""


class CampaignCorruptError(StarlearnError, RuntimeError):
    """A campaign whose files are damaged or missing; nothing was created in their place."""


def listed(rows: Sequence[str], most: int = 5) -> str:
    """Join complaints about rows: the first few in full, the rest as a count."""
    shown = "; ".join(rows[:most])
    return shown if len(rows) <= most else f"{shown}; and {len(rows) - most} more"
