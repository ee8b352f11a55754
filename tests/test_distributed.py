"""Scoring on a real local Ray cluster: the numbers of one process, whatever dies on the way."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_scoring import TASKS, assert_same

from starlearn.distributed.cluster import Ray
from starlearn.learner import STARLearner
from starlearn.settings import Acquisition

Factory = Callable[..., STARLearner]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.timeout(300),
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

    with running(Ray(workers=2)) as ray:
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
    ray = Ray(workers=2, folder=tmp_path)
    assert_same(learner.uncertainty(pool, engine=ray), learner.uncertainty(pool))
    expected = learner.query(pool, 6, return_metrics=True)
    same_batch(learner.query(pool, 6, return_metrics=True, engine=ray), expected)
