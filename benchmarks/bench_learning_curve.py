"""STAR, random choice and plain uncertainty over several seeds of an embedded pool.

    python benchmarks/bench_learning_curve.py --pool skewed --seeds 10
    python benchmarks/bench_learning_curve.py --draw docs/learning_curve.png

Each finished run is one line of ``benchmarks/results/learning_curve.jsonl``; runs that stand there
already are not repeated. For one seed the arms share pool, initial labels, test set, initial
adapter and number of steps; one process a core, one thread each.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import platform
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "learning_curve.jsonl"
ARMS: dict[str, dict[str, Any]] = {
    "star": {},
    "random": {"strategy": "random"},
    # Active learning with plain LoRA: no base model in the mix, no dropout passes, no decay.
    "plain": {"schedule": 0.0, "n_passes": 1},
}
SETTINGS = {"r": 16, "alpha": 32, "learning_rate": 3e-3, "max_steps": 150}
SIZES = {"n_items": 1000, "n_test": 200, "n_initial": 50, "n_instances": 50, "n_rounds": 5}


def run_arm(arm: str, pool: str, seed: int) -> dict[str, Any]:
    """Run one arm with one seed; return its line."""
    import torch

    from starlearn.embedded.pools import make_pool
    from starlearn.evaluate.simulate import simulate
    from starlearn.learner import STARLearner
    from starlearn.settings import Acquisition, LoRA, Training
    from starlearn.tasks import ChoiceTask, GenerationTask

    torch.set_num_threads(1)
    data = make_pool(pool, SIZES["n_items"], SIZES["n_test"], random_state=seed)
    task: Any = ChoiceTask(data.prompt, choices=data.choices)
    if data.choices is None:
        task = GenerationTask(data.prompt, 32, data.answer_pattern)
    training = Training(learning_rate=SETTINGS["learning_rate"], max_steps=SETTINGS["max_steps"])
    if arm == "plain":
        training.set_params(b_weight_decay=0.0)
    learner = STARLearner(
        task=task,
        adapter=LoRA(r=SETTINGS["r"], alpha=SETTINGS["alpha"]),
        acquisition=Acquisition(**ARMS[arm]),
        training=training,
        random_state=seed,
        verbose=False,
    )
    rounds = simulate(
        learner,
        data.items,
        data.labels,
        data.test_items,
        data.test_labels,
        n_initial=SIZES["n_initial"],
        n_instances=SIZES["n_instances"],
        n_rounds=SIZES["n_rounds"],
        random_state=seed,
    )
    seconds = sum(r[f"seconds_{s}"] for r in rounds for s in ("query", "teach", "score"))
    return {
        "pool": pool,
        "arm": arm,
        "seed": seed,
        "n_labels": [r["n_labels"] for r in rounds],
        "accuracy": [r["accuracy"] for r in rounds],
        "seconds": round(seconds, 1),
        "settings": {**SETTINGS, **SIZES},
        "device": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("starlearn", "torch", "transformers")},
    }


def finished() -> list[dict[str, Any]]:
    """Return the lines of all finished runs."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def run_missing(pool: str, seeds: int, arms: list[str], processes: int) -> None:
    """Run what is not there yet; save each line as it ends."""
    done = {(line["pool"], line["arm"], line["seed"]) for line in finished()}
    wanted = [(arm, pool, seed) for seed in range(seeds) for arm in arms]
    RESULTS.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(processes) as executor:
        runs = [
            executor.submit(run_arm, arm, pool, seed)
            for arm, pool, seed in wanted
            if (pool, arm, seed) not in done
        ]
        for run in as_completed(runs):
            line = run.result()
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(line["pool"], line["arm"], line["seed"], line["accuracy"], line["seconds"])


def curves(pool: str) -> tuple[list[int], dict[str, Any]]:
    """Return label counts, and accuracies of shape [seeds, rounds] by arm, over shared seeds."""
    import numpy as np

    lines = [line for line in finished() if line["pool"] == pool]
    by_arm = {a: {r["seed"]: r for r in lines if r["arm"] == a} for a in ARMS}
    by_arm = {arm: runs for arm, runs in by_arm.items() if runs}
    seeds = sorted(set.intersection(*(set(runs) for runs in by_arm.values())))
    labels = lines[0]["n_labels"]
    return labels, {
        arm: np.array([runs[seed]["accuracy"] for seed in seeds]) for arm, runs in by_arm.items()
    }


def summarise(pool: str) -> None:
    """Print the area under each curve and the paired differences to random choice."""
    import numpy as np
    from scipy.stats import permutation_test, t

    labels, accuracy = curves(pool)
    area = {arm: np.trapezoid(a, labels) / np.ptp(labels) for arm, a in accuracy.items()}
    for arm, values in area.items():
        print(f"{pool} {arm}: AULC {values.mean():.3f}, final {accuracy[arm][:, -1].mean():.3f}")
        if arm == "random":
            continue
        gain = values - area["random"]
        n = len(gain)
        half = t.ppf(0.975, n - 1) * gain.std(ddof=1) / np.sqrt(n)
        test = permutation_test(
            (gain,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
        )
        print(
            f"  minus random over {n} paired seeds: {gain.mean():+.3f} "
            f"[{gain.mean() - half:+.3f}, {gain.mean() + half:+.3f}], "
            f"sign-flip p = {test.pvalue:.4f}"
        )


def draw(pool: str, target: Path) -> None:
    """Draw mean accuracy by labels with a 95 % interval of the mean, one line an arm."""
    import numpy as np
    from matplotlib.figure import Figure
    from scipy.stats import t

    labels, accuracy = curves(pool)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    n = 0
    for arm, values in accuracy.items():
        n = len(values)
        mean = values.mean(axis=0)
        half = t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
        axes.plot(labels, mean, marker="o", markersize=4, label=arm)
        axes.fill_between(labels, mean - half, mean + half, alpha=0.15)
    axes.set(
        xlabel="labels bought",
        ylabel="test accuracy",
        title=f"embedded 1.8 M model in nf4, {pool} pool, {n} seeds, 95 % interval of the mean",
    )
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=130)


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pool", default="skewed")
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--draw", type=Path)
    options = parser.parse_args()
    if options.seeds:
        run_missing(options.pool, options.seeds, options.arms, options.processes)
    summarise(options.pool)
    if options.draw:
        draw(options.pool, options.draw)


if __name__ == "__main__":
    main()
