"""Scoring beyond one process: Ray's overhead, the cost model against the clock, a large pool.

    python benchmarks/bench_distributed.py                      # throughput, driver and plan
    python benchmarks/bench_distributed.py --part large --m 1000000

The model is that of bench_scaling.py. Times are wall times, because several processes work; on a
busy machine their ratios are more reliable. The time to start a cluster and load models is measured
with a pool of one item, and subtracted.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from bench_linear_entropy import kilobytes
from bench_scaling import CHOICES, build_model, write_pool
from measuring import COMMON, RESULTS, common, parser_of, watched_memory, write_row

from starlearn import Acquisition, ChoiceTask, LoRA, Pool, RayEngine, STARLearner, Training
from starlearn.cli.cost_model import Job, measured_rate, plan
from starlearn.distributed import cluster
from starlearn.distributed.cluster import running
from starlearn.distributed.ray_workers import RayWorkers
from starlearn.distributed.worker import ScoringWorker
from starlearn.learner.base_models import base_of
from starlearn.learner.inputs import checked_pool
from starlearn.learner.session import session_of
from starlearn.progress import ItemBar
from starlearn.query.acquisition import QueryPlan
from starlearn.query.batch import best_places
from starlearn.query.columns import counted
from starlearn.query.score_store import ScoreStore
from starlearn.query.score_table import ScoreTable, combine
from starlearn.settings import PUBLISHED_ACQUISITION

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
    "disk_mb", "prepare_s", "driver_s", "score_s", "cpu_s", "predicted_prepare_s",
    "predicted_start_s", "predicted_score_s", "predicted_driver_s", "note",
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
        acquisition=Acquisition(**PUBLISHED_ACQUISITION, n_passes=passes, chunk_size=chunk),
        training=Training(max_steps=1),
        random_state=0,
        verbose=False,
    )
    return learner.fit([{"text": f"w{number}"} for number in range(8)], CHOICES * 2)


def pool_of(folder: Path, m: int, length: int) -> Pool:
    """Write and open a pool of m prompts of `length` words."""
    file = folder / f"pool {m} {length}.jsonl"
    write_pool(file, m, length, VOCABULARY)
    return Pool(file, cache_dir=folder / "arrow")


def seconds(call: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def cpu_seconds(call: Callable[[], object]) -> float:
    """Time one call by the process's own clock, which other work on the machine hardly moves."""
    began = time.process_time()
    call()
    return time.process_time() - began


def forget(learner: STARLearner) -> None:
    """Start from no scores."""
    base_of(learner).store = ScoreStore()


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
        start = seconds(lambda n=count: learner.query(pool[:n], 1, engine=RayEngine(workers=n)))
        place = folder / f"ray {count}"
        engine = RayEngine(workers=count, folder=place)

        def query(engine: RayEngine = engine) -> None:
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
            "identical": same, "note": "start taken off; 2 cores",
        }  # fmt: skip
        write_row(out, FIELDS, common("cpu") | facts | row)


def prepared(learner: STARLearner, pool: Pool, folder: Path) -> float:
    """Return the driver's CPU seconds until chunks wait for workers, which are not started."""
    session = session_of(learner)
    began = time.process_time()
    rows, fields = checked_pool(pool, session.parts.task, "pool")
    workers = RayWorkers(RayEngine(folder=folder), learner)
    made = session.plan(rows, fields, workers=workers)
    positions = counted(len(rows))
    scores = ScoreTable.empty(len(rows), with_base=True, with_answers=False)
    with patch.object(RayWorkers, "_finished", lambda *_: iter(())):
        workers.score(made, positions, scores, learner.acquisition.n_passes, positions)
    return time.process_time() - began


def plan_of(learner: STARLearner, pool: Pool) -> QueryPlan:
    """Return the plan of a query of this pool."""
    session = session_of(learner)
    return session.plan(*checked_pool(pool, session.parts.task, "pool"))


def prompting(learner: STARLearner, pool: Pool) -> float:
    """Return the CPU seconds that prompts of a pool take."""
    made = plan_of(learner, pool)
    began = time.process_time()
    for start in range(0, len(pool), 2048):
        made.prompts(np.arange(start, min(start + 2048, len(pool))))
    return time.process_time() - began


