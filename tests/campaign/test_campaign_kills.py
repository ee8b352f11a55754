"""kill -9 at any moment and at every failpoint: nothing acknowledged is lost, and work goes on."""

import ast
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from campaign_cases import quick_folder
from kill_server import BATCH, LABELS

from starlearn.campaign import events, publish, rounds
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.exchange import export_batch
from starlearn.campaign.failpoints import FAILPOINTS, RESTORE_FAILPOINTS
from starlearn.errors import InputError

PACKAGE = Path(publish.__file__).parent
NORMAL = {"create": 10, "query": 25, "label": 35, "import_file": 20, "teach": 20}
"""Kills of each step in the normal suite: 110. The long one makes 1,040."""


class Server:
    """The warm process, which runs one step at a time."""

    def __init__(self, model: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "kill_server.py"), model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert json.loads(self.process.stdout.readline()) == "ready"

    def run(self, step, folder, after=None, failpoint=None):
        command = {"step": step, "folder": str(folder), "after": after, "failpoint": failpoint}
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def whole(self, step, folder):
        """Run a step to its end."""
        done = self.run(step, folder)
        assert done["code"] == 0, done
        return done


@pytest.fixture(scope="module")
def server(tiny_model):
    made = Server(tiny_model)
    yield made
    made.process.stdin.close()
    made.process.wait(timeout=60)
    made.process.stdout.close()


@pytest.fixture(scope="module")
def stages(server):
    """Folders as they are before each step, and what an uninterrupted run makes of them."""
    with quick_folder() as folder:
        campaign = folder / "campaign"
        before = {"create": None}
        server.whole("create", campaign)
        for step in ("query", "label", "teach"):
            before[step] = shutil.copytree(campaign, folder / f"before-{step}")
            server.whole(step, campaign)
        before["import_file"] = before["label"]
        with Campaign.open(before["label"]) as opened:
            file = folder / "labels.csv"
            export_batch(opened, file)
            batch = [item.id for item in opened.batch()]
            rows = "".join(f"{item},{c}\n" for item, c in zip(batch, "rgbr", strict=True))
            names = {"r": "red", "g": "green", "b": "blue"}
            for short, name in names.items():
                rows = rows.replace(f",{short}\n", f",{name}\n")
            file.write_text("id,label\n" + rows)
        yield {"before": before, "batch": batch, "weights": weights(campaign), "file": file}


def weights(folder):
    """Return the bytes of the adapter that is published."""
    with Campaign.open(folder) as campaign:
        found = campaign.published()
        return (campaign.paths.adapter(found.adapter) / "adapter_model.safetensors").read_bytes()


def start(stages, step, folder):
    campaign = folder / "campaign"
    if stages["before"][step] is not None:
        shutil.copytree(stages["before"][step], campaign)
    shutil.copy(stages["file"], folder / "labels.csv")
    return campaign


def check(step, folder, stages, acks):
    """Look at a campaign that was killed: it opens, is sound, and has all it acknowledged."""
    if step == "create" and not acks:
        try:
            campaign = Campaign.open(folder)
        except InputError as error:
            assert "no campaign" in str(error)  # noqa: PT017 - one of two good ends
            return
    else:
        campaign = Campaign.open(folder)
    with campaign:
        assert [f.what for f in campaign.doctor() if f.level == "error"] == []
        found = rounds.current(campaign.store)
        assert found is None or found.state in rounds.STATES
        log = events.events(campaign.store)
        uuids = [event.uuid for event in log]
        batch = [item.id for item in campaign.batch()]
        assert batch in ([], stages["batch"])
        if step == "label":
            assert set(acks) <= set(uuids)
            assert [uuid for uuid in uuids if uuid in set(acks)] == acks
        if step == "import_file":
            imported = [event for event in log if event.annotator == "imp"]
            assert len(imported) in (0, BATCH)
            assert not acks or len(imported) == BATCH
        if step == "query" and acks:
            assert batch == acks[-1].split()
        if step == "teach":
            assert len(log) == LABELS
            if acks:
                assert campaign.status().adapter == acks[-1].split()[-1]
        assert campaign.status().next.startswith("starlearn ")


def finish(server, step, folder, stages):
    """Run the step to its end: what comes out is what an uninterrupted run makes."""
    if step == "create" and (folder / "labels.db").exists():
        return
    server.whole(step, folder)
    check(step, folder, stages, [])
    if step == "query":
        with Campaign.open(folder) as campaign:
            assert [item.id for item in campaign.batch()] == stages["batch"]
    if step == "teach":
        assert weights(folder) == stages["weights"]
        with Campaign.open(folder) as campaign:
            campaign.doctor(fix=True)
            assert campaign.doctor() == []
            assert len(list(campaign.paths.adapters.iterdir())) == 1


def kill_often(server, stages, step, kills, seed):
    """Kill a step at random moments, on the same folder, until it was killed so often."""
    rng = random.Random(seed)
    with quick_folder() as folder:
        shutil.copytree(start(stages, step, folder), folder / "timed") if step != "create" else None
        seconds = server.whole(step, folder / "timed")["seconds"]
        killed, acknowledged = 0, []
        campaign = folder / "campaign"
        while killed < kills:
            done = server.run(step, campaign, after=rng.uniform(0, 1.2 * seconds))
            acknowledged += done["acks"]
            assert done["code"] in (0, -9), done
            killed += done["code"] == -9
            check(step, campaign, stages, acknowledged)
            ended = done["code"] == 0 and step != "label"
            if ended or (step == "create" and (campaign / "labels.db").exists()):
                finish(server, step, campaign, stages)
                shutil.rmtree(campaign)
                start(stages, step, folder)
                acknowledged = []
        if not (step == "create" and not campaign.exists()):
            finish(server, step, campaign, stages)
    return killed


@pytest.mark.parametrize("step", NORMAL)
def test_kill_at_random_moments(server, stages, step):
    assert kill_often(server, stages, step, NORMAL[step], seed=1) == NORMAL[step]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("step", NORMAL)
def test_a_thousand_kills(server, stages, step):
    kills = {"create": 60, "query": 250, "label": 400, "import_file": 130, "teach": 200}
    assert kill_often(server, stages, step, kills[step], seed=2) == kills[step]


def test_every_failpoint_is_in_the_list():
    """The list and the code name the same failpoints, so that none is left out below."""
    found = {
        node.args[0].value
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "failpoint"
    }
    assert found == {*FAILPOINTS, *RESTORE_FAILPOINTS}


def steps_of(name):
    kind = name.partition("_")[0]
    if kind == "label":
        return ["label", "import_file"]
    return ["teach" if kind == "publish" else kind]


@pytest.mark.parametrize(
    ("name", "step"), [(name, step) for name in FAILPOINTS for step in steps_of(name)]
)
def test_kill_at_every_failpoint(server, stages, name, step):
    with quick_folder() as folder:
        campaign = start(stages, step, folder)
        done = server.run(step, campaign, failpoint=name)
        assert done["code"] == 137, "the failpoint was not reached"
        check(step, campaign, stages, done["acks"])
        if name == "publish_renamed":
            with Campaign.open(campaign) as opened:
                assert opened.published() is None  # the old one is still the current one
                findings = [finding.what for finding in opened.doctor()]
                assert any("is complete but belongs to no round" in what for what in findings)
        if name in ("label_committed", "publish_recorded", "query_issued"):
            with Campaign.open(campaign) as opened:
                state = opened.status().state
                assert state == {"label": "issued", "publi": "published", "query": "issued"}.get(
                    name[:5]
                ) or (step == "import_file" and state == "labelled")
        finish(server, step, campaign, stages)
