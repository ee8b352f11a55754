"""A pool in files, scored by workers, with its scores in a file: ids say which item is which."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from starlearn.data.pool import Pool
from starlearn.errors import InputError, StorageError

PIECE = 16384
"""Rows that are written at a time."""
SCORES = (
    "base",
    "full",
    "mixed",
    "entropy",
    "mutual_information",
    "confidence",
    "n_tokens",
)


def score_pool(
    learner: Any,
    source: Any,
    out: str | os.PathLike[str],
    *,
    engine: Any = "ray",
    id_field: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Score every item of a pool in Parquet or JSON-lines files; write a row for each.

    Parameters
    ----------
    learner : STARLearner
        With a `cache_dir`, or a folder in `engine`, an interrupted call goes on where it was.
    source : path, list of paths, or Pool
    out : path
        A ``.parquet`` or ``.jsonl`` file; it appears when it is complete.
    engine : "ray", RayEngine or None
        As in :meth:`starlearn.STARLearner.query`.
    id_field : str, optional
        The field that identifies an item; without it, its row (0 .. m - 1) over all files.
    overwrite : bool
        Replace a file that is there.

    Returns
    -------
    Path
        `out`, with the columns id, base, full, mixed, entropy, mutual_information, confidence,
        n_tokens and answer, in the pool's order.

    Raises
    ------
    InputError
        When files cannot be read (naming the one that is damaged), ids are missing or stand twice,
        or `out` is there already, or its folder cannot be written.
    StorageError
        When `out` cannot be written.
    """
    target = Path(out)
    if target.suffix not in (".parquet", ".jsonl"):
        raise InputError(f"out={str(target)!r} must end in .parquet or .jsonl.")
    if target.exists() and not overwrite:
        raise InputError(f"{target} is there already. Give another name, or overwrite=True.")
    if not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
        raise InputError(f"{target.parent} is no folder that can be written. Make it first.")
    pool = source if isinstance(source, Pool) else Pool(source)
    ids = _ids(pool, id_field)
    found = learner.uncertainty(pool, engine=engine)
    scratch = target.with_name(f".{target.name}.{uuid4().hex}")
    try:
        (_as_parquet if target.suffix == ".parquet" else _as_lines)(scratch, _tables(ids, found))
        os.replace(scratch, target)
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written: {error.strerror or error}. Free the disk, or give "
            "another place; the scores are kept where there is a cache_dir."
        ) from error
    finally:
        scratch.unlink(missing_ok=True)
    return target


def _ids(pool: Pool, field: str | None) -> pa.ChunkedArray | None:
    """Return the column that identifies items, checked; None where rows do."""
    if field is None:
        return None
    if field not in pool.dataset.column_names:
        raise InputError(
            f"id_field={field!r} is no field of the pool; it has "
            f"{', '.join(pool.dataset.column_names)}."
        )
    column = pool.dataset.with_format("arrow")[:][field]
    twice = len(column) - len(column.unique())
    if column.null_count or twice:
        raise InputError(
            f"id_field={field!r} does not identify items: {column.null_count} rows have none, and "
            f"{twice} rows repeat an earlier one. Name another field, or leave it out."
        )
    return column


def _tables(ids: Any, found: Any) -> Iterator[pa.Table]:
    m = len(found.mixed)
    for start in range(0, m, PIECE):
        part = slice(start, min(start + PIECE, m))
        named = pa.array(range(start, part.stop)) if ids is None else ids[part]
        numbers = {name: np.asarray(getattr(found, name)[part]) for name in SCORES}
        answers = pa.array([str(answer) for answer in found.answers[part]], pa.string())
        yield pa.table({"id": named, **numbers, "answer": answers})


def _as_parquet(file: Path, tables: Iterator[pa.Table]) -> None:
    writer = None
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _as_lines(file: Path, tables: Iterator[pa.Table]) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for table in tables:
            for row in table.to_pylist():
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
