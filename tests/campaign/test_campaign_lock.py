"""The lock: one process writes, errors name it, and the lock dies with its holder."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest

from starlearn.campaign.campaign import Campaign
from starlearn.errors import CampaignLockedError, StorageError
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
    with pytest.raises(StorageError), Lock(path).held("label"):
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


def test_command_line_is_short(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/starlearn", "teach", "x" * 1000])
    assert command_line().startswith("starlearn teach xxx")
    assert len(command_line()) == 200
