"""A lock file for one writer at a time, which the operating system releases when a process dies."""

import fcntl
import json
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from starlearn.errors import CampaignLockedError, UntrustedFileError
from starlearn.storage.files import open_regular, storage_errors

WAIT = 2.0
"""Seconds to wait for a lock: longer than one label takes to write."""
PAUSE = 0.02
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    host: str
    boot_id: str
    command: str
    since: str

    def __str__(self) -> str:
        return f"pid {self.pid} on host {self.host} since {self.since} ({self.command})"


class Lock:
    """A lock of this process, reentrant; the threads of the process take turns.

    The content of the lock file only informs people. The lock itself is an flock, which the
    operating system releases when the process dies.

    Parameters
    ----------
    path : Path
        The lock file.
    folder : Path, optional
        A folder that is locked too, where the file system allows it. The lock then also holds after
        somebody has removed the lock file.
    """

    def __init__(self, path: Path, folder: Path | None = None) -> None:
        self.path = path
        self.folder = folder
        self._mutex = threading.RLock()
        self._depth = 0
        self._handles: list[int] = []
        _locks.add(self)

    @contextmanager
    def held(self, command: str, wait: float = WAIT) -> Iterator[None]:
        """Hold the lock while the code inside runs; CampaignLockedError names another holder."""
        # The order is fixed: the threads' mutex first, then the file lock of the process.
        with self._mutex:
            if self._depth == 0:
                self._acquire(command, wait)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._release()

    def _acquire(self, command: str, wait: float) -> None:
        deadline = time.monotonic() + wait
        while not self._try_to_acquire():
            if time.monotonic() >= deadline:
                raise CampaignLockedError(
                    f"The campaign {self.path.parent} is held by "
                    f"{holder(self.path, self.folder) or 'another process'}. Wait until that "
                    f"process ends, or end it. Reading still works: starlearn status "
                    f"{self.path.parent}"
                )
            time.sleep(PAUSE)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        me = Holder(os.getpid(), socket.gethostname(), _boot_id(), command, since)
        # The content only informs, so a full disk must not prevent taking the lock.
        with suppress(OSError):
            os.ftruncate(self._handles[0], 0)
            os.pwrite(self._handles[0], json.dumps(asdict(me)).encode(), 0)

    def _try_to_acquire(self) -> bool:
        try:
            with storage_errors(f"locking {self.path}"):
                self._handles.append(open_regular(self.path, os.O_RDWR | os.O_CREAT))
                is_free = _flock(self._handles[0], fcntl.LOCK_EX)
            # The file may have been removed, and another one made, since it was opened.
            is_free = is_free and _is_at(self._handles[0], self.path)
            if is_free and self.folder is not None:
                self._handles.append(os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC))
                is_free = _flock_folder(self._handles[1], fcntl.LOCK_EX)
        except BaseException:
            self._release()
            raise
        if not is_free:
            self._release()
        return is_free

    def _release(self) -> None:
        while self._handles:
            os.close(self._handles.pop())

    def _forget(self) -> None:
        """Drop the lock in a forked child: it belongs to the parent."""
        self._mutex = threading.RLock()
        self._depth = 0
        self._release()


_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_locks):
        lock._forget()


os.register_at_fork(after_in_child=_forget_all)


def holder(path: Path, folder: Path | None = None) -> Holder | None:
    """Return the process that holds the lock of this file, and of this folder, or None."""
    unknown = Holder(0, "", "", "unknown", "")
    try:
        handle = open_regular(path)
    except (OSError, UntrustedFileError):
        handle = None
    if handle is not None:
        with _closing(handle), storage_errors(f"locking {path}"):
            if not _flock(handle, fcntl.LOCK_SH):
                return _read(handle) or unknown
    if folder is not None:
        with storage_errors(f"locking {folder}"):
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        with _closing(handle):
            if not _flock_folder(handle, fcntl.LOCK_SH):
                return unknown
    return None


@contextmanager
def _closing(handle: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(handle)


def _flock(handle: int, kind: int) -> bool:
    """Whether a lock was free, and is held now."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _flock_folder(handle: int, kind: int) -> bool:
    """Return as `_flock`, and True where the file system cannot lock folders, as over NFS."""
    try:
        return _flock(handle, kind)
    except OSError:
        return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def command_line() -> str:
    """Return the command line of this process, for people to read."""
    return " ".join([Path(sys.argv[0] or "python").name, *sys.argv[1:]])[:200]


def _read(handle: int) -> Holder | None:
    try:
        found = json.loads(os.pread(handle, 10_000, 0))
        return Holder(
            int(found["pid"]),
            *(str(found[key])[:200] for key in ("host", "boot_id", "command", "since")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
