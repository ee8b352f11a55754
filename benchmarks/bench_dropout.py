"""Effect of Monte-Carlo dropout on a ranking, against the pass without dropout, by rate and K.

    python benchmarks/bench_dropout.py --seeds 3

One adapter per pool, dropout rate and seed is trained on 50 labels. Then the same 300 items are
ranked by each measure with K passes. Rows go to ``benchmarks/results/dropout.csv``: the rank
correlation with the pass without dropout, and the share of the same items in a batch of 50.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from typing import Any

from measuring import RESULTS, measure_seeds
from query_cases import best_rows, study_learner
from scipy.stats import spearmanr

from starlearn.embedded.pools import make_pool

ROWS = RESULTS / "dropout.csv"
POOLS = ("skewed", "noisy", "steps")
RATES = (0.1, 0.3, 0.5)
PASSES = (3, 10)
MEASURES = ("entropy", "predictive_entropy", "mutual_information")
N_LABELS, N_ITEMS, N_BATCH = 50, 300, 50
STEPS = {"skewed": 100, "noisy": 100, "steps": 60}


def trained(pool: str, rate: float, seed: int) -> tuple[Any, list[Any]]:
    """Train a learner on the first 50 items of a pool; return it with the 300 that follow."""
    data = make_pool(pool, N_LABELS + N_ITEMS, 10, random_state=seed)
    learner = study_learner(data, seed, dropout=rate, max_steps=STEPS[pool])
    return learner.fit(data.items[:N_LABELS], data.labels[:N_LABELS]), data.items[N_LABELS:]


def scores(learner: Any, items: list[Any], measure: str, n_passes: int) -> Any:
    """Return the uncertainty of base and adapter together, [300]."""
    learner.set_params(acquisition__measure=measure, acquisition__n_passes=n_passes)
    return learner.uncertainty(items).full


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
                "overlap": len(best_rows(alone, N_BATCH) & best_rows(values, N_BATCH)) / N_BATCH,
            }


def rows_of_seed(seed: int) -> Iterator[dict[str, Any]]:
    """Return the rows of one seed."""
    return (row for pool in POOLS for rate in RATES for row in rows(pool, rate, seed))


if __name__ == "__main__":
    measure_seeds(__doc__, ROWS, rows_of_seed)
