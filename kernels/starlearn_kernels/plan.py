"""Block sizes of the torch route, decided by device, K, D, V and workspace alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Vocabulary tiles are padded to a multiple of this, so that vector loops have no tail.
ALIGN = 64
# Least number of elements that torch gives a thread in an elementwise operation.
GRAIN = 32768


def slack(count: int, threads: int | None = None) -> int:
    """Return how many numbers to add to ``count`` so that all threads get whole vectors."""
    threads = min(threads or torch.get_num_threads(), -(-count // GRAIN))
    return -count % (ALIGN * threads)


@dataclass(frozen=True)
class Sizes:
    """Usual block sizes of a kind of device."""

    rows: int
    columns: int
    # With fewer rows per block the weight is read too often, and a second product is cheaper.
    fewest_kept: int


# CPU, measured with one thread at D = 512: a product of 128 rows reaches 92 % of the rate of 2048
# rows. 256 rows were not faster, and a small batch is padded to a whole block.
# Other devices, the best of five sizes on an H100: small tiles leave most of it idle, so tiles of
# 512 rows x 4096 columns took 1.8 to 3.9 times as long (benchmarks/results/kernel_tuning.csv).
SIZES = {"cpu": Sizes(128, 2048, 32)}
OTHER = Sizes(2048, 16384, 512)


@dataclass(frozen=True)
class TorchPlan:
    """Block sizes of the torch route; they do not depend on the number of rows N."""

    vocabulary: int
    tokens: int  # T: rows of hidden per pass in a block
    rows: int  # R = K * T
    columns: int  # C
    keep: bool  # whether all logits of a block are kept for the second look
    copy_weight: bool
    onednn: bool
    workspace_bytes: int

    @property
    def n_tiles(self) -> int:
        """Number of vocabulary tiles."""
        return -(-self.vocabulary // self.columns)


def plan_torch(
    device_type: str,
    passes: int,
    width: int,
    vocabulary: int,
    *,
    itemsize: int,
    copy_weight: bool,
    max_workspace_mb: float,
) -> TorchPlan:
    """Choose the largest blocks, up to the usual ones, that fit the workspace.

    ``itemsize`` is the bytes of a number in the product's inputs, and ``copy_weight`` whether the
    weight has another dtype than these.
    """
    sizes = SIZES.get(device_type, OTHER)
    full = -(-vocabulary // ALIGN) * ALIGN
    copies = copy_weight or full != vocabulary
    onednn = device_type == "cpu" and has_onednn()
    least = math.inf
    for keep in (True, False) if passes > 1 else (False,):
        fewest = sizes.fewest_kept if keep else 1
        for rows in _halvings(sizes.rows, max(fewest, min(passes, sizes.rows))):
            for columns in _halvings(min(sizes.columns, full), min(4 * ALIGN, full)):
                plan = _sized(
                    passes, width, vocabulary, rows, columns, itemsize, keep, copies, onednn
                )
                if plan.workspace_bytes <= max_workspace_mb * 1e6:
                    return plan
                least = min(least, plan.workspace_bytes / 1e6)
    raise ValueError(
        f"`max_workspace_mb` must be at least {math.ceil(least * 10) / 10} for K = {passes}, "
        f"D = {width}, V = {vocabulary}, got {max_workspace_mb}"
    )


def _halvings(most: int, least: int) -> Iterator[int]:
    """Yield ``most``, its halves, and ``least``; halves above ALIGN are multiples of it."""
    while most > least:
        yield most
        half = -(-most // 2)
        most = half if half < ALIGN else -(-half // ALIGN) * ALIGN
    yield least


def _sized(
    passes: int,
    width: int,
    vocabulary: int,
    rows: int,
    columns: int,
    itemsize: int,
    keep: bool,
    copies: bool,
    onednn: bool,
) -> TorchPlan:
    tokens = max(1, rows // passes)
    rows = tokens * passes
    tiles = -(-vocabulary // columns)
    tile = rows * columns + slack(rows * columns)
    floats = 2 * tile + (tokens * columns if passes > 1 else 0)
    if keep:
        floats += tiles * tile
    inputs = rows * width + (columns * width if copies else 0)
    if onednn:
        # Results of oneDNN, and its copies of both inputs.
        floats += 2 * rows * columns
        inputs += (rows + columns) * width
    return TorchPlan(
        vocabulary, tokens, rows, columns, keep, copies, onednn, floats * 4 + inputs * itemsize
    )


def has_onednn() -> bool:
    """Return whether float32 products use oneDNN, which was measured on x86 only.

    MKL, which `torch.mm` uses, is slow on processors of other makers than Intel. On an AMD EPYC
    with AVX-512 oneDNN computes 2.2 times as many products per second.
    """
    x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return x86 and torch.backends.mkldnn.is_available()
