"""Back to a backup of the labels: the damaged files are put aside, never deleted."""

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from starlearn.campaign import events
from starlearn.campaign.durable import file_sha256, make_folder, storage, sync
from starlearn.campaign.lock import Lock
from starlearn.campaign.place import Place, backup_name
from starlearn.campaign.store import Store
from starlearn.errors import InputError, StarlearnError


def restore(folder: str | os.PathLike[str], backup: str | os.PathLike[str] | None = None) -> Path:
    """Put a backup in the place of the label store, by default the newest that is sound.

    Parameters
    ----------
    folder : str or path
        The campaign's.
    backup : str or path, optional

    Returns
    -------
    Path
        The backup that was taken.

    Raises
    ------
    InputError
        When there is no backup, or the one that was given is another campaign's.
    CampaignCorruptError
        When none of them is sound.

    Notes
    -----
    Later backups are put aside with the damaged files: what they hold is given up, and they must
    not pass for the newest copies of what is said from now on.
    """
    place = Place(Path(folder).expanduser().absolute())
    if backup is not None:
        candidates = [Path(backup)]
    else:
        candidates = sorted(place.backups.glob("labels-*.db"), reverse=True)
    if not candidates:
        raise InputError(f"There is no backup in {place.backups}. Give one: restore(folder, file).")
    with Lock(place.lock).held("restore"):
        chosen, n_events, pool = _newest_sound(candidates)
        if backup is not None and not (place.pool.is_file() and file_sha256(place.pool) == pool):
            raise InputError(
                f"{chosen} was made for another pool than {place.pool}: it is another campaign's, "
                "or that file was changed, and is to be put back first. Nothing was restored."
            )
        aside = place.folder / f"damaged-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%f')}"
        make_folder(aside)
        with storage(f"restoring {place.labels}"):
            shutil.copy(chosen, place.unfinished)
            sync(place.unfinished)
            # The journal first: beside another database it would be rolled into it.
            for suffix in ("-journal", "-wal", "-shm", ""):
                old = place.labels.with_name(place.labels.name + suffix)
                if old.exists() or old.is_symlink():
                    os.rename(old, aside / old.name)
            sync(place.folder)
            os.rename(place.unfinished, place.labels)
            os.chmod(place.labels, 0o600)
            for later in place.backups.glob("labels-*.db"):
                if later.name > backup_name(n_events):
                    os.rename(later, aside / later.name)
            sync(place.folder)
    return chosen


def _newest_sound(candidates: list[Path]) -> tuple[Path, int, str]:
    """Return the first sound one, its number of events, and the SHA-256 of its pool."""
    for number, path in enumerate(candidates, start=1):
        try:
            store = Store.open(path, read_only=True)
            try:
                pool = json.loads(store.meta()["pool"])["snapshot"]
                return path, events.last_seq(store), str(pool)
            finally:
                store.close()
        except (StarlearnError, OSError):
            if number == len(candidates):
                raise
    raise InputError("There is no backup.")
