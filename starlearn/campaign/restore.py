"""Restore of the label store from a backup; the damaged files are moved, never deleted."""

import os
import shutil
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

from starlearn.campaign import events
from starlearn.campaign.paths import CampaignPaths, backup_name
from starlearn.campaign.publish import MANIFEST, verify
from starlearn.campaign.store import Store
from starlearn.errors import InputError, StarlearnError
from starlearn.storage.files import make_folder, storage_errors, sync
from starlearn.storage.lock import Lock


def restore(folder: str | os.PathLike[str], backup: str | os.PathLike[str] | None = None) -> Path:
    """Replace the label store by a backup, by default the newest intact one; return that backup.

    Later backups are moved to the folder of the damaged files. Otherwise they would count as the
    newest copies of labels that are given after the restore.
    """
    paths = CampaignPaths(Path(folder).expanduser().absolute())
    if backup is not None:
        candidates = [Path(backup)]
    else:
        candidates = sorted(paths.backups.glob("labels-*.db"), reverse=True)
    if not candidates:
        raise InputError(f"There is no backup in {paths.backups}. Name one: restore(folder, file).")
    with Lock(paths.lock).held("restore"):
        chosen, n_events, campaign = _newest_intact(candidates)
        own = _campaign_of(paths)
        if own not in (None, campaign):
            raise InputError(
                f"{chosen} is a backup of another campaign ({campaign}; this one is {own}). "
                "Nothing was restored."
            )
        aside = paths.folder / f"damaged-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%f')}"
        make_folder(aside)
        with storage_errors(f"restoring {paths.labels}"):
            shutil.copy(chosen, paths.unfinished)
            sync(paths.unfinished)
            # The order matters in a crash. The journal moves first: SQLite would roll it back into
            # the restored database.
            for suffix in ("-journal", "-wal", "-shm", ""):
                old = paths.labels.with_name(paths.labels.name + suffix)
                if old.exists() or old.is_symlink():
                    os.rename(old, aside / old.name)
            # Later backups move before the restored labels appear: until then the campaign counts
            # as damaged, so an interrupted restore is repeated.
            for later in paths.backups.glob("labels-*.db"):
                if later.name > backup_name(n_events):
                    os.rename(later, aside / later.name)
            sync(paths.folder)
            os.rename(paths.unfinished, paths.labels)
            os.chmod(paths.labels, 0o600)
            sync(paths.folder)
    return chosen


def _newest_intact(candidates: list[Path]) -> tuple[Path, int, str]:
    """Return the first intact backup, its number of events, and its campaign's id."""
    for path in candidates[:-1]:
        with suppress(StarlearnError, OSError):
            return path, *_facts(path)
    return candidates[-1], *_facts(candidates[-1])


def _campaign_of(paths: CampaignPaths) -> str | None:
    """Return the campaign's id from any intact file of its folder, or None."""
    for path in (paths.labels, *paths.backups.glob("labels-*.db")):
        with suppress(StarlearnError, OSError):
            return _facts(path)[1]
    for adapter in paths.adapters.glob(f"*/{MANIFEST}"):
        with suppress(StarlearnError, OSError):
            return str(verify(paths, adapter.parent.name).get("campaign"))
    return None


def _facts(path: Path) -> tuple[int, str]:
    """Return the number of events in a label store, and its campaign's id."""
    with closing(Store.open(path, read_only=True)) as store:
        return events.last_seq(store), store.meta()["campaign"]
