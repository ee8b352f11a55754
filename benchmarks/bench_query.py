r"""Time of a query: starlearn's settings against a naive and a careful user's code.

    python benchmarks/bench_query.py --tasks skewed steps --items 500
    python benchmarks/bench_query.py --tasks banking77 gsm8k --models FOLDER --data FOLDER
    python benchmarks/bench_query.py --tasks skewed --agreement
    python benchmarks/bench_query.py --tasks skewed steps --shape-of Llama-3.2-1B --steps 10 \
        --learning-rate 1e-5 --tolerance 0.2 --differing-answers 0.5 --given-answers   # on a GPU

Before any time counts, both baselines must give our numbers: with starlearn's masks in the place
of nn.Dropout the same K passes, and one pass without dropout, each to within --tolerance. They are
timed with nn.Dropout. All use the same model object, the same 4-bit weights and the same answers.
Where another batch shape rounds otherwise (bfloat16), two words that are all but equally likely
change an answer: --differing-answers says in how many of the checked items that may be, and with
--given-answers the baselines are checked on the answers that starlearn wrote.
Contenders take turns; the clock is the process's CPU time with one thread on a CPU. The baselines
run on a part of the pool, spread over the lengths, and all times are per item; they start from
tokens, starlearn from text. "first" is a query that computes the base model's scores, "later" one
that finds the base model's scores as a query by the previous round's adapter left them. Equal items
are scored once by starlearn, and as often as they come by the baselines.

With --agreement no times are taken: scores and chosen items of every setting against the same
measure and K without options, by the full model's uncertainty alone. The row "other seed" is the
full computation with other masks: what mere chance changes.
"""

import argparse
import itertools
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines import Found, Work, naive, strong
from measuring import (
    COMMON,
    RESULTS,
    SPREAD,
    Contender,
    Times,
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
    own_answers,
    spread_over_lengths,
    work_of,
)
from scipy.stats import spearmanr

from starlearn import Acquisition
from starlearn.learner.session import session_of
from starlearn.settings import PUBLISHED_ACQUISITION

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "one-pass": {"n_passes": 1},
    "screen": {"screen": 4},
    "answer": {"mc_scope": "answer"},
    "token-masks": {"mask_mode": "token"},
    "screen+answer": {"screen": 4, "mc_scope": "answer"},
}
"""Arguments of Acquisition by name."""
ROUNDS = ("first", "later")
SAME_RESULT = {"default", "one-pass"}
FIELDS = [
    *COMMON, "clock", "model", "parameters", "quantization", "dtype", "task", "accuracy", "items",
    "distinct_items", "tokens_mean", "choices", "answer_tokens_mean", "n", "K", "contender",
    "arguments", "round", "items_timed", "repeats", *(f"ms_per_item_{name}" for name in SPREAD),
    "wall_ms_per_item_median", "items_per_second", "ratio_to_naive", "ratio_to_strong",
    "cost_in_one_passes", "base_items_kept", "largest_difference", "note",
]  # fmt: skip
AGREEMENT = [
    *COMMON, "model", "task", "accuracy", "items", "K", "measure", "contender", "arguments",
    "seed", "n", "rho", "overlap", "note",
]  # fmt: skip


# Equal scores first


def check_equal(
    case: Case,
    baseline: Callable[[Work], Found],
    n_passes: int,
    members: list[int],
    limit: float,
    differing: float = 0.02,
    given: bool = False,
) -> tuple[float, int]:
    """Return the largest difference between a baseline's scores and ours, in nats.

    Raises
    ------
    RuntimeError
        When a score differs by more than `limit`, or more than this share of the answers.
    """
    learner = case.learner
    session = session_of(learner)
    seed = session.seed_for("masks", session.round)
    largest, n_other = 0.0, 0
    for passes in {1, n_passes}:
        work = replace(work_of(case, passes, members), mask_seed=seed)
        if given and work.choices is None:
            work = replace(work, answers=own_answers(case, members))
        theirs = baseline(work)
        for measure in ("entropy", "predictive_entropy"):
            learner.set_params(acquisition=Acquisition(measure=measure, n_passes=passes))
            case.set_store(later=False)
            ours = learner.uncertainty([case.pool[i] for i in members])
            if work.choices is None:
                texts = session.texts(theirs.answers)
            else:
                texts = [learner.classes_[c] for c in theirs.answers]
            same = np.array([a == b for a, b in zip(ours.answers, texts, strict=True)])
            n_other = int((~same).sum())
            pairs = [
                (ours.base, getattr(theirs, f"base_{measure}")),
                (ours.full, getattr(theirs, measure)),
                (ours.entropy, theirs.entropy),
                (ours.mutual_information, theirs.mutual_information),
            ]
            for one, other in pairs:
                # np.maximum keeps a NaN, which the limit below then refuses
                largest = float(np.maximum(largest, np.abs(one - other)[same].max(initial=0.0)))
            if not largest <= limit or n_other > differing * len(members):
                raise RuntimeError(
                    f"{case.name}: {baseline.__name__} and starlearn differ by {largest:.2e} "
                    f"({measure}, K = {passes}), and in {n_other} of {len(members)} answers; "
                    "times of unequal work mean nothing"
                )
    return largest, n_other


