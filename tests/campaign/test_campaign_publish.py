"""Adapters on disk: whole or not at all, refused when touched, and no way out of the folder."""

import errno
import json
import os
import pickle
import shutil
from collections import namedtuple

import pytest
from campaign_cases import label_all, quick_folder

from starlearn.campaign import publish, rounds
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.paths import CampaignPaths
from starlearn.errors import StorageError, UntrustedFileError
from starlearn.storage import files

FILES = ["a.txt", "b.bin"]


def write(folder):
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(name.encode() * 50)


def accept(folder):
    pass


@pytest.fixture
def paths(quick):
    return CampaignPaths(quick)


@pytest.fixture
def published(paths):
    sealed = publish.publish(paths, "round-0001-1", write, accept, {"base": "b"})
    return paths, sealed


def visible(paths):
    return sorted(path.name for path in paths.adapters.iterdir())


def test_a_published_folder_is_whole_and_private(published):
    paths, sealed = published
    manifest = publish.verify(paths, "round-0001-1", sealed)
    assert set(manifest["files"]) == set(FILES)
    assert manifest["base"] == "b"
    folder = paths.adapter("round-0001-1")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert publish.orphans(paths, {"round-0001-1"}) == []


def fail_at(monkeypatch, name, position, code, counted):
    """Let the nth call of a function of the operating system fail."""
    original = getattr(os, name)

    def call(*arguments, **named):
        counted.append(name)
        if len(counted) - 1 == position:
            raise OSError(code, os.strerror(code))
        return original(*arguments, **named)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("write", errno.ENOSPC, "disk is full"),
        ("write", errno.EIO, "disk failed"),
        ("fsync", errno.EIO, "disk failed"),
        ("fsync", errno.ENOSPC, "disk is full"),
        ("rename", errno.ENOSPC, "disk is full"),
        ("rename", errno.EROFS, "No permission to write"),
        ("open", errno.EDQUOT, "disk is full"),
        ("chmod", errno.EPERM, "No permission to write"),
    ],
)
def test_errors_of_the_disk_at_every_call(monkeypatch, name, code, says):
    """If any call fails, nothing is visible, nothing is left, and the error is ours."""
    failures, position = 0, 0
    while True:
        with quick_folder() as folder, monkeypatch.context() as patch:
            paths = CampaignPaths(folder)
            files.make_folder(paths.adapters)
            counted: list[str] = []
            fail_at(patch, name, position, code, counted)
            try:
                publish.publish(paths, "round-0001-1", write, accept, {})
            except StorageError as error:
                assert says in str(error)  # noqa: PT017 - both ends of the loop are looked at
                assert "Nothing was lost" in str(error)  # noqa: PT017
                failures += 1
                # After the rename the adapter is whole, though not yet named in the store.
                patch.undo()
                left = visible(paths)
                assert left in ([], ["round-0001-1"])
                if left:
                    publish.verify(paths, "round-0001-1")
            else:
                assert len(counted) <= position
                break
        position += 1
    assert failures >= 1


def test_missing_space_is_reported_before_the_training(make_campaign, monkeypatch):
    campaign = make_campaign()
    campaign.query(3)
    label_all(campaign)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    monkeypatch.setattr(
        "starlearn.learner.estimator.STARLearner.teach",
        lambda *_: pytest.fail("training has begun"),
    )
    with pytest.raises(StorageError, match=r"needs 10\.0 MB .* 1\.0 MB are free"):
        campaign.teach()
    assert campaign.status().state == "labelled"
    assert campaign.status().n_labelled == 3


