"""What Monte-Carlo dropout changes in a ranking: against the pass without dropout, by rate and K.

    python benchmarks/bench_dropout.py --seeds 3

One adapter a pool, a dropout rate and a seed, trained on 50 labels; then the same 300 items are
ranked by each measure with K passes. Rows go to ``benchmarks/results/dropout.csv``: the rank
correlation with the pass without dropout, and the share of the same items in a batch of 50.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from measuring import RESULTS, write_anew
from scipy.stats import spearmanr

ROWS = RESULTS / "dropout.csv"
POOLS = ("skewed", "noisy", "steps")
RATES = (0.1, 0.3, 0.5)
PASSES = (3, 10)
MEASURES = ("entropy", "predictive_entropy", "mutual_information")
N_LABELS, N_ITEMS, N_BATCH = 50, 300, 50
STEPS = {"skewed": 100, "noisy": 100, "steps": 60}


def trained(pool: str, rate: float, seed: int) -> tuple[Any, list[Any]]:
    """Train a learner on the first 50 items of a pool; return it with the 300 that follow."""
    from starlearn.embedded.pools import make_pool
    from starlearn.learner.estimator import STARLearner
    from starlearn.settings import LoRA, Training
    from starlearn.tasks import ChoiceTask, GenerationTask

    data = make_pool(pool, N_LABELS + N_ITEMS, 10, random_state=seed)
    task: Any = ChoiceTask(data.prompt, choices=data.choices)
    if data.choices is None:
        task = GenerationTask(data.prompt, 32, data.answer_pattern)
    learner = STARLearner(
        task=task,
        adapter=LoRA(r=16, alpha=32, dropout=rate),
        training=Training(learning_rate=3e-3, max_steps=STEPS[pool]),
        random_state=seed,
        verbose=False,
    )
    return learner.fit(data.items[:N_LABELS], data.labels[:N_LABELS]), data.items[N_LABELS:]


def scores(learner: Any, items: list[Any], measure: str, n_passes: int) -> Any:
    """Return the uncertainty of base and adapter together, [300]."""
    learner.set_params(acquisition__measure=measure, acquisition__n_passes=n_passes)
    return learner.uncertainty(items).full


def best(values: Any) -> set[int]:
    """Return the batch of the most uncertain items."""
    return set(np.argsort(-values, kind="stable")[:N_BATCH].tolist())


def rows(pool: str, rate: float, seed: int) -> Iterator[dict[str, Any]]:
    """Compare every measure and K with the pass without dropout.

    Mutual information is 0 without dropout: it is compared with the entropy of that pass.
    """
    learner, items = trained(pool, rate, seed)
    for measure in MEASURES:
        plain = "entropy" if measure == "mutual_information" else measure
        alone = scores(learner, items, plain, 1)
        for n_passes in PASSES:
            values = scores(learner, items, measure, n_passes)
            yield {
                "pool": pool,
                "dropout": rate,
                "seed": seed,
                "measure": measure,
                "K": n_passes,
                "rho": round(float(spearmanr(alone, values).statistic), 4),
                "overlap": len(best(alone) & best(values)) / N_BATCH,
            }


def main() -> None:
    """Read the options, measure, and write the rows anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1000)
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    cases = ((pool, rate, seed) for seed in seeds for pool in POOLS for rate in RATES)
    write_anew(ROWS, (row for case in cases for row in rows(*case)))


if __name__ == "__main__":
    main()
