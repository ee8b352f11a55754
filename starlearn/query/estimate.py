"""Time and memory of a query, estimated from a sample of the pool."""

import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from starlearn.progress import ItemBar
from starlearn.query.acquisition import QueryPlan
from starlearn.query.score_store import ScoreStore

SAMPLE = 512
"""Items whose length is measured."""
PROBE = 64
"""Items that are scored, spread over all lengths."""
QUICK = 1.0
"""Seconds below which the overhead of a call dominates. The whole sample is scored then."""


@dataclass(frozen=True)
class Estimate:
    """Time and memory of a query of a pool on this machine."""

    n_items: int
    """Number of items to score."""
    seconds: float
    """Time of the query."""
    items_per_second: float
    """Rate over all stages of the query."""
    prompt_tokens: float
    """Mean length of a prompt."""
    peak_memory_mb: float
    """Peak memory in MB of 10^6 bytes, with the model: of the GPU, or of this process on a CPU. It
    does not grow with the pool."""

    def __str__(self) -> str:
        if not self.n_items:
            return "a random draw, which needs no scores"
        minutes, seconds = divmod(round(self.seconds), 60)
        return (
            f"{self.n_items:,} items of {self.prompt_tokens:.0f} tokens in about {minutes} min "
            f"{seconds} s ({self.items_per_second:,.1f} items/s), with {self.peak_memory_mb:,.0f} "
            "MB at the peak"
        )


def estimate(plan: QueryPlan, n: int) -> Estimate:
    """Score a sample and estimate the time and memory of a whole query that chooses n items.

    Stored base scores take no time. Other stored scores are not considered, so that the rest of an
    interrupted query takes less. Hidden states for diverse batches are not counted. On a GPU the
    first, longest batch may be larger than a sample of a short pool.
    """
    acquisition = plan.acquisition
    if acquisition.strategy == "random":
        return Estimate(0, 0.0, 0.0, 0.0, _peak_mb())
    positions = np.unique(np.linspace(0, len(plan.rows) - 1, SAMPLE).astype(np.intp))
    prompts = plan.prompts(positions)
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    # The longest items that fit in one batch: the peak memory depends on them.
    room = plan.scorer.backbone.budget.tokens // len(prompts[order[-1]]) // acquisition.n_passes
    longest = order[-max(room, PROBE // 4) :]
    probe = order[np.unique(np.linspace(0, len(order) - 1, PROBE).astype(np.intp))]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    _seconds(plan, [prompts[i] for i in longest], acquisition.n_passes)  # also warms up
    peak = _peak_mb()

    chosen = [prompts[i] for i in probe]
    screened = acquisition.screen is not None and acquisition.n_passes > 1 and plan.trained
    passes = 1 if screened else acquisition.n_passes
    first, base = _seconds(plan, chosen, passes)
    if first < QUICK and len(chosen) < len(prompts):
        chosen = prompts
        first, base = _seconds(plan, chosen, passes)
    share = plan.scorer.share_without_base(chosen) if base else 1.0
    m = len(plan.rows)
    if acquisition.sub_pool is not None:
        m = min(m, max(acquisition.sub_pool, n))
    seconds = (first - base * (1 - share)) / len(chosen) * m
    if screened:
        again, base = _seconds(plan, chosen, acquisition.n_passes)
        seconds += (again - base) / len(chosen) * min(m, n * int(acquisition.screen or 1))
    return Estimate(
        n_items=m,
        seconds=seconds,
        items_per_second=m / max(seconds, 1e-9),
        prompt_tokens=float(np.mean([len(prompt) for prompt in prompts])),
        peak_memory_mb=peak,
    )


def _seconds(plan: QueryPlan, prompts: list[list[int]], n_passes: int) -> tuple[float, float]:
    """Return the time to score some prompts, and the part of it that the base model takes."""
    scorer = replace(plan.scorer, store=ScoreStore())
    with scorer.ready(), ItemBar("estimate", len(prompts), plan.verbose) as bar:
        began = time.perf_counter()
        scorer.score(prompts, n_passes, bar, plan.seed)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began, bar.seconds.get("base model", 0.0)


def _peak_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    import resource  # not there on Windows, which must still be able to import the learner

    # Kilobytes on Linux, bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