def test_a_real_limit_on_file_size_in_the_library_that_writes(make_campaign):
    """The adapter's file is written by another language; its errors become ours too."""
    import resource
    import signal

    campaign = make_campaign()
    campaign.query(3)
    label_all(campaign)
    campaign.teach()
    campaign.query(2)
    label_all(campaign)
    before = visible(campaign.paths)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = campaign.paths.labels.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        learner = campaign.learner()
        with pytest.raises(StorageError, match="File too large"):
            publish.publish_learner(campaign.paths, learner, "round-0002-1", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert visible(campaign.paths) == before
    assert campaign.paths.labels.stat().st_size == size
    assert campaign.teach().state == "published"


def test_an_adapter_that_reads_back_differently_is_not_published(make_campaign, monkeypatch):
    import torch

    from starlearn.export import saving

    campaign = make_campaign()
    campaign.query(3)
    label_all(campaign)
    original = saving.load

    def bent(folder):
        found = original(folder)
        next(iter(found.adapter.state.values())).view(torch.int32)[0] ^= 1
        return found

    with monkeypatch.context() as patch:
        patch.setattr(saving, "load", bent)
        with pytest.raises(StorageError, match="not the adapter that was written"):
            campaign.teach()
    assert visible(campaign.paths) == []
    assert campaign.status().state == "failed"
    assert campaign.teach().state == "published"


# What was published, and nothing else


@pytest.mark.parametrize("name", [*FILES, publish.MANIFEST])
def test_every_flipped_byte_is_found(published, name):
    paths, sealed = published
    file = paths.adapter("round-0001-1") / name
    sound = file.read_bytes()
    for position in range(len(sound)):
        file.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        with pytest.raises(UntrustedFileError):
            publish.verify(paths, "round-0001-1", sealed)
    file.write_bytes(sound)
    publish.verify(paths, "round-0001-1", sealed)


def test_missing_cut_and_added_files(published):
    paths, sealed = published
    folder = paths.adapter("round-0001-1")
    shutil.copytree(folder, paths.folder / "sound")
    damages = {
        "missing file": lambda: (folder / "a.txt").unlink(),
        "missing manifest": lambda: (folder / publish.MANIFEST).unlink(),
        "cut": lambda: (folder / "b.bin").write_bytes(b"b"),
        "added": lambda: (folder / "c.txt").write_text("x"),
        "added pickle": lambda: (folder / "adapter_model.bin").write_bytes(b"x"),
        "added folder": lambda: (folder / "sub").mkdir(),
        "huge manifest": lambda: (folder / publish.MANIFEST).write_bytes(b" " * 2_000_000),
        "all": lambda: shutil.rmtree(folder),
    }
    for damage in damages.values():
        damage()
        with pytest.raises(UntrustedFileError):
            publish.verify(paths, "round-0001-1", sealed)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(paths.folder / "sound", folder)
    publish.verify(paths, "round-0001-1", sealed)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"files": 3}', b'{"files": {"../../x": "0"}}', b"[" * 100_000],
)
def test_manifests_of_any_content(published, content):
    paths, _ = published
    (paths.adapter("round-0001-1") / publish.MANIFEST).write_bytes(content)
    with pytest.raises(UntrustedFileError):
        publish.verify(paths, "round-0001-1")


@pytest.mark.parametrize("damage", ["adapter_model.safetensors", "PUBLISHED.json"])
def test_the_round_before_stands_in_for_a_damaged_adapter(make_campaign, quick, damage):
    campaign = make_campaign()
    for _ in range(2):
        campaign.query(2)
        label_all(campaign)
        campaign.teach()
    file = campaign.paths.adapter("round-0002-1") / damage
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with Campaign.open(quick / "campaign") as again:
        with pytest.warns(UserWarning, match="round 2 cannot be used"):
            learner = again.learner()
        assert len(learner.rounds_) == 1
        assert [f.level for f in again.doctor()] == ["error"]
        assert again.status().n_labelled == 4


class Canary:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_pickle_in_a_campaign_is_ever_read(make_campaign, quick, tmp_path):
    campaign = make_campaign()
    campaign.query(2)
    label_all(campaign)
    campaign.teach()
    poison = pickle.dumps(Canary(tmp_path / "canary"))
    folder = campaign.paths.adapter("round-0001-1")
    for name in ("adapter_model.bin", "training_args.bin", "state.pkl", "model.pt"):
        (folder / name).write_bytes(poison)
    (campaign.paths.scores / "round-0001.parquet").write_bytes(poison)
    campaign.paths.pool.write_bytes(poison)
    with Campaign.open(quick / "campaign") as again:
        with pytest.warns(UserWarning, match="cannot be used"):
            again.learner()
        assert {f.level for f in again.doctor()} == {"error"}
        with pytest.raises(Exception, match="not the snapshot"):
            again.query(2)
    assert not (tmp_path / "canary").exists()


