"""Pieces of a pool that are scored apart: what identifies one, and the file that keeps it."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from starlearn.errors import StorageError
from starlearn.query.score_store import row_keys

FACT = b"starlearn.chunk"
"""Where a file's metadata says which piece it is, with a digest of its columns."""


def chunk_key(space: str, prompts: Sequence[Sequence[int]]) -> str:
    """Identify a piece by its prompts, in their order, and by all else that decides its numbers.

    Parameters
    ----------
    space : str
        What decides a row besides its prompt: see :meth:`starlearn.query.scoring.Scorer.identity`.
    prompts : sequence of c token sequences

    Returns
    -------
    str
        32 hexadecimal digits; the name of the piece's file.
    """
    digest = blake2b(space.encode(), digest_size=16)
    for key in row_keys(prompts):
        digest.update(key)
    return digest.hexdigest()


def items_key(space: str, items: Sequence[Mapping[str, str]]) -> str:
    """Identify a piece by its items, in their order, before they are prompts.

    Parameters
    ----------
    space : str
        What decides a row besides its item, the task too.
    items : sequence of c mappings
        The fields of the prompt, as :meth:`starlearn.tasks.Task.fill` gives them.
    """
    content = json.dumps([space, *items]).encode()
    return blake2b(content, digest_size=16).hexdigest()


def chunk_file(folder: Path, space: str, key: str) -> Path:
    """Return where a piece is kept: a folder for each space, a file for each piece."""
    return folder / space.replace("*", "-adapter") / f"{key}.parquet"


def write_chunk(file: Path, key: str, columns: Mapping[str, Any]) -> None:
    """Write a piece; it appears under its name only when it is complete.

    Raises
    ------
    StorageError
        When it cannot be written.
    """
    table = pa.table(dict(columns))
    table = table.replace_schema_metadata({FACT: _fact(key, table)})
    scratch = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, scratch, compression="zstd")
        os.replace(scratch, file)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise StorageError(
            f"{file} cannot be written: {error.strerror or error}. Free the disk, or give another "
            "folder; finished chunks are kept."
        ) from error


def read_chunk(file: Path, key: str, length: int) -> pa.Table | None:
    """Read a piece of c rows; None where it is not there, and with a warning where it is damaged.

    Parquet's own checksums leave out its footer, so there is a digest of all columns. A piece that
    is another one, or of another length, counts as damaged: it can be computed again.
    """
    if not file.is_file():
        return None
    try:
        table = pq.ParquetFile(file).read()
        sound = (table.schema.metadata or {}).get(FACT) == _fact(key, table)
    except (OSError, ValueError, pa.ArrowException):
        sound = False
    if not sound or table.num_rows != length:
        file.unlink(missing_ok=True)
        warnings.warn(
            f"The finished chunk {file} is damaged. It was removed, and its items are scored "
            "again.",
            UserWarning,
            stacklevel=2,
        )
        return None
    return table


def _fact(key: str, table: pa.Table) -> bytes:
    digest = blake2b(key.encode(), digest_size=16)
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            digest.update(pc.list_value_length(column).to_numpy(zero_copy_only=False).tobytes())
            column = column.flatten()
        if pa.types.is_string(column.type):  # an array of objects has addresses, not texts
            digest.update(pc.binary_length(column).to_numpy(zero_copy_only=False).tobytes())
            digest.update("".join(column.to_pylist()).encode())
            continue
        digest.update(f"{name} {column.type}".encode())
        digest.update(column.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest().encode()
