"""Paths of the files inside a campaign folder."""

import os
import re
from pathlib import Path

from starlearn.errors import InputError, UntrustedFileError
from starlearn.storage.files import require_regular
from starlearn.storage.lock import Lock

NAME = re.compile(r"[a-z0-9_-]{1,64}")
"""Names of adapters in the label store: without dots and slashes they cannot leave the folder."""


REPLACED = "damaged-"
"""Prefix of the folders of files that a restore has replaced."""


def backup_name(n_events: int) -> str:
    """Return the name of a backup with this many events; sorted by name, the newest is last."""
    return f"labels-{n_events:09d}.db"


class CampaignPaths:
    """Paths inside a campaign folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labels = folder / "labels.db"
        self.unfinished = folder / ".labels.db.new"
        self.restoring = folder / ".labels.db.restored"
        self.pool = folder / "pool.parquet"
        self.lock = folder / ".lock"
        self.adapters = folder / "adapters"
        self.checkpoint = folder / "training.safetensors"
        self.scores = folder / "scores"
        self.cache = self.scores / "cache"
        self.backups = folder / "backups"
        self.exports = folder / "exports"
        self.journal = self.exports / "labels.jsonl"

    def make_lock(self) -> Lock:
        """Return the lock of the campaign, which also holds when its file is removed."""
        return Lock(self.lock, self.folder)

    def require(self) -> None:
        """Raise InputError without a campaign, UntrustedFileError for symbolic links."""
        if not self.labels.exists() and not self.labels.is_symlink() and self.looks_unfinished():
            raise InputError(
                f"There is no campaign in {self.folder} (no {self.labels.name}). Make one: "
                f"starlearn init {self.folder} --pool pool.jsonl, Campaign.create(...)."
            )
        self.require_regular()

    def require_regular(self) -> None:
        """Raise UntrustedFileError for links and special files where the campaign reads or writes.

        The files of an adapter are checked with its manifest.
        """
        for folder in (self.scores, self.cache, self.backups, self.exports):
            if folder.exists() or folder.is_symlink():
                require_regular(folder)
                # A folder that this user cannot list is not used: opening to read needs none.
                for path in folder.iterdir() if os.access(folder, os.R_OK | os.X_OK) else ():
                    require_regular(path)
        # Hidden files are the lock, and new files before they get their names.
        for path in (self.pool, self.adapters, self.checkpoint, *self.folder.glob(".*")):
            if path.exists() or path.is_symlink():
                require_regular(path)

    def looks_unfinished(self) -> bool:
        """Whether no campaign was ever created here, so that no label store can be missing."""
        if any(self.folder.glob(f"{REPLACED}*")):  # an interrupted restore
            return False
        if self.unfinished.exists():
            return True
        traces = [self.adapters, self.backups, self.exports, self.scores, self.restoring]
        journal = self.folder / "labels.db-journal"
        return not journal.exists() and not any(path.exists() for path in traces)

    def adapter(self, name: str) -> Path:
        """Return the folder of an adapter by its name in the label store."""
        if not NAME.fullmatch(name):
            raise UntrustedFileError(
                f"{name!r:.80} cannot be the name of an adapter (small letters, digits, - and _). "
                f"The label store of {self.folder} was edited: restore it from a backup."
            )
        return self.adapters / name

    def round_scores(self, round_id: int) -> Path:
        """Return the file with the scores of a round."""
        return self.scores / f"round-{round_id:04d}.parquet"
