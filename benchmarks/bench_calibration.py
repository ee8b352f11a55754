"""What temperature, ensembles of dropout masks and a stronger decay on B do to probabilities.

    python benchmarks/bench_calibration.py --seeds 3

One learner a pool and a seed (from 1000), trained on 100 random labels and judged on 300 test
items. Then the same adapter with the mean over K dropout masks, with a temperature from its labels
by cross-fitting; and other adapters whose B is shrunk by exp(-s) over the training
(Training(b_shrinkage=s)). Rows go to ``benchmarks/results/calibration.csv``.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from measuring import RESULTS, write_anew
from numpy.typing import NDArray

ROWS = RESULTS / "calibration.csv"
POOLS = ("skewed", "homogeneous", "noisy")
PASSES = (3, 10)
SHRINKAGES = (0.5, 1.0, 2.0)
N_LABELS, N_TEST = 100, 300


def learner_for(data: Any, seed: int, **training: Any) -> Any:
    """Make a learner with the settings of the studies."""
    from starlearn import ChoiceTask, LoRA, STARLearner, Training

    return STARLearner(
        task=ChoiceTask(data.prompt, choices=data.choices),
        adapter=LoRA(r=16, alpha=32, dropout=0.1),
        training=Training(**{"learning_rate": 3e-3, "max_steps": 100, **training}),
        random_state=seed,
        verbose=False,
    )


def judged(learner: Any, probabilities: NDArray[np.float64], data: Any) -> dict[str, Any]:
    """Return accuracy, loss in nats, calibration error, and the mean confidence on errors."""
    from starlearn.evaluate.statistics import calibration_error, reliability

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
    from starlearn.embedded.pools import make_pool

    data = make_pool(pool, N_LABELS, N_TEST, random_state=seed)
    learner = learner_for(data, seed).fit(data.items, data.labels)

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
        other = learner_for(data, seed, b_shrinkage=shrinkage).fit(data.items, data.labels)
        yield row("b_shrinkage", shrinkage, other)


def main() -> None:
    """Read the options, measure, and write the rows anew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1000)
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    write_anew(ROWS, (row for seed in seeds for pool in POOLS for row in rows(pool, seed)))


if __name__ == "__main__":
    main()
