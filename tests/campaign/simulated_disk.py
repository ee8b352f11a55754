"""A disk in memory that forgets unsynced writes, fails on demand, and records every operation.

SQLite runs on it through apsw's VFS. Each file has what is durable, and the writes since its last
sync. Names behave as on a POSIX file system under SQLite's own unix VFS: a new journal's name
becomes durable with its first sync, and a removal becomes durable when SQLite syncs it
(synchronous=EXTRA does) or may be undone by a power cut.
"""

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import apsw

Write = tuple[str, int, bytes]
"""Kind (write or truncate), offset, content."""


def applied(content: bytes, write: Write) -> bytes:
    kind, offset, data = write
    if kind == "truncate":
        return content[:offset].ljust(offset, b"\0")
    return content[:offset].ljust(offset, b"\0") + data + content[offset + len(data) :]


@dataclass
class Inode:
    """One file: what is on the platter, and what the system still holds back."""

    durable: bytes = b""
    pending: list[Write] = field(default_factory=list)
    named: bool = False
    """Its name is on the platter."""

    def content(self) -> bytes:
        content = self.durable
        for write in self.pending:
            content = applied(content, write)
        return content

    def copy(self) -> "Inode":
        return Inode(self.durable, list(self.pending), self.named)


Files = dict[str, Inode]


@dataclass
class Snapshot:
    """The disk after one operation, and how much had been acknowledged by then."""

    files: Files
    removed: Files
    """Files whose removal is not durable yet."""
    acknowledged: int
    operation: str

    def images(self, rng: Random, draws: int) -> Iterator[dict[str, bytes]]:
        """Return what a power cut may leave: no unsynced writes, all of them, and random parts."""
        for keep in (lambda: False, lambda: True, *[lambda: rng.random() < 0.5] * draws):
            yield self._image(keep, rng)

    def _image(self, keep: Callable[[], bool], rng: Random) -> dict[str, bytes]:
        image = {}
        for name in sorted({*self.removed, *self.files}):
            inode = self.files.get(name)
            if inode is None or not (inode.named or keep()):
                inode = self.removed.get(name)  # the removal may be undone
                if inode is None or keep():
                    continue
            content = inode.durable
            for write in inode.pending:
                if keep():
                    content = applied(content, torn(write, keep, rng))
            image[name] = content
        return image


def torn(write: Write, keep: Callable[[], bool], rng: Random) -> Write:
    """Cut a write in two at a sector, as a power cut may."""
    kind, offset, data = write
    if kind == "write" and len(data) > 512 and not keep():
        return kind, offset, data[: 512 * rng.randrange(1, len(data) // 512 + 1)]
    return write


class Disk(apsw.VFS):
    """The disk. `acknowledge` says that the program was told that something is stored."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "")
        self.name = name
        self.files: Files = {}
        self.removed: Files = {}
        self.history: list[Snapshot] = []
        self.recording = False
        self.acknowledged = 0
        self.fail: Callable[[str], Exception | None] = lambda operation: None

    def acknowledge(self) -> None:
        self.acknowledged += 1

    def did(self, operation: str) -> None:
        if self.recording:
            files = {name: inode.copy() for name, inode in self.files.items()}
            removed = {name: inode.copy() for name, inode in self.removed.items()}
            self.history.append(Snapshot(files, removed, self.acknowledged, operation))

    def about_to(self, operation: str) -> None:
        error = self.fail(operation)
        if error is not None:
            raise error

    # The interface of a VFS

    def xFullPathname(self, name: str) -> str:  # noqa: N802 - SQLite's names
        return name

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        return pathname in self.files

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.about_to("delete")
        if filename not in self.files:
            raise apsw.IOError("no such file")
        inode = self.files.pop(filename)
        if inode.named and not syncdir:
            self.removed[filename] = inode
        else:
            self.removed.pop(filename, None)
        self.did("delete")

    def xOpen(self, name: Any, flags: list[int]) -> "DiskFile":  # noqa: N802
        filename = name.filename() if hasattr(name, "filename") else str(name)
        if filename not in self.files:
            if not flags[0] & apsw.SQLITE_OPEN_CREATE:
                raise apsw.CantOpenError(filename)
            self.about_to("open")
            self.files[filename] = Inode()
            self.did("open")
        flags[1] = flags[0]
        return DiskFile(self, filename)

    def xRandomness(self, numbytes: int) -> bytes:  # noqa: N802
        return bytes(numbytes)

    def xSleep(self, microseconds: int) -> int:  # noqa: N802
        return microseconds

    def xCurrentTime(self) -> float:  # noqa: N802
        return 2461000.5

    def xGetLastError(self) -> tuple[int, str]:  # noqa: N802
        return 0, ""


class DiskFile:
    """One open file on the disk; one connection at a time, so locks always succeed."""

    def __init__(self, disk: Disk, name: str) -> None:
        self.disk, self.name = disk, name
        self.inode = disk.files[name]
        self.level = 0

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        self.disk.about_to("read")
        return self.inode.content()[offset : offset + amount]

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        grows = offset + len(data) > len(self.inode.content())
        self.disk.about_to("grow" if grows else "write")
        self.inode.pending.append(("write", offset, bytes(data)))
        self.disk.did("write")

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self.disk.about_to("truncate")
        self.inode.pending.append(("truncate", newsize, b""))
        self.disk.did("truncate")

    def xSync(self, flags: int) -> None:  # noqa: N802
        self.disk.about_to("sync")
        self.inode.durable, self.inode.pending = self.inode.content(), []
        self.inode.named = True
        self.disk.removed.pop(self.name, None)
        self.disk.did("sync")

    def xFileSize(self) -> int:  # noqa: N802
        return len(self.inode.content())

    def xLock(self, level: int) -> None:  # noqa: N802
        self.level = level

    def xUnlock(self, level: int) -> None:  # noqa: N802
        self.level = level

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return self.level >= apsw.SQLITE_LOCK_RESERVED

    def xFileControl(self, op: int, pointer: int) -> bool:  # noqa: N802
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return 4096

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        # As in SQLite's unix VFS: writing a range does not change its neighbours.
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE

    def xClose(self) -> None:  # noqa: N802
        pass


CODES = {type(apsw.exceptionfor(code)): code for code in range(1, 27)}
"""An error raised by the disk carries no code of its own, only its class."""


class Cursor:
    """Rows of a statement, as sqlite3's cursor gives them."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def fetchall(self) -> list[Any]:
        return self.rows


class Connection:
    """apsw's connection with the face of sqlite3's, so that the label store runs on it as it is."""

    def __init__(self, path: Path, disk: Disk) -> None:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        self.inner = apsw.Connection(str(path), flags=flags, vfs=disk.name)

    @property
    def in_transaction(self) -> bool:
        return bool(self.inner.in_transaction)

    def execute(self, statement: str, values: Any = ()) -> Cursor:
        try:
            return Cursor(self.inner.execute(statement, values).fetchall())
        except apsw.Error as error:
            same = sqlite3.OperationalError(str(error))
            same.sqlite_errorcode = CODES[type(error)]
            raise same from error

    def close(self) -> None:
        self.inner.close(True)
