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

from starlearn.errors import CampaignLockedError
from starlearn.storage.files import storage_errors

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
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.RLock()
        self._depth = 0
        self._handle: int | None = None
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
        with storage_errors(f"opening {self.path}"):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(self.path, flags, mode=0o600)
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(PAUSE)
                    continue
                found = _read(handle)
                os.close(handle)
                raise CampaignLockedError(
                    f"The campaign {self.path.parent} is held by "
                    f"{found or 'another process'}. Wait until that process ends, or end it. "
                    f"Reading still works: starlearn status {self.path.parent}"
                ) from None
            except BaseException:
                os.close(handle)
                raise
        self._handle = handle
        since = datetime.now(UTC).isoformat(timespec="seconds")
        me = Holder(os.getpid(), socket.gethostname(), _boot_id(), command, since)
        # The content only informs, so a full disk must not prevent taking the lock.
        with suppress(OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(asdict(me)).encode(), 0)

    def _release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

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


def holder(path: Path) -> Holder | None:
    """Return the process that holds the lock of this file, or None."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(handle) or Holder(0, "", "", "unknown", "")
    finally:
        os.close(handle)
    return None


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
