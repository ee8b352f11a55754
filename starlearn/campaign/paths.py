"""Where everything of a campaign lies, and nothing outside it."""

import re
from pathlib import Path

from starlearn.errors import InputError, UntrustedFileError
from starlearn.storage.files import require_plain

NAME = re.compile(r"[a-z0-9_-]{1,64}")
"""What a name in the store may be: no dots, no slashes, no way out of the folder."""


def backup_name(n_events: int) -> str:
    """Return the name of a backup of so many events: by name, the newest comes last."""
    return f"labels-{n_events:09d}.db"


class Place:
    """Paths inside a campaign's folder.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.labels = folder / "labels.db"
        self.unfinished = folder / ".labels.db.new"
        self.pool = folder / "pool.parquet"
        self.lock = folder / ".lock"
        self.adapters = folder / "adapters"
        self.scores = folder / "scores"
        self.cache = self.scores / "cache"
        self.backups = folder / "backups"
        self.exports = folder / "exports"

    def require(self) -> None:
        """Raise InputError when there is no campaign, UntrustedFileError for symbolic links."""
        if not self.labels.exists() and not self.labels.is_symlink() and self.looks_unfinished():
            raise InputError(
                f"There is no campaign in {self.folder} (no {self.labels.name}). Make one: "
                f"starlearn init {self.folder} --pool pool.jsonl, Campaign.create(...)."
            )
        for path in (self.pool, self.adapters, self.scores, self.backups, self.exports):
            if path.exists() or path.is_symlink():
                require_plain(path)

    def looks_unfinished(self) -> bool:
        """Tell a folder where a campaign never came to be from one whose labels are missing."""
        if self.unfinished.exists():
            return True
        traces = [self.adapters, self.backups, self.exports, self.scores]
        journal = self.folder / "labels.db-journal"
        return not journal.exists() and not any(path.exists() for path in traces)

    def adapter(self, name: str) -> Path:
        """Return the folder of an adapter, by the name in the store."""
        if not NAME.fullmatch(name):
            raise UntrustedFileError(
                f"{name!r:.80} is no name of an adapter (small letters, digits, - and _). The "
                f"store of {self.folder} was changed by hand: take it from a backup."
            )
        return self.adapters / name

    def round_scores(self, round_id: int) -> Path:
        """Return the file with the scores of a round."""
        return self.scores / f"round-{round_id:04d}.parquet"
