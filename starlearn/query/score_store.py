"""A store of computed scores, which lasts over rounds and interruptions."""

import os
import sqlite3
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from starlearn.errors import InputError, StorageError, UntrustedFileError
from starlearn.storage.files import open_regular, require_regular

Row = NDArray[np.float64]

MEMORY_BYTES = 256_000_000
"""Memory for rows without a folder. The oldest rows are dropped first."""
ROW_BYTES = 200
"""Memory of a row in addition to its numbers: key, array, dict entry."""
SPACES = 8
"""Number of spaces of adapters, whose names end in a star, that a folder keeps."""
SCHEMA = """
create table if not exists spaces (id integer primary key, name text unique not null);
create table if not exists rows (
    space integer not null, key blob not null, value blob not null, primary key (space, key)
) without rowid;
"""
VARIABLES = 500
"""Keys per SQL statement; SQLite allows at least 999."""


def row_keys(*columns: Sequence[Sequence[int]]) -> list[bytes]:
    """Return 16 bytes per item that identify its tokens: of prompts, or of prompts and answers."""
    return [
        blake2b(
            b"".join(
                len(ids).to_bytes(8, "big") + np.asarray(ids, dtype=np.int64).tobytes()
                for ids in row
            ),
            digest_size=16,
        ).digest()
        for row in zip(*columns, strict=True)
    ]


class ScoreStore:
    """Rows by space and key, in memory up to 256 MB, or in the file ``scores.sqlite`` of a folder.

    A space names everything that a row depends on except its item: model, quantisation, task,
    adapter, masks. A name that ends in ``*`` belongs to an adapter, and old ones are dropped.

    Every row has a checksum, and a row that fails it is computed again. A file that SQLite reports
    as damaged is moved aside with a warning. All scores in it can be computed again.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._memory: OrderedDict[tuple[str, bytes], Row] = OrderedDict()
        self._bytes = 0
        self._database: sqlite3.Connection | None = None
        if folder is not None:
            self._file = Path(folder) / "scores.sqlite"
            self._database = _opened(self._file)
        self._process = os.getpid()
        self._parents: list[sqlite3.Connection] = []

    def get(self, space: str, keys: Sequence[bytes], compute: Callable[[list[int]], Row]) -> Row:
        """Return a row per key, [m, width]; missing rows are computed first, and stored.

        `compute` takes positions in `keys`, each of a different key, and returns their rows.
        """
        self._own()
        found = self.known(space, keys)
        first = {key: position for position, key in reversed(list(enumerate(keys)))}
        missing = sorted(position for key, position in first.items() if key not in found)
        if missing:
            rows = np.asarray(compute(missing), dtype=np.float64)
            new = {keys[position]: row for position, row in zip(missing, rows, strict=True)}
            self._write(space, new)
            found |= new
        return np.stack([found[key] for key in keys])

    def __len__(self) -> int:
        """Return the number of rows in memory."""
        return len(self._memory)

    def without_adapters(self) -> "ScoreStore":
        """Return a copy in memory without the scores of adapters, as a new round finds it."""
        copied = ScoreStore()
        for (space, key), row in self._memory.items():
            if not space.endswith("*"):
                copied._write(space, {key: row})
        return copied

    def known(self, space: str, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """Return the stored rows of these keys."""
        if self._database is None:
            pairs = ((key, self._memory.get((space, key))) for key in keys)
            return {key: row for key, row in pairs if row is not None}
        found: dict[bytes, Row] = {}
        with self._recovering():
            number = _number(self._database, space)
            distinct = list(dict.fromkeys(keys))
            for start in range(0, len(distinct), VARIABLES):
                some = distinct[start : start + VARIABLES]
                marks = ",".join("?" * len(some))
                rows = self._database.execute(
                    f"select key, value from rows where space = ? and key in ({marks})",  # noqa: S608
                    (number, *some),
                )
                for key, value in rows:
                    row = _unpacked(key, value)
                    if row is not None:
                        found[key] = row
        return found

    def _own(self) -> None:
        """Open the file again after a fork: SQLite's connections cannot be used in a child.

        The parent's connection stays open, because closing it here would release its locks.
        """
        if self._database is not None and os.getpid() != self._process:
            self._parents.append(self._database)
            self._database, self._process = _opened(self._file), os.getpid()

    def _write(self, space: str, new: dict[bytes, Row]) -> None:
        if self._database is not None:
            with self._recovering(), self._database:
                self._database.execute("begin immediate")
                number = self._made(self._database, space)
                self._database.executemany(
                    "insert or replace into rows values (?, ?, ?)",
                    [(number, key, _packed(key, row)) for key, row in new.items()],
                )
            return
        for key, row in new.items():
            self._memory[space, key] = row
            self._bytes += row.nbytes + ROW_BYTES
        while self._bytes > MEMORY_BYTES and len(self._memory) > len(new):
            _, row = self._memory.popitem(last=False)
            self._bytes -= row.nbytes + ROW_BYTES

    def _made(self, database: sqlite3.Connection, space: str) -> int:
        """Return the space's number in the file; a new space of an adapter removes the oldest.

        Call it within the transaction that writes. Another process may have removed this space, and
        rows under a removed number would never be found or deleted.
        """
        number = _number(database, space)
        if number is not None:
            return number
        cursor = database.execute("insert into spaces (name) values (?)", (space,))
        if space.endswith("*"):
            old = database.execute(
                "select id from spaces where name like '%*' order by id desc limit -1 offset ?",
                (SPACES,),
            ).fetchall()
            database.executemany("delete from rows where space = ?", old)
            database.executemany("delete from spaces where id = ?", old)
        return int(cursor.lastrowid or 0)

    @contextmanager
    def _recovering(self) -> Iterator[None]:
        """Continue without the file's rows if it is damaged."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"The cache {self._file} cannot be used: {error}. Free the disk, wait for the "
                "process that holds it, or give another STARLearner(cache_dir=...)."
            ) from error
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            if self._database is not None:
                self._database.close()
            _set_aside(self._file)
            self._database = _opened(self._file)


