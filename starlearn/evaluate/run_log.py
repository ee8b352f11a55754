"""The lines of a study: one JSON line a finished run, appended whole, read with its repairs."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from starlearn.errors import CampaignLockedError, InputError, StorageError
from starlearn.storage.files import write_all
from starlearn.storage.lock import Lock, command_line, holder

Record = dict[str, Any]
NEEDED = ("key", "task", "arm", "seed", "protocol", "parameters")


def read_lines(path: Path) -> list[Record]:
    """Read the whole lines of a file; an unfinished last line is passed over.

    Raises
    ------
    InputError
        When a line before the last is not a line of a study.
    """
    if not path.exists():
        return []
    records = []
    whole, _ = split(path.read_bytes())
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: is not JSON ({error}). {REMEDY}") from error
        if not isinstance(record, dict) or any(name not in record for name in NEEDED):
            raise InputError(f"{path}, line {number}: is no run of a study. {REMEDY}")
        records.append(record)
    return records


REMEDY = "Remove the line: the run will be made again."


def split(content: bytes) -> tuple[bytes, bytes]:
    """Split a file into its whole lines and a torn end, which may be empty."""
    cut = content.rfind(b"\n") + 1
    whole, torn = content[:cut], content[cut:]
    # A power cut can also leave a line of the right length whose bytes never arrived.
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    if whole[last:].strip(b"\n\0 ") == b"" and whole[last:].strip():
        whole, torn = whole[:last], whole[last:] + torn
    return whole, torn


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Be the only process that adds to a file of lines, while this lasts.

    Raises
    ------
    CampaignLockedError
        When another process does.
    """
    lock = Lock(path.with_name(f".{path.name}.lock"))
    with ExitStack() as held:
        try:
            held.enter_context(lock.held(command_line(), wait=0.0))
        except CampaignLockedError:
            raise CampaignLockedError(
                f"{path}: {holder(lock.path) or 'another process'} is adding to this study. Wait "
                "until it has ended, or give another --out."
            ) from None
        yield


def mend(path: Path, note: Callable[[str], object]) -> None:
    """Set aside the torn last line that a power cut or a full disk left, and say so."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole, torn = split(content)
    if not torn:
        return
    aside = path.with_name(path.name + ".torn")
    with aside.open("ab") as file:
        file.write(torn.rstrip(b"\n") + b"\n")
    with path.open("r+b") as file:
        file.truncate(len(whole))
        os.fsync(file.fileno())
    note(f"{path} ended in a line that was cut off; it was moved to {aside}, and is run again.")


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record as one line in one write, and wait until it is on the disk.

    Raises
    ------
    StorageError
        When the disk is full or read-only.
    """
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            write_all(handle, line)
        finally:
            os.close(handle)
    except OSError as error:
        raise StorageError(
            f"{path}: a finished run could not be written ({error.strerror}). Make room, and type "
            "the command again: the runs before it are kept."
        ) from error
