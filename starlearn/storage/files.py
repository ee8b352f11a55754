"""Durable files: each is written under a temporary name, synced, and then renamed."""

import errno
import hashlib
import os
import shlex
import shutil
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlearn.errors import InputError, StorageError, UntrustedFileError

REMOTE = {
    *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "ncpfs", "afs", "coda", "davfs"),
    *("ceph", "glusterfs", "gpfs", "lustre", "beegfs", "orangefs", "pvfs2", "panfs", "ocfs2"),
    *("9p", "drvfs", "virtiofs", "vboxsf", "vmhgfs", "prl_fs"),
}
"""File systems on which locks and syncs are unreliable: of a network, or of a host machine."""

LOCAL_FUSE = {"fuse.fuse-overlayfs", "fuse.ext2", "fuse.ext4", "fuse.ntfs-3g", "fuse.lklfuse"}
"""File systems in user space that are known to be local; others are cloud and network drives."""

NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)

MOUNTS = Path("/proc/self/mountinfo")


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Raise StorageError with an explanation in place of an OSError.

    `action` is what the code inside does, such as "writing scores/round-0001.parquet".
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{explained(error, action)} Nothing was lost.") from error


@contextmanager
def permission_errors() -> Iterator[None]:
    """Raise StorageError with the command that gives files back, in place of a PermissionError.

    For the doors that everything passes; `storage_errors` also knows what was being done.
    """
    try:
        yield
    except PermissionError as error:
        action = f"opening {error.filename or 'a file'}"
        raise StorageError(f"{explained(error, action)} Nothing was lost.") from error


def explained(error: OSError, action: str) -> str:
    """Return what failed and how to fix it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"The disk is full ({action}). Free some space and run the command again."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        where = Path(os.fsdecode(error.filename)) if error.filename else None
        remedy = writable(where) if where is not None else "chmod -R u+rwX FOLDER"
        verb = "read" if action.startswith(("reading", "opening")) else "write"
        return (
            f"No permission to {verb} ({action}: {error.strerror}). Make the folder writable: "
            f"{remedy}."
        )
    if error.errno in NO_LOCKS:
        return (
            f"The file system does not support locks ({action}: {error.strerror}), so two "
            "processes could write at once. Move the folder to a local disk."
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return f"The path cannot be used ({action}: {error.strerror}). Check the path."
    reason = error.strerror or str(error)
    return (
        f"The disk failed ({action}: {reason}). Check the disk (dmesg), then run the command again "
        "in a new process."
    )


def writable(path: Path) -> str:
    """Return the command that makes the folder of a path writable for this user.

    Files of another user, as after one command with sudo, must be given back with chown.
    """
    folder = path if os.path.isdir(path) else path.parent
    foreign = [found for found in (path, folder) if _owner_of(found) not in (None, os.geteuid())]
    command = 'sudo chown -R "$(id -un)"' if foreign else "chmod -R u+rwX"
    return f"{command} {shlex.quote(str(folder))}"


def _owner_of(path: Path) -> int | None:
    try:
        return os.lstat(path).st_uid
    except OSError:
        return None


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make a folder and its files private to their owner, and force them to the disk."""
    for file in sorted(folder.iterdir()):
        os.chmod(file, 0o600)
        sync(file)
    os.chmod(folder, 0o700)
    sync(folder)


def write_all(handle: int, content: bytes) -> None:
    """Write and sync the whole content, also where one system call writes only a part."""
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]
    os.fsync(handle)


@contextmanager
def replacing(path: Path, suffix: str = "new") -> Iterator[Path]:
    """Give a temporary path to write and sync, then rename it to `path` durably.

    The temporary file is removed when the code inside fails. A unique `suffix` allows several
    processes to write the same file at once.
    """
    scratch = path.with_name(f".{path.name}.{suffix}")
    with storage_errors(f"writing {path}"):
        try:
            yield scratch
            os.replace(scratch, path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        # The rename itself is durable only after the folder is synced.
        sync(path.parent.resolve())


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file atomically: after a power cut, or an error, it has its old or its new content.

    `mode` holds the permissions before the umask: 0o600 is private to the owner, 0o666 an ordinary
    file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with replacing(path) as scratch:
        handle = os.open(scratch, flags, mode=mode)
        try:
            write_all(handle, content)
        finally:
            os.close(handle)


def make_folder(path: Path) -> None:
    """Make a private folder durably, unless it exists."""
    with storage_errors(f"making {path}"):
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True)
            sync(path.parent)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with storage_errors(f"reading {path}"), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_space(folder: Path, n_bytes: int, purpose: str) -> None:
    """Raise StorageError unless `n_bytes` are free on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise StorageError(
            f"{purpose} needs {n_bytes / 1e6:,.1f} MB on the disk of {folder}, and "
            f"{free / 1e6:,.1f} MB are free. Nothing was started and nothing was lost. "
            "Free some space and run the command again."
        )


def open_regular(path: Path, flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Open a regular file, and return its handle.

    Links are not followed, and a pipe or a device raises UntrustedFileError instead of blocking.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode=mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UntrustedFileError(special_file(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UntrustedFileError(special_file(path))
    return handle


def special_file(path: Path) -> str:
    """Return the message about a link or a special file."""
    return (
        f"{path} is a symbolic link or a special file, which could lead out of the campaign "
        "folder. Replace it by the real file, or restore the folder from a backup."
    )


def require_regular(path: Path) -> None:
    """Raise UntrustedFileError unless the path is a regular file or a folder."""
    mode = os.lstat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UntrustedFileError(special_file(path))


def file_system_of(path: Path) -> str:
    """Return the type of the file system of a path, or "" where it is unknown."""
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


def remote_kind(path: Path) -> str:
    """Return the type of the file system of a path if it is a remote one, else ""."""
    kind = file_system_of(path)
    is_remote = kind in REMOTE or (kind.startswith("fuse.") and kind not in LOCAL_FUSE)
    return kind if is_remote else ""


def warn_about_folder(folder: Path) -> None:
    """Warn where a folder is on a remote file system or other users can change it."""
    kind = remote_kind(folder)
    if kind:
        warnings.warn(
            f"{folder} is on a remote file system ({kind}), where locks and syncs are unreliable. "
            "Keep the campaign on a local disk and copy its backups there instead.",
            UserWarning,
            stacklevel=3,
        )
    status = folder.stat()
    if status.st_mode & 0o022 or status.st_uid != os.geteuid():
        warnings.warn(
            f"Other users can change {folder} (owner {status.st_uid}, mode "
            f"{stat.filemode(status.st_mode)}). Labels can be personal data: chmod 700 {folder}.",
            UserWarning,
            stacklevel=3,
        )


@contextmanager
def complete_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder to write to, and rename it to `folder` at the end.

    `folder` must not exist yet, or must be empty. The temporary folder is next to it, and is
    removed when writing fails.
    """
    target = Path(folder).expanduser()
    if target.name in ("", ".."):
        raise InputError(
            f"{str(folder)!r:.100} cannot be the name of a new folder. Nothing was written."
        )
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