def _number(database: sqlite3.Connection, space: str) -> int | None:
    row = database.execute("select id from spaces where name = ?", (space,)).fetchone()
    return None if row is None else int(row[0])


def _opened(file: Path) -> sqlite3.Connection:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Private, because keys are derived from the user's texts. A link could lead to another
        # database, which SQLite would write to.
        if not os.path.lexists(file):
            os.close(open_regular(file, os.O_RDWR | os.O_CREAT))
        for path in (file, file.with_name(f"{file.name}-journal")):
            if os.path.lexists(path):
                require_regular(path)
        return _connected(file)
    except UntrustedFileError as error:
        raise InputError(f"cache_dir={str(file.parent)!r} cannot be used: {error}") from error
    except (OSError, sqlite3.OperationalError) as error:
        raise InputError(
            f"cache_dir={str(file.parent)!r} cannot be used: {error}. Give a folder that can be "
            "written, or None to keep scores in memory."
        ) from error
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
        _set_aside(file)
        return _connected(file)


def _connected(file: Path) -> sqlite3.Connection:
    # Several threads may call, one after the other. SQLite itself serialises them.
    database = sqlite3.connect(file, timeout=60, check_same_thread=False)
    try:
        # A cache may lose its last rows in a power cut, so it does not wait for the disk. The
        # rollback journal also works on network file systems, unlike the write-ahead log.
        database.execute("pragma journal_mode = delete")
        database.execute("pragma synchronous = normal")
        database.executescript(SCHEMA)
    except sqlite3.Error:
        database.close()
        raise
    return database


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the error means a damaged file; rows are given up only then."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the other bits are details
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _set_aside(file: Path) -> None:
    aside = file.with_suffix(".damaged")
    with suppress(FileNotFoundError):  # another process has moved it
        file.replace(aside)
    file.with_name(f"{file.name}-journal").unlink(missing_ok=True)
    warnings.warn(
        f"The cache {file} is damaged. It was moved to {aside.name}, which can be deleted; its "
        "scores are computed again.",
        UserWarning,
        stacklevel=2,
    )


def _packed(key: bytes, row: Row) -> bytes:
    numbers = row.tobytes()
    return crc32(numbers, crc32(key)).to_bytes(4, "big") + numbers


def _unpacked(key: bytes, value: bytes) -> Row | None:
    numbers = value[4:]
    if len(numbers) % 8 or crc32(numbers, crc32(key)).to_bytes(4, "big") != value[:4]:
        return None
    return np.frombuffer(numbers, dtype=np.float64)
