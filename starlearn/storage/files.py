"""Files that survive a power cut: written under another name, synced, renamed, folder synced."""

import errno
import hashlib
import os
import shutil
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlearn.errors import InputError, StorageError, UntrustedFileError

REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "lustre", "beegfs"}
"""File systems on which locks and syncs cannot be relied on."""

MOUNTS = Path("/proc/self/mountinfo")


@contextmanager
def storage(doing: str) -> Iterator[None]:
    """Turn an error of the operating system into one that says what it means.

    Parameters
    ----------
    doing : str
        What is being done, such as "writing scores/round-0001.parquet".

    Raises
    ------
    StorageError
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{explained(error, doing)} Nothing was lost.") from error


def explained(error: OSError, doing: str) -> str:
    """Say what went wrong and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"The disk is full ({doing}). Free some space and type the command again."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"No right to write ({doing}: {error.strerror}). Make the campaign's folder writable: "
            "chmod -R u+rwX FOLDER."
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return f"There is no such place ({doing}: {error.strerror}). Check the path."
    reason = error.strerror or str(error)
    return (
        f"The disk failed ({doing}: {reason}). Look at it (dmesg), then type the command again in "
        "a new process."
    )


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Force all files of a folder, and then the folder, to the disk; private to their owner."""
    for file in sorted(folder.iterdir()):
        os.chmod(file, 0o600)
        sync(file)
    os.chmod(folder, 0o700)
    sync(folder)


def write_all(handle: int, content: bytes) -> None:
    """Write all of the content, however little the system takes at a time, and sync it."""
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]
    os.fsync(handle)


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file atomically: after a power cut it has its old or its new content.

    Parameters
    ----------
    path : Path
    content : bytes
    mode : int
        Permissions, before the umask: 0o600 is private to the owner, 0o666 an ordinary file.

    Raises
    ------
    StorageError
        When the disk is full or fails; the old file is then still there.
    """
    scratch = path.with_name(f".{path.name}.new")
    with storage(f"writing {path}"):
        try:
            handle = os.open(
                scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode=mode
            )
            try:
                write_all(handle, content)
            finally:
                os.close(handle)
            os.replace(scratch, path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may read, durably; does nothing when it is there."""
    with storage(f"making {path}"):
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True)
            sync(path.parent)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_space(folder: Path, n_bytes: int, purpose: str) -> None:
    """Raise StorageError unless so many bytes are free."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise StorageError(
            f"{purpose} needs {n_bytes / 1e6:,.1f} MB on the disk of {folder}, and "
            f"{free / 1e6:,.1f} MB are free. Nothing was begun and nothing lost. "
            "Free some space and type the command again."
        )


def require_plain(path: Path) -> None:
    """Raise UntrustedFileError for anything but a real file or folder, such as a symbolic link."""
    mode = os.lstat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UntrustedFileError(
            f"{path} is a symbolic link or a special file, which could lead out of the campaign's "
            "folder. Put the real file in its place, or take the folder from a backup."
        )


def file_system_of(path: Path, mounts: str | None = None) -> str:
    """Return the type of the file system that holds a path; "" where the system does not tell.

    Parameters
    ----------
    path : Path
    mounts : str, optional
        The table of mounts, in the form of /proc/self/mountinfo.
    """
    if mounts is None:
        try:
            mounts = MOUNTS.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    where = str(path.resolve())
    best, kind = "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def warn_about_place(folder: Path) -> None:
    """Warn about a folder on a remote file system, or one that other users may change."""
    kind = file_system_of(folder)
    if kind in REMOTE:
        warnings.warn(
            f"{folder} is on a remote file system ({kind}), where locks and syncs cannot be relied "
            "on. Keep the campaign on a local disk and copy its backups there instead.",
            UserWarning,
            stacklevel=3,
        )
    status = folder.stat()
    if status.st_mode & 0o022 or status.st_uid != os.geteuid():
        warnings.warn(
            f"Other users may change {folder} (owner {status.st_uid}, mode "
            f"{stat.filemode(status.st_mode)}). Labels can be personal data: chmod 700 {folder}.",
            UserWarning,
            stacklevel=3,
        )


@contextmanager
def complete_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder to write to, which gets its name only when all is written.

    Parameters
    ----------
    folder : path
        The name. There must be nothing of that name yet, or an empty folder.

    Yields
    ------
    Path
        A folder beside it; it is removed when the writing fails or is interrupted.

    Raises
    ------
    InputError
        When there is something of that name already.
    """
    target = Path(folder).expanduser()
    if target.name in ("", ".."):
        raise InputError(f"{str(folder)!r:.100} is no name of a new folder. Nothing was written.")
    is_empty = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
    if (target.exists() or target.is_symlink()) and not is_empty:
        raise InputError(
            f"The folder {target} exists already. Choose a new one: nothing was written."
        )
    scratch = target.with_name(f".{target.name}.incomplete")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
