"""Pools on disk, of any size: a row is read when it is needed."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.data.containers import as_items, is_dataset
from starlearn.errors import InputError
from starlearn.tasks import Fields, Item, Task

READERS = {".jsonl": "from_json", ".json": "from_json", ".parquet": "from_parquet"}


class Pool:
    """A pool in a JSON-lines or Parquet file, or in a datasets.Dataset.

    Parameters
    ----------
    source : path, list of paths, or datasets.Dataset
        Files of one kind: ``.jsonl`` (or ``.json`` with one object per line) or ``.parquet``. Rows
        become dicts.
    cache_dir : path, optional
        Folder for the memory-mapped copy of the files; by default the cache of datasets.

    Raises
    ------
    InputError
        When a file is missing, empty, of another kind, or cannot be read.

    Notes
    -----
    The memory-mapped copy is an Arrow file: a row takes no memory until it is read.

    Examples
    --------
    >>> from datasets import Dataset
    >>> pool = Pool(Dataset.from_dict({"text": ["red", "green", "blue"]}))
    >>> len(pool), pool[1], pool[1:]
    (3, {'text': 'green'}, [{'text': 'green'}, {'text': 'blue'}])
    """

    def __init__(self, source: Any, *, cache_dir: str | os.PathLike[str] | None = None) -> None:
        if is_dataset(source):
            self.dataset = source.with_format(None)
            return
        files = [source] if isinstance(source, str | os.PathLike) else list(source)
        self.dataset = _read([Path(file) for file in files], cache_dir)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def shape(self) -> tuple[int]:
        """(m,), which modAL reads."""
        return (len(self),)

    def __iter__(self) -> Iterator[Item]:
        """Iterate over the rows."""
        return iter(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """Return one row for a number, or a list for a slice, positions or a mask of shape (m,).

        Raises
        ------
        IndexError
            When a row does not exist, or a mask has another length.
        """
        if isinstance(index, int | np.integer):
            return self.dataset[int(index)]
        positions = range(len(self))[index] if isinstance(index, slice) else self._positions(index)
        return self.dataset.select(positions).to_list()

    def _positions(self, index: Any) -> NDArray[np.intp]:
        """Return an index as positions from 0; it may be a mask, or count from the end."""
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
        return f"Pool({len(self)} rows: {', '.join(self.dataset.column_names)})"


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
    if isinstance(rows, Pool | FilledPool):
        return list(rows[positions])
    return [rows[i] for i in positions]


def _read(files: list[Path], cache_dir: str | os.PathLike[str] | None) -> Any:
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError
    from datasets.utils import logging as datasets_logging

    kinds = {file.suffix.lower() for file in files}
    reader = READERS.get(kinds.pop()) if len(kinds) == 1 else None
    if reader is None:
        raise InputError(
            "The files of a Pool must be of one kind, .jsonl or .parquet; got "
            f"{', '.join(str(file) for file in files[:5]) or 'no file'}."
        )
    for file in files:
        if not file.is_file():
            raise InputError(f"The pool file {file} does not exist. Check the path.")
        if file.stat().st_size == 0:
            raise InputError(f"The pool file {file} is empty: it needs at least one row.")
    shown = datasets_logging.is_progress_bar_enabled()
    datasets_logging.disable_progress_bar()
    try:
        paths = [str(file) for file in files]
        cache = None if cache_dir is None else str(cache_dir)
        return getattr(Dataset, reader)(paths, cache_dir=cache)
    except (DatasetGenerationError, OSError, ValueError) as error:
        if len(files) > 1:  # read each file alone, so that the error names the damaged one
            for file in files:
                _read([file], cache_dir)
        reason = " ".join(str(error.__cause__ or error).split())
        raise InputError(
            f"The pool {', '.join(map(str, files[:3]))} cannot be read: {reason:.300}. Every line "
            "must be one JSON object, or every row one Parquet record, with the same fields."
        ) from error
    finally:
        if shown:
            datasets_logging.enable_progress_bar()