# Times


def bench_times(args: argparse.Namespace, case: Case) -> None:
    """Time all contenders for each K, first and later rounds."""
    settings = {name: SETTINGS[name] for name in args.settings}
    members = {
        "naive": spread_over_lengths(case, min(args.naive_items, len(case.pool))),
        "strong": spread_over_lengths(case, min(args.strong_items, len(case.pool))),
    }
    checked = spread_over_lengths(case, min(args.checked_items, len(case.pool)))
    n_kept = case.n_items_kept()
    how = (args.tolerance, args.differing_answers, args.given_answers)
    for n_passes in args.passes:
        checks = {
            name: check_equal(case, baseline, n_passes, checked, *how)
            for name, baseline in (("naive", naive), ("strong", strong))
        }
        print(f"equal scores for K = {n_passes}: {checks}")
        for when in args.rounds:
            later = when == "later"
            contenders = {
                name: timed_settings(case, {"n_passes": n_passes} | arguments, args.n, later)
                for name, arguments in settings.items()
            }
            work = work_of(case, n_passes, members["naive"])
            contenders["naive"] = Contender(lambda w=work: naive(w), len(work.prompts))  # type: ignore[misc]
            work = replace(
                work_of(case, n_passes, members["strong"]),
                with_base=not later,
                batch_size=args.strong_batch,
            )
            contenders["strong"] = Contender(lambda w=work: strong(w), len(work.prompts))  # type: ignore[misc]
            times = take_turns(contenders, args.repeats, case.loaded.backbone.device.type)
            for name in contenders:
                arguments = settings.get(name, {})
                extra = {"K": arguments.get("n_passes", n_passes), "contender": name}
                if name in checks:
                    extra["largest_difference"] = f"{checks[name][0]:.1e}"
                    extra["note"] = f"{checks[name][1]} answers differ" if checks[name][1] else ""
                extra |= {"round": when, "arguments": arguments or ""}
                extra["items_timed"] = contenders[name].n_units
                if name in settings:
                    extra["base_items_kept"] = n_kept if later else 0
                write_row(args.out, FIELDS, describe(args, case, name, times) | extra)


def timed_settings(case: Case, arguments: dict[str, Any], n: int, later: bool) -> Contender:
    """Time one query of n items with these arguments of Acquisition."""

    def prepare() -> None:
        # Times are of scoring: in a small run all of the pool may be labelled already.
        settings = {**PUBLISHED_ACQUISITION, "distinct": "none", **arguments}
        case.learner.set_params(acquisition=Acquisition(**settings))
        case.set_store(later)

    def run() -> object:
        return case.learner.query(case.pool, n_instances=batch_size(case, n))

    return Contender(run, len(case.pool), prepare)


