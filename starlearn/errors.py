"""Every error that starlearn raises on purpose: what, where, why, and what to type next."""

from collections.abc import Sequence


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


class UntrustedFileError(StarlearnError, ValueError):
    """A file that could run code or that is not what its manifest says."""


class MissingDependencyError(StarlearnError, ImportError):
    """An optional library that is needed here and is not installed."""


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
