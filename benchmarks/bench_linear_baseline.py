"""Gain of a linear model by uncertainty sampling, in the protocol of a study.

    python benchmarks/bench_linear_baseline.py benchmarks/studies/banking77.toml \
        --where BANKING77=FOLDER --where GUTWIKI=FOLDER

TF-IDF of words and logistic regression, on the pools, test sets, initial labels and offers of the
study's own seeds; rows of all areas (AULC) go to --out.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import parser_of
from scipy.special import entr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tables import table

from starlearn.cli.study_command import name_folders
from starlearn.evaluate.simulate import simulate
from starlearn.evaluate.statistics import aulc, contrast
from starlearn.evaluate.study_file import read_study
from starlearn.evaluate.study_tasks import load_task

ROWS = Path(__file__).parent / "results" / "linear_baseline.csv"
ARMS = ("random", "margin", "entropy")


def texts_of(items: Any) -> list[str]:
    """Make texts of items that may have several fields."""
    return [i if isinstance(i, str) else " ".join(map(str, i.values())) for i in items]


class LinearLearner:
    """TF-IDF and logistic regression with the methods that a simulation needs."""

    def __init__(self, arm: str, seed: int) -> None:
        self.arm = arm
        self.random = np.random.default_rng([seed, 7])
        self.model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=100, max_iter=2000))
        self.items: list[str] = []
        self.labels: list[Any] = []

    def uncertainty(self, items: list[str]) -> np.ndarray:
        """Return one number per item; the items with the largest are labelled."""
        if self.arm == "random":
            return self.random.random(len(items))
        probability = np.sort(self.model.predict_proba(items), axis=1)
        if self.arm == "margin":
            return probability[:, -2] - probability[:, -1]
        return np.asarray(entr(probability).sum(axis=1))

    def query(self, X_pool: Any, n_instances: int) -> tuple[Any, ...]:
        """Return the positions of the items to label."""
        return (np.argsort(-self.uncertainty(texts_of(X_pool)), kind="stable")[:n_instances],)

    def teach(self, X: Any, y: Any) -> None:
        """Add labelled items and fit again."""
        self.items += texts_of(X)
        self.labels += list(y)
        self.model.fit(self.items, self.labels)

    def score(self, X: Any, y: Any) -> float:
        """Return the accuracy."""
        return float(self.model.score(texts_of(X), y))


def main() -> None:
    """Play all arms on the study's seeds, with its offers and with the whole pool on offer."""
    parser = parser_of(__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--where", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, default=ROWS)
    args = parser.parse_args()
    study = read_study(args.study, name_folders(args.where))
    part, (task,) = study.settings, study.tasks
    rows = []
    for seed in range(study.seeds.first, study.seeds.first + study.seeds.count):
        data = load_task(task, seed)
        for offered in (part.sub_pool, None):
            for arm in ARMS:
                rounds = simulate(
                    LinearLearner(arm, seed),
                    data.items, data.labels, data.test_items, data.test_labels,
                    n_initial=part.n_initial, n_instances=part.n_instances,
                    n_rounds=part.n_rounds, random_state=seed, sub_pool=offered,
                )  # fmt: skip
                first, last = rounds[0]["accuracy"], rounds[-1]["accuracy"]
                rows.append(
                    {
                        "task": task.name, "seed": seed, "offered": offered or "all", "arm": arm,
                        "aulc": round(aulc(rounds), 6), "first_accuracy": round(first, 6),
                        "final_accuracy": round(last, 6),
                    }
                )  # fmt: skip
    frame = pd.DataFrame(rows)
    frame.to_csv(args.out, index=False)
    found = []
    for offered, part_rows in frame.groupby("offered", sort=False):
        areas = {
            str(arm): dict(zip(group["seed"], group["aulc"], strict=True))
            for arm, group in part_rows.groupby("arm")
        }
        for arm in ARMS[1:]:
            one = contrast(task.name, arm, "random", areas)
            if one is not None:
                found.append(
                    {
                        "offered": offered, "arm": arm, "seeds": len(one.seeds),
                        "difference": f"{one.mean:+.4f}",
                        "95 % interval": f"{one.low:+.4f} to {one.high:+.4f}", "p": f"{one.p:.2g}",
                    }
                )  # fmt: skip
    if found:  # one seed has no interval
        print(table(pd.DataFrame(found), list(found[0])))
    means = frame.groupby(["offered", "arm"], sort=False)[
        ["aulc", "first_accuracy", "final_accuracy"]
    ]
    print(means.mean().round(4))


if __name__ == "__main__":
    main()
