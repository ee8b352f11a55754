"""Back to a backup of the labels: the damaged files are put aside, never deleted."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from starlearn.campaign.durable import make_folder, storage, sync
from starlearn.campaign.lock import Lock
from starlearn.campaign.place import Place
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
        When there is no backup.
    CampaignCorruptError
        When none of them is sound.
    """
    place = Place(Path(folder).expanduser().absolute())
    if backup is not None:
        candidates = [Path(backup)]
    else:
        candidates = sorted(place.backups.glob("labels-*.db"), reverse=True)
    if not candidates:
        raise InputError(f"There is no backup in {place.backups}. Give one: restore(folder, file).")
    with Lock(place.lock).held("restore"):
        chosen = _newest_sound(candidates)
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
            sync(place.folder)
    return chosen


def _newest_sound(candidates: list[Path]) -> Path:
    for number, path in enumerate(candidates, start=1):
        try:
            Store.open(path, read_only=True).close()
        except (StarlearnError, OSError):
            if number == len(candidates):
                raise
        else:
            return path
    raise InputError("There is no backup.")
