"""Checksums, checks of the label store's files before SQLite opens them, errors about damage."""

import json
import shlex
import zlib
from contextlib import suppress
from pathlib import Path

from starlearn.errors import CampaignCorruptError, StorageError
from starlearn.storage.files import require_regular, storage_errors

HEADER = b"SQLite format 3\x00"
JOURNAL = bytes.fromhex("d9d505f920a163d7")
WAL_SUFFIXES = ("-wal", "-shm")


def checksum(*values: object) -> int:
    """Return a checksum of a row; SQLite keeps none of its own."""
    # Damage can turn a text into bytes, which JSON has no form of.
    return zlib.crc32(json.dumps(values, default=repr).encode())


def check_files(path: Path, inside: bool = True) -> None:
    """Check a database and its journal before SQLite opens them.

    The header is not read (`inside` is False) while this process has the database open: closing a
    second handle of a file releases all POSIX locks of the process on it, also those of SQLite.
    """
    journal = path.with_name(f"{path.name}-journal")
    if not path.exists() and not path.is_symlink():
        restoring = any(path.parent.glob("damaged-*"))
        why = " but has a journal" if journal.exists() else ", as after an interrupted restore"
        raise damaged(path, "it is missing" + (why if journal.exists() or restoring else ""))
    require_regular(path)
    with suppress(FileNotFoundError):  # a writer in another process can remove it at any moment
        require_regular(journal)
    if any(path.with_name(path.name + suffix).exists() for suffix in WAL_SUFFIXES):
        raise StorageError(wal_message(path))
    if not inside:
        return
    with storage_errors(f"reading {path}"), path.open("rb") as handle:
        header = handle.read(100)
    # With its journal, SQLite can still restore the first page.
    if not header.startswith(HEADER) and not _starts_with(journal, JOURNAL):
        raise damaged(path, "it is empty" if not header else "it is not an SQLite database")
    if 2 in header[18:20]:
        raise StorageError(wal_message(path))


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as handle:
            return handle.read(len(magic)) == magic
    except FileNotFoundError:
        return False


def wal_message(path: Path) -> str:
    """Return the message about a database in WAL mode, with the command that switches back."""
    return (
        f"{path} is in WAL mode, which another program has switched on. starlearn keeps labels "
        "with a rollback journal. Close that program, then switch back: "
        f"sqlite3 {path} 'PRAGMA journal_mode=DELETE'"
    )


def damaged(path: Path, why: str) -> CampaignCorruptError:
    """Return the error about a damaged database; it names the newest backup."""
    backups = sorted((path.parent / "backups").glob("labels-*.db"))
    doctor = f"starlearn doctor {shlex.quote(str(path.parent))} --restore"
    remedy = (
        f"The newest backup is {backups[-1]}. Restore it: {doctor}. The damaged files are kept, "
        "because they alone hold the labels that are newer than the backup."
        if backups
        else f"There is no backup here. Keep the files. With a backup from elsewhere: {doctor} "
        "--from FILE."
    )
    return CampaignCorruptError(
        f"The labels in {path} are damaged: {why}. Nothing was changed or replaced. {remedy}"
    )
