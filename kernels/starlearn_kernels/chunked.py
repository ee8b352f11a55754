"""Torch route: row blocks and vocabulary tiles of fixed size, in bounded memory, on any device.

The first look at the logits computes running sums of each row. For K > 1 a second look, which needs
the K normalisers of the first, computes the mutual information.

Memory, with letters and one instance (K = 4, D = 512, V = 32,000, bfloat16, a CPU). A block has
R = K * T rows (R = 128, T = 32 tokens), and a tile has C columns (C = 2048).
    two tiles of logits     2 R C 4    =  2.1 MB
    the hidden states       R D 4      =  0.3 MB
    a tile of the weight    C D 4      =  4.2 MB   (only if it must be upcast or padded)
    the mean over passes    T C 4      =  0.3 MB
    kept logits, K > 1      R V 4      = 16.8 MB   (instead of a second product)
    oneDNN's results and copies of its inputs (x86 CPUs)
              2 R C 4 + (R + C) D 4    =  6.6 MB
None of it grows with N. Each row adds its outputs and six running numbers of 4 bytes.

Blocks have a fixed size, because the bits of a row must not depend on the other rows. Two things
were seen to break this. MKL's product changes with the number of rows (below 16; at D = 777 below
80), so all blocks have one size and are padded with zero rows. `torch.exp2` rounds differently in
the tail of a vector loop, whose place depends on length and threads, so `powers_of_two` passes
whole vectors only. The order of torch's sum over passes is not guaranteed, so passes are added one
by one.

Logits are in bits, because exp2 costs a quarter of exp on processors where MKL is slow.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from starlearn_kernels.plan import ALIGN, TorchPlan, plan_torch, slack
from starlearn_kernels.stats import (
    FLOOR,
    LN2,
    LOG2E,
    EntropyStats,
    Head,
    finish,
    mean_over_passes,
)

# Least exponent; its exp2 is still a normal number.
UNDERFLOW = -125.0
# Number of columns per group in the search for the second largest logit.
GROUPS = 32


@dataclass(frozen=True)
class Workspace:
    """Buffers of one call, allocated once."""

    hidden: Tensor  # [K, T, D]
    weight: Tensor | None  # [C, D]
    # Flat, with the slack after the last number that `powers_of_two` needs.
    logits: Tensor  # [R * C]
    spare: Tensor  # [R * C]
    kept: Tensor | None  # [tiles, R * C]
    onednn: bool


@dataclass(frozen=True)
class Running:
    """Running numbers of all rows; blocks are the first axis, so a block is contiguous."""

    top: Tensor  # [blocks, R]
    mass: Tensor  # [blocks, R]
    slope: Tensor  # [blocks, R]
    second: Tensor  # [blocks, R]
    target: Tensor  # [blocks, R]
    information: Tensor  # [blocks, T]


@dataclass(frozen=True)
class Tile:
    """Columns ``start`` to ``start + used - 1`` of the vocabulary, padded to ``width``."""

    index: int
    start: int
    used: int
    width: int


# Function that adds a tile of products to the running numbers of a block of rows.
Look = Callable[[Head, Workspace, Running, int, Tile, Tensor], None]


def chunked(head: Head, max_workspace_mb: float) -> EntropyStats:
    """Return the statistics of a head by torch alone; arguments as for `sweep`."""
    return sweep(head, max_workspace_mb, _first_look, _second_look, alpha=head.scale * LOG2E)


def sweep(
    head: Head,
    max_workspace_mb: float,
    first_look: Look,
    second_look: Look,
    *,
    alpha: float,
    target: Tensor | None = None,
) -> EntropyStats:
    """Call the looks on all row blocks and vocabulary tiles, and return the statistics.

    A look is a function of a tile of ``alpha * hidden @ weight.T``. The second is called only for
    K > 1, after the first has seen all tiles of the block. If tiles are kept, both get the same
    one. ``target`` [K, N] holds the targets' logits in bits, if the first look does not pick them.
    The workspace is counted without inputs, outputs and six numbers per row.
    """
    passes, rows, width, vocabulary = head.sizes
    # The result of a product is float32. On a CPU the product of two bfloat16 matrices is bfloat16,
    # an error of 2.6e-2 nats, so its inputs are upcast.
    same = head.hidden.dtype == head.weight.dtype
    exact = head.weight.dtype if same and head.hidden.is_cuda else torch.float32
    plan = plan_torch(
        head.hidden.device.type,
        passes,
        width,
        vocabulary,
        itemsize=exact.itemsize,
        copy_weight=head.weight.dtype != exact,
        max_workspace_mb=max_workspace_mb,
    )
    work = allocate(head, plan, exact)
    blocks = -(-rows // plan.tokens)
    run = _start(head, plan, blocks)

    if work.kept is not None:
        for block in range(blocks):
            load_rows(head, plan, work, block)
            for tile in tiles(plan):
                x = product(head, work, load_weight(head, work, tile), tile, alpha)
                first_look(head, work, run, block, tile, x)
            for tile in tiles(plan):
                x = tile_view(work, work.kept[tile.index], tile)
                second_look(head, work, run, block, tile, x)
    else:
        # Tiles are the outer loop, so that each tile of the weight is read and upcast once.
        for look in (first_look, second_look)[: 1 if passes == 1 else 2]:
            for tile in tiles(plan):
                weight = load_weight(head, work, tile)
                for block in range(blocks):
                    load_rows(head, plan, work, block)
                    x = product(head, work, weight, tile, alpha)
                    look(head, work, run, block, tile, x)
    return _collect(head, plan, run, target)


def tiles(plan: TorchPlan) -> Iterator[Tile]:
    """Yield the tiles of the vocabulary in order."""
    for index, start in enumerate(range(0, plan.vocabulary, plan.columns)):
        used = min(plan.columns, plan.vocabulary - start)
        yield Tile(index, start, used, -(-used // ALIGN) * ALIGN)


def allocate(head: Head, plan: TorchPlan, exact: torch.dtype) -> Workspace:
    """Allocate the buffers of a call."""
    passes, _, width, _ = head.sizes

    def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=head.hidden.device)

    tile = plan.rows * plan.columns + slack(plan.rows * plan.columns)
    # One allocation for both, larger than oneDNN's results. glibc then keeps the memory that oneDNN
    # frees after each tile. Otherwise it returns the memory and pages it in again, which took a
    # quarter of the time.
    pair = room(2, tile)
    return Workspace(
        hidden=room(passes, plan.tokens, width, dtype=exact),
        weight=room(plan.columns, width, dtype=exact) if plan.copy_weight else None,
        logits=pair[0],
        spare=pair[1],
        kept=room(plan.n_tiles, tile) if plan.keep else None,
        onednn=plan.onednn,
    )


def _start(head: Head, plan: TorchPlan, blocks: int) -> Running:
    def filled(value: float, per_block: int) -> Tensor:
        shape = (blocks, per_block)
        return torch.full(shape, value, dtype=torch.float32, device=head.hidden.device)

    return Running(
        top=filled(FLOOR, plan.rows),
        mass=filled(0.0, plan.rows),
        slope=filled(0.0, plan.rows),
        second=filled(FLOOR, plan.rows),
        target=filled(FLOOR, plan.rows),
        information=filled(0.0, plan.tokens),
    )


def load_rows(head: Head, plan: TorchPlan, work: Workspace, block: int) -> None:
    """Copy a block of hidden states to the workspace, with zero rows after the last token."""
    tokens = head.hidden[:, block * plan.tokens : (block + 1) * plan.tokens]  # [K, t, D]
    work.hidden[:, : tokens.shape[1]].copy_(tokens)
    work.hidden[:, tokens.shape[1] :].zero_()


def load_weight(head: Head, work: Workspace, tile: Tile) -> Tensor:
    """Return a tile of the weight in the product's dtype, padded with zero rows, [C, D]."""
    part = head.weight[tile.start : tile.start + tile.used]
    if work.weight is None or (part.dtype == work.weight.dtype and tile.used == tile.width):
        return part
    room = work.weight[: tile.width]
    room[: tile.used].copy_(part)
    room[tile.used :].zero_()
    return room


