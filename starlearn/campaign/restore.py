"""Restore of the label store from a backup; the damaged files are moved, never deleted."""

import os
import shlex
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from starlearn.campaign import events, journal
from starlearn.campaign.failpoints import failpoint
from starlearn.campaign.paths import REPLACED, CampaignPaths, backup_name
from starlearn.campaign.publish import MANIFEST, verify
from starlearn.campaign.store import Store
from starlearn.campaign.verification import verify as verify_store
from starlearn.errors import CampaignCorruptError, InputError, StarlearnError, listed
from starlearn.storage.files import make_folder, storage_errors, sync

Candidate = tuple[Path, int, str]
"""A backup or journal, its number of events, and its campaign's id."""


@dataclass(frozen=True)
class Restored:
    """What a restore has done."""

    source: Path
    """The backup, or the journal, that was restored."""
    n_events: int
    replaced: Path
    """The folder with the files that were in its place."""


def restore(
    folder: str | os.PathLike[str], backup: str | os.PathLike[str] | None = None
) -> Restored:
    """Replace the label store by a backup, by default the newest intact one.

    Each backup is read whole, with every checksum, before it is taken. The journal, `exports/
    labels.jsonl`, is taken where it has more events than every intact backup. Later backups are
    moved to the folder of the damaged files. Otherwise they would count as the newest copies of
    labels that are given after the restore.

    Raises
    ------
    InputError
        When there is no backup, or it belongs to another campaign.
    CampaignCorruptError
        When no backup is intact. Nothing was changed then.
    """
    paths = CampaignPaths(Path(folder).expanduser().absolute())
    if backup is not None:
        candidates = [Path(backup).expanduser()]
        if not candidates[0].is_file():
            raise InputError(f"{backup} is not a file. Name a backup, or leave it out.")
    else:
        candidates = [*sorted(paths.backups.glob("labels-*.db"), reverse=True), paths.journal]
        candidates = [path for path in candidates if path.exists()]
    if not candidates:
        raise InputError(f"There is no backup in {paths.backups}. Name one: restore(folder, file).")
    with paths.make_lock().held("restore"):
        (chosen, n_events, campaign), unsound = _write_best(paths, candidates)
        own = _campaign_of(paths)
        if own not in (None, campaign):
            paths.restoring.unlink(missing_ok=True)
            raise InputError(
                f"{chosen} is a backup of another campaign ({campaign}; this one is {own}). "
                "Nothing was restored."
            )
        failpoint("restore_written")
        replaced = paths.folder / f"{REPLACED}{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%f')}"
        make_folder(replaced)
        with storage_errors(f"restoring {paths.labels}"):
            # The order matters in a crash. The journal moves first: SQLite would roll it back into
            # the restored database.
            for suffix in ("-journal", "-wal", "-shm", ""):
                old = paths.labels.with_name(paths.labels.name + suffix)
                if old.exists() or old.is_symlink():
                    os.rename(old, replaced / old.name)
            failpoint("restore_moved")
            # Later backups, and unsound ones, move before the restored labels appear: until then
            # the campaign counts as damaged, so an interrupted restore is repeated.
            for later in paths.backups.glob("labels-*.db"):
                if later.name > backup_name(n_events) or later in unsound:
                    os.rename(later, replaced / later.name)
            sync(paths.folder)
            os.rename(paths.restoring, paths.labels)
            os.chmod(paths.labels, 0o600)
            sync(paths.folder)
        failpoint("restore_renamed")
    return Restored(chosen, n_events, replaced)


def _write_best(paths: CampaignPaths, candidates: list[Path]) -> tuple[Candidate, list[Path]]:
    """Write the best candidate to `paths.restoring`; return it, and those that are not intact."""
    complaints: dict[Path, str] = {}
    best: Candidate | None = None
    for path in candidates:
        # Backups are sorted, so that only the journal can have more events than an intact one.
        if best is not None and path != paths.journal:
            continue
        try:
            found = _read_journal(paths, path, best) if _is_journal(path) else _copy(paths, path)
        except (StarlearnError, OSError) as error:
            complaints[path] = str(error).split(" Nothing was", 1)[0]
        else:
            best = found or best
    if best is None:
        raise CampaignCorruptError(
            f"Nothing was restored and nothing was changed, because no backup is intact: "
            f"{listed(list(complaints.values()))} Keep all files. With a copy from elsewhere: "
            f"starlearn doctor {shlex.quote(str(paths.folder))} --restore --from FILE."
        )
    return best, list(complaints)


def _is_journal(path: Path) -> bool:
    return path.suffix == ".jsonl"


def _copy(paths: CampaignPaths, path: Path) -> Candidate:
    """Write a backup to `paths.restoring` after all of it was verified."""
    with closing(verified_copy(path)) as store:
        store.backup(paths.restoring)
        return path, events.last_seq(store), store.meta()["campaign"]


def _read_journal(paths: CampaignPaths, path: Path, best: Candidate | None) -> Candidate | None:
    """Build a store from a journal that has more events than the best backup; else None."""
    head, log = journal.read_journal(path)
    if best is not None and len(log) <= best[1]:
        return None
    scratch = paths.restoring.with_name(f"{paths.restoring.name}.journal")
    for left in (scratch, Path(f"{scratch}-journal")):
        left.unlink(missing_ok=True)
    try:
        journal.build_store(scratch, head, log)
        _copy(paths, scratch)
    finally:
        scratch.unlink(missing_ok=True)
    return path, len(log), str(head["campaign"])


def verified_copy(path: Path) -> Store:
    """Return a copy of a label store in memory, of which every checksum was verified."""
    store = Store.open_copy(path)
    try:
        verify_store(store)
    except BaseException:
        store.close()
        raise
    return store


def _campaign_of(paths: CampaignPaths) -> str | None:
    """Return the campaign's id from any intact file of its folder, or None."""
    for path in (paths.labels, *paths.backups.glob("labels-*.db")):
        with suppress(StarlearnError, KeyError), closing(Store.open_copy(path)) as store:
            return store.meta()["campaign"]
    for adapter in paths.adapters.glob(f"*/{MANIFEST}"):
        with suppress(StarlearnError, OSError):
            return str(verify(paths, adapter.parent.name).get("campaign"))
    return None
