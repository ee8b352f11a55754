"""Time of scoring against the token budget: of the K passes, and of writing answers.

    python benchmarks/bench_budget.py --tasks skewed steps
    python benchmarks/bench_budget.py --tasks gsm8k --models FOLDER --data FOLDER --stage writing

All budgets take turns on one trained learner, and must give the same scores bit for bit. Stage
"passes" finds the base model's scores and the answers in the store, and computes the K passes
alone; stage "writing" computes the answers alone.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import (
    COMMON,
    RESULTS,
    SPREAD,
    Contender,
    clock_of,
    parser_of,
    quartiles,
    ratio,
    spread_columns,
    take_turns,
    write_row,
)
from query_cases import (
    N_LABELS,
    N_MORE,
    TASKS,
    Case,
    about,
    add_case_arguments,
    make_case,
)

from starlearn import Acquisition
from starlearn.learner.session import Prompts, session_of
from starlearn.progress import ItemBar
from starlearn.query.scoring import Scorer
from starlearn.settings import PUBLISHED_ACQUISITION

BUDGETS = {
    "passes": [512, 1024, 2048, 4096, 8192, 16384],
    "writing": [1024, 4096, 16384, 65536],
}
FIELDS = [
    *COMMON, "clock", "model", "parameters", "quantization", "dtype", "task", "items",
    "tokens_mean", "choices", "answer_tokens_mean", "stage", "K", "budget", "repeats",
    *(f"ms_per_item_{name}" for name in SPREAD), "wall_ms_per_item_median",
    "time_of_default_budget", "note",
]  # fmt: skip


def contenders_of(case: Case, stage: str, n_passes: int, budgets: list[int]) -> dict[str, Any]:
    """Return one contender a budget; each holds its results against the first one's."""
    learner, engine = case.learner, case.loaded
    learner.set_params(acquisition=Acquisition(**PUBLISHED_ACQUISITION, n_passes=n_passes))
    scorer, prompts = scorer_of(case)
    kept = case.base.without_adapters()
    engine.store = kept
    if stage == "passes" and scorer.tree is None:
        written(scorer_of(case)[0], prompts)
    truth: list[Any] = []

    def run() -> None:
        if stage == "writing":
            found: Any = written(scorer_of(case)[0], prompts)
            same = not truth or found == truth[0]
        else:
            found = learner.uncertainty(case.pool)
            same = not truth or np.array_equal(found.mixed, truth[0].mixed)
        if not same:
            raise RuntimeError(f"{case.name}: the {stage} depend on the token budget")
        truth[:] = [found]

    def prepare(tokens: int) -> None:
        engine.store = copy.deepcopy(kept)
        budget = engine.backbone.budget if stage == "passes" else engine.backbone.writing_budget
        budget.tokens = tokens

    return {
        str(tokens): Contender(run, len(case.pool), lambda tokens=tokens: prepare(tokens))  # type: ignore[misc]
        for tokens in budgets
    }


def scorer_of(case: Case) -> tuple[Scorer, Prompts]:
    """Return what scores the pool's items, with the learner's present store, and their prompts."""
    tree, prompts = case.tokens()
    return session_of(case.learner).scorer(tree), prompts


def written(scorer: Scorer, prompts: Prompts) -> list[list[int]]:
    """Return the model's answers."""
    with scorer.ready(), ItemBar("answering", len(prompts), verbose=False) as bar:
        return scorer.write(prompts, bar)


def bench(args: argparse.Namespace, case: Case, stage: str) -> None:
    """Time all budgets of one stage, and put the budget back that was found."""
    backbone = case.loaded.backbone
    budget = backbone.budget if stage == "passes" else backbone.writing_budget
    usual, row = budget.tokens, about(case)
    budgets = sorted({usual, *BUDGETS[stage]})
    contenders = contenders_of(case, stage, args.passes, budgets)
    times = take_turns(contenders, args.repeats, backbone.device.type)
    budget.tokens = usual
    clock = clock_of(backbone.device.type)
    for name, taken in times.items():
        values = taken.by(clock)
        more: dict[str, Any] = {
            "clock": clock, "stage": stage, "budget": name, "repeats": len(values),
            "K": args.passes if stage == "passes" else "",
            "wall_ms_per_item_median": f"{quartiles(taken.wall)[1] * 1e3:.3f}",
            "time_of_default_budget": f"{1 / ratio(values, times[str(usual)].by(clock)):.3f}",
            "note": "default" if name == str(usual) else "",
        }  # fmt: skip
        more |= spread_columns("ms_per_item", [1e3 * value for value in values], 3)
        kept = {name: value for name, value in (row | more).items() if name in FIELDS}
        write_row(args.out, FIELDS, kept)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; without arguments a small run."""
    parser = parser_of(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["skewed"])
    parser.add_argument("--stage", choices=list(BUDGETS), default="passes")
    parser.add_argument("--items", type=int, default=100, help="m, items in the pool")
    parser.add_argument("--passes", type=int, default=3, help="K")
    parser.add_argument("--steps", type=int, default=40, help="training steps of each round")
    parser.add_argument("--repeats", type=int, default=3)
    add_case_arguments(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / "query_budget.csv")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    for name in args.tasks:
        case = make_case(args, name)
        print(f"{name}: accuracy {case.accuracy:.2f} after {N_LABELS + N_MORE} labels")
        bench(args, case, args.stage)


if __name__ == "__main__":
    main()
