"""Pools on disk, of any size: a row is read when it is needed."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.data.containers import as_items, is_dataset
from starlearn.data.sources import FORMATS, PIECE, DatasetRows, Source, open_source
from starlearn.errors import InputError
from starlearn.tasks import Fields, Item, Task


class Pool:
    """A pool in files, or in a datasets.Dataset.

    Parameters
    ----------
    source : path, list of paths, or datasets.Dataset
        Files: ``.jsonl``, ``.ndjson`` or ``.json`` with one JSON object per line, ``.csv``,
        ``.parquet``, or the folder of a Dataset (`save_to_disk`). Rows become dicts.
    cache_dir : path, optional
        Folder for temporary copies of Parquet files; by default the system's (``TMPDIR``).

    Raises
    ------
    InputError
        When a file is missing, empty, of another kind, or cannot be read; when a row is read, and
        the text file has changed since.
    StorageError
        When a Parquet file cannot be copied.

    Notes
    -----
    A value is what the file says: 5 is an integer, also next to 5.5, and all cells of CSV are text.
    Text files are in UTF-8. A row of a text file takes 8 bytes of memory until it is read. Parquet
    files are decoded into memory-mapped Arrow files, which are removed with the pool. A Dataset
    gives its rows in its format, or through its transform.

    Examples
    --------
    >>> from datasets import Dataset
    >>> pool = Pool(Dataset.from_dict({"text": ["red", "green", "blue"]}))
    >>> len(pool), pool[1], pool[1:]
    (3, {'text': 'green'}, Pool(2 rows: text))
    """

    def __init__(self, source: Any, *, cache_dir: str | os.PathLike[str] | None = None) -> None:
        self._sources = _sources_of(source, cache_dir)
        self._ends = np.cumsum([len(one) for one in self._sources])
        self._chosen: NDArray[np.intp] | None = None
        """Rows of the sources that are this pool's, in its order; None means all of them."""

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._chosen is None else len(self._chosen)

    @property
    def shape(self) -> tuple[int]:
        """(m,), which modAL reads."""
        return (len(self),)

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the rows."""
        for start in range(0, len(self), PIECE):
            yield from self.read(np.arange(start, min(start + PIECE, len(self))))

    def __getitem__(self, index: Any) -> Any:
        """Return one row for a number; a Pool for a slice, positions or a mask of shape (m,).

        Raises
        ------
        IndexError
            When a row does not exist, or a mask has another length.
        """
        if isinstance(index, int | np.integer):
            return self.read(self._positions([index]))[0]
        part = object.__new__(type(self))
        part._sources, part._ends = self._sources, self._ends
        part._chosen = self._rows(self._positions(index))
        return part

    def read(self, positions: NDArray[np.intp]) -> list[Any]:
        """Return the rows at these positions, counted from 0, in a list."""
        rows = self._rows(positions)
        if len(self._sources) == 1:
            found: list[Any] = self._sources[0].read(rows)
            return found
        found = [None] * len(rows)
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            source = self._sources[number]
            own = source.read(rows[places] - (self._ends[number] - len(source)))
            for place, row in zip(places, own, strict=True):
                found[place] = row
        return found

    def _rows(self, positions: NDArray[np.intp]) -> NDArray[np.intp]:
        return positions if self._chosen is None else self._chosen[positions]

    def _positions(self, index: Any) -> NDArray[np.intp]:
        """Return an index as positions from 0; it may be a mask, or count from the end."""
        if isinstance(index, slice):
            return np.arange(*index.indices(len(self)), dtype=np.intp)
        found = np.asarray(index)
        if found.dtype == bool:
            if found.shape != self.shape:
                raise IndexError(f"the mask has shape {found.shape}, the pool {len(self)} rows")
            return np.flatnonzero(found)
        found = found.astype(np.intp, casting="same_kind" if found.size else "unsafe")
        wrong = found[(found < -len(self)) | (found >= len(self))]
        if wrong.size:
            raise IndexError(f"row {wrong[0]} does not exist: the pool has {len(self)} rows")
        return np.asarray(np.where(found < 0, found + len(self), found))

    def __repr__(self) -> str:
        return f"Pool({len(self)} rows: {', '.join(self._sources[0].names)})"


@dataclass(frozen=True)
class FilledPool:
    """A pool on disk whose rows are brought to the prompt's fields when they are read."""

    rows: Pool
    task: Task

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: NDArray[np.intp] | slice) -> list[Fields]:
        if isinstance(positions, slice):
            positions = np.arange(len(self))[positions]
        return self.task.fill(rows_of(self.rows, positions), positions.tolist())


Rows = Sequence[Item] | Pool


def as_rows(X: Any, name: str = "X") -> Rows:
    """Return a pool as a list, or as a Pool when its rows are on disk."""
    if isinstance(X, Pool):
        return X
    return Pool(X) if is_dataset(X) else as_items(X, name)


def rows_of(rows: Any, positions: NDArray[np.intp]) -> list[Any]:
    """Return the rows at these positions, of a list or of a pool on disk."""
    if isinstance(rows, Pool):
        return rows.read(positions)
    if isinstance(rows, FilledPool):
        return rows[positions]
    return [rows[i] for i in positions]


def _sources_of(source: Any, cache_dir: str | os.PathLike[str] | None) -> list[Source]:
    if is_dataset(source):
        return [DatasetRows(source)]
    files = [source] if isinstance(source, str | os.PathLike) else source
    if not isinstance(files, Iterable):
        files = []
    files = list(files)
    wrong = [file for file in files if not isinstance(file, str | os.PathLike)]
    if wrong or not files:
        raise InputError(
            f"Pool takes files ({FORMATS}), the folder of a Dataset, or a Dataset; got "
            f"{(wrong[0] if wrong else source)!r:.60}. A list of items needs no Pool."
        )
    return [open_source(Path(file), cache_dir) for file in files]