def tile_view(work: Workspace, room: Tensor, tile: Tile) -> Tensor:
    """Return the part of a flat buffer that a tile uses, as [R, C]."""
    rows = work.hidden.shape[0] * work.hidden.shape[1]
    return room[: rows * tile.width].view(rows, tile.width)


def product(head: Head, work: Workspace, weight: Tensor, tile: Tile, alpha: float) -> Tensor:
    """Return alpha * hidden @ weight.T of the loaded block in float32, [R, C]."""
    hidden = work.hidden.flatten(0, 1)  # [R, D]
    x = tile_view(work, work.logits if work.kept is None else work.kept[tile.index], tile)
    if work.onednn:
        out = torch.nn.functional.linear(hidden.to_mkldnn(), weight).to_dense()
        return torch.mul(out, alpha, out=x)
    if hidden.dtype == torch.float32:
        return torch.addmm(x, hidden, weight.T, beta=0, alpha=alpha, out=x)
    torch.mm(hidden, weight.T, out_dtype=torch.float32, out=x)
    return x if alpha == 1 else x.mul_(alpha)


def to_logits(head: Head, tile: Tile, x: Tensor) -> Tensor:
    """Turn products into logits in bits, in place; padding becomes FLOOR, -inf may stay."""
    if head.bias is not None:
        x[:, : tile.used] += head.bias[tile.start : tile.start + tile.used].float() * LOG2E
    if head.softcap is not None:
        cap = head.softcap * LOG2E
        x.div_(cap).tanh_().mul_(cap)
    # Padding is masked after the cap, which would turn FLOOR into -cap.
    if tile.used < tile.width:
        x[:, tile.used :] = FLOOR
    return x


