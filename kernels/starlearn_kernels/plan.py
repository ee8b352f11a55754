"""Block sizes of the torch route: they follow from geometry, device and workspace alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

# Vocabulary tiles are padded to this many columns, so that vector loops have no tail.
ALIGN = 64
# torch gives a thread at least so many numbers of an elementwise operation.
GRAIN = 32768


def slack(count: int, threads: int | None = None) -> int:
    """Numbers to add to ``count`` so that every thread's part is made of whole vectors."""
    threads = min(threads or torch.get_num_threads(), -(-count // GRAIN))
    return -count % (ALIGN * threads)


@dataclass(frozen=True)
class Sizes:
    """Usual block sizes of a kind of device."""

    rows: int
    columns: int
    # With fewer rows in a block the weight is read too often: a second product is cheaper.
    fewest_kept: int


# CPU, measured with one thread at D = 512: a product of 128 rows runs at 92 % of the rate of 2048
# rows, and a batch of few rows is padded to one block; 256 rows were not faster.
# Elsewhere, measured on an H100 among five: small tiles leave most of it idle, so that tiles of 512
# rows x 4096 columns took 1.8 to 3.9 times as long (benchmarks/results/kernel_tuning.csv).
SIZES = {"cpu": Sizes(128, 2048, 32)}
OTHER = Sizes(2048, 16384, 512)


@dataclass(frozen=True)
class TorchPlan:
    """Block sizes of the torch route; the number of rows N plays no part in them."""

    vocabulary: int
    tokens: int  # T: rows of hidden per pass in a block
    rows: int  # R = K * T
    columns: int  # C
    keep: bool  # all logits of a block are kept for the second look
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

    Parameters
    ----------
    device_type : str
    passes, width, vocabulary : int
        K, D and V.
    itemsize : int
        Bytes of a number in the product's inputs.
    copy_weight : bool
        Whether the weight comes in another dtype than the product's inputs.
    max_workspace_mb : float
        In MB of 10^6 bytes.

    Raises
    ------
    ValueError
        Where even the smallest blocks do not fit; it names the smallest bound that works.
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
    """``most`` and its halves, rounded up to the padding above it, down to ``least``."""
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
        # Its results, and its copies of both inputs.
        floats += 2 * rows * columns
        inputs += (rows + columns) * width
    return TorchPlan(
        vocabulary, tokens, rows, columns, keep, copies, onednn, floats * 4 + inputs * itemsize
    )


def has_onednn() -> bool:
    """Whether float32 products go to oneDNN: on x86 only, where it was measured.

    MKL, behind `torch.mm`, takes a slow path on processors that are not Intel's: on an AMD EPYC
    with AVX-512 oneDNN computes 2.2 times as many products a second.
    """
    x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return x86 and torch.backends.mkldnn.is_available()
