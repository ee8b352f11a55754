"""Columns of numbers, one per item: in memory for usual pools, in files for large ones."""

from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

IN_MEMORY = 100_000
"""Length up to which a column is an ordinary array. Longer ones are mapped from temporary files, so
that a pool of any length takes the same memory. The files are removed with the arrays."""


def column(length: int, dtype: Any = np.float64) -> NDArray[Any]:
    """Return a column of zeros."""
    if length <= IN_MEMORY:
        return np.zeros(length, dtype=dtype)
    with TemporaryFile(prefix="starlearn-") as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=(length,))


def counted(length: int) -> NDArray[np.intp]:
    """Return a column of 0 .. length - 1."""
    numbers = column(length, np.intp)
    for start in range(0, length, IN_MEMORY):
        end = min(start + IN_MEMORY, length)
        numbers[start:end] = np.arange(start, end)
    return numbers


def copy_of(values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of a column."""
    copied = column(len(values), values.dtype)
    copied[:] = values
    return copied