def powers_of_two(x: Tensor, room: Tensor) -> Tensor:
    """Write 2^x of a tile [R, C] at the start of a flat buffer to another buffer, ``room``.

    `torch.exp2` rounds differently at the end of a thread's part if no whole vector fits there.
    Numbers from the slack after the tile make all parts whole vectors.
    """
    count = x.numel()
    padded = count + slack(count)
    flat = x.as_strided((padded,), (1,))
    return torch.exp2(flat, out=room[:padded])[:count].view_as(x)


def _first_look(
    head: Head, work: Workspace, run: Running, block: int, tile: Tile, x: Tensor
) -> None:
    """Add a tile [R, C] to the running numbers of a block; a kept tile becomes logits.

    ``top`` is the maximum m so far, ``mass`` the sum of 2^(x - m), ``slope`` the sum of
    2^(x - m) (x - m). A larger maximum rescales both sums by ``fade``, 2^(old m - new m).
    """
    to_logits(head, tile, x)
    shifted = work.logits[: x.numel()].view_as(x)  # is x itself if no tiles are kept
    top, mass, slope = run.top[block], run.mass[block], run.slope[block]  # [R]

    tile_top, tile_second = _two_largest(x)  # [R]
    _pick_target(head, work, run.target[block], block, tile, x)

    new_top = torch.maximum(top, tile_top)
    second = torch.maximum(run.second[block], tile_second)
    run.second[block] = torch.maximum(second, torch.minimum(top, tile_top))
    fade = torch.exp((top - new_top) * LN2)  # [R]
    torch.sub(x, new_top[:, None], out=shifted).clamp_(min=UNDERFLOW)
    e = powers_of_two(shifted, work.spare)  # [R, C]
    tile_mass = e.sum(1)
    slope.copy_(fade * (slope + (top - new_top) * mass) + e.mul_(shifted).sum(1))
    mass.copy_(fade * mass + tile_mass)
    top.copy_(new_top)


def _two_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest and second largest of each row [R, C]; a tie gives the same number twice.

    The tile is read once, for the maxima of groups of columns. The second largest is either the
    second of these maxima or in the group of the largest. `topk` takes ten times as long.
    """
    rows, columns = x.shape
    groups = x.view(rows, GROUPS, columns // GROUPS)
    best, where, others = _without_largest(groups.amax(1))
    winners = groups.gather(2, where[:, None].expand(rows, GROUPS, 1))[..., 0]
    return best[:, 0], torch.maximum(others, _without_largest(winners)[2])


def _without_largest(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest of each row and its column, [R, 1], and the largest of the others, [R]."""
    best, where = values.max(1, keepdim=True)
    return best, where, values.scatter_(1, where, FLOOR).amax(1)


def _pick_target(
    head: Head, work: Workspace, found: Tensor, block: int, tile: Tile, x: Tensor
) -> None:
    """Copy the targets' logits that lie in this tile into ``found`` [R]."""
    passes, tokens = work.hidden.shape[:2]
    if head.target is None:
        return
    target = head.target[block * tokens : (block + 1) * tokens] - tile.start  # [t]
    target = torch.nn.functional.pad(target, (0, tokens - len(target)), value=-1)  # [T]
    target = target.repeat(passes)[:, None]  # [R, 1]
    inside = (target >= 0) & (target < tile.used)
    value = x.gather(1, target.clamp(0, tile.used - 1))
    found.copy_(torch.where(inside, value, found[:, None])[:, 0])


def _second_look(
    head: Head, work: Workspace, run: Running, block: int, tile: Tile, x: Tensor
) -> None:
    """Add a tile's share of the mutual information of a block; overwrites ``x`` [R, C].

    The share is the sum of p_k (log p_k - log mean p) over columns and passes. This direct form
    keeps the digits that the difference of two entropies would cancel.
    """
    if work.kept is None:
        to_logits(head, tile, x)
    shape = (*work.hidden.shape[:2], tile.width)  # K, T, C
    norm = run.top[block] + run.mass[block].log() * LOG2E  # [R]
    logp = x.sub_(norm[:, None]).clamp_(min=UNDERFLOW)  # [R, C]
    p = powers_of_two(logp, work.spare)  # [R, C]
    mean = mean_over_passes(p.view(shape))  # [T, C]
    logp.view(shape).sub_(mean.log_().mul_(LOG2E))
    share = p.mul_(logp).sum(1).view(shape[:2])  # [K, T]
    run.information[block] += mean_over_passes(share)


def _collect(head: Head, plan: TorchPlan, run: Running, target: Tensor | None) -> EntropyStats:
    passes, rows = head.sizes[:2]

    def per_pass(values: Tensor) -> Tensor:
        """Reshape [blocks, K * T] to [K, N]."""
        split = values.view(-1, passes, plan.tokens).transpose(0, 1)
        return split.reshape(passes, -1)[:, :rows]

    if target is None and head.target is not None:
        target = per_pass(run.target)
    return finish(
        per_pass(run.top),
        per_pass(run.mass),
        per_pass(run.slope),
        per_pass(run.second),
        target,
        run.information.flatten()[:rows] if passes > 1 else None,
    )
