"""Files that survive a power cut: what is synced, and in which order, before a name appears."""

import os
from pathlib import Path

import pytest
from campaign_cases import label_all, store_with_batch

from starlearn.campaign import publish
from starlearn.campaign.paths import CampaignPaths
from starlearn.errors import StorageError
from starlearn.storage import files

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="needs /proc to name what is synced"
)


@pytest.fixture
def calls(monkeypatch):
    """Record every sync and rename, with the file's name at that time."""
    made = []

    def record(name, original):
        def call(*arguments, **named):
            if name == "fsync":
                made.append(("sync", Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))))
            else:
                made.append(("rename", Path(arguments[0]), Path(arguments[1])))
            return original(*arguments, **named)

        return call

    for name in ("fsync", "rename", "replace"):
        monkeypatch.setattr(os, name, record(name, getattr(os, name)))
    return made


def synced_before(made, position):
    return [call[1] for call in made[:position] if call[0] == "sync"]


def test_a_file_is_synced_before_it_has_its_name_and_its_folder_after(quick, calls):
    files.write_file(quick / "file", b"content")
    assert calls == [
        ("sync", quick / ".file.new"),
        ("rename", quick / ".file.new", quick / "file"),
        ("sync", quick),
    ]
    assert (quick / "file").read_bytes() == b"content"


def test_every_file_of_an_adapter_is_synced_before_it_is_visible(quick, calls):
    paths = CampaignPaths(quick)

    def write(folder):
        folder.mkdir()
        for name in ("a", "b", "c"):
            (folder / name).write_text(name)

    publish.publish(paths, "round-0001-1", write, lambda folder: None, {})
    scratch = paths.adapters / ".round-0001-1.new"
    position = calls.index(("rename", scratch, paths.adapter("round-0001-1")))
    before = synced_before(calls, position)
    manifest = scratch / f".{publish.MANIFEST}.new"  # renamed within the folder
    # The manifest comes last: it vouches for files that are already on the disk.
    assert max(before.index(scratch / n) for n in "abc") < before.index(manifest)
    assert before[-1] == scratch
    assert ("sync", paths.adapters) in calls[position:]


def test_a_backup_is_synced_before_it_has_its_name(quick, calls):
    store = store_with_batch(quick / "labels.db")
    calls.clear()
    store.backup(quick / "copy.db")
    kinds = [call[0] for call in calls]
    assert kinds == ["sync", "rename", "sync"]
    assert calls[0][1] == quick / ".copy.db.new"
    assert calls[2][1] == quick


def test_a_campaign_gets_its_name_last(make_campaign, quick, calls):
    campaign = make_campaign()
    renames = [call[2] for call in calls if call[0] == "rename"]
    assert renames[-1] == campaign.paths.labels
    assert ("sync", campaign.folder) in calls[
        calls.index(
            next(call for call in calls if call[0] == "rename" and call[2] == campaign.paths.labels)
        ) :
    ]


def test_everything_that_a_round_renames_was_synced(make_campaign, calls):
    """Also what a later change may add: no name appears in the folder before its content."""
    campaign = make_campaign()
    campaign.query(3)
    label_all(campaign)
    campaign.teach()
    own = {campaign.paths.unfinished}  # SQLite syncs it, in its own way
    scratch = [call[1] for call in calls if call[0] == "rename"]
    for position, call in enumerate(calls):
        inside = call[0] == "rename" and campaign.folder in call[2].parents
        if inside and call[1] not in own and not call[1].name.endswith(".incomplete"):
            assert call[1] in synced_before(calls, position), call
    assert len(scratch) > 6


@pytest.mark.parametrize("name", ["write", "fsync", "replace", "open"])
def test_a_failed_write_leaves_the_old_file(quick, monkeypatch, name):
    files.write_file(quick / "file", b"old")
    original = getattr(os, name)

    def fail(*arguments, **named):
        if name == "open" and not arguments[1] & os.O_CREAT:
            return original(*arguments, **named)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(StorageError, match=r"disk is full .*Free some space"):
            files.write_file(quick / "file", b"new")
    assert (quick / "file").read_bytes() == b"old"
    assert [path.name for path in quick.iterdir()] == ["file"]


def test_short_writes_are_continued(quick, monkeypatch):
    original = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: original(handle, bytes(data)[:3]))
    files.write_file(quick / "file", b"longer than three")
    assert (quick / "file").read_bytes() == b"longer than three"
