"""Effect of temperature, ensembles of dropout masks and a stronger decay on B on probabilities.

    python benchmarks/bench_calibration.py --seeds 3

One learner per pool and seed (from 1000) is trained on 100 random labels and measured on 300 test
items. Then the same adapter with the mean over K dropout masks, with a temperature from its labels
by cross-fitting; and other adapters whose B is shrunk by exp(-s) over the training
(Training(b_shrinkage=s)). Rows go to ``benchmarks/results/calibration.csv``.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from typing import Any

import numpy as np
from measuring import RESULTS, measure_seeds
from numpy.typing import NDArray
from query_cases import study_learner

from starlearn.embedded.pools import make_pool
from starlearn.evaluate.statistics import calibration_error, reliability

ROWS = RESULTS / "calibration.csv"
POOLS = ("skewed", "homogeneous", "noisy")
PASSES = (3, 10)
SHRINKAGES = (0.5, 1.0, 2.0)
N_LABELS, N_TEST = 100, 300


def judged(learner: Any, probabilities: NDArray[np.float64], data: Any) -> dict[str, Any]:
    """Return accuracy, loss in nats, calibration error, and the mean confidence on errors."""
    places = {label: column for column, label in enumerate(learner.classes_.tolist())}
    gold = np.array([places[label] for label in data.test_labels])
    right, confidence = probabilities.argmax(axis=1) == gold, probabilities.max(axis=1)
    n_wrong = int((~right).sum())
    of_gold = np.maximum(probabilities[np.arange(len(gold)), gold], np.finfo(float).tiny)
    return {
        "accuracy": round(float(right.mean()), 4),
        "test_nll": round(float(-np.log(of_gold).mean()), 4),
        "ece": round(calibration_error(reliability(confidence, right)), 4),
        "confidence_on_errors": round(float(confidence[~right].mean()), 4) if n_wrong else "",
    }


def rows(pool: str, seed: int) -> Iterator[dict[str, Any]]:
    """Judge one learner's probabilities as they are and changed in every way."""
    data = make_pool(pool, N_LABELS, N_TEST, random_state=seed)
    learner = study_learner(data, seed).fit(data.items, data.labels)

    def row(name: str, value: Any, learner: Any, temperature: float = 1.0, k: int = 1) -> Any:
        found = learner.predict_proba(data.test_items, n_passes=k)
        about = {"pool": pool, "seed": seed, "option": name, "value": value}
        return about | judged(learner, found, data) | {"temperature": round(temperature, 3)}

    yield row("none", "", learner)
    for k in PASSES:
        yield row("n_passes", k, learner, k=k)
    temperature = learner.calibrate().rounds_[-1]["temperature"]
    yield row("calibrate", "", learner, temperature)
    for shrinkage in SHRINKAGES:
        other = study_learner(data, seed, b_shrinkage=shrinkage).fit(data.items, data.labels)
        yield row("b_shrinkage", shrinkage, other)


def rows_of_seed(seed: int) -> Iterator[dict[str, Any]]:
    """Return the rows of one seed."""
    return (row for pool in POOLS for row in rows(pool, seed))


if __name__ == "__main__":
    measure_seeds(__doc__, ROWS, rows_of_seed)
