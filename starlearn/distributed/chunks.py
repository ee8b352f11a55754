"""Chunks of a pool: the key that identifies one, and the Parquet file that stores its numbers."""

import json
import warnings
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from starlearn.query.score_store import row_keys
from starlearn.storage.files import replacing

DIGEST = b"starlearn.chunk"
"""Name in a file's metadata of the digest of its key and columns."""


def chunk_key(space: str, prompts: Sequence[Sequence[int]]) -> str:
    """Return the key of a chunk of prompts: it changes with every input of the chunk's numbers.

    `space` identifies all inputs besides the prompts, see
    :meth:`starlearn.query.scoring.Scorer.identity`. The key is the name of the chunk's file.
    """
    return blake2b(space.encode() + b"".join(row_keys(prompts)), digest_size=16).hexdigest()


def items_key(space: str, items: Sequence[Mapping[str, str]]) -> str:
    """Return the key of a chunk of items, before they become prompts.

    `space` identifies all inputs of the chunk's numbers besides the items, the task included. Items
    are the fields of the prompts, as :meth:`starlearn.tasks.Task.fill` returns them.
    """
    content = json.dumps([space, *items]).encode()
    return blake2b(content, digest_size=16).hexdigest()


def chunk_file(folder: Path, space: str, key: str) -> Path:
    """Return the path of a chunk: one folder per space, one file per chunk."""
    return folder / space.replace("*", "-adapter") / f"{key}.parquet"


def write_chunk(file: Path, key: str, columns: Mapping[str, Any]) -> None:
    """Write a chunk. The file has its name only when it is complete."""
    table = pa.table(dict(columns))
    table = table.replace_schema_metadata({DIGEST: _digest(key, table)})
    with replacing(file, uuid4().hex) as scratch:  # two workers may score the same chunk
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, scratch, compression="zstd")


def read_chunk(file: Path, key: str, length: int) -> pa.Table | None:
    """Return a chunk of `length` rows, or None where there is none.

    A file that is damaged, or has another key or length, is removed with a warning. The digest is
    needed because Parquet's checksums leave out its footer.
    """
    if not file.is_file():
        return None
    try:
        table = pq.ParquetFile(file).read()
        valid = (table.schema.metadata or {}).get(DIGEST) == _digest(key, table)
    except (OSError, ValueError, pa.ArrowException):
        valid = False
    if not valid or table.num_rows != length:
        file.unlink(missing_ok=True)
        warnings.warn(
            f"The finished chunk {file} is damaged. It was removed, and its items are scored "
            "again.",
            UserWarning,
            stacklevel=2,
        )
        return None
    return table


def _digest(key: str, table: pa.Table) -> bytes:
    digest = blake2b(key.encode(), digest_size=16)
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            digest.update(pc.list_value_length(column).to_numpy(zero_copy_only=False).tobytes())
            column = column.flatten()
        if pa.types.is_string(column.type):  # the bytes of an object array are addresses
            digest.update(pc.binary_length(column).to_numpy(zero_copy_only=False).tobytes())
            digest.update("".join(column.to_pylist()).encode())
            continue
        digest.update(f"{name} {column.type}".encode())
        digest.update(column.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest().encode()
