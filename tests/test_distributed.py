"""Scoring on a real local Ray cluster: the numbers of one process, whatever dies on the way."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_scoring import TASKS, assert_same
from tiny_models import WORDS
from typer.testing import CliRunner

from starlearn.campaign.campaign import Campaign
from starlearn.cli.app import app
from starlearn.distributed import cluster as cluster_module
from starlearn.distributed import ray_workers
from starlearn.distributed.cluster import RayEngine
from starlearn.distributed.worker import ATTEMPTS, ScoringWorker
from starlearn.errors import WorkerError
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.settings import Acquisition

Factory = Callable[..., STARLearner]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Keep one cluster for the tests of this file; a query uses a cluster that is there."""
    pytest.importorskip("ray", reason="ray is not installed")
    from starlearn.distributed.cluster import running

    with running(RayEngine(workers=2)) as ray:
        yield ray


def same_batch(one: Any, other: Any) -> None:
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


def trained(make_learner: Factory, labelled: Any, task: str = "choices", **options: Any) -> Any:
    items, labels = labelled
    if task == "several tokens":
        labels = ["blue" if label == "blue" else f"very {label}" for label in labels]
    settings = {"n_passes": 2, "chunk_size": 5, **options}
    return make_learner(task=TASKS[task], acquisition=Acquisition(**settings)).fit(items, labels)


@pytest.mark.parametrize("task", list(TASKS))
def test_scores_and_batch_are_those_of_one_process(
    cluster: Any, make_learner: Factory, labelled: Any, pool: list[str], task: str, tmp_path: Path
) -> None:
    learner = trained(make_learner, labelled, task)
    ray = RayEngine(workers=2, folder=tmp_path)
    assert_same(learner.uncertainty(pool, engine=ray), learner.uncertainty(pool))
    expected = learner.query(pool, 6, return_metrics=True)
    same_batch(learner.query(pool, 6, return_metrics=True, engine=ray), expected)


def test_a_diverse_batch_is_that_of_one_process(
    cluster: Any, make_learner: Factory, labelled: Any, pool: list[str], tmp_path: Path
) -> None:
    options = {"diversity": "kmeans++", "candidates": 3, "screen": 8}
    learner = trained(make_learner, labelled, **options)
    ray = RayEngine(workers=1, folder=tmp_path)
    expected = learner.query(pool, 4, return_metrics=True)
    same_batch(learner.query(pool, 4, return_metrics=True, engine=ray), expected)


# Deaths on the way

PARTS = [WORDS[:14], WORDS[14:24], WORDS[24:29], ["a", "b"]]
LONG = [" ".join([*words, "is"]) for words in itertools.product(*PARTS)]
"""1400 items: seven chunks of 200, each of which takes a good part of a second."""


@pytest.fixture
def slow(make_learner: Factory, labelled: Any) -> STARLearner:
    return trained(make_learner, labelled, n_passes=16, chunk_size=200)


