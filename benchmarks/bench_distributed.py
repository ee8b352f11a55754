"""Scoring beyond one process: Ray's overhead, the cost model against the clock, a large pool.

    python benchmarks/bench_distributed.py                      # throughput, driver and plan
    python benchmarks/bench_distributed.py --part large --m 1000000

The model is that of bench_scaling.py. Walls count, because work is in several processes: on a busy
machine they say less than their ratios. What starts a cluster and loads models is measured by
itself, with a pool of one item, and taken off.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_linear_entropy import kilobytes
from bench_scaling import CHOICES, build_model, write_pool
from measuring import COMMON, RESULTS, common, watched_memory, write_row

from starlearn import Acquisition, ChoiceTask, LoRA, Pool, Ray, STARLearner, Training
from starlearn.planning import Job, measured_rate, plan
from starlearn.query.acquisition import PoolScores, combine
from starlearn.query.chunks import chunk_key
from starlearn.query.columns import counted
from starlearn.query.drawing import best_places
from starlearn.query.score_store import ScoreStore
from starlearn.query.selection import item_keys

VOCABULARY = 500
CONFIGURATIONS = [
    {"m": 3000, "L": 16, "K": 3, "shape": "embedded"},
    {"m": 2000, "L": 64, "K": 1, "shape": "embedded"},
    {"m": 4000, "L": 32, "K": 8, "shape": "one layer"},
]
"""Of the cost model's check: other lengths, passes and models."""
FIELDS = [
    *COMMON, "part", "model", "m", "L", "K", "workers", "wall_s", "start_s", "items_per_s",
    "ratio_to_one_process", "overhead_us_per_item", "identical", "predicted_s", "error",
    "us_per_item", "us_per_token", "ms_per_chunk", "peak_anonymous_mb", "extra_anonymous_mb",
    "disk_mb", "note",
]  # fmt: skip


def fitted(folder: Path, shape: str, length: int, passes: int, chunk: int = 2048) -> STARLearner:
    """Train a learner for a moment on the model of bench_scaling.py."""
    model = folder / f"model {shape} {length}"
    if not model.exists():
        build_model(model, shape, VOCABULARY, length)
    learner = STARLearner(
        model,
        task=ChoiceTask("{text}", choices=CHOICES),
        adapter=LoRA(r=4),
        acquisition=Acquisition(n_passes=passes, chunk_size=chunk),
        training=Training(max_steps=1),
        random_state=0,
        verbose=False,
    )
    return learner.fit([{"text": f"w{number}"} for number in range(8)], CHOICES * 2)


def pool_of(folder: Path, m: int, length: int) -> Pool:
    """Write and open a pool of m prompts of so many words."""
    file = folder / f"pool {m} {length}.jsonl"
    write_pool(file, m, length, VOCABULARY)
    return Pool(file, cache_dir=folder / "arrow")


