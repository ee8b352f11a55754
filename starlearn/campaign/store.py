"""The label store: one SQLite file with strict checks and durable transactions."""

import json
import os
import sqlite3
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from starlearn.campaign import schema
from starlearn.campaign.integrity import check_files, damaged
from starlearn.errors import (
    CampaignCorruptError,
    CampaignLockedError,
    InputError,
    StarlearnError,
    StorageError,
)
from starlearn.storage.files import explained, make_folder, replacing, storage_errors, sync

SQLITE_VERSION = sqlite3.sqlite_version
Row = tuple[Any, ...]
Values = Sequence[Any] | Mapping[str, Any]

_inherited: list[Any] = []
"""Connections of a parent process. A forked child must neither use nor close them."""


def connect(path: Path, read_only: bool = False) -> Any:
    """Open an existing database; by default SQLite would create a missing one."""
    mode = "ro" if read_only else "rw"
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )


class Store:
    """A connection to a label store, with verified settings and plain errors.

    A read-only store is never written, not even to roll back after a crash. `connect` makes the
    connection; tests use one with a simulated disk. `pragmas` are settings of the connection, and
    the values that SQLite must report.
    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        connect: Callable[[Path, bool], Any] = connect,
        pragmas: Mapping[str, tuple[str, object]] = schema.PRAGMAS,
    ) -> None:
        self.path = path
        self.read_only = read_only
        self._connect, self._pragmas = connect, pragmas
        self._mutex = threading.RLock()
        self._broken: str | None = None
        self._open()

    @classmethod
    def create(cls, path: Path, **options: Any) -> "Store":
        """Create a database with its tables in a new file."""
        with storage_errors(f"making {path}"):
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, mode=0o600)
            os.close(handle)
            sync(path.parent)
        store = cls(path, **options)
        store.build()
        return store

    def build(self) -> None:
        """Create the tables of an empty database in one transaction."""
        with self.transaction():
            for statement in schema.TABLES:
                self.execute(statement)
            self.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
            self.execute(f"PRAGMA user_version = {schema.VERSION}")
            self.set_meta(tables=self.tables())

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, **options: Any) -> "Store":
        """Open and check a database of this version or an older one.

        Raise InputError when a newer starlearn has written it, CampaignCorruptError when it is
        missing, damaged, or not a label store, and StorageError when it is not writable or is in
        WAL mode.
        """
        with _opening:
            check_files(path, inside=not any(store._holds(path) for store in _open))
            if not read_only and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
                raise StorageError(explained(PermissionError(13, "Permission denied"), str(path)))
            store = cls(path, read_only=read_only, **options)
        try:
            store.check()
        except BaseException:
            store.close()
            raise
        return store

    # Statements and transactions

    def execute(self, statement: str, values: Values = ()) -> list[Row]:
        """Run one statement with bound values, and return its rows; SQLite's errors become ours."""
        with self._mutex:
            self._require_usable()
            try:
                return list(self._connection.execute(statement, values).fetchall())
            except sqlite3.Error as error:
                explanation = self._explained(error)
                if explanation is None:
                    raise
                raise explanation from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the statements inside as one transaction, which is on the disk at the end."""
        with self._mutex:
            try:
                self.execute("BEGIN IMMEDIATE")
                yield
                self.execute("COMMIT")
            except BaseException:  # Ctrl-C too
                self._roll_back()
                raise

    def meta(self) -> dict[str, str]:
        """Return the settings of the campaign, each verified by its checksum."""
        found = {}
        for key, value, crc in self.execute("SELECT key, value, crc FROM meta"):
            if checksum(key, value) != crc:
                raise self.corrupt(f"the setting {key!r} is not the one that was written")
            found[key] = value
        return found

    def set_meta(self, **values: str) -> None:
        """Write settings of the campaign; call it inside a transaction."""
        for key, value in values.items():
            self.execute(
                "INSERT INTO meta VALUES (:key, :value, :crc) ON CONFLICT (key) "
                "DO UPDATE SET value = :value, crc = :crc",
                {"key": key, "value": value, "crc": checksum(key, value)},
            )

    def close(self) -> None:
        """Close the connection. Closing it twice is harmless."""
        with _opening:
            _open.discard(self)
        with self._mutex:
            self._connection.close()

    def backup(self, target: Path) -> None:
        """Copy the database to a new file with SQLite's backup interface."""
        with self._mutex, replacing(target) as scratch:
            self._require_usable()
            scratch.unlink(missing_ok=True)
            os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode=0o600))
            try:
                with closing(sqlite3.connect(scratch)) as copy:
                    self._connection.backup(copy)
            except sqlite3.Error as error:
                raise StorageError(
                    f"The backup {target} could not be written ({error}). The labels are "
                    "unchanged. Check the disk (df, dmesg) and run the command again."
                ) from error
            sync(scratch)

    def check(self) -> None:
        """Check version and integrity, and migrate an older version."""
        (application,), (version,) = (
            self.execute(f"PRAGMA {name}")[0] for name in ("application_id", "user_version")
        )
        if application != schema.APPLICATION_ID:
            raise self.corrupt("it is a database, but not a label store of starlearn")
        if version > schema.VERSION:
            raise InputError(
                f"{self.path} was written by a newer starlearn (schema {version}, this one knows "
                f"up to {schema.VERSION}). Upgrade: pip install -U starlearn."
            )
        try:
            intact = self.meta()["tables"] == self.tables()
        except (sqlite3.OperationalError, KeyError) as error:
            raise self.corrupt(f"a table or a column is missing ({error})") from error
        if not intact:
            raise self.corrupt("its tables are not those that starlearn created")
        complaints = [text for (text,) in self.execute("PRAGMA integrity_check") if text != "ok"]
        complaints += [
            f"{table} refers to a missing row of {parent}"
            for table, _, parent, _ in self.execute("PRAGMA foreign_key_check")
        ]
        if complaints:
            raise self.corrupt("; ".join(complaints[:3]))
        if version < schema.VERSION:
            self._migrate(version)

    @property
    def is_broken(self) -> bool:
        """Whether the disk has failed, so that only a new process can continue."""
        return self._broken is not None

    def tables(self) -> str:
        """Return a checksum of the definitions of all tables, views and triggers."""
        return str(checksum(self.execute("SELECT name, sql FROM sqlite_schema ORDER BY name")))

    def corrupt(self, why: str) -> CampaignCorruptError:
        """Return the error about damage; it names the newest backup."""
        return damaged(self.path, why)

    def _migrate(self, version: int) -> None:
        if self.read_only:
            raise StorageError(
                f"{self.path} has an older schema ({version}) and is read-only. Open it once "
                "with write permission: starlearn status FOLDER."
            )
        backups = self.path.parent / "backups"
        make_folder(backups)
        self.backup(backups / f"before-schema-{schema.VERSION}.db")
        with self.transaction():
            for step in range(version, schema.VERSION):
                for statement in schema.MIGRATIONS[step]:
                    self.execute(statement)
            self.execute(f"PRAGMA user_version = {schema.VERSION}")
            self.set_meta(tables=self.tables())
            if self.execute("PRAGMA foreign_key_check"):
                raise self.corrupt(f"its rows cannot be brought to schema {schema.VERSION}")

    def _open(self) -> None:
        self._pid = os.getpid()
        _open.add(self)
        try:
            self._connection = self._connect(self.path, self.read_only)
        except sqlite3.Error as error:
            raise self._explained(error) or error from error
        for name, (setting, expected) in self._pragmas.items():
            self.execute(f"PRAGMA {name} = {setting}")
            found = self.execute(f"PRAGMA {name}")
            if found and found[0][0] != expected:
                self.close()
                raise StorageError(
                    f"SQLite does not accept {name} = {setting} for {self.path} (it reports "
                    f"{found[0][0]!r}), so labels would not be safe. Move the campaign to a local "
                    "disk."
                )

    def _holds(self, path: Path) -> bool:
        try:
            return os.path.samefile(self.path, path)
        except OSError:
            return False

    def _require_usable(self) -> None:
        if self._broken is not None:
            raise StorageError(self._broken)
        if self._pid != os.getpid():
            # A forked child: closing the inherited connection would release the parent's locks.
            _inherited.append(self._connection)
            self._open()

    def _roll_back(self) -> None:
        if self._broken is None and self._connection.in_transaction:
            self.execute("ROLLBACK")

    def _explained(self, error: sqlite3.Error) -> StarlearnError | None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StorageError(
                f"The disk is full writing {self.path}: {self._kept()} Free at least 10 MB and "
                "run the command again."
            )
        if code == sqlite3.SQLITE_IOERR:
            # After a failed sync the system may have dropped the data from its cache, so this
            # process can no longer know what is on the disk. Only a new process can.
            self._broken = (
                f"The disk failed with {self.path} ({error}). What was acknowledged is safe; the "
                "last entry was not acknowledged. Check the disk (dmesg), then run the command "
                "again in a new process."
            )
            return StorageError(self._broken)
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return StorageError(
                f"{self.path} cannot be opened or written ({error}). Nothing was changed. Make the "
                f"campaign's folder writable: chmod -R u+rwX {self.path.parent}."
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return CampaignLockedError(
                f"Another program has locked {self.path} for more than ten seconds. Close it (a "
                "database browser?) and run the command again."
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self.corrupt(str(error))
        return None

    def _kept(self) -> str:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            ((count,),) = self._connection.execute(
                "SELECT count(*) FROM event WHERE kind = 'label'"
            ).fetchall()
        except sqlite3.Error:
            return "nothing was lost; the last entry was not acknowledged."
        return f"nothing was lost, {count} labels are kept; the last entry was not acknowledged."


def checksum(*values: object) -> int:
    """Return a checksum of a row; SQLite keeps none of its own."""
    return zlib.crc32(json.dumps(values).encode())


_open: "weakref.WeakSet[Store]" = weakref.WeakSet()
_opening = threading.RLock()
"""Held while a store is opened or closed, so that `_open` is complete."""
