"""The label store looked at from outside, before SQLite touches it, and errors about damage."""

import shlex
from contextlib import suppress
from pathlib import Path

from starlearn.errors import CampaignCorruptError, StorageError
from starlearn.storage.files import require_plain, storage

HEADER = b"SQLite format 3\x00"
JOURNAL = bytes.fromhex("d9d505f920a163d7")
LEFT_BY_WAL = ("-wal", "-shm")


def check_files(path: Path, inside: bool = True) -> None:
    """Look at the database from outside, before SQLite touches it.

    Parameters
    ----------
    path : Path
    inside : bool
        Read its header too. Never while this process has the database open: closing a second
        handle of a file gives up all of the process's locks on it, SQLite's among them.

    Raises
    ------
    CampaignCorruptError
        When it is missing beside its journal, empty, or not a database.
    StorageError
        When it is in WAL mode.
    """
    journal = path.with_name(f"{path.name}-journal")
    if not path.exists() and not path.is_symlink():
        raise damaged(path, "it is missing" + (" beside its journal" if journal.exists() else ""))
    require_plain(path)
    with suppress(FileNotFoundError):  # a writer in another process removes it at any moment
        require_plain(journal)
    if any(path.with_name(path.name + suffix).exists() for suffix in LEFT_BY_WAL):
        raise StorageError(wal_message(path))
    if not inside:
        return
    with storage(f"reading {path}"), path.open("rb") as handle:
        header = handle.read(100)
    # With its journal beside it, SQLite can still put the first page back.
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
    """Say why a database in WAL mode is refused, and how to bring it back."""
    return (
        f"{path} is in WAL mode, which some program has switched on; starlearn keeps labels with a "
        "rollback journal. Close that program, then switch back: "
        f"sqlite3 {path} 'PRAGMA journal_mode=DELETE'"
    )


def damaged(path: Path, why: str) -> CampaignCorruptError:
    """Make the error about a damaged database; it names the newest backup."""
    backups = sorted((path.parent / "backups").glob("labels-*.db"))
    doctor = f"starlearn doctor {shlex.quote(str(path.parent))} --restore"
    remedy = (
        f"The newest backup is {backups[-1]}. Put it in their place: {doctor}; the damaged files "
        "are kept, for what was said after the backup is in them alone."
        if backups
        else f"There is no backup here. Keep the files; with one from elsewhere: {doctor} --from "
        "FILE."
    )
    return CampaignCorruptError(
        f"The labels in {path} are damaged: {why}. Nothing was changed, and nothing was put in "
        f"their place. {remedy}"
    )
