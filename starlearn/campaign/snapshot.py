"""Parquet files of a campaign: the snapshot of its pool, and tables of scores."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from starlearn.campaign.items import PoolItem
from starlearn.errors import CampaignCorruptError
from starlearn.storage.files import file_sha256, storage_errors, write_file

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
        pa.field("count", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("rest", pa.string()),  # null in a campaign of an earlier version
    ]
)


def write_snapshot(path: Path, items: Mapping[str, PoolItem]) -> str:
    """Write the output of `unique_items` in its order, and return the SHA-256 of the file."""
    names = SCHEMA.names[1:]
    columns = {name: [getattr(item, name) for item in items.values()] for name in names}
    table = pa.table({"id": list(items), **columns}, schema=SCHEMA)
    return write_table(path, table)


def read_snapshot(path: Path, sha256: str) -> pa.Table:
    """Return the snapshot, m rows with the columns of SCHEMA, if its SHA-256 is right."""
    if not path.is_file() or path.is_symlink() or file_sha256(path) != sha256:
        raise CampaignCorruptError(
            f"{path} is missing or is not the snapshot of the pool that was written (its SHA-256 "
            "differs). No label is lost. Restore the file from a copy of the campaign folder."
        )
    with storage_errors(f"reading {path}"):
        return pq.read_table(path, schema=SCHEMA)


def read_scores(path: Path, sha256: str | None = None) -> pa.Table | None:
    """Read a table of scores; None where it is missing, damaged, or has another SHA-256."""
    if not path.is_file() or path.is_symlink():
        return None
    try:
        if sha256 is not None and file_sha256(path) != sha256:
            return None
        return pq.read_table(path)
    except (OSError, pa.ArrowException):
        return None


def without(table: pa.Table, ids: Collection[str]) -> pa.Table:
    """Return the rows whose ids are not among `ids`, in the same order."""
    known = pa.array(sorted(ids), type=pa.string())
    return table.filter(pc.invert(pc.is_in(table["id"], value_set=known)))


def write_table(path: Path, table: pa.Table, facts: Mapping[str, str] | None = None) -> str:
    """Write a table durably, with facts as metadata, and return the SHA-256 of the file."""
    if facts is not None:
        table = table.replace_schema_metadata(dict(facts))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: Any = sink.getvalue().to_pybytes()
    write_file(path, content)
    return hashlib.sha256(content).hexdigest()