def driver(folder: Path, out: Path) -> None:
    """Measure what the cost model says of items and tokens: the driver's, prompts, merging."""
    m, lengths = 20_000, (16, 128)
    costs: dict[str, list[list[float]]] = {"driver": [[], []], "prompts": [[], []]}
    for at, length in enumerate(lengths):
        learner, pool = fitted(folder, "one layer", length, 1), pool_of(folder, m, length)
        prepared(learner, pool[:10], folder / "first")
        for turn in range(3):
            place = folder / f"prepared {length} {turn}"
            costs["driver"][at].append(prepared(learner, pool, place) / m)
            costs["prompts"][at].append(prompting(learner, pool) / m)
    notes = {"driver": "until chunks wait", "prompts": "texts to tokens, by workers"}
    for name, found in costs.items():
        short, long = (float(np.median(values)) for values in found)
        token = (long - short) / (lengths[1] - lengths[0])
        row = {
            "part": name, "m": m, "us_per_token": f"{token * 1e6:.3f}",
            "us_per_item": f"{(short - lengths[0] * token) * 1e6:.1f}",
            "note": f"{notes[name]}; process time, medians of 3",
        }  # fmt: skip
        write_row(out, FIELDS, common("cpu") | row)
    merging(out)


def merging(out: Path) -> None:
    """Measure ranking, mixing and choosing."""
    large = 500_000
    scores = ScoreTable.empty(large, with_base=True, with_answers=False)
    rng = np.random.default_rng(0)
    for name in ("base_entropy", "entropy"):
        getattr(scores, name)[:] = rng.random(large)
    scores.n_tokens[:] = 1
    positions, part = counted(large), Acquisition(**PUBLISHED_ACQUISITION)

    def merge() -> None:
        found = combine(scores, positions, part, weight=0.5, trained=True)
        best_places(found.mixed, scores.keys, positions, 500)

    row = {"part": "merge", "m": large, "note": "ranks, mix, best 500"}
    row["us_per_item"] = f"{min(cpu_seconds(merge) for _ in range(3)) / large * 1e6:.2f}"
    write_row(out, FIELDS, common("cpu") | row)


def chunks(folder: Path, out: Path) -> None:
    """Measure what a chunk costs besides its items: Ray's task, and its files."""
    size, count = 20, 200
    learner = fitted(folder, "one layer", 8, 1, chunk=size)
    pool = pool_of(folder, size * count, 8)
    learner.query(pool[:8], 1)
    forget(learner)
    alone = seconds(lambda: learner.query(pool, 50))
    start = seconds(lambda: learner.query(pool[:1], 1, engine=RayEngine(workers=1)))
    wall = seconds(lambda: learner.query(pool, 50, engine=RayEngine(workers=1)))
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
            estimate = learner.estimate(pool)
            rate = measured_rate(estimate.items_per_second, estimate.prompt_tokens, passes)
            job = Job(m, estimate.prompt_tokens, passes, 1e6)
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


class TimedWorker(ScoringWorker):
    """A worker that records its CPU time for its start and for each chunk."""

    def __init__(self, work: Any) -> None:
        super().__init__(work)
        with self.scorer.ready():  # loads the model, which the first chunk would do otherwise
            self.note("start", time.process_time())

    def __call__(self, batch: Any) -> Any:
        """Score chunks."""
        began = time.process_time()
        result = super().__call__(batch)
        self.note("chunk", time.process_time() - began)
        return result

    def note(self, what: str, spent: float) -> None:
        """Add a line to this worker's file."""
        with (self.folder.parent / f"{os.getpid()}.times").open("a") as file:
            file.write(f"{what} {spent}\n")


def times_in(folder: Path) -> list[dict[str, list[float]]]:
    """Return the times of each worker."""
    found = []
    for file in folder.glob("*.times"):
        worker: dict[str, list[float]] = {"start": [], "chunk": []}
        for line in file.read_text().splitlines():
            what, spent = line.split()
            worker[what].append(float(spent))
        found.append(worker)
    return found


