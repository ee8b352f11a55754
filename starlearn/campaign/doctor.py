"""Checks of a campaign folder, each finding with its remedy."""

import shlex
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from starlearn.campaign import publish, rounds
from starlearn.campaign.folder import CampaignFolder
from starlearn.campaign.journal import is_from_before, read_journal
from starlearn.campaign.restore import verified_copy
from starlearn.campaign.verification import verify
from starlearn.errors import StarlearnError
from starlearn.storage.files import file_sha256, remote_kind

LOW_SPACE = 100_000_000


@dataclass(frozen=True)
class Finding:
    """One problem of a campaign folder."""

    level: str
    """error: a file cannot be used; warning: a risk; note: information."""
    what: str
    fix: str
    """The remedy; empty where nothing is left to do."""


def examine(campaign: CampaignFolder, fix: bool) -> list[Finding]:
    """Check labels, copies, pool, scores, adapters, disk, permissions and leftovers."""
    found = list(_labels(campaign))
    if found:  # everything else depends on them
        return found
    for check in (_copies, _pool, _scores, _adapters, _environment):
        found += check(campaign)
    if fix:
        with campaign.holding("doctor"):
            return found + _leftovers(campaign, fix=True)
    return found + _leftovers(campaign, fix=False)


def _labels(campaign: CampaignFolder) -> Iterator[Finding]:
    try:
        campaign.store.check()
        verify(campaign.store)
    except StarlearnError as error:
        yield Finding("error", str(error), f"starlearn doctor {_quoted(campaign)} --restore")


def _copies(campaign: CampaignFolder) -> Iterator[Finding]:
    """Read every backup whole, and the journal."""
    for path in sorted(campaign.paths.backups.glob("*.db")):
        try:
            verified_copy(path).close()
        except (StarlearnError, OSError) as error:
            yield _unusable(campaign, "The backup", path, error)
    if campaign.paths.journal.exists():
        try:
            # The next training or backup replaces the journal of an older version.
            if not is_from_before(campaign.paths.journal):
                read_journal(campaign.paths.journal)
        except (StarlearnError, OSError) as error:
            yield _unusable(campaign, "The journal", campaign.paths.journal, error)


def _unusable(campaign: CampaignFolder, what: str, path: Path, error: Exception) -> Finding:
    why = str(error).split(" Nothing was", 1)[0]
    return Finding(
        "error",
        f"{what} {path} cannot be used: {why}",
        f"The labels themselves are intact. Remove it and make a new one: rm "
        f"{shlex.quote(str(path))}; starlearn backup {_quoted(campaign)}",
    )


def _scores(campaign: CampaignFolder) -> Iterator[Finding]:
    for found in rounds.rounds(campaign.store):
        path, sha256 = campaign.paths.round_scores(found.id), found.record.get("scores")
        if sha256 is not None and (not path.is_file() or file_sha256(path) != sha256):
            yield Finding(
                "error" if path.exists() else "note",
                f"{path} is missing or is not the file that was written (its SHA-256 differs).",
                f"Reports leave out the scores of round {found.id}. Restore the file from a copy "
                "of the folder.",
            )


def _pool(campaign: CampaignFolder) -> Iterator[Finding]:
    try:
        campaign.snapshot()
    except StarlearnError as error:
        yield Finding("error", str(error), "Restore pool.parquet from a copy of the folder.")
    facts = campaign.pool_facts
    if facts["source"] is None:
        return
    source = Path(facts["source"])
    if not source.exists():
        yield Finding("note", f"The pool's file {source} is gone; the campaign has its copy.", "")
    elif source.is_file() and (
        source.stat().st_size != facts.get("size") or file_sha256(source) != facts["sha256"]
    ):
        yield Finding(
            "note",
            f"The pool's file {source} has changed since the campaign began. Labels and queries "
            "use the texts as they were.",
            "For the new rows, create another campaign: Campaign.create(another_folder, ...).",
        )


def _adapters(campaign: CampaignFolder) -> Iterator[Finding]:
    for found in rounds.published(campaign.store):
        try:
            publish.verify(campaign.paths, str(found.adapter), found.manifest)
        except (StarlearnError, OSError) as error:
            yield Finding(
                "error",
                f"The adapter of round {found.id} cannot be used: {error}",
                "Queries and predictions use the round before; teach makes a new one.",
            )


def _environment(campaign: CampaignFolder) -> Iterator[Finding]:
    folder = campaign.folder
    kind = remote_kind(folder)
    if kind:
        yield Finding(
            "warning", f"{folder} is on a remote file system ({kind}).", "Move it to a local disk."
        )
    free = shutil.disk_usage(folder).free
    if free < LOW_SPACE:
        yield Finding("warning", f"{free / 1e6:,.0f} MB are free on its disk.", "Free some space.")
    for path in (folder, *sorted(folder.iterdir())):
        mode = path.lstat().st_mode
        if mode & 0o077 and not stat.S_ISLNK(mode):
            yield Finding(
                "warning",
                f"{path} can be read by others ({stat.filemode(mode)}).",
                f"chmod -R go-rwx {folder}",
            )


def _quoted(campaign: CampaignFolder) -> str:
    return shlex.quote(str(campaign.folder))


def _leftovers(campaign: CampaignFolder, fix: bool) -> list[Finding]:
    published = {r.adapter for r in rounds.rounds(campaign.store) if r.adapter is not None}
    complete = "is complete but belongs to no round, as after a kill or a restored backup"
    found = []
    for path in publish.orphans(campaign.paths, published):
        what = complete if (path / publish.MANIFEST).is_file() else "was never published"
        if fix:
            publish.remove(path)
            found.append(Finding("note", f"{path} {what}; it was removed.", ""))
        else:
            remedy = f"starlearn doctor {campaign.folder} --fix"
            found.append(Finding("note", f"{path} {what}; it can be removed.", remedy))
    return found
