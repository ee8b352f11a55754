"""Certified bounds on mutual information from one look at the logits, and an exact top n.

With p_k the distributions of K passes and x_k their logits:
upper end   EPKL = mean_k sum_v p_k (x_k - mean_j x_j), the mean divergence between pairs of passes
            (convexity: never below the mutual information);
lower end   the mutual information after columns are summed in groups of 16
            (data processing inequality: never above it).
Both are widened by the rounding that the exact computation may make, so that the bounds hold for
the numbers that `linear_entropy` returns.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from starlearn_kernels.checks import (
    check_choice,
    check_device,
    check_head,
    check_integer,
    check_number,
    check_tensor,
)
from starlearn_kernels.chunked import (
    UNDERFLOW,
    Tile,
    Workspace,
    allocate,
    load_rows,
    load_weight,
    plan_for,
    powers_of_two,
    product,
    product_dtype,
    tiles,
    to_logits,
)
from starlearn_kernels.entropy import linear_entropy
from starlearn_kernels.plan import GROUP, TorchPlan
from starlearn_kernels.segments import segment_reduce
from starlearn_kernels.stats import FLOOR, LN2, LOG2E, Head

TINY = torch.finfo(torch.float32).tiny
# The exact routes promise an error of at most this times max(1, largest logit).
ROUNDING = 1e-5


@dataclass(frozen=True)
class InformationInterval:
    """Bounds in nats, float32: ``lower`` [N] <= mutual information <= ``upper`` [N]; NaN rows stay
    NaN."""

    lower: Tensor
    upper: Tensor


@dataclass(frozen=True)
class TopItems:
    """The n items with the largest value, best first.

    Attributes
    ----------
    indices : Tensor [n] int64
        Items; of equal values the lower index comes first.
    values : Tensor [n]
        Their mutual information, the same bits as from the full computation on a CPU.
    survivors : int
        How many items needed the second look.
    """

    indices: Tensor
    values: Tensor
    survivors: int


def information_interval(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    max_workspace_mb: float = 64,
) -> InformationInterval:
    """Bound the mutual information of N rows under K passes with one product.

    Parameters
    ----------
    hidden : Tensor [K, N, D]
    weight : Tensor [V, D]
    bias, scale, softcap, max_workspace_mb
        As for `linear_entropy`.

    Returns
    -------
    InformationInterval
        ``lower`` and ``upper``, [N].
    """
    head = check_head(hidden, weight, bias, None, scale, softcap)
    budget = check_number("max_workspace_mb", max_workspace_mb, "a number above 0")
    with torch.no_grad():
        return _interval(head, budget)


def top_information(
    hidden: Tensor,
    weight: Tensor,
    n: int,
    bias: Tensor | None = None,
    *,
    offsets: Tensor | None = None,
    how: str = "mean",
    scale: float = 1.0,
    softcap: float | None = None,
    route: str = "auto",
    max_workspace_mb: float = 64,
) -> TopItems:
    """Find the n items of largest mutual information, with a second look only where it matters.

    Parameters
    ----------
    hidden : Tensor [K, N, D]
    weight : Tensor [V, D]
    n : int
        1 to the number of items.
    offsets : Tensor [S + 1], optional
        Rows of each item, as for `segment_reduce`; without it every row is an item.
    how : {"mean", "sum"}
        Over the rows of an item.
    bias, scale, softcap, route, max_workspace_mb
        As for `linear_entropy`. The rows of the survivors are copied, [K, rows, D].

    Returns
    -------
    TopItems
        The same items as sorting the full computation. Items whose value is NaN come last.

    Notes
    -----
    It pays where the exact route would compute the product twice. Where the workspace lets that
    route keep a block's logits, which is the usual case on a CPU, `linear_entropy` is as fast.
    """
    check_choice("how", how, ("mean", "sum"))
    check_tensor("hidden", hidden, "[K, N, D]", (3,))
    if offsets is None:
        offsets = torch.arange(hidden.shape[1] + 1, device=hidden.device)
    check_tensor("offsets", offsets, "[S + 1]", (1,))
    check_device("offsets", offsets, hidden.device)
    check_integer("n", n, 1, len(offsets))
    options = {"scale": scale, "softcap": softcap, "max_workspace_mb": max_workspace_mb}

    rows = information_interval(hidden, weight, bias, **options)  # type: ignore[arg-type]
    lower = segment_reduce(rows.lower, offsets, how)  # [S]
    upper = segment_reduce(rows.upper, offsets, how)  # [S]
    known = ~torch.isnan(lower)
    bar = torch.where(known, lower, -torch.inf).sort(descending=True).values[n - 1]
    survivors = torch.nonzero(known & (upper >= bar))[:, 0]  # [s], n of them at least if known

    values = torch.full_like(lower, torch.nan)
    if len(survivors):
        values[survivors] = _exact(hidden, weight, bias, offsets, how, survivors, route, options)
    order = torch.where(torch.isnan(values), -torch.inf, values)
    indices = order.sort(descending=True, stable=True).indices[:n]
    return TopItems(indices, values[indices], len(survivors))


def _exact(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    how: str,
    survivors: Tensor,  # [s]
    route: str,
    options: dict[str, float | None],
) -> Tensor:
    """Exact values of some items, [s]."""
    lengths = offsets.diff()[survivors]
    ends = lengths.cumsum(0)
    step = torch.arange(int(ends[-1]), device=hidden.device)
    start = offsets[:-1][survivors] - (ends - lengths)
    rows = step + start.repeat_interleave(lengths)  # [rows of the survivors]
    stats = linear_entropy(hidden[:, rows], weight, bias, route=route, **options)  # type: ignore[arg-type]
    return segment_reduce(stats.mutual_information, torch.cat([ends.new_zeros(1), ends]), how)


def _interval(head: Head, max_workspace_mb: float) -> InformationInterval:
    rows = head.sizes[1]
    exact = product_dtype(head)
    plan = plan_for(head, exact, max_workspace_mb, interval=True)
    work = allocate(head, plan, exact)
    room = work.logits.new_empty(plan.n_tiles, plan.rows * plan.columns // GROUP)
    lower = work.logits.new_empty(-(-rows // plan.tokens) * plan.tokens)
    upper = torch.empty_like(lower)
    for block in range(len(lower) // plan.tokens):
        part = slice(block * plan.tokens, (block + 1) * plan.tokens)
        load_rows(head, plan, work, block)
        lower[part], upper[part] = _block_bounds(head, plan, work, room)
    return InformationInterval(lower[:rows], upper[:rows])


def _block_bounds(
    head: Head, plan: TorchPlan, work: Workspace, room: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds of the loaded block of tokens, two times [T]."""
    passes, tokens = work.hidden.shape[:2]
    top = room.new_full((plan.rows,), FLOOR)  # [R], in bits
    mass, gap = torch.zeros_like(top), torch.zeros_like(top)  # [R]
    tops = room.new_empty(plan.n_tiles, plan.rows)  # the maximum that each tile's sums refer to
    for tile in tiles(plan):
        x = product(head, work, load_weight(head, work, tile), tile, head.scale * LOG2E)
        to_logits(head, tile, x).clamp_(min=FLOOR)  # [R, C]
        new_top = torch.maximum(top, x.amax(1))
        e = torch.sub(x, new_top[:, None], out=work.spare[: x.numel()].view_as(x))
        powers_of_two(e.clamp_(min=UNDERFLOW), work.spare)
        torch.sum(e.view(plan.rows, GROUP, -1), 1, out=_grouped(room, plan, tile))
        by_pass = x.view(passes, tokens, -1)
        by_pass -= by_pass.mean(0)
        fade = torch.exp((top - new_top) * LN2)
        mass = fade * mass + e.sum(1)
        gap = fade * gap + e.mul_(x).sum(1)
        top = tops[tile.index] = new_top
    upper = LN2 * (gap / mass).view(passes, tokens).mean(0)
    lower = torch.zeros_like(upper)
    for tile in tiles(plan):
        logq = _grouped(room, plan, tile).clamp_(min=TINY).log_()
        logq += ((tops[tile.index] - top) * LN2 - mass.log())[:, None]
        q = logq.exp().view(passes, tokens, -1)  # [K, T, C / 16]
        ratio = logq.view_as(q) - q.mean(0).clamp_(min=TINY).log_()
        lower += q.mul_(ratio).sum(-1).mean(0)
    return _widened(lower, upper, top.view(passes, tokens), passes)


def _grouped(room: Tensor, plan: TorchPlan, tile: Tile) -> Tensor:
    used = plan.rows * tile.width // GROUP
    return room[tile.index, :used].view(plan.rows, -1)  # [R, C / 16]


def _widened(lower: Tensor, upper: Tensor, top: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """With room for rounding, inside 0 .. log K; NaN where a pass is unknown."""
    slack = ROUNDING * (LN2 * top).abs().amax(0).clamp(min=1)  # [T]
    ceiling = math.log(passes)
    unknown = torch.isnan(upper) | torch.isnan(lower) | (top <= FLOOR).any(0)
    low = (lower - slack).clamp(0, ceiling)
    high = (upper + slack).clamp(0, ceiling)
    return torch.where(unknown, torch.nan, low), torch.where(unknown, torch.nan, high)