def cpu_rate(learner: STARLearner, pool: Pool) -> tuple[float, float]:
    """Return tokens of one pass that a CPU second computes, and the mean length of a prompt."""
    made = plan_of(learner, pool)
    prompts = made.prompts(np.unique(np.linspace(0, len(pool) - 1, 512).astype(np.intp)))
    passes, rates = learner.acquisition.n_passes, []
    scorer = replace(made.scorer, store=ScoreStore())
    for turn in range(4):
        scorer = replace(scorer, store=ScoreStore())
        with scorer.ready(), ItemBar("rate", len(prompts), verbose=False) as bar:
            spent = cpu_seconds(lambda s=scorer, b=bar: s.score(prompts, passes, b, 0))
        rates += [len(prompts) / spent] if turn else []  # the first warms up
    length = float(np.mean([len(prompt) for prompt in prompts]))
    return measured_rate(float(np.median(rates)), length, passes), length


def check_terms(folder: Path, out: Path, workers: Sequence[int]) -> None:
    """Compare the cost model's terms with a real query on Ray, in CPU time.

    The longest way through a query: the driver prepares, a worker starts, the worker with most to
    do scores, the driver takes in and merges. In CPU seconds of the processes that are on it, which
    is what it takes where nobody waits for a core; on this machine clocks say little.
    """
    with running(RayEngine(workers=max(workers))) as ray:
        ray.data.DataContext.get_current().wait_for_min_actors_s = 600
        for at in CONFIGURATIONS:
            m, length, passes, shape = int(at["m"]), int(at["L"]), int(at["K"]), str(at["shape"])
            learner = fitted(folder, shape, length, passes, chunk=m // 12)
            pool = pool_of(folder, m, length)
            learner.query(pool[:8], 1)
            for count in workers:
                before, tokens = cpu_rate(learner, pool)
                place = folder / f"terms {shape} {length} {count}"
                took = prepared(learner, pool, place / "apart")
                forget(learner)
                with patch.object(cluster, "ScoringWorker", TimedWorker):
                    began = time.perf_counter()
                    engine = RayEngine(workers=count, folder=place)
                    spent = cpu_seconds(
                        lambda a=learner, p=pool, e=engine: a.query(p, 50, engine=e)
                    )
                    wall = time.perf_counter() - began
                rate = (
                    before + cpu_rate(learner, pool)[0]
                ) / 2  # before and after, at the same load
                found = times_in(place)
                start = float(np.median([worker["start"][0] for worker in found]))
                score = max(sum(worker["chunk"]) for worker in found)
                job = Job(m, tokens, passes, 1e6, chunk=m // 12)
                cost = plan(job, rate, count)
                measured = spent + start + score
                row = {
                    "part": "terms", "model": f"random, {shape}", "m": m, "L": length, "K": passes,
                    "workers": count, "wall_s": f"{wall:.1f}", "start_s": f"{start:.2f}",
                    "prepare_s": f"{took:.3f}", "driver_s": f"{spent:.2f}",
                    "score_s": f"{score:.2f}", "cpu_s": f"{measured:.2f}",
                    "predicted_s": f"{cost.seconds:.2f}",
                    "predicted_prepare_s": f"{cost.prepare:.3f}",
                    "predicted_start_s": f"{cost.start:.2f}",
                    "predicted_score_s": f"{cost.score:.2f}",
                    "predicted_driver_s": f"{cost.prepare + cost.driver + cost.merge:.2f}",
                    "error": f"{cost.seconds / measured - 1:+.1%}",
                    "note": f"longest way, CPU s; chunks {[len(w['chunk']) for w in found]}",
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
        wall = seconds(lambda: learner.query(pool, 500, engine=RayEngine(workers=2, folder=place)))
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
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--part", nargs="+", choices=["throughput", "driver", "chunks", "plan", "terms", "large"],
        default=["throughput", "driver", "chunks", "plan", "terms"],
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
            "terms": lambda: check_terms(folder, args.out, args.workers),
            "large": lambda: large(folder, args.out, args.m),
        }
        for part in args.part:
            parts[part]()


if __name__ == "__main__":
    main()
