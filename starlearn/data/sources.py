"""Where the rows of a pool are: text files, Parquet files, and datasets.Dataset on disk."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from starlearn.data.containers import POOL_SUFFIXES, dataset_rows
from starlearn.data.text_files import SUFFIXES, Lines, TextRows, located_rows
from starlearn.errors import InputError
from starlearn.storage.files import storage_errors

FORMATS = ".jsonl, .ndjson or .json (one object per line), .csv or .parquet"
FOLDER = "folder"
PIECE = 2048
"""Rows that are converted at once."""


class DatasetRows:
    """The m rows of a datasets.Dataset, in its format or through its transform."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.names: list[str] = dataset.column_names

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, rows: NDArray[np.intp]) -> list[Any]:
        """Return the rows at these positions."""
        return dataset_rows(self.dataset.select(rows))


Source = TextRows | DatasetRows


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row of a file or of a Dataset's folder with its place: "line 3" or "row 3".

    Lines are counted from 1, rows from 0.
    """
    path = Path(os.path.expanduser(path))
    if _kind(path) in SUFFIXES:
        for place, _, row in located_rows(Lines(path)):
            yield place, row
        return
    source = open_source(path)
    for start in range(0, len(source), PIECE):
        rows = np.arange(start, min(start + PIECE, len(source)))
        for number, row in zip(rows, source.read(rows), strict=True):
            yield f"row {number}", row


def open_source(path: Path, cache_dir: str | os.PathLike[str] | None = None) -> Source:
    """Open one file, or the folder of a Dataset; `cache_dir` is the one of a Pool."""
    path = Path(os.path.expanduser(path))
    kind = _kind(path)
    if kind == FOLDER:
        return DatasetRows(_saved_dataset(path))
    if not path.is_file():
        raise InputError(
            f"{path} is not a regular file, and rows are read more than once. Write it to a file."
        )
    return TextRows(path) if kind in SUFFIXES else _parquet_rows(path, cache_dir)


def _kind(path: Path) -> str:
    """Return the suffix of a file that exists, in lower case, or FOLDER."""
    kind = FOLDER if os.path.isdir(path) else path.suffix.lower()
    if kind not in (*POOL_SUFFIXES, FOLDER):
        raise InputError(
            f"{path} is not a pool file: its name must end in {FORMATS}; or it must be the folder "
            "of a Dataset (save_to_disk)."
        )
    try:
        path.stat()
    except (OSError, ValueError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise InputError(
            f"The pool file {path} {reason} ({getattr(error, 'strerror', error)}). Check the path."
        ) from error
    return kind


def _saved_dataset(folder: Path) -> Any:
    from datasets import Dataset, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The folder {folder} is not a Dataset that can be read ({' '.join(str(error).split())}"
            "). Dataset.save_to_disk writes such a folder. Several files: Pool([file, file])."
        ) from error
    if not isinstance(found, Dataset):
        raise InputError(
            f"The folder {folder} has the splits {', '.join(found)}. Name one: {folder}/"
            f"{next(iter(found), 'train')}"
        )
    if not len(found):
        raise InputError(f"The Dataset in {folder} is empty: it needs at least one row.")
    return found


def _parquet_rows(path: Path, cache_dir: str | os.PathLike[str] | None) -> DatasetRows:
    """Decode a Parquet file into a temporary Arrow file, which is mapped into memory.

    Parquet compresses many rows together, so a row cannot be read alone.
    """
    from datasets import Dataset

    with storage_errors(f"copying {path} for access by row"):
        if cache_dir is not None:
            Path(cache_dir).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="starlearn-pool-", dir=cache_dir))
        try:
            _copy(_batches(path), folder / "pool.arrow")
            found = DatasetRows(Dataset.from_file(str(folder / "pool.arrow")))
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, pa.ArrowException | NotImplementedError):  # an unusual type
                raise _unreadable(path, error) from error
            raise
    weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    return found


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path.absolute(), buffer_size=2**16, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise InputError(f"{path}: column names repeat: {names}")
            if not file.metadata.num_rows:
                raise InputError(f"The pool file {path} is empty: it needs at least one row.")
            yield from file.iter_batches(PIECE)  # page by page, never a whole group of rows
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())
    return InputError(f"The pool {path} cannot be read: {reason:.300}.")


def _copy(batches: Iterator[pa.RecordBatch], target: Path) -> None:
    first = next(batches)
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
        for batch in chain([first], batches):
            writer.write_batch(batch)
