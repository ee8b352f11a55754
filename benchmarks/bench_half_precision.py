"""How far scores in bfloat16 move when the work is cut in another way.

    python benchmarks/bench_half_precision.py
    python benchmarks/bench_half_precision.py --tasks banking77 gsm8k --models FOLDER --data FOLDER

On a CPU the model is loaded in bfloat16, as it is on a GPU. Each draw scores the pool again, with
K passes, in another order, with another token budget and another chunk size. A CPU's products
may well give the same bits for any shape of batch; a GPU's need not. So the same draws are
repeated with "rounding": after every layer of the base model half of all numbers are moved by
one unit in the last place, drawn for each batch: more than another batch shape does.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measuring import COMMON, RESULTS, parser_of, write_row
from query_cases import TASKS, Case, about, add_case_arguments, best_rows, make_case
from scipy.stats import spearmanr

from starlearn import Acquisition
from starlearn.model.backbone import Backbone
from starlearn.model.structure import trunk_of
from starlearn.settings import PUBLISHED_ACQUISITION

N_BATCH = 50
CUTS = [(64, 7), (700, 33), (4096, 100)]
FIELDS = [
    *COMMON, "model", "parameters", "quantization", "dtype", "task", "accuracy", "items",
    "distinct_items", "tokens_mean", "choices", "answer_tokens_mean", "K", "measure",
    "rounding", "draws", "spread", "base_max", "base_mean", "full_max", "full_mean",
    "answers_changed", "rank_correlation_min", "overlap_min",
]  # fmt: skip


@contextmanager
def extra_rounding(model: Any, seed: int) -> Iterator[None]:
    """Move half of the numbers that leave a layer of the base model by one unit in the last place.

    Up or down with equal chance, drawn for each forward pass.
    """
    generator = torch.Generator().manual_seed(seed)

    def after(_: Any, arguments: Any, output: Any) -> Any:
        if not torch.is_tensor(output) or output.dtype != torch.bfloat16:
            return None
        draw = torch.randint(0, 4, output.shape, generator=generator).to(output.device)
        steps = (draw == 1).to(torch.int16) - (draw == 0).to(torch.int16)
        moved = (output.contiguous().view(torch.int16) + steps).view(torch.bfloat16)
        # At zero and infinity the next bit pattern is not the next number.
        return torch.where((output == 0) | ~torch.isfinite(output), output, moved)

    with ExitStack() as stack:
        for name, module in trunk_of(model).named_modules():
            if not list(module.children()) and "lora_" not in name:
                stack.callback(module.register_forward_hook(after).remove)
        yield


def score_with_other_cuts(case: Case, seed: int, tokens: int, chunk: int) -> tuple[Any, np.ndarray]:
    """Score the pool from nothing in a drawn order; return the scores and that order."""
    order = np.random.default_rng(seed).permutation(len(case.pool))
    case.set_store(later=False)
    for name in ("budget", "writing_budget"):
        case.loaded.backbone.__dict__.pop(name, None)
    options = {"acquisition__max_batch_tokens": tokens, "acquisition__chunk_size": chunk}
    case.learner.set_params(**options)
    return case.learner.uncertainty([case.pool[i] for i in order]), order


def compare(case: Case, rounding: bool) -> dict[str, Any]:
    """Return the largest and the mean movement over all draws against one plain run."""
    case.learner.set_params(acquisition__max_batch_tokens=None, acquisition__chunk_size=2048)
    case.set_store(later=False)
    plain = case.learner.uncertainty(case.pool)
    moves: dict[str, list[Any]] = {"base": [], "full": []}
    changed, correlations, overlaps = 0, [], []
    for seed, (tokens, chunk) in enumerate(CUTS):
        with ExitStack() as stack:
            if rounding:
                stack.enter_context(extra_rounding(case.loaded.backbone.model, seed))
            found, order = score_with_other_cuts(case, seed, tokens, chunk)
        same = found.answers == plain.answers[order]
        changed += int((~same).sum())
        for name, values in moves.items():
            moved = np.abs(getattr(found, name) - getattr(plain, name)[order])
            values.append(moved[same])
        correlations.append(float(spearmanr(found.mixed, plain.mixed[order])[0]))
        best = {int(order[i]) for i in best_rows(found.mixed, N_BATCH)}
        overlaps.append(len(best & best_rows(plain.mixed, N_BATCH)))
    joined = {name: np.concatenate(values) for name, values in moves.items()}
    return {
        **{f"{name}_max": f"{values.max():.2g}" for name, values in joined.items()},
        **{f"{name}_mean": f"{values.mean():.2g}" for name, values in joined.items()},
        "spread": f"{plain.full.std():.3f}",
        "answers_changed": f"{changed / (len(CUTS) * len(case.pool)):.4f}",
        "rank_correlation_min": f"{min(correlations):.4f}",
        "overlap_min": f"{min(overlaps) / N_BATCH:.2f}",
    }


def bench(args: argparse.Namespace, name: str) -> None:
    """Train a learner in bfloat16; write a row without and with rounding for each measure."""
    case = make_case(args, name)
    # As published, and the default, whose mutual information is 0 in one pass.
    for settings in [PUBLISHED_ACQUISITION, {}] if args.passes > 1 else [PUBLISHED_ACQUISITION]:
        acquisition = Acquisition(**settings, n_passes=args.passes)
        case.learner.set_params(acquisition=acquisition)
        for rounding in (False, True):
            row = about(case) | compare(case, rounding)
            row |= {"K": args.passes, "rounding": "anew" if rounding else "", "draws": len(CUTS)}
            write_row(args.out, FIELDS, row | {"measure": acquisition.measure})


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; without arguments the embedded model with choices and free form."""
    parser = parser_of(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["skewed", "steps"])
    parser.add_argument("--items", type=int, default=300, help="m, items in the pool")
    parser.add_argument("--passes", type=int, default=3, help="K")
    parser.add_argument("--steps", type=int, default=60, help="training steps of each round")
    add_case_arguments(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / "half_precision.csv")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    with ExitStack() as stack:
        if not torch.cuda.is_available():
            stack.enter_context(patch.object(Backbone, "dtype", torch.bfloat16))
        for name in args.tasks:
            bench(args, name)


if __name__ == "__main__":
    main()