def test_settings_can_name_no_class_of_their_own(make_campaign, quick):
    campaign = make_campaign()
    settings = json.loads(campaign.meta["learner"])
    settings["task"]["class"] = "subprocess.Popen"
    with campaign.store.transaction():
        campaign.store.set_meta(learner=json.dumps(settings))
    with pytest.raises(Exception, match=r"unknown class 'subprocess\.Popen'"):
        campaign.learner()


# No way out of the folder


@pytest.mark.parametrize("name", ["../victim", "/etc", "a/b", "..", "", "A", "x" * 65, "a\0b", "."])
def test_names_that_lead_out(paths, name):
    with pytest.raises(UntrustedFileError, match="cannot be the name of an adapter"):
        publish.verify(paths, name)
    with pytest.raises(UntrustedFileError):
        publish.publish(paths, name, write, accept, {})


def test_a_poisoned_store_leads_nowhere(make_campaign, quick, tmp_path):
    """A store that names a folder outside: it is neither read nor written."""
    campaign = make_campaign()
    campaign.query(2)
    label_all(campaign)
    campaign.teach()
    outside = quick / "outside"
    shutil.copytree(campaign.paths.adapter("round-0001-1"), outside)
    rounds.change(campaign.store, 1, adapter="../../outside")
    with Campaign.open(quick / "campaign") as again:
        with pytest.warns(UserWarning, match="cannot be the name of an adapter"):
            learner = again.learner()
        assert not hasattr(learner, "adapter_")


@pytest.mark.parametrize("what", ["folder", "file", "manifest"])
def test_symbolic_links_among_the_adapters(published, what):
    paths, sealed = published
    folder = paths.adapter("round-0001-1")
    elsewhere = paths.folder / "elsewhere"
    moved = {"folder": folder, "file": folder / "a.txt", "manifest": folder / publish.MANIFEST}[
        what
    ]
    shutil.move(moved, elsewhere)
    moved.symlink_to(elsewhere)
    with pytest.raises(UntrustedFileError, match="symbolic link"):
        publish.verify(paths, "round-0001-1", sealed)


@pytest.mark.parametrize("name", ["adapters", "scores", "backups", "exports", "pool.parquet"])
def test_symbolic_links_in_the_campaign(make_campaign, quick, name):
    campaign = make_campaign()
    outside = quick / "outside"
    outside.mkdir()
    path = quick / "campaign" / name
    if path.exists():
        path.unlink()
    path.symlink_to(outside)
    with pytest.raises(UntrustedFileError, match="symbolic link"):
        Campaign.open(quick / "campaign")
    assert list(outside.iterdir()) == []
    campaign.close()


def test_removing_a_leftover_link_leaves_what_it_leads_to(make_campaign, quick):
    campaign = make_campaign()
    precious = quick / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("x")
    files.make_folder(campaign.paths.adapters)
    (campaign.paths.adapters / "link").symlink_to(precious)
    assert "never published" in campaign.doctor(fix=True)[0].what
    assert (precious / "thesis").read_text() == "x"
    assert list(campaign.paths.adapters.iterdir()) == []


def test_the_target_of_a_link_is_not_overwritten(quick):
    victim = quick / "victim"
    victim.write_text("precious")
    (quick / ".file.new").symlink_to(victim)
    with pytest.raises(StorageError):
        files.write_file(quick / "file", b"content")
    assert victim.read_text() == "precious"


# Rights and places


