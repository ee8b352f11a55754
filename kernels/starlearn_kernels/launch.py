"""Triton routes: tile sizes, launches, and the merge of the vocabulary splits.

Imported only for a Triton route. Tiles and splits depend on dtype, D and V, never on the number of
rows. Each case has one configuration, without autotuning.

Memory of the fused route (K N = 65,536 rows, V = 128,256): partial sums of one chunk of 8192 rows
in 16 splits with 4 numbers each, 8192 * 16 * 4 * 4 = 2.1 MB. N, K and V do not change it. Hidden
states that are not contiguous are copied.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from starlearn_kernels import triton_entropy as kernels
from starlearn_kernels.chunked import Running, Tile, Workspace, sweep
from starlearn_kernels.stats import FLOOR, LOG2E, EntropyStats, Head, finish

CHUNK_ROWS = 8192
# 2048 rows are 16 blocks of 128, and 16 splits make 256 programs for 132 multiprocessors.
SPLITS = 16
GROUP = 8


@dataclass(frozen=True)
class Tiles:
    """Block sizes and launch options of one kernel."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    descriptors: bool = False

    @property
    def blocks(self) -> dict[str, int]:
        """Block sizes under the kernels' names."""
        return {"BLOCK_M": self.rows, "BLOCK_V": self.columns, "BLOCK_D": self.depth}

    @property
    def options(self) -> dict[str, int | bool]:
        """Launch options; fused multiply-add is explicit because its default will change."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


# Tiles for Hopper, the fastest on an H100 among 20 configurations of the first look and 12 of the
# second (kernels/README.md). WIDE loads with descriptors, which need rows of multiples of 16 bytes.
# If its last tile exceeds the vocabulary, its first look spills about 100 bytes and is still the
# fastest. With a cap its second look would spill too much; CAPPED does not spill.
WIDE = Tiles(128, 256, 64, warps=8, stages=3, descriptors=True)
CAPPED = Tiles(128, 128, 64, warps=8, stages=4, descriptors=True)
HALF = Tiles(128, 128, 64, warps=8, stages=4)
# Tiles for other GPUs from Ampere on, which have at least 99 KB of shared memory; not timed.
SMALL = Tiles(128, 128, 32, warps=8, stages=3)
# Tiles for float32 on all GPUs: exact products without tensor cores, slower than triton-chunk.
SINGLE = Tiles(64, 128, 32, warps=8, stages=3)
# The second look of float32 needs more registers; with 8 warps it spills.
SINGLE_AGAIN = Tiles(64, 128, 32, warps=16, stages=3)
# Rows and columns of the kernels that read products from cache.
CACHED_ROWS, CACHED_COLUMNS = 8, 512
CACHED = {"num_warps": 8, "enable_fp_fusion": True}
MERGE_ROWS = 256


def first_tiles(dtype: torch.dtype, width: int, *, hopper: bool, aligned: bool) -> Tiles:
    """Return the tiles of the first look."""
    if dtype == torch.float32:
        return SINGLE
    if not hopper:
        return SMALL
    return WIDE if aligned and width % 8 == 0 and width >= WIDE.depth else HALF


def second_tiles(
    dtype: torch.dtype, width: int, *, hopper: bool, aligned: bool, capped: bool
) -> Tiles:
    """Return the tiles of the second look."""
    if dtype == torch.float32:
        return SINGLE_AGAIN
    tiles = first_tiles(dtype, width, hopper=hopper, aligned=aligned)
    return CAPPED if capped and tiles is WIDE else tiles


def _is_hopper(device: torch.device) -> bool:
    """Return whether to use the tiles of Hopper; they spill on Blackwell."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] == 9


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1)."""
    return bool(triton.knobs.runtime.interpret)


def fused(head: Head, max_workspace_mb: float) -> EntropyStats:
    """Return statistics by a matrix product whose tiles never leave the chip."""
    _require(head)
    passes, rows, width, vocabulary = head.sizes
    hopper = _is_hopper(head.hidden.device)
    # The view resets strides: an axis of length one may have any stride, but descriptors need
    # multiples of 16 bytes.
    flat = head.hidden.contiguous().view(-1).view(passes * rows, width)
    weight = head.weight.contiguous().view(-1).view(vocabulary, width)
    hidden = flat.view(passes, rows, width)
    aligned = flat.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0
    first = first_tiles(weight.dtype, width, hopper=hopper, aligned=aligned)
    second = second_tiles(
        weight.dtype, width, hopper=hopper, aligned=aligned, capped=head.softcap is not None
    )
    if passes > second.rows:
        raise ValueError(
            f"`hidden` may have at most K = {second.rows} passes on route 'triton-fused', "
            f"got {passes}; route 'torch' takes any number"
        )
    splits, per_split = _splits(vocabulary, first.columns)
    chunk = _chunk_rows(splits, max_workspace_mb)
    running = flat.new_empty((4, passes * rows), dtype=torch.float32)
    for start in range(0, passes * rows, chunk):
        part = flat[start : start + chunk]
        _look_once(head, part, weight, first, splits, per_split, running, start)
    top, mass, slope, runner_up = running.view(4, passes, rows)
    information = None
    if passes > 1:
        norm = top + mass.log2()  # [K, N]
        information = _look_twice(head, hidden, weight, norm, second)
    target = _target_bits(head, max_workspace_mb)
    return finish(top, mass, slope, runner_up, target, information)


def _require(head: Head) -> None:
    """Raise ValueError unless the Triton routes can run on this head."""
    if not head.hidden.is_cuda and not interpreted():
        reason = f"it needs a CUDA device, and `hidden` is on {head.hidden.device}"
    elif head.hidden.dtype != head.weight.dtype:
        reason = (
            "`hidden` and `weight` must have one dtype, "
            f"got {head.hidden.dtype} and {head.weight.dtype}"
        )
    else:
        return
    raise ValueError(f"`route` 'triton-...' cannot run here: {reason}; use 'torch' or 'auto'")


def _splits(vocabulary: int, columns: int) -> tuple[int, int]:
    """Return the number of vocabulary splits, and of tiles per split."""
    tiles = -(-vocabulary // columns)
    per_split = -(-tiles // SPLITS)
    return -(-tiles // per_split), per_split


def _chunk_rows(splits: int, max_workspace_mb: float) -> int:
    fitting = int(max_workspace_mb * 1e6) // (splits * 4 * 4)
    if fitting < 128:
        least = 128 * splits * 4 * 4 / 1e6
        raise ValueError(f"`max_workspace_mb` must be at least {least:.2f}, got {max_workspace_mb}")
    return min(CHUNK_ROWS, fitting)


def _tail(head: Head, tiles: Tiles) -> bool:
    """Return whether the last tile exceeds the vocabulary."""
    return head.weight.shape[0] % tiles.columns != 0


def _epilogue(head: Head) -> dict[str, object]:
    """Return the arguments of `to_bits`, every kernel's step from products to logits."""
    return {
        "alpha": head.scale * LOG2E,
        "cap": 1.0 if head.softcap is None else head.softcap * LOG2E,
        "HAS_BIAS": head.bias is not None,
        "HAS_CAP": head.softcap is not None,
    }


