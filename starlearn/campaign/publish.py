"""Adapters on disk: written apart, synced, sealed by a manifest, checked, and only then visible."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.paths import Place
from starlearn.errors import UntrustedFileError
from starlearn.storage.files import (
    file_sha256,
    make_folder,
    require_plain,
    storage,
    sync,
    sync_tree,
    write_all,
)

MANIFEST = "PUBLISHED.json"
LARGEST_MANIFEST = 1_000_000


def publish(
    place: Place,
    name: str,
    write: Callable[[Path], None],
    check: Callable[[Path], None],
    facts: Mapping[str, Any],
) -> str:
    """Publish an adapter: its folder appears under its name complete, or not at all.

    The caller then names it in the label store; until then it is an orphan.

    Parameters
    ----------
    place : Place
    name : str
        New name of a folder among the adapters.
    write : callable
        Writes all files to the folder that it is given, which does not exist yet.
    check : callable
        Reads them back, and raises when they are not what was written.
    facts : mapping
        What the manifest says besides the sums, such as the base model's fingerprint.

    Returns
    -------
    str
        SHA-256 of the manifest.

    Raises
    ------
    StorageError
        When the disk is full or fails; nothing is then visible.
    """
    target = place.adapter(name)
    scratch = place.adapters / f".{name}.new"
    make_folder(place.adapters)
    failpoint("publish_began")
    try:
        with storage(f"writing {target}"):
            shutil.rmtree(scratch, ignore_errors=True)
            write(scratch)
            failpoint("publish_written")
            sync_tree(scratch)
            failpoint("publish_synced")
            sealed = _seal(scratch, facts)
            failpoint("publish_manifest_written")
            check(scratch)
            failpoint("publish_checked")
            os.rename(scratch, target)
            failpoint("publish_renamed")
            sync(place.adapters)
            failpoint("publish_parent_synced")
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return sealed


def verify(place: Place, name: str, sealed: str | None = None) -> dict[str, Any]:
    """Return the manifest of an adapter whose files are exactly those that were published.

    Parameters
    ----------
    place : Place
    name : str
    sealed : str, optional
        SHA-256 of the manifest, as the label store has it.

    Raises
    ------
    UntrustedFileError
        When a file is missing, changed, added, or leads out of the folder.
    """
    folder = place.adapter(name)
    if not folder.exists() and not folder.is_symlink():
        raise UntrustedFileError(f"The adapter {folder} is missing. Take it from a backup.")
    require_plain(folder)
    for file in folder.iterdir():
        require_plain(file)
    content = _manifest_bytes(folder / MANIFEST)
    if sealed is not None and hashlib.sha256(content).hexdigest() != sealed:
        raise UntrustedFileError(
            f"{folder / MANIFEST} is not the one that was published. Take {folder} from a backup."
        )
    try:
        manifest: dict[str, Any] = json.loads(content)
        sums = dict(manifest["files"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UntrustedFileError(
            f"{folder / MANIFEST} is damaged ({error!r:.80}). Take {folder} from a backup."
        ) from error
    found = {file.name for file in folder.iterdir()} - {MANIFEST}
    if found != set(sums):
        odd = sorted(found ^ set(sums))
        raise UntrustedFileError(
            f"The files in {folder} are not those of {MANIFEST} ({', '.join(odd)[:100]}). "
            "Take the folder from a backup."
        )
    for name in sorted(found):
        if file_sha256(folder / name) != sums[name]:
            raise UntrustedFileError(
                f"{folder / name} is not the file that was published (its SHA-256 differs from "
                f"{MANIFEST}). Take the folder from a backup."
            )
    return manifest


def orphans(place: Place, published: set[str]) -> list[Path]:
    """Return what lies among the adapters and scores but was never published."""
    if not place.adapters.is_dir():
        return []
    return sorted(path for path in place.adapters.iterdir() if path.name not in published)


def remove(path: Path) -> None:
    """Remove a folder, a file, or a link (never what it leads to)."""
    with storage(f"removing {path}"):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


def folder_size(folder: Path) -> int:
    """Return the bytes in a folder's files."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _seal(folder: Path, facts: Mapping[str, Any]) -> str:
    sums = {file.name: file_sha256(file) for file in sorted(folder.iterdir())}
    content = json.dumps({**facts, "files": sums}, indent=2, sort_keys=True).encode()
    handle = os.open(
        folder / MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode=0o600
    )
    try:
        write_all(handle, content)
    finally:
        os.close(handle)
    sync(folder)
    return hashlib.sha256(content).hexdigest()


def _manifest_bytes(path: Path) -> bytes:
    if not path.is_file() or path.is_symlink():
        raise UntrustedFileError(f"{path} is missing. Take {path.parent} from a backup.")
    with path.open("rb") as handle:
        content = handle.read(LARGEST_MANIFEST + 1)
    if len(content) > LARGEST_MANIFEST:
        raise UntrustedFileError(f"{path} is too large for a manifest. Take it from a backup.")
    return content