def batch_size(case: Case, n: int | None) -> int:
    """Return n: 5 % of the pool, at least 20, unless it is given."""
    return min(n or max(20, len(case.pool) // 20), len(case.pool))


def describe(
    args: argparse.Namespace, case: Case, name: str, times: dict[str, Times]
) -> dict[str, Any]:
    """Turn a contender's times into the columns of its row."""
    device = case.loaded.backbone.device.type
    clock = clock_of(device)
    values = times[name].by(clock)
    found = quartiles(values)
    row = about(case) | {"clock": clock, "n": batch_size(case, args.n), "repeats": len(values)}
    row |= spread_columns("ms_per_item", [1e3 * value for value in values], 3)
    row["wall_ms_per_item_median"] = f"{quartiles(times[name].wall)[1] * 1e3:.3f}"
    row["items_per_second"] = f"{1 / found[1]:.1f}"
    for other in ("naive", "strong"):
        row[f"ratio_to_{other}"] = f"{ratio(values, times[other].by(clock)):.2f}"
    if "one-pass" in times:
        row["cost_in_one_passes"] = f"{1 / ratio(values, times['one-pass'].by(clock)):.2f}"
    return row


# Agreement of options with the full computation


def bench_agreement(args: argparse.Namespace, case: Case) -> None:
    """Compare scores and chosen items of every setting with the full computation."""
    settings = {name: SETTINGS[name] for name in args.settings if name not in SAME_RESULT}
    learner = case.learner
    own, other = learner.seed_, learner.seed_ + 1
    for n_passes, measure in itertools.product(args.passes, ("entropy", "mutual_information")):
        plain = {"n_passes": n_passes, "measure": measure, "schedule": 0.0}
        truth = ranked(case, plain, own, args.n)
        runs = {"other seed": ({}, other), **{k: (v, own) for k, v in settings.items()}}
        if measure == "entropy":  # one pass has no mutual information
            runs["one-pass"] = ({"n_passes": 1}, own)
        for name, (arguments, seed) in runs.items():
            scores, chosen = ranked(case, plain | arguments, seed, args.n)
            row = about(case) | {
                "K": n_passes, "measure": measure, "contender": name, "arguments": arguments or "",
                "seed": seed, "n": len(chosen),
                "overlap": f"{len(set(chosen) & set(truth[1])) / len(chosen):.3f}",
            }  # fmt: skip
            if "screen" not in arguments:  # only a query screens; scores of a pool are full ones
                row["rho"] = f"{spearmanr(scores, truth[0]).statistic:.4f}"
            row = {k: v for k, v in row.items() if k in AGREEMENT}
            write_row(args.agreement_out, AGREEMENT, row)
    learner.seed_ = own


def ranked(
    case: Case, arguments: dict[str, Any], seed: int, n: int | None
) -> tuple[np.ndarray, list[int]]:
    """Return the full model's uncertainty of the pool, and the items that a query chooses."""
    learner = case.learner
    learner.seed_ = seed
    learner.set_params(
        acquisition=Acquisition(**{**PUBLISHED_ACQUISITION, "distinct": "none", **arguments})
    )
    scores = learner.uncertainty(case.pool).full
    return scores, learner.query(case.pool, n_instances=batch_size(case, n))[0].tolist()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; without arguments a small run of a minute."""
    parser = parser_of(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["skewed"])
    parser.add_argument("--items", type=int, default=60, help="m, items in the pool")
    parser.add_argument("--n", type=int, help="items to choose; 5 %% of the pool, at least 20")
    parser.add_argument("--passes", type=int, nargs="+", default=[3], help="K")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--agreement", action="store_true", help="compare scores, take no times")
    parser.add_argument("--rounds", nargs="+", choices=ROUNDS, default=list(ROUNDS))
    parser.add_argument("--checked-items", type=int, default=8, help="for equal scores")
    parser.add_argument("--naive-items", type=int, default=8)
    parser.add_argument("--strong-items", type=int, default=32)
    parser.add_argument("--strong-batch", type=int, default=32, help="items in a careful batch")
    parser.add_argument("--steps", type=int, default=40, help="training steps of each round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="nats")
    parser.add_argument("--differing-answers", type=float, default=0.02, help="a share, at most")
    parser.add_argument("--given-answers", action="store_true", help="check on our free texts")
    add_case_arguments(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / "query.csv")
    parser.add_argument("--agreement-out", type=Path, default=RESULTS / "query_agreement.csv")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    status = 0
    for name in args.tasks:
        try:
            case = make_case(args, name)
            print(f"{name}: accuracy {case.accuracy:.2f} after {N_LABELS + N_MORE} labels")
            (bench_agreement if args.agreement else bench_times)(args, case)
        except FileNotFoundError as error:
            print(f"left out: {name}: {error}")
        except Exception:  # noqa: BLE001 (whatever it is, the other tasks count)
            traceback.print_exc()
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