def _bias(head: Head) -> Tensor:
    return head.weight if head.bias is None else head.bias.contiguous()


def _look_once(
    head: Head,
    part: Tensor,  # [rows, D]
    weight: Tensor,  # [V, D]
    tiles: Tiles,
    splits: int,
    per_split: int,
    running: Tensor,  # [4, K * N]
    start: int,
) -> None:
    """Fill ``running`` for the rows of ``part`` by the first look and the merge of its splits."""
    rows, width = part.shape
    partial = part.new_empty((4, splits, rows), dtype=torch.float32)
    hidden_in: object = part
    weight_in: object = weight
    if tiles.descriptors:
        hidden_in = TensorDescriptor.from_tensor(part, [tiles.rows, tiles.depth])
        weight_in = TensorDescriptor.from_tensor(weight, [tiles.columns, tiles.depth])
    kernels.first_look[(triton.cdiv(rows, tiles.rows) * splits,)](
        hidden_in,
        weight_in,
        _bias(head),
        *partial,
        n_rows=rows,
        vocabulary=weight.shape[0],
        splits=splits,
        tiles_per_split=per_split,
        D=width,
        TAIL=_tail(head, tiles),
        TMA=tiles.descriptors,
        UPCAST=interpreted(),
        GROUP=GROUP,
        **_epilogue(head),
        **tiles.blocks,
        **tiles.options,
    )
    kernels.merge[(triton.cdiv(rows, MERGE_ROWS),)](
        *partial,
        running,
        n_rows=rows,
        total=running.shape[1],
        offset=start,
        splits=splits,
        BLOCK_M=MERGE_ROWS,
        enable_fp_fusion=True,
    )