def finished_in(folder: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*-adapter/*.parquet")}


@contextmanager
def killing(folder: Path, most: int, after: int = 1) -> Iterator[list[int]]:
    """Kill workers that are at a chunk, once `after` chunks are finished; list their numbers."""
    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.002) and len(killed) < most:
            if len(finished_in(folder)) < after:
                continue
            for mark in folder.rglob("*.begun"):
                with suppress(FileNotFoundError, ProcessLookupError, ValueError):
                    pid = int(mark.read_text().splitlines()[-1])
                    if pid not in killed and len(killed) < most:
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        over.set()
        watcher.join()


def test_a_worker_that_is_killed_is_replaced(
    cluster: Any, slow: STARLearner, tmp_path: Path
) -> None:
    with killing(tmp_path, most=1) as killed:
        found = slow.query(
            LONG, 9, return_metrics=True, engine=RayEngine(workers=2, folder=tmp_path)
        )
    assert len(killed) == 1
    same_batch(found, slow.query(LONG, 9, return_metrics=True))


def test_a_chunk_that_kills_its_workers_is_named_and_the_others_are_kept(
    cluster: Any, slow: STARLearner, tmp_path: Path
) -> None:
    ray = RayEngine(workers=1, folder=tmp_path)
    pool = LONG[:400]
    with (
        killing(tmp_path, most=ATTEMPTS, after=1) as killed,
        pytest.raises(WorkerError, match=r"from row .* killed its worker 3 times"),
    ):
        slow.query(pool, 9, engine=ray)
    assert len(killed) == ATTEMPTS
    kept = finished_in(tmp_path)
    assert len(kept) == 1
    found = slow.query(pool, 9, return_metrics=True, engine=ray)
    same_batch(found, slow.query(pool, 9, return_metrics=True))
    assert kept.items() <= finished_in(tmp_path).items()


def killed_with_chunks(driver: "subprocess.Popen[bytes]", folder: Path) -> dict[Path, int]:
    """Kill a process that scores on Ray when two of its seven chunks are there."""
    until = time.monotonic() + 200
    while len(finished_in(folder)) < 2 and driver.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    kept = finished_in(folder)
    assert 2 <= len(kept) < 7
    return kept


DRIVER = """
import json, sys, warnings
from starlearn.distributed.cluster import RayEngine
from starlearn.learner.estimator import STARLearner

if __name__ == "__main__":
    learner = STARLearner.load(sys.argv[1])
    learner.set_params(verbose=False)
    pool = json.loads(open(sys.argv[3]).read())
    learner.query(pool, 9, engine=RayEngine(workers=1, folder=sys.argv[2]))
"""


def test_a_driver_that_is_killed_goes_on_where_it_was(
    cluster: Any, slow: STARLearner, tmp_path: Path
) -> None:
    slow.save(tmp_path / "learner")
    (tmp_path / "pool.json").write_text(json.dumps(LONG))
    (tmp_path / "driver.py").write_text(DRIVER)
    folder = tmp_path / "kept"
    files = [str(tmp_path / name) for name in ("driver.py", "learner", "kept", "pool.json")]
    kept = killed_with_chunks(subprocess.Popen([sys.executable, *files]), folder)
    found = slow.query(LONG, 9, return_metrics=True, engine=RayEngine(workers=1, folder=folder))
    same_batch(found, slow.query(LONG, 9, return_metrics=True))
    assert kept.items() <= finished_in(folder).items()


def test_a_campaign_whose_driver_is_killed_goes_on_where_it_was(
    cluster: Any, slow: STARLearner, tmp_path: Path
) -> None:
    fields = [{"text": text} for text in LONG]
    folders = [tmp_path / name for name in ("alone", "campaign")]
    for folder in folders:
        Campaign.create(folder, fields, slow).close()
    alone, folder = folders
    with Campaign.open(alone) as campaign:
        expected = campaign.query(9)
    command = [
        sys.executable,
        "-c",
        "from starlearn.cli.app import app; app()",
        "query",
        str(folder),
        "-n",
        "9",
    ]
    driver = subprocess.Popen([*command, "--engine", "ray", "--workers", "1"])
    kept = killed_with_chunks(driver, folder)
    with Campaign.open(folder) as campaign:
        assert campaign.status().next == f"starlearn resume {folder}"
        assert not campaign.batch()
    result = CliRunner().invoke(app.app, ["resume", str(folder)])
    assert result.exit_code == 0, result.output
    assert kept.items() <= finished_in(folder).items()
    assert len(finished_in(folder)) == 7, "it went on with workers, not in the process of resume"
    with Campaign.open(folder) as campaign:
        assert campaign.batch() == expected


def test_workers_take_gpus_where_the_driver_has_none(
    make_learner: Factory,
    labelled: Any,
    pool: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.shutdown()  # the file's own; only the last test comes after it

    class Seen(ScoringWorker):  # here, so that it is pickled by value: workers have no tests
        """A worker that writes down which GPUs are its own."""

        def __init__(self, work: Any) -> None:
            super().__init__(work)
            own = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
            (self.folder.parent / f"{os.getpid()}.gpus").write_text(own)

    learner = trained(make_learner, labelled)
    expected = learner.query(pool, 5, return_metrics=True)
    with pytest.raises(WorkerError, match="has 1 CPUs and 0 GPUs in all"):
        learner.query(pool, 5, engine=RayEngine(workers=1, gpus=1))
    # Set to nothing, as `make test` sets it, it would leave no GPU to declare.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    options = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "log_to_driver": False}
    ray.init(num_cpus=2, num_gpus=2, object_store_memory=10**8, **options)  # declared, not there
    try:
        monkeypatch.setattr(cluster_module, "ScoringWorker", Seen)
        settings = RayEngine(workers=2, gpus=1, folder=tmp_path)
        asked: list[str] = []
        original = cluster_module.worker_numerics
        monkeypatch.setattr(
            ray_workers, "worker_numerics", lambda *a: asked.append(original(*a)) or asked[-1]
        )
        found = learner.query(pool, 5, return_metrics=True, engine=settings)
        same_batch(found, expected)
        # What computes is what torch sees there, and it sees no GPU: RayEngine only counts them.
        assert asked == [base_of(learner).backbone.numerics]
        assert {file.read_text() for file in tmp_path.glob("*.gpus")} == {"0", "1"}
        with pytest.warns(UserWarning, match="gpus=3.* waits until it has more"):
            cluster_module._look_for_room(ray, RayEngine(gpus=3))
    finally:
        ray.shutdown()


def test_an_own_cluster_listens_on_this_machine_alone_and_ends(
    make_learner: Factory, labelled: Any, pool: list[str]
) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.shutdown()  # the file's own; this is its last test
    learner = trained(make_learner, labelled)
    found = learner.query(pool[:5], 2, return_metrics=True, engine=RayEngine(workers=1))
    same_batch(found, learner.query(pool[:5], 2, return_metrics=True))
    assert not ray.is_initialized()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
