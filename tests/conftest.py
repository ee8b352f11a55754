"""Settings and fixtures of all tests: one thread, no hub, a tiny model."""

import os
import shutil
import signal

# A shell that runs the tests in the background ignores Ctrl-C, and so would their child processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One thread for torch, whenever it is imported. Tests of arithmetic alone do not import it.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import COLOURS, build_model

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def make_learner(tiny_model: str) -> Callable[..., Any]:
    """Return a factory of learners on the tiny model; keywords change its parameters."""
    from starlearn.learner.estimator import STARLearner
    from starlearn.settings import Acquisition, LoRA, Training
    from starlearn.tasks import ChoiceTask

    def factory(**changes: Any) -> STARLearner:
        parameters: dict[str, Any] = {
            "model": tiny_model,
            "task": ChoiceTask("{text} Answer :", choices=COLOURS),
            "adapter": LoRA(r=4, alpha=8, dropout=0.2),
            "acquisition": Acquisition(n_passes=3),
            "training": Training(max_steps=4, batch_size=4, learning_rate=5e-3),
            "random_state": 7,
            "verbose": False,
        }
        return STARLearner(**{**parameters, **changes})

    return factory


@pytest.fixture
def labelled() -> tuple[list[str], list[str]]:
    items = [
        "the sky is",
        "grass is",
        "the rose is very",
        "a big sea is",
        "the small leaf is",
        "what colour is the sun",
        "night sky is",
        "a a a a a a",
    ]
    return items, ["blue", "green", "red", "blue", "green", "red", "blue", "red"]


@pytest.fixture
def pool() -> list[str]:
    return [
        f"{article} {size} {thing} {when} is"
        for article in ("the", "a")
        for size in ("big", "small", "very small")
        for thing in ("sky", "sea", "leaf", "rose")
        for when in ("day", "night of the moon")
    ]


@pytest.fixture
def in_place_of_ray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand in for Ray: one worker of this process, given chunks in another order; lists them."""
    import pyarrow as pa

    from starlearn.distributed import cluster, ray_workers
    from starlearn.distributed.worker import ScoringWorker

    given_out: list[str] = []

    @contextmanager
    def running(_: Any) -> Iterator[Any]:
        yield SimpleNamespace(exceptions=SimpleNamespace(RayError=ConnectionError))

    def finished(_: Any, settings: Any, work: Any, keys: Any) -> Iterator[dict[str, Any]]:
        worker = ScoringWorker(work)
        for key in sorted(keys):
            given_out.append(key)
            yield from worker(pa.table({"key": [key]})).to_pylist()

    monkeypatch.setattr(cluster, "_ray", lambda: None)
    monkeypatch.setattr(ray_workers, "running", running)
    monkeypatch.setattr(ray_workers, "finished", finished)
    return given_out


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Start a headless browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found is None:
        pytest.skip(f"there is no Chromium: none of {', '.join(CHROMIUMS)} is on the path")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()