def _look_twice(
    head: Head,
    hidden: Tensor,  # [K, N, D]
    weight: Tensor,  # [V, D]
    norm: Tensor,  # [K, N]
    tiles: Tiles,
) -> Tensor:
    """Return the mutual information in bits, [N]."""
    passes, rows, width = hidden.shape
    padded = triton.next_power_of_2(passes)
    splits, per_split = _splits(weight.shape[0], tiles.columns)
    tokens = tiles.rows // padded
    parts = norm.new_empty((splits, rows))
    out = norm.new_empty(rows)
    hidden_in: object = hidden
    weight_in: object = weight
    if tiles.descriptors:
        hidden_in = TensorDescriptor.from_tensor(hidden, [padded, tokens, tiles.depth])
        weight_in = TensorDescriptor.from_tensor(weight, [tiles.columns, tiles.depth])
    kernels.second_look[(triton.cdiv(rows, tokens) * splits,)](
        hidden_in,
        weight_in,
        _bias(head),
        norm,
        parts,
        n_rows=rows,
        vocabulary=weight.shape[0],
        splits=splits,
        tiles_per_split=per_split,
        K=passes,
        K_PAD=padded,
        D=width,
        TAIL=_tail(head, tiles),
        TMA=tiles.descriptors,
        UPCAST=interpreted(),
        GROUP=GROUP,
        **_epilogue(head),
        **tiles.blocks,
        **tiles.options,
    )
    grid = (triton.cdiv(rows, MERGE_ROWS),)
    kernels.add_splits[grid](parts, out, rows, splits, BLOCK_M=MERGE_ROWS, enable_fp_fusion=True)
    return out


def _target_bits(head: Head, max_workspace_mb: float) -> Tensor | None:
    """Return the logits of the targets in bits, [K, N], by a separate small product."""
    if head.target is None:
        return None
    passes, rows, width, _ = head.sizes
    chunk = max(1, int(max_workspace_mb * 1e6) // (16 * width))
    found = torch.empty((passes, rows), dtype=torch.float32, device=head.hidden.device)
    for start in range(0, rows, chunk):
        target = head.target[start : start + chunk]
        chosen = head.weight[target].float()  # [n, D]
        for number in range(passes):
            hidden = head.hidden[number, start : start + chunk].float()  # [n, D]
            found[number, start : start + chunk] = (hidden * chosen).sum(-1)
    found.mul_(head.scale * LOG2E)
    if head.bias is not None:
        found += head.bias[head.target].float() * LOG2E
    if head.softcap is not None:
        cap = head.softcap * LOG2E
        found = cap * torch.tanh(found / cap)
    return found.clamp_(min=FLOOR)


def cached(head: Head, max_workspace_mb: float) -> EntropyStats:
    """Return statistics from tiles of the vendor's product, which one kernel reads in cache."""
    _require(head)
    target = _target_bits(head, max_workspace_mb)
    return sweep(head, max_workspace_mb, _cached_first, _cached_second, alpha=1.0, target=target)


def _cached_first(
    head: Head, work: Workspace, run: Running, block: int, tile: Tile, x: Tensor
) -> None:
    """Add a tile of products [R, C] to the running numbers of a block."""
    rows = x.shape[0]
    kernels.cached_first[(triton.cdiv(rows, CACHED_ROWS),)](
        x,
        _bias(head)[tile.start :],
        run.top[block],
        run.mass[block],
        run.slope[block],
        run.second[block],
        n_rows=rows,
        stride=tile.width,
        used=tile.used,
        BLOCK_M=CACHED_ROWS,
        BLOCK_V=CACHED_COLUMNS,
        **_epilogue(head),
        **CACHED,
    )


def _cached_second(
    head: Head, work: Workspace, run: Running, block: int, tile: Tile, x: Tensor
) -> None:
    """Add a tile of products [K * T, C] to the mutual information of a block."""
    passes, tokens = work.hidden.shape[:2]
    kernels.cached_second[(tokens,)](
        x,
        _bias(head)[tile.start :],
        run.top[block] + run.mass[block].log2(),
        run.information[block],
        tokens,
        stride=tile.width,
        used=tile.used,
        K=passes,
        K_PAD=triton.next_power_of_2(passes),
        BLOCK_V=CACHED_COLUMNS,
        **_epilogue(head),
        **CACHED,
    )
