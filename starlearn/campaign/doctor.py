"""Checks of a campaign folder, each finding with its remedy."""

import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from starlearn.campaign import events, publish, rounds
from starlearn.campaign.folder import CampaignFolder
from starlearn.errors import StarlearnError
from starlearn.storage.files import REMOTE, file_sha256, file_system_of

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
    """Check labels, pool, adapters, disk, permissions and leftovers, in this order."""
    found = [*_labels(campaign), *_pool(campaign), *_adapters(campaign), *_environment(campaign)]
    if fix:
        with campaign.holding("doctor"):
            return found + _leftovers(campaign, fix=True)
    return found + _leftovers(campaign, fix=False)


def _labels(campaign: CampaignFolder) -> Iterator[Finding]:
    try:
        campaign.store.check()
        events.events(campaign.store)
        rounds.contents(campaign.store)
        rounds.rounds(campaign.store)
    except StarlearnError as error:
        yield Finding("error", str(error), f"starlearn doctor {campaign.folder} --restore")


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
    kind = file_system_of(folder)
    if kind in REMOTE:
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
