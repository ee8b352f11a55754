"""Where a query spends its time: shares of torch's operations, as torch.profiler sees them.

    python benchmarks/profile_query.py --tasks skewed steps --items 200
    python benchmarks/profile_query.py --tasks gsm8k --models FOLDER --data FOLDER

A first query is profiled on a trained learner. `share` is an operation's own CPU time over that of
all operations; that of a stage is its CPU time over the query's, without the profiler.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from measuring import COMMON, RESULTS, parser_of, write_row
from query_cases import TASKS, Case, about, add_case_arguments, make_case
from torch.profiler import ProfilerActivity, profile

from starlearn import Acquisition
from starlearn.learner.session import session_of
from starlearn.query.score_store import ScoreStore
from starlearn.settings import PUBLISHED_ACQUISITION

FIELDS = [
    *COMMON, "model", "parameters", "quantization", "dtype", "task", "items", "tokens_mean",
    "choices", "answer_tokens_mean", "K", "kind", "name", "share", "calls", "note",
]  # fmt: skip


class TimedStore(ScoreStore):
    """A store that remembers how long each computation of missing rows took, in CPU seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def get(self, space: str, keys: Any, compute: Any) -> Any:
        """Return rows as the store does, and note the time of what was missing."""

        def timed(missing: list[int]) -> Any:
            began = time.process_time()
            rows = compute(missing)
            self.seconds.append(time.process_time() - began)
            return rows

        return super().get(space, keys, timed)


def operations(case: Case, n_shown: int) -> list[tuple[str, float, int]]:
    """Return the operations with the largest own CPU time: name, share, number of calls."""
    case.loaded.store = ScoreStore()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        case.learner.query(case.pool, n_instances=1)
    events = profiled.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    largest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:n_shown]
    return [(event.key, event.self_cpu_time_total / total, event.count) for event in largest]


def stages(case: Case) -> list[tuple[str, float, int]]:
    """Return the stages of a first query, in order, with their share of its CPU time."""
    case.loaded.store = store = TimedStore()
    began = time.process_time()
    case.learner.query(case.pool, n_instances=1)
    total = time.process_time() - began
    names = ["base model", "K passes"]
    if session_of(case.learner).tree() is None:
        names = ["writing answers", *names]
    found = list(zip(names, store.seconds, strict=True))
    rest = total - sum(store.seconds)
    return [(name, seconds / total, 0) for name, seconds in [*found, ("the rest", rest)]]


def bench(args: argparse.Namespace, case: Case) -> None:
    """Write one row a stage and one an operation."""
    # In a small run all of the pool may be labelled already.
    case.learner.set_params(
        acquisition=Acquisition(**PUBLISHED_ACQUISITION, n_passes=args.passes, distinct="none")
    )
    case.loaded.store = case.base.without_adapters()
    case.learner.query(case.pool, n_instances=1)  # libraries load what they need
    parts = [("stage", *row) for row in stages(case)]
    parts += [("operation", *row) for row in operations(case, args.shown)]
    for kind, name, share, calls in parts:
        row = about(case) | {"K": args.passes, "kind": kind, "name": name, "calls": calls or ""}
        row["share"] = f"{share:.3f}"
        write_row(args.out, FIELDS, {name: row[name] for name in FIELDS if name in row})


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["skewed"])
    parser.add_argument("--items", type=int, default=200, help="m, items in the pool")
    parser.add_argument("--passes", type=int, default=3, help="K")
    parser.add_argument("--steps", type=int, default=40, help="training steps of each round")
    parser.add_argument("--shown", type=int, default=10, help="operations to list")
    add_case_arguments(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / "query_profile.csv")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    for name in args.tasks:
        bench(args, make_case(args, name))


if __name__ == "__main__":
    main()
