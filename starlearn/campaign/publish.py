"""Published adapters: written to a temporary folder, synced, sealed by a manifest, and renamed."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.paths import CampaignPaths
from starlearn.errors import StorageError, UntrustedFileError
from starlearn.storage.files import (
    file_sha256,
    make_folder,
    require_regular,
    require_space,
    storage_errors,
    sync,
    sync_tree,
    write_file,
)

if TYPE_CHECKING:
    from starlearn.learner.estimator import STARLearner

MANIFEST = "PUBLISHED.json"
LARGEST_MANIFEST = 1_000_000


def publish(
    paths: CampaignPaths,
    name: str,
    write: Callable[[Path], None],
    check: Callable[[Path], None],
    facts: Mapping[str, Any],
) -> str:
    """Publish an adapter: its folder appears under its name complete, or not at all.

    The caller then records the name in the label store. Until then the folder is an orphan.

    `write` takes a folder that does not exist yet and writes all files to it. `check` takes that
    folder and raises when its files are not what was written. `facts` are entries of the manifest
    besides the checksums. The result is the SHA-256 of the manifest.
    """
    target = paths.adapter(name)
    scratch = paths.adapters / f".{name}.new"
    make_folder(paths.adapters)
    failpoint("publish_began")
    # The order makes the folder safe in a power cut: all files are synced before the manifest
    # vouches for them, the manifest before the rename, and the parent folder after it.
    try:
        with storage_errors(f"writing {target}"):
            shutil.rmtree(scratch, ignore_errors=True)
            write(scratch)
            failpoint("publish_written")
            sync_tree(scratch)
            failpoint("publish_synced")
            sums = {file.name: file_sha256(file) for file in sorted(scratch.iterdir())}
            content = json.dumps({**facts, "files": sums}, indent=2, sort_keys=True).encode()
            write_file(scratch / MANIFEST, content)
            failpoint("publish_manifest_written")
            check(scratch)
            failpoint("publish_checked")
            os.rename(scratch, target)
            failpoint("publish_renamed")
            sync(paths.adapters)
            failpoint("publish_parent_synced")
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return hashlib.sha256(content).hexdigest()


def publish_learner(
    paths: CampaignPaths, learner: "STARLearner", name: str, facts: dict[str, Any]
) -> str:
    """Publish a trained learner under a name, and return the SHA-256 of its manifest."""
    import torch
    from safetensors import SafetensorError

    from starlearn.export import saving

    size = sum(tensor.nbytes for tensor in learner.adapter_.state.values())
    require_space(paths.folder, 3 * size, "Publishing the adapter")

    def write(folder: Path) -> None:
        try:
            learner.save(folder)
        except SafetensorError as error:
            raise StorageError(
                f"The adapter could not be written ({error}). Earlier adapters and all labels are "
                "unchanged. Free some space and run the command again."
            ) from error

    def check(folder: Path) -> None:
        found = saving.load(folder).adapter.state
        written = learner.adapter_.state
        if set(found) != set(written) or not all(
            torch.equal(found[key], tensor) and bool(torch.isfinite(tensor).all())
            for key, tensor in written.items()
        ):
            raise StorageError(
                f"The files read from {folder} are not the adapter that was written. Check the "
                "disk (dmesg), then run the command again."
            )

    return publish(paths, name, write, check, {**facts, "base": learner.adapter_.base})


def verify(paths: CampaignPaths, name: str, seal: str | None = None) -> dict[str, Any]:
    """Return the manifest of an adapter whose files are exactly those that were published.

    Raise UntrustedFileError when a file is missing, changed, added, or leads out of the folder, or
    when the manifest's SHA-256 is not the `seal` of the label store.
    """
    folder = paths.adapter(name)
    if not folder.exists() and not folder.is_symlink():
        raise UntrustedFileError(f"The adapter {folder} is missing. Restore it from a backup.")
    require_regular(folder)
    for file in folder.iterdir():
        require_regular(file)
    content = _manifest_bytes(folder / MANIFEST)
    if seal is not None and hashlib.sha256(content).hexdigest() != seal:
        raise UntrustedFileError(
            f"{folder / MANIFEST} is not the one that was published. Restore {folder} from a "
            "backup."
        )
    try:
        manifest: dict[str, Any] = json.loads(content)
        sums = dict(manifest["files"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UntrustedFileError(
            f"{folder / MANIFEST} is damaged ({error!r:.80}). Restore {folder} from a backup."
        ) from error
    found = {file.name for file in folder.iterdir()} - {MANIFEST}
    if found != set(sums):
        different = sorted(found ^ set(sums))
        raise UntrustedFileError(
            f"The files in {folder} are not those of {MANIFEST} ({', '.join(different)[:100]}). "
            "Restore the folder from a backup."
        )
    for name in sorted(found):
        if file_sha256(folder / name) != sums[name]:
            raise UntrustedFileError(
                f"{folder / name} is not the file that was published (its SHA-256 differs from "
                f"{MANIFEST}). Restore the folder from a backup."
            )
    return manifest


def adapter_name(round_id: int, attempt: int) -> str:
    """Return the name of the folder that an attempt publishes."""
    return f"round-{round_id:04d}-{attempt}"


def orphans(paths: CampaignPaths, published: set[str]) -> list[Path]:
    """Return the files and folders among the adapters that were never published."""
    if not paths.adapters.is_dir():
        return []
    return sorted(path for path in paths.adapters.iterdir() if path.name not in published)


def remove(path: Path) -> None:
    """Remove a folder, a file, or a symbolic link (never its target)."""
    with storage_errors(f"removing {path}"):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            path.unlink()


def _manifest_bytes(path: Path) -> bytes:
    if not path.is_file() or path.is_symlink():
        raise UntrustedFileError(f"{path} is missing. Restore {path.parent} from a backup.")
    with path.open("rb") as handle:
        content = handle.read(LARGEST_MANIFEST + 1)
    if len(content) > LARGEST_MANIFEST:
        raise UntrustedFileError(f"{path} is too large for a manifest. Restore it from a backup.")
    return content
