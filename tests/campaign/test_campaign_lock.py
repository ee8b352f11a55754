"""The lock: one process writes, errors name it, and the lock dies with its holder."""

import errno
import fcntl
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from starlearn.campaign.campaign import Campaign
from starlearn.errors import (
    CampaignLockedError,
    StarlearnError,
    StorageError,
    UntrustedFileError,
)
from starlearn.storage import files
from starlearn.storage.files import explained
from starlearn.storage.lock import Lock, command_line, holder

HOLD = """
import sys
from pathlib import Path
from starlearn.storage.lock import Lock
with Lock(Path(sys.argv[1])).held("teach"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def path(quick):
    return quick / ".lock"


@pytest.fixture
def other(path):
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_the_error_names_the_process_that_holds_the_lock(path, other):
    output = pytest.raises(CampaignLockedError, match=rf"by pid {other.pid} on host .*\(teach\)")
    with output, Lock(path).held("label", wait=0):
        pass
    found = holder(path)
    assert (found.pid, found.command) == (other.pid, "teach")
    other.stdin.close()
    other.wait()
    with Lock(path).held("label", wait=0):
        assert holder(path).pid == os.getpid()
    assert holder(path) is None


def test_the_lock_of_a_killed_process_is_free(path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert json.loads(path.read_text())["pid"] == other.pid  # what it left
    assert holder(path) is None
    with Lock(path).held("label", wait=0):
        assert holder(path).command == "label"


def test_what_stands_in_the_file_decides_nothing(path):
    old = {"pid": 1, "host": "h", "boot_id": "b", "command": "teach", "since": "2020"}
    for content in (json.dumps(old), "", "{", "[]", '{"pid": "x"}', "\0" * 100):
        path.write_text(content)
        assert holder(path) is None
        with Lock(path).held("label", wait=0):
            assert holder(path).pid == os.getpid()


def test_a_label_waits_for_a_label(path, other):
    """A short turn of another process is waited for."""
    timer = threading.Timer(0.2, lambda: other.stdin.close())
    timer.start()
    with Lock(path).held("label", wait=60):
        assert holder(path).command == "label"
    timer.join()


def test_the_lock_may_be_taken_again_and_threads_take_turns(path):
    lock = Lock(path)
    inside = []

    def work(name):
        with lock.held(name), lock.held(name):
            inside.append(name)
            assert len(inside) == 1
            inside.remove(name)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert holder(path) is None


def test_a_forked_child_does_not_hold_the_lock(path):
    lock = Lock(path)
    ready, done = os.pipe(), os.pipe()
    with lock.held("label"):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with lock.held("label", wait=0):
                    pass
            except CampaignLockedError:
                os.write(ready[1], b"refused")
                os.read(done[0], 1)  # lives on after the parent has let go
                code = 0
            finally:
                os._exit(code)
        assert os.read(ready[0], 10) == b"refused"
    with Lock(path).held("next", wait=0):  # free, though the child lives
        pass
    os.write(done[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    for handle in (*ready, *done):
        os.close(handle)


def test_a_symbolic_link_as_lock_is_not_followed(path, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)
    with pytest.raises(UntrustedFileError, match="symbolic link"), Lock(path).held("label"):
        pass
    assert holder(path) is None
    assert victim.read_text() == "precious"


def test_readers_read_while_a_session_holds_the_campaign(make_campaign, quick):
    campaign = make_campaign()
    first, *_ = campaign.query(2)
    with campaign.holding("label --web"):
        code = (
            "import sys\nfrom starlearn.campaign.campaign import Campaign\n"
            "from starlearn.errors import CampaignLockedError\n"
            f"campaign = Campaign.open({str(quick / 'campaign')!r})\n"
            "print(campaign.status().holder, len(campaign.batch()), len(campaign.history()))\n"
            "try:\n    with campaign.holding('teach', wait=0): pass\n"
            "except CampaignLockedError as error:\n    print(error)\n"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        campaign.label(first, "red")
    assert f"pid {os.getpid()} on host" in ran.stdout.splitlines()[0]
    assert ran.stdout.splitlines()[0].endswith("2 1")
    assert "(label --web)" in ran.stdout.splitlines()[1]
    assert campaign.status().holder is None


def test_a_pickled_campaign_opens_the_folder_itself(make_campaign):
    campaign = make_campaign()
    first, *_ = campaign.query(2)
    packed = pickle.dumps(campaign)
    assert len(packed) < 1000
    again = pickle.loads(packed)  # noqa: S301 - our own
    assert again.store._connection is not campaign.store._connection
    again.label(first, "red")
    assert campaign.labels() == {first.id: "red"}
    again.close()
    assert repr(campaign).startswith("Campaign.open(")


def test_a_campaign_opened_to_read_only(make_campaign, quick):
    campaign = make_campaign()
    first, *_ = campaign.query(2)
    campaign.label(first, "red")
    with Campaign.open(quick / "campaign", read_only=True) as reader:
        assert reader.labels() == {first.id: "red"}
        assert reader.learner() is not None
        for write in (
            lambda: reader.label(first, "red"),
            lambda: reader.query(2),
            reader.teach,
            reader.backup,
            reader.undo,
        ):
            with pytest.raises(StorageError, match="read-only"):
                write()


def test_a_removed_lock_file_does_not_let_a_second_process_in(make_campaign, quick):
    campaign = make_campaign()
    code = (
        "import sys\nfrom starlearn.campaign.campaign import Campaign\n"
        "from starlearn.errors import CampaignLockedError\n"
        "campaign = Campaign.open(sys.argv[1])\n"
        "print(campaign.status().holder)\n"
        "try:\n    with campaign.holding('teach', wait=0): print('held too')\n"
        "except CampaignLockedError as error:\n    print('refused', error)\n"
    )
    with campaign.holding("label"):
        campaign.paths.lock.unlink()
        command = [sys.executable, "-c", code, str(campaign.folder)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = ran.stdout.splitlines()
    assert "unknown" in before
    assert after.startswith("refused")
    with campaign.holding("label", wait=0):
        pass


def test_a_lock_file_that_was_replaced_while_it_was_opened_is_opened_again(path, monkeypatch):
    """As when another process removes it between the open and the flock."""
    original, removed = fcntl.flock, []

    def flock(handle, kind):
        if not removed:
            removed.append(path.unlink())
        return original(handle, kind)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Lock(path).held("label"):
        assert path.is_file()
        monkeypatch.undo()
        assert holder(path).pid == os.getpid()
        with pytest.raises(CampaignLockedError), Lock(path).held("teach", wait=0):
            pass


def test_a_pipe_as_lock_file_is_refused_and_hangs_nothing(make_campaign):
    campaign = make_campaign()
    campaign.close()
    campaign.paths.lock.unlink()
    os.mkfifo(campaign.paths.lock)
    program = [sys.executable, "-m", "starlearn", "status", str(campaign.folder)]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 5
    assert "special file" in ran.stderr
    assert holder(campaign.paths.lock) is None
    with pytest.raises(UntrustedFileError), Lock(campaign.paths.lock).held("label"):
        pass


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_with_the_remedy(make_campaign, monkeypatch, code):
    campaign = make_campaign()
    first, *_ = campaign.query(2)

    def unsupported(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for call in (lambda: campaign.label(first, "red"), campaign.status):
        with pytest.raises(StorageError, match=r"does not support locks.*Move the folder to a lo"):
            call()
    monkeypatch.undo()
    assert campaign.labels() == {}


@pytest.mark.parametrize(
    ("kind", "is_remote"),
    [
        *((kind, True) for kind in ("nfs4", "ceph", "fuse.ceph-fuse", "gpfs", "drvfs", "9p")),
        *((kind, True) for kind in ("fuse.glusterfs", "fuse.rclone", "fuse.google-drive", "davfs")),
        *((kind, False) for kind in ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuseblk")),
        *((kind, False) for kind in ("fuse.fuse-overlayfs", "zfs", "apfs", "")),
    ],
)
def test_remote_and_cloud_drives_are_warned_of(make_campaign, monkeypatch, kind, is_remote):
    campaign = make_campaign()
    campaign.close()
    monkeypatch.setattr(files, "file_system_of", lambda path: kind)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Campaign.open(campaign.folder) as again:
            found = [finding.what for finding in again.doctor()]
    assert any(f"remote file system ({kind})" in str(w.message) for w in caught) == is_remote
    assert any(f"remote file system ({kind})" in what for what in found) == is_remote


def test_files_of_another_user_are_named_with_chown(quick, monkeypatch):
    """As after one command with sudo."""
    file = quick / "a file"
    file.write_text("x")
    error = PermissionError(errno.EACCES, "Permission denied", str(file))
    assert f"chmod -R u+rwX {quick}" in explained(error, f"writing {file}")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert f'sudo chown -R "$(id -un)" {quick}' in explained(error, f"reading {file}")
    assert "No permission to read" in explained(error, f"reading {file}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
@pytest.mark.parametrize(
    "name", ["", "labels.db", "pool.parquet", ".lock", "adapters", "scores", "adapters/*", "*"]
)
def test_a_folder_of_root_gives_no_traceback_to_its_user(make_campaign, tiny_model, name, tmp_path):
    campaign = make_campaign()
    first, *_ = campaign.query(2)
    campaign.label(first, "red")
    campaign.teach(partial=True)
    campaign.query(2)
    campaign.close()
    shutil.copytree(campaign.folder, tmp_path / "copy")
    model = Path(tiny_model)
    for path in (model, tmp_path, *model.parents, *tmp_path.parents):
        if path.stat().st_mode & 0o055 != 0o055:
            path.chmod(0o755)
    for path in (tmp_path / "copy", *(tmp_path / "copy").rglob("*")):
        os.chown(path, 65534, 65534)
    for path in (tmp_path / "copy").glob(name) if name else [tmp_path / "copy"]:
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.chown(path, 0, 0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            code = _use(tmp_path / "copy")
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _use(folder):
    """Return 0 if every error is one of starlearn that names chown."""
    warnings.simplefilter("ignore")
    for call in (
        lambda campaign: campaign.label(campaign.batch()[0], "red"),
        lambda campaign: campaign.status(),
        lambda campaign: campaign.learner(),
        lambda campaign: campaign.snapshot(),
        lambda campaign: campaign.backup(),
        lambda campaign: campaign.doctor(),
        lambda campaign: campaign.teach(partial=True),
    ):
        try:
            with Campaign.open(folder) as campaign:
                call(campaign)
        except StarlearnError as error:
            if "sudo chown" not in str(error):
                print("without chown:", error)
                return 2
    return 0


def test_command_line_is_short(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/starlearn", "teach", "x" * 1000])
    assert command_line().startswith("starlearn teach xxx")
    assert len(command_line()) == 200