def seconds(call: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def forget(learner: STARLearner) -> None:
    """Start from no scores."""
    learner._engine().store = ScoreStore()


def throughput(folder: Path, out: Path, workers: Sequence[int]) -> None:
    """Compare one process with Ray: the same numbers, how fast, what it adds to an item."""
    m, length, passes = 4000, 32, 3
    learner = fitted(folder, "embedded", length, passes, chunk=500)
    pool = pool_of(folder, m, length)
    learner.query(pool[:8], 1)
    forget(learner)
    found: dict[str, Any] = {}
    alone = seconds(lambda: found.update(alone=learner.query(pool, 50, return_metrics=True)))
    scores = learner.uncertainty(pool)
    facts = {"part": "throughput", "model": "random, embedded", "L": length, "K": passes, "m": m}
    row = {"workers": 0, "wall_s": f"{alone:.2f}", "items_per_s": f"{m / alone:.1f}"}
    write_row(out, FIELDS, common("cpu") | facts | row | {"note": "one process"})
    for count in workers:
        start = seconds(lambda n=count: learner.query(pool[:n], 1, engine=Ray(workers=n)))
        place = folder / f"ray {count}"
        engine = Ray(workers=count, folder=place)

        def query(engine: Ray = engine) -> None:
            found["ray"] = learner.query(pool, 50, return_metrics=True, engine=engine)

        wall = seconds(query)
        forget(learner)
        others = learner.uncertainty(pool, engine=engine)
        same = all(
            np.array_equal(getattr(scores, name), getattr(others, name))
            for name in ("base", "full", "mixed", "entropy", "mutual_information", "answers")
        ) and all(
            list(map(str, one)) == list(map(str, other))
            for one, other in zip(found["alone"], found["ray"], strict=True)
        )
        used = wall - start
        row = {
            "workers": count, "wall_s": f"{wall:.2f}", "start_s": f"{start:.2f}",
            "items_per_s": f"{m / used:.1f}", "ratio_to_one_process": f"{alone / used:.2f}",
            "identical": same, "note": "start taken off; 2 cores, shared with other work",
        }  # fmt: skip
        write_row(out, FIELDS, common("cpu") | facts | row)


def driver(folder: Path, out: Path) -> None:
    """Measure what the cost model says of the driver: items, tokens, merging."""
    m, costs = 20_000, []
    for length in (16, 128):
        learner = fitted(folder, "one layer", length, 1)
        made = learner._plan(learner._parts(), pool_of(folder, m, length))

        def prepare(made: Any = made) -> None:
            for start in range(0, m, 2048):
                prompts = made.prompts(np.arange(start, min(start + 2048, m)))
                item_keys(prompts, 0)
                chunk_key("space", prompts)

        costs.append(min(seconds(prepare) for _ in range(3)) / m)
    token = (costs[1] - costs[0]) / (128 - 16)
    large = 500_000
    scores = PoolScores.empty(counted(large), keep_answers=False)
    rng = np.random.default_rng(0)
    for name in ("base_entropy", "entropy"):
        getattr(scores, name)[:] = rng.random(large)
    scores.lengths[:] = 1

    def merge() -> None:
        found = combine(scores, Acquisition(), weight=0.5, trained=True)
        best_places(found.mixed, scores.keys, counted(large), 500)

    facts = {"part": "driver", "m": m, "us_per_token": f"{token * 1e6:.3f}"}
    row = {"us_per_item": f"{(costs[0] - 16 * token) * 1e6:.1f}", "note": "prompts and keys"}
    write_row(out, FIELDS, common("cpu") | facts | row)
    row = {"part": "merge", "m": large, "note": "ranks, mix, best 500"}
    row["us_per_item"] = f"{min(seconds(merge) for _ in range(3)) / large * 1e6:.2f}"
    write_row(out, FIELDS, common("cpu") | row)


def chunks(folder: Path, out: Path) -> None:
    """Measure what a chunk costs besides its items: Ray's task, and its files."""
    size, count = 20, 200
    learner = fitted(folder, "one layer", 8, 1, chunk=size)
    pool = pool_of(folder, size * count, 8)
    learner.query(pool[:8], 1)
    forget(learner)
    alone = seconds(lambda: learner.query(pool, 50))
    start = seconds(lambda: learner.query(pool[:1], 1, engine=Ray(workers=1)))
    wall = seconds(lambda: learner.query(pool, 50, engine=Ray(workers=1)))
    each = (wall - start - alone) / count
    row = {
        "part": "chunks", "m": size * count, "L": 8, "K": 1, "workers": 1,
        "wall_s": f"{wall:.2f}", "start_s": f"{start:.2f}",
        "ms_per_chunk": f"{each * 1e3:.1f}", "overhead_us_per_item": f"{each / 2048 * 1e6:.1f}",
        "note": "wall less one process and start; overhead for chunks of 2048",
    }  # fmt: skip
    write_row(out, FIELDS, common("cpu") | row)


def check_plan(folder: Path, out: Path, repeats: int) -> None:
    """Compare the cost model, at the rate of learner.estimate, with the clock."""
    for at in CONFIGURATIONS:
        m, length, passes, shape = int(at["m"]), int(at["L"]), int(at["K"]), str(at["shape"])
        learner = fitted(folder, shape, length, passes)
        pool = pool_of(folder, m, length)
        learner.query(pool[:8], 1)
        walls, plans = [], []
        for _ in range(repeats):  # in turns: the machine has other work too
            forget(learner)
            told = learner.estimate(pool)
            rate = measured_rate(told.items_per_second, told.prompt_tokens, passes)
            job = Job(m, told.prompt_tokens, passes, 1e6)
            plans.append(plan(job, rate, distributed=False).seconds)
            walls.append(seconds(lambda a=learner, p=pool: a.query(p, 50)))
        wall, predicted = float(np.median(walls)), float(np.median(plans))
        row = {
            "part": "plan", "model": f"random, {shape}", "m": m, "L": length, "K": passes,
            "wall_s": f"{wall:.2f}", "predicted_s": f"{predicted:.2f}",
            "error": f"{predicted / wall - 1:+.1%}",
            "note": f"rate of learner.estimate; medians of {repeats}",
        }  # fmt: skip
        write_row(out, FIELDS, common("cpu") | row)


def large(folder: Path, out: Path, m: int) -> None:
    """Stream a large pool of short items through two workers, and watch the driver's memory."""
    length = 8
    learner = fitted(folder, "one layer", length, 1, chunk=8192)
    pool = pool_of(folder, m, length)
    learner.query(pool[:8], 1)
    forget(learner)
    place = folder / "ray"
    with watched_memory(0.05) as memory:
        wall = seconds(lambda: learner.query(pool, 500, engine=Ray(workers=2, folder=place)))
    disk = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / 1e6
    row = {
        "part": "large", "model": "random, one layer", "m": m, "L": length, "K": 1, "workers": 2,
        "wall_s": f"{wall:.1f}", "items_per_s": f"{m / wall:.0f}",
        "peak_anonymous_mb": f"{memory.peak:.1f}",
        "extra_anonymous_mb": f"{memory.peak - memory.before:.1f}", "disk_mb": f"{disk:.1f}",
        "note": f"the driver's memory; peak with mapped files {kilobytes('VmHWM') // 1000} MB",
    }  # fmt: skip
    write_row(out, FIELDS, common("cpu") | row)


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--part", nargs="+", choices=["throughput", "driver", "chunks", "plan", "large"],
        default=["throughput", "driver", "chunks", "plan"],
    )  # fmt: skip
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3, help="of the plan's check")
    parser.add_argument("--m", type=int, default=200_000, help="of the large pool")
    parser.add_argument("--out", type=Path, default=RESULTS / "distributed.csv")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], None]] = {
            "throughput": lambda: throughput(folder, args.out, args.workers),
            "driver": lambda: driver(folder, args.out),
            "chunks": lambda: chunks(folder, args.out),
            "plan": lambda: check_plan(folder, args.out, args.repeats),
            "large": lambda: large(folder, args.out, args.m),
        }
        for part in args.part:
            parts[part]()


if __name__ == "__main__":
    main()
