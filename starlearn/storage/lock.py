"""One writer at a time: a lock that the system releases on death, and says who holds it."""

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
from starlearn.storage.files import storage

WAIT = 2.0
"""Seconds to wait for a lock: as short as a label takes, longer than a label takes to write."""
PAUSE = 0.02
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Holder:
    """The process that holds a campaign."""

    pid: int
    host: str
    boot_id: str
    command: str
    since: str

    def __str__(self) -> str:
        return f"pid {self.pid} on host {self.host} since {self.since} ({self.command})"


class Lock:
    """A lock on a campaign for this process; its threads take turns, and may take it again.

    Parameters
    ----------
    path : Path
        The lock's file. What is written in it only informs; the lock itself belongs to the
        operating system, which releases it when the process dies, whatever the clock says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._turn = threading.RLock()
        self._depth = 0
        self._handle: int | None = None
        _locks.add(self)

    @contextmanager
    def held(self, command: str, wait: float = WAIT) -> Iterator[None]:
        """Hold the lock while this lasts.

        Raises
        ------
        CampaignLockedError
            When another process holds it, naming that process.
        """
        with self._turn:
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
        with storage(f"opening {self.path}"):
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
                    f"{found or 'another process'}. Wait until it has ended, or end it; reading "
                    f"still works: starlearn status {self.path.parent}"
                ) from None
            except BaseException:
                os.close(handle)
                raise
        self._handle = handle
        since = datetime.now(UTC).isoformat(timespec="seconds")
        me = Holder(os.getpid(), socket.gethostname(), _boot_id(), command, since)
        # Only information: a full disk must not keep anyone from clearing it up.
        with suppress(OSError):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(asdict(me)).encode(), 0)

    def _release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _forget(self) -> None:
        """In a forked child: the lock is the parent's, and must not live on in the child."""
        self._turn = threading.RLock()
        self._depth = 0
        self._release()


_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_locks):
        lock._forget()


os.register_at_fork(after_in_child=_forget_all)


def holder(path: Path) -> Holder | None:
    """Return who holds the lock with this file, None when nobody does."""
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
    """Return what this process was started as, for people to read."""
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