def test_a_folder_that_cannot_be_written(make_campaign, quick, monkeypatch):
    from starlearn.model.backbone import Backbone

    make_campaign()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(Backbone, "__init__", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(StorageError, match="chmod -R u"):
        Campaign.open(quick / "campaign")
    with Campaign.open(quick / "campaign", read_only=True) as reader:
        assert reader.status().n_items == 32


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_somebody_else(make_campaign, quick):
    campaign = make_campaign()
    campaign.query(2)
    os.chmod(quick, 0o755)  # noqa: S103 - so that somebody else gets as far as the campaign
    os.chmod(campaign.folder, 0o555)  # noqa: S103
    for path in campaign.folder.iterdir():
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    read, written = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            try:
                Campaign.open(campaign.folder)
            except StorageError as error:
                os.write(written, str(error).encode())
            import warnings

            warnings.simplefilter("ignore")
            reader = Campaign.open(campaign.folder, read_only=True)
            os.write(written, f"|{len(reader.batch())}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    output = os.read(read, 10_000).decode()
    os.close(read)
    os.close(written)
    assert "No permission to write" in output
    assert output.endswith("|2")


MOUNTS = """22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
90 22 0:40 / /home/lab\\040share rw - nfs4 server:/x rw
91 22 0:41 / /mnt/win rw - cifs //server/y rw
"""


def test_remote_file_systems_are_named(tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS, encoding="utf-8")
    monkeypatch.setattr(files, "MOUNTS", table)
    assert files.file_system_of(tmp_path) == "ext4"
    assert files.file_system_of(tmp_path.__class__("/home/lab share/a")) == "nfs4"
    assert files.file_system_of(tmp_path.__class__("/mnt/windows")) == "ext4"
    assert files.file_system_of(tmp_path.__class__("/mnt/win/x")) == "cifs"
    monkeypatch.setattr(files, "MOUNTS", tmp_path / "none")
    assert files.file_system_of(tmp_path) == ""
    monkeypatch.setattr(files, "file_system_of", lambda path: "nfs4")
    os.chmod(tmp_path, 0o700)
    with pytest.warns(UserWarning, match=r"remote file system \(nfs4\)"):
        files.warn_about_folder(tmp_path)


def test_folders_that_others_may_change(make_campaign, quick):
    campaign = make_campaign()
    campaign.query(1)
    label_all(campaign)
    campaign.teach()
    for path in campaign.folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    os.chmod(campaign.folder, 0o777)  # noqa: S103 - the problem to find
    with pytest.warns(UserWarning, match="Other users can change"):
        Campaign.open(quick / "campaign").close()
    assert [f.level for f in campaign.doctor()] == ["warning"]
    os.chmod(campaign.folder, 0o700)
    assert campaign.doctor() == []


def test_nothing_of_the_environment_gets_into_the_folder(make_campaign, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    campaign = make_campaign()
    campaign.query(1)
    label_all(campaign)
    campaign.teach()
    for path in campaign.folder.rglob("*"):
        if path.is_file():
            assert b"hf_secret" not in path.read_bytes(), path


# Backups and the journal


def test_three_backups_are_kept(make_campaign):
    campaign = make_campaign()
    batch = campaign.query(5)
    for item in batch:
        campaign.label(item, "red")
        campaign.backup()
    names = sorted(path.name for path in campaign.paths.backups.iterdir())
    assert names == [f"labels-{n:09d}.db" for n in (3, 4, 5)]


def test_a_training_is_preceded_by_a_backup_and_followed_by_a_journal(make_campaign):
    from starlearn.campaign import events
    from starlearn.campaign.integrity import checksum
    from starlearn.campaign.store import Store

    campaign = make_campaign()
    batch = campaign.query(3)
    label_all(campaign)
    campaign.teach()
    (backup,) = campaign.paths.backups.iterdir()
    store = Store.open(backup, read_only=True)
    assert events.events(store) == events.events(campaign.store)
    assert rounds.current(store).state == "labelled"
    store.close()
    text = (campaign.paths.exports / "labels.jsonl").read_text(encoding="utf-8")
    head, *rows = [json.loads(line) for line in text.splitlines()]
    assert head.pop("crc") == checksum(head)
    assert {"tables", *head["meta"]} == set(campaign.meta)
    assert [row.pop("crc") for row in rows] == [checksum(row) for row in rows]
    fields = [row.pop("fields") for row in rows]
    assert {found["text"] for found in fields} == {item.fields["text"] for item in batch}
    assert {row.pop("campaign") for row in rows} == {campaign.id}
    assert [events.Event(**row) for row in rows] == events.events(campaign.store)
