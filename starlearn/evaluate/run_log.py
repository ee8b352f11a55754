"""The log of a study: one JSON line per finished run, appended whole and repaired when read."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from starlearn.errors import CampaignLockedError, InputError, StorageError
from starlearn.settings import Acquisition
from starlearn.storage.files import write_all
from starlearn.storage.lock import Lock, command_line, holder

Record = dict[str, Any]
NEEDED = ("key", "task", "arm", "seed", "protocol", "parameters")
REMEDY = "Remove the line. The next run of the study adds it again."


def read_lines(path: Path) -> list[Record]:
    """Read the complete lines of a log. An incomplete last line is ignored."""
    if not path.exists():
        return []
    records = []
    complete, _ = split(path.read_bytes())
    for number, line in enumerate(complete.splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error}). {REMEDY}") from error
        if not isinstance(record, dict) or any(name not in record for name in NEEDED):
            raise InputError(f"{path}, line {number}: not a run of a study. {REMEDY}")
        acquisition = record["parameters"].get("acquisition", {})
        if acquisition.get("strategy") == "star":  # the earlier name of the default
            acquisition["strategy"] = Acquisition().strategy
        records.append(record)
    return records


def split(content: bytes) -> tuple[bytes, bytes]:
    """Split the content of a log into its complete lines and an incomplete end, possibly empty."""
    cut = content.rfind(b"\n") + 1
    complete, torn = content[:cut], content[cut:]
    # A power cut can also leave a last line of the right length that is all zero bytes.
    last = complete.rstrip(b"\n").rfind(b"\n") + 1
    if complete[last:].strip(b"\n\0 ") == b"" and complete[last:].strip():
        complete, torn = complete[:last], complete[last:] + torn
    return complete, torn


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of a log, so that this process alone appends to it."""
    lock = Lock(path.with_name(f".{path.name}.lock"))
    with ExitStack() as held:
        try:
            held.enter_context(lock.held(command_line(), wait=0.0))
        except CampaignLockedError:
            raise CampaignLockedError(
                f"{path}: {holder(lock.path) or 'another process'} is adding to this study. Wait "
                "until it has ended, or use another --out."
            ) from None
        yield


def repair(path: Path, note: Callable[[str], object]) -> None:
    """Move an incomplete last line, which a power cut or a full disk left, to another file."""
    if not path.exists():
        return
    content = path.read_bytes()
    complete, torn = split(content)
    if not torn:
        return
    aside = path.with_name(path.name + ".torn")
    with aside.open("ab") as file:
        file.write(torn.rstrip(b"\n") + b"\n")
    with path.open("r+b") as file:
        file.truncate(len(complete))
        os.fsync(file.fileno())
    note(f"The last line of {path} was incomplete. It was moved to {aside} and is run again.")


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append a record as one line and sync it to the disk."""
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            write_all(handle, line)
        finally:
            os.close(handle)
    except OSError as error:
        raise StorageError(
            f"{path}: a line could not be written ({error.strerror}). Free some space and run the "
            "command again. The lines before it are kept."
        ) from error
