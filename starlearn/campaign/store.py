"""The label store: one SQLite file with strict checks and durable transactions."""

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlearn.campaign import schema
from starlearn.campaign.integrity import check_files, checksum, damaged
from starlearn.errors import (
    CampaignCorruptError,
    CampaignLockedError,
    InputError,
    StarlearnError,
    StorageError,
)
from starlearn.storage.files import (
    explained,
    make_folder,
    replacing,
    storage_errors,
    sync,
    writable,
)

SQLITE_VERSION = sqlite3.sqlite_version
Row = tuple[Any, ...]
Values = Sequence[Any] | Mapping[str, Any]

READING = ("SELECT", "PRAGMA")

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


def _connect_copy(path: Path, read_only: bool = True) -> Any:
    """Copy a database to memory, and return a connection to the copy."""
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    with closing(connect(path, read_only=True)) as original:
        original.backup(copy)
    return copy


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
        self.mutex = threading.RLock()
        """Held by the thread that runs a statement or a transaction. A thread that holds it over
        several reads finds what is in memory unchanged between them."""
        self.rollbacks = 0
        """Number of transactions that failed: what was read inside of them may never have been."""
        self.kept: dict[str, Any] = {}
        """Rows in memory, each verified once; `EventLog` and `rounds` keep theirs here."""
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
                raise StorageError(
                    explained(
                        PermissionError(13, "Permission denied", str(path)), f"writing {path}"
                    )
                )
            store = cls(path, read_only=read_only, **options)
        try:
            store.check()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open_copy(cls, path: Path) -> "Store":
        """Open and check a copy of a database in memory, brought to this version.

        The file is not changed, and can be of an older version. Errors are those of `open`.
        """
        with _opening:
            check_files(path, inside=not any(store._holds(path) for store in _open))
            store = cls(path, connect=_connect_copy, pragmas=schema.PRAGMAS_OF_A_COPY)
        try:
            store.path = path
            store._in_place = None
            version = store._checked_version()
            if version < schema.VERSION:
                store._upgrade(version)
        except BaseException:
            store.close()
            raise
        return store

    # Statements and transactions

    def execute(self, statement: str, values: Values = ()) -> list[Row]:
        """Run one statement with bound values, and return its rows; SQLite's errors become ours."""
        with self.mutex:
            self._require_usable()
            try:
                return list(self._connection.execute(statement, values).fetchall())
            except UnicodeDecodeError as error:  # in SQLite's message about a damaged schema
                raise self.corrupt(str(error)) from error
            except (UnicodeEncodeError, OverflowError) as error:
                raise InputError(
                    f"A value cannot be stored ({error}): text must be valid Unicode, and numbers "
                    "must fit into 64 bits. Nothing was stored."
                ) from error
            except sqlite3.Error as error:
                explanation = self._explained(error, statement.startswith(READING))
                if explanation is None:
                    raise
                raise explanation from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the statements inside as one transaction, which is on the disk at the end."""
        with self.mutex:
            try:
                self.execute("BEGIN IMMEDIATE")
                self.require_in_place()
                yield
                self.execute("COMMIT")
            except BaseException:  # Ctrl-C too
                self.rollbacks += 1
                self._roll_back()
                raise

    def require_in_place(self) -> None:
        """Raise StorageError when another file has replaced the database since it was opened.

        Otherwise rows would be written to a file that was moved away, as by a restore.
        """
        if self._in_place is not None and _identity(self.path) != self._in_place:
            self._broken = (
                f"{self.path} was replaced or moved while this process had it open, as by a "
                "restore from a backup. Nothing was stored. Run the command again, or open the "
                "campaign again: Campaign.open(folder)."
            )
            self._connection.rollback()
            raise StorageError(self._broken)

    def meta(self) -> dict[str, str]:
        """Return the settings of the campaign, each verified by its checksum."""
        with self.mutex:
            # SQLite's number of changes by other connections; `set_meta` forgets what is kept here.
            version = (self.execute("PRAGMA data_version"), self.rollbacks)
            if "meta" not in self.kept or self.kept["meta"][0] != version:
                found = {}
                for key, value, crc in self.execute("SELECT key, value, crc FROM meta"):
                    if checksum(key, value) != crc:
                        raise self.corrupt(f"the setting {key!r} is not the one that was written")
                    found[key] = value
                self.kept["meta"] = version, found
            return dict(self.kept["meta"][1])

    def set_meta(self, **values: str) -> None:
        """Write settings of the campaign; call it inside a transaction."""
        self.kept.pop("meta", None)
        for key, value in values.items():
            self.execute(
                "INSERT INTO meta VALUES (:key, :value, :crc) ON CONFLICT (key) "
                "DO UPDATE SET value = :value, crc = :crc",
                {"key": key, "value": value, "crc": checksum(key, value)},
            )
            ((stored,),) = self.execute("SELECT value FROM meta WHERE key = ?", (key,))
            if stored != value:
                raise self.differs(f"the setting {key!r}")

    def close(self) -> None:
        """Close the connection. Closing it twice is harmless."""
        with _opening:
            _open.discard(self)
        with self.mutex:
            self._connection.close()

    def backup(self, target: Path) -> None:
        """Copy the database to a new file with SQLite's backup interface."""
        with self.mutex, replacing(target) as scratch:
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
        version = self._checked_version()
        if version < schema.VERSION:
            self._migrate(version)

    def _checked_version(self) -> int:
        """Return the version of the schema after all checks of integrity."""
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
        if self.meta().get("tables") != self.tables():
            raise self.corrupt("its tables are not those that starlearn created")
        complaints = [text for (text,) in self.execute("PRAGMA integrity_check") if text != "ok"]
        complaints += [
            f"{table} refers to a missing row of {parent}"
            for table, _, parent, _ in self.execute("PRAGMA foreign_key_check")
        ]
        if complaints:
            raise self.corrupt("; ".join(complaints[:3]))
        return int(version)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction has begun, so that rows which are read may yet be rolled back."""
        return bool(self._connection.in_transaction)

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

    def differs(self, what: str) -> StorageError:
        """Return the error about a row that SQLite does not return as it was written."""
        return StorageError(
            f"SQLite returns {what} in another form than it was written to {self.path}. Nothing "
            "was stored. Check the disk and the memory (dmesg), then run the command again."
        )

    def _migrate(self, version: int) -> None:
        if self.read_only:
            raise StorageError(
                f"{self.path} has an older schema ({version}) and is read-only. Open it once "
                "with write permission: starlearn status FOLDER."
            )
        backups = self.path.parent / "backups"
        make_folder(backups)
        self.backup(backups / f"before-schema-{schema.VERSION}.db")
        self._upgrade(version)

    def _upgrade(self, version: int) -> None:
        """Run the migrations from a version in one transaction."""
        with self.transaction():
            for step in range(version, schema.VERSION):
                for action in schema.MIGRATIONS[step]:
                    if isinstance(action, str):
                        self.execute(action)
                    else:
                        action(self.execute)
            self.execute(f"PRAGMA user_version = {schema.VERSION}")
            self.set_meta(tables=self.tables())
            if self.execute("PRAGMA foreign_key_check"):
                raise self.corrupt(f"its rows cannot be brought to schema {schema.VERSION}")

    def _open(self) -> None:
        self._pid = os.getpid()
        _open.add(self)
        self._in_place = _identity(self.path)
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

    def _explained(self, error: sqlite3.Error, reading: bool = False) -> StarlearnError | None:
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
                f"campaign's folder writable: {writable(self.path)}."
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return CampaignLockedError(
                f"Another program has locked {self.path} for more than ten seconds. Close it (a "
                "database browser?) and run the command again."
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self.corrupt(str(error))
        # All statements are fixed, so one that only reads fails because of the file: a name in
        # its schema, a value that is too long, or text that is not UTF-8 (which has no code).
        if reading and not isinstance(error, sqlite3.ProgrammingError):
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


def now() -> str:
    """Return the time in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file; None where it is missing."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


_open: "weakref.WeakSet[Store]" = weakref.WeakSet()
_opening = threading.RLock()
"""Held while a store is opened or closed, so that `_open` is complete."""
