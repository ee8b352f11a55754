"""Scores of a pool in files, written to one file with an id per row."""

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
from starlearn.errors import InputError
from starlearn.storage.files import replacing

ROWS_PER_TABLE = 16384
"""Rows that are written at once."""
SCORES = ("base", "full", "mixed", "entropy", "mutual_information", "confidence", "n_tokens")


def score_pool(
    learner: Any,
    source: Any,
    out: str | os.PathLike[str],
    *,
    engine: Any = "ray",
    id_field: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Score a pool in the files that a Pool reads, and write one row per item.

    Parameters
    ----------
    learner : STARLearner
        With a `cache_dir`, or a folder in `engine`, a repeated call resumes an interrupted one.
    source : path, list of paths, or Pool
    out : path
        A ``.parquet`` or ``.jsonl`` file. It has this name only when it is complete.
    engine : "ray", RayEngine or None
        As in :meth:`starlearn.STARLearner.query`.
    id_field : str, optional
        The field that identifies an item; by default its row (0 .. m - 1) over all files.
    overwrite : bool
        Whether to replace an existing file.

    Returns
    -------
    Path
        `out`, with the columns id, base, full, mixed, entropy, mutual_information, confidence,
        n_tokens and answer, in the pool's order.

    Raises
    ------
    InputError
        When a file cannot be read, ids are missing or repeated, `out` exists already, or its folder
        cannot be written.
    StorageError
        When `out` cannot be written. The scores are kept where there is a `cache_dir`.
    """
    target = Path(out)
    if target.suffix not in (".parquet", ".jsonl"):
        raise InputError(f"out={str(target)!r} must end in .parquet or .jsonl.")
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists already. Choose another name, or set overwrite=True.")
    if not (target.parent.is_dir() and os.access(target.parent, os.W_OK)):
        raise InputError(f"{target.parent} is not a writable folder. Create it first.")
    pool = source if isinstance(source, Pool) else Pool(source)
    ids = _ids(pool, id_field)
    found = learner.uncertainty(pool, engine=engine)
    write = _write_parquet if target.suffix == ".parquet" else _write_lines
    with replacing(target, uuid4().hex) as scratch:
        write(scratch, _tables(ids, found))
    return target


def _ids(pool: Pool, field: str | None) -> pa.Array | None:
    """Return the checked column of ids; None where the rows are the ids."""
    if field is None:
        return None
    first = pool[0]
    if field not in first:
        raise InputError(
            f"id_field={field!r} is not a field of the pool. Its fields are {', '.join(first)}."
        )
    rows: Iterator[Any] = iter(pool)  # rows of files are dicts
    column = _column([row.get(field) for row in rows], field)
    repeated = len(column) - len(column.unique())
    if column.null_count or repeated:
        raise InputError(
            f"id_field={field!r} does not identify items: {column.null_count} rows have no value, "
            f"and {repeated} rows repeat an earlier one. Name another field, or leave it out."
        )
    return column


def _column(values: list[Any], field: str) -> pa.Array:
    """Return ids as a column with their exact values; InputError where there is none."""
    kinds = {type(value).__name__ for value in values if value is not None}
    unsigned = kinds == {"int"} and max(value or 0 for value in values) >= 2**63
    try:
        if len(kinds) > 1:
            raise TypeError(f"they are of the types {', '.join(sorted(kinds))}")
        return pa.array(values, pa.uint64() if unsigned else None)
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise InputError(
            f"id_field={field!r}: the values cannot be one column ({error}). Write all of them as "
            "texts, in quotes, or name another field."
        ) from error


def _tables(ids: Any, found: Any) -> Iterator[pa.Table]:
    m = len(found.mixed)
    for start in range(0, m, ROWS_PER_TABLE):
        part = slice(start, min(start + ROWS_PER_TABLE, m))
        column = pa.array(range(start, part.stop)) if ids is None else ids[part]
        numbers = {name: np.asarray(getattr(found, name)[part]) for name in SCORES}
        answers = pa.array([str(answer) for answer in found.answers[part]], pa.string())
        yield pa.table({"id": column, **numbers, "answer": answers})


def _write_parquet(file: Path, tables: Iterator[pa.Table]) -> None:
    writer = None
    try:
        for table in tables:
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _write_lines(file: Path, tables: Iterator[pa.Table]) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for table in tables:
            for row in table.to_pylist():
                lines.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
