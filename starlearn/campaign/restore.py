"""Back to a backup of the labels: the damaged files are put aside, never deleted."""

import os
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from starlearn.campaign import events
from starlearn.campaign.paths import Place, backup_name
from starlearn.campaign.publish import MANIFEST, verify
from starlearn.campaign.store import Store
from starlearn.errors import InputError, StarlearnError
from starlearn.storage.files import make_folder, storage, sync
from starlearn.storage.lock import Lock


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
        chosen, n_events, campaign = _newest_sound(candidates)
        own = _campaign_of(place)
        if own not in (None, campaign):
            raise InputError(
                f"{chosen} is a copy of another campaign's labels ({campaign}, here is {own}). "
                "Nothing was restored."
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
            # Before the labels are there again: a restore that was cut short is repeated.
            for later in place.backups.glob("labels-*.db"):
                if later.name > backup_name(n_events):
                    os.rename(later, aside / later.name)
            sync(place.folder)
            os.rename(place.unfinished, place.labels)
            os.chmod(place.labels, 0o600)
            sync(place.folder)
    return chosen


def _newest_sound(candidates: list[Path]) -> tuple[Path, int, str]:
    """Return the first sound one, its number of events, and its campaign's id."""
    for number, path in enumerate(candidates, start=1):
        try:
            return path, *_facts(path)
        except (StarlearnError, OSError):
            if number == len(candidates):
                raise
    raise InputError("There is no backup.")


def _campaign_of(place: Place) -> str | None:
    """Return the id of the campaign in a folder, from what is sound in it; None if nothing is."""
    for path in (place.labels, *place.backups.glob("labels-*.db")):
        with suppress(StarlearnError, OSError):
            return _facts(path)[1]
    for adapter in place.adapters.glob(f"*/{MANIFEST}"):
        with suppress(StarlearnError, OSError):
            return str(verify(place, adapter.parent.name).get("campaign"))
    return None


def _facts(path: Path) -> tuple[int, str]:
    """Return the number of events in a label store, and its campaign's id."""
    store = Store.open(path, read_only=True)
    try:
        return events.last_seq(store), store.meta()["campaign"]
    finally:
        store.close()
