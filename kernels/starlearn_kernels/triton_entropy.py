"""Triton kernels: a matrix product that keeps running sums of each row instead of logits.

Imported only by launch.py. Logits are in bits, x = logit * log2(e), and FLOOR replaces -inf. The
sums ``mass`` and ``slope`` are relative to the running maximum, as in `chunked._first_look`. Tiles
are read in a fixed order without atomics, so the bits of a row depend on the row alone.
"""

# Types and branches here are Triton's, not Python's.
# mypy: ignore-errors

import triton
import triton.language as tl

FLOOR = tl.constexpr(-1e30)
LOG2E = tl.constexpr(1.4426950408889634)
TWO_LOG2E = tl.constexpr(2.8853900817779268)
TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def to_bits(
    acc,
    columns,
    bias_ptr,
    alpha,
    cap,
    vocabulary,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    TAIL: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Turn products into logits in bits: scale, bias, cap, floor, and the mask of the tail.

    The vocabulary is the last axis of the tile if ACROSS, else the first.
    """
    axis: tl.constexpr = 0 if ACROSS else 1
    x = acc * alpha
    if HAS_BIAS:
        bias = tl.load(bias_ptr + columns, mask=columns < vocabulary, other=0.0).to(tl.float32)
        x += tl.expand_dims(bias * LOG2E, axis)
    if HAS_CAP:
        y = x / cap
        curve = 1.0 - 2.0 / (tl.exp2(y * TWO_LOG2E) + 1.0)
        # The formula for tanh loses digits near 0, and a wide cap gives small y for all logits.
        square = y * y
        series = y * (1.0 + square * (-0.33333334 + square * (0.13333334 - 0.053968254 * square)))
        x = cap * tl.where(square < 0.0625, series, curve)
    x = tl.maximum(x, FLOOR, propagate_nan=tl.PropagateNan.ALL)
    if TAIL:
        # Masked after the cap, which would turn FLOOR into -cap. The tail is replaced, not summed:
        # descriptors read zeros there, whose product with an infinite state is NaN.
        x = tl.where(tl.expand_dims(columns < vocabulary, axis), x, FLOOR)
    return x


@triton.jit
def absorb(top, mass, slope, second, x):
    """Add a tile [rows, columns] to the running numbers of its rows."""
    # The second largest is searched among pairs of columns: it is the smaller one of the pair that
    # holds the largest, or the larger one of another pair. This halves the comparisons.
    rows: tl.constexpr = x.shape[0]
    pairs: tl.constexpr = x.shape[1] // 2
    one, other = tl.split(tl.reshape(x, (rows, pairs, 2)))
    high, low = tl.maximum(one, other), tl.minimum(one, other)
    tile_top = tl.max(high, 1)
    ties = high == tile_top[:, None]
    tile_second = tl.max(tl.where(ties, low, high), 1)
    tile_second = tl.where(tl.sum(ties.to(tl.int32), 1) > 1, tile_top, tile_second)
    second = tl.maximum(tl.maximum(second, tile_second), tl.minimum(top, tile_top))
    new_top = tl.maximum(top, tile_top)
    fade = tl.exp2(top - new_top)  # rescales the sums to the new maximum
    shifted = x - new_top[:, None]
    e = tl.exp2(shifted)
    slope = fade * (slope + (top - new_top) * mass) + tl.sum(e * shifted, 1)
    mass = fade * mass + tl.sum(e, 1)
    return new_top, mass, slope, second


@triton.jit
def rows_of(matrix, rows, depth, D: tl.constexpr):
    """Load rows of a matrix [.., D] at some depths, with zeros after the last depth."""
    inside = (depth < D)[None, :]
    return tl.load(matrix + rows.to(tl.int64)[:, None] * D + depth[None, :], inside, 0.0)


@triton.jit
def multiply(left, right, acc, UPCAST: tl.constexpr):
    """Return acc + left @ right.T in float32."""
    if UPCAST:  # the interpreter's product is wrong in bfloat16
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, tl.trans(right), acc, input_precision="ieee")


@triton.jit
def grouped(program, row_blocks, splits, GROUP: tl.constexpr):
    """Return row block and split of a program; GROUP neighbours share vocabulary tiles in cache."""
    per_group = GROUP * splits
    first = (program // per_group) * GROUP
    size = tl.minimum(row_blocks - first, GROUP)
    inside = program % per_group
    return first + inside % size, inside // size


@triton.jit
def first_look(
    hidden,  # [M, D], pointer or descriptor
    weight,  # [V, D], pointer or descriptor
    bias_ptr,  # [V]
    top_ptr,  # [splits, M]
    mass_ptr,  # [splits, M]
    slope_ptr,  # [splits, M]
    second_ptr,  # [splits, M]
    n_rows,
    vocabulary,
    alpha,
    cap,
    splits,
    tiles_per_split,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    TAIL: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute the running numbers of BLOCK_M rows over one split of the vocabulary."""
    block, split = grouped(tl.program_id(0), tl.cdiv(n_rows, BLOCK_M), splits, GROUP)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    safe_rows = tl.minimum(rows, n_rows - 1)
    top = tl.full((BLOCK_M,), FLOOR, tl.float32)
    second = tl.full((BLOCK_M,), FLOOR, tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    slope = tl.zeros((BLOCK_M,), tl.float32)
    depth = tl.arange(0, BLOCK_D)
    last = tl.minimum((split + 1) * tiles_per_split, tl.cdiv(vocabulary, BLOCK_V))
    # Outer loop over tiles of BLOCK_V columns, inner loop over D: the product of a tile stays in
    # registers and is added to the running numbers. Flattened, the loads of the next tile overlap
    # with the sums of this one, 1 to 4 % faster on an H100. With a cap it needs too many registers.
    for tile in tl.range(split * tiles_per_split, last, flatten=TMA and not HAS_CAP):
        columns = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        safe = tl.minimum(columns, vocabulary - 1)
        acc = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
        for start in range(0, D, BLOCK_D):
            if TMA:
                h = hidden.load([block * BLOCK_M, start])
                w = weight.load([tile * BLOCK_V, start])
            else:
                h = rows_of(hidden, safe_rows, start + depth, D)
                w = rows_of(weight, safe, start + depth, D)
            acc = multiply(h, w, acc, UPCAST)
        x = to_bits(acc, columns, bias_ptr, alpha, cap, vocabulary, HAS_BIAS, HAS_CAP, TAIL, True)
        top, mass, slope, second = absorb(top, mass, slope, second, x)
    valid = rows < n_rows
    at = split.to(tl.int64) * n_rows + rows
    tl.store(top_ptr + at, top, valid)
    tl.store(mass_ptr + at, mass, valid)
    tl.store(slope_ptr + at, slope, valid)
    tl.store(second_ptr + at, second, valid)


@triton.jit
def merge(
    top_ptr,  # [splits, M]
    mass_ptr,  # [splits, M]
    slope_ptr,  # [splits, M]
    second_ptr,  # [splits, M]
    out_ptr,  # [4, total]: top, mass, slope, second
    n_rows,
    total,
    offset,
    splits,
    BLOCK_M: tl.constexpr,
):
    """Merge the splits of each row in a fixed order; row r is written to ``offset + r``."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = rows < n_rows
    top = tl.full((BLOCK_M,), FLOOR, tl.float32)
    second = tl.full((BLOCK_M,), FLOOR, tl.float32)
    mass = tl.zeros((BLOCK_M,), tl.float32)
    slope = tl.zeros((BLOCK_M,), tl.float32)
    for split in range(splits):
        at = tl.cast(split, tl.int64) * n_rows + rows
        top_b = tl.load(top_ptr + at, valid, FLOOR)
        mass_b = tl.load(mass_ptr + at, valid, 0.0)
        slope_b = tl.load(slope_ptr + at, valid, 0.0)
        second_b = tl.load(second_ptr + at, valid, FLOOR)
        second = tl.maximum(tl.maximum(second, second_b), tl.minimum(top, top_b))
        new_top = tl.maximum(top, top_b)
        fade, fade_b = tl.exp2(top - new_top), tl.exp2(top_b - new_top)
        slope = fade * (slope + (top - new_top) * mass)
        slope += fade_b * (slope_b + (top_b - new_top) * mass_b)
        mass = fade * mass + fade_b * mass_b
        top = new_top
    out = out_ptr + offset + rows
    tl.store(out, top, valid)
    tl.store(out + total, mass, valid)
    tl.store(out + 2 * total, slope, valid)
    tl.store(out + 3 * total, second, valid)


@triton.jit
def second_look(
    hidden,  # [K, N, D], pointer or descriptor
    weight,  # [V, D], pointer or descriptor
    bias_ptr,  # [V]
    norm_ptr,  # [K, N], log-sum-exp in bits
    out_ptr,  # [splits, N]
    n_rows,
    vocabulary,
    alpha,
    cap,
    splits,
    tiles_per_split,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    TAIL: tl.constexpr,
    TMA: tl.constexpr,
    UPCAST: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Compute the mutual information of BLOCK_M / K_PAD tokens over one split of the vocabulary.

    The tile is [BLOCK_V, BLOCK_M]: the vocabulary is the first axis, and column pass * TOKENS +
    token is a row of the input. In a product on Hopper a thread then holds all passes of its
    tokens, so that means over passes need no exchange between threads.
    """
    TOKENS: tl.constexpr = BLOCK_M // K_PAD
    block, split = grouped(tl.program_id(0), tl.cdiv(n_rows, TOKENS), splits, GROUP)
    lane = tl.arange(0, BLOCK_M)
    token = block * TOKENS + lane % TOKENS
    number = lane // TOKENS
    real = (token < n_rows) & (number < K)
    row = tl.minimum(number, K - 1).to(tl.int64) * n_rows + tl.minimum(token, n_rows - 1)
    # With this norm, padding passes have probability 0 everywhere.
    norm = tl.load(norm_ptr + row, real, -FLOOR)
    total = tl.zeros((TOKENS,), tl.float32)
    depth = tl.arange(0, BLOCK_D)
    last = tl.minimum((split + 1) * tiles_per_split, tl.cdiv(vocabulary, BLOCK_V))
    for tile in range(split * tiles_per_split, last):
        columns = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        safe = tl.minimum(columns, vocabulary - 1)
        acc = tl.zeros((BLOCK_V, BLOCK_M), dtype=tl.float32)
        for start in range(0, D, BLOCK_D):
            if TMA:
                h = tl.reshape(hidden.load([0, block * TOKENS, start]), (BLOCK_M, BLOCK_D))
                w = weight.load([tile * BLOCK_V, start])
            else:
                h = rows_of(hidden, row, start + depth, D)
                w = rows_of(weight, safe, start + depth, D)
            acc = multiply(w, h, acc, UPCAST)
        x = to_bits(acc, columns, bias_ptr, alpha, cap, vocabulary, HAS_BIAS, HAS_CAP, TAIL, False)
        logp = x - norm[None, :]
        if K < K_PAD:  # an infinite weight makes NaN of the padding passes' zeros
            logp = tl.where((number < K)[None, :], logp, FLOOR)
        logp = tl.reshape(logp, (BLOCK_V, K_PAD, TOKENS))
        # The first look has tiles of another shape, which round differently. At a logit of 1e20 the
        # difference of one bit would overflow, so log-probabilities are limited to 0.
        logp = tl.minimum(logp, 0.0, propagate_nan=tl.PropagateNan.ALL)
        p = tl.exp2(logp)
        mean = tl.sum(p, 1) / K  # [BLOCK_V, TOKENS]
        log_mean = tl.log2(tl.where(mean < TINY, TINY, mean))
        gain = tl.sum(p * (logp - log_mean[:, None, :]), 1)  # [BLOCK_V, TOKENS]
        total += tl.sum(gain, 0) / K
    tokens = block * TOKENS + tl.arange(0, TOKENS)
    tl.store(out_ptr + split.to(tl.int64) * n_rows + tokens, total, tokens < n_rows)


@triton.jit
def add_splits(parts_ptr, out_ptr, n_rows, splits, BLOCK_M: tl.constexpr):
    """Sum [splits, N] over the splits in a fixed order."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = rows < n_rows
    total = tl.zeros((BLOCK_M,), tl.float32)
    for split in range(splits):
        total += tl.load(parts_ptr + tl.cast(split, tl.int64) * n_rows + rows, valid, 0.0)
    tl.store(out_ptr + rows, total, valid)


@triton.jit
def cached_first(
    acc_ptr,  # [R, C]
    bias_ptr,  # [V], from the tile's first column on
    top_ptr,  # [R]
    mass_ptr,  # [R]
    slope_ptr,  # [R]
    second_ptr,  # [R]
    n_rows,
    stride,
    used,
    alpha,
    cap,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Add a tile of products, still in cache, to the running numbers of its rows."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = rows < n_rows
    top = tl.load(top_ptr + rows, valid, FLOOR)
    mass = tl.load(mass_ptr + rows, valid, 0.0)
    slope = tl.load(slope_ptr + rows, valid, 0.0)
    second = tl.load(second_ptr + rows, valid, FLOOR)
    for start in range(0, used, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        at = rows.to(tl.int64)[:, None] * stride + columns[None, :]
        acc = tl.load(acc_ptr + at, valid[:, None] & (columns < used)[None, :], 0.0)
        x = to_bits(acc, columns, bias_ptr, alpha, cap, used, HAS_BIAS, HAS_CAP, True, True)
        top, mass, slope, second = absorb(top, mass, slope, second, x)
    tl.store(top_ptr + rows, top, valid)
    tl.store(mass_ptr + rows, mass, valid)
    tl.store(slope_ptr + rows, slope, valid)
    tl.store(second_ptr + rows, second, valid)


@triton.jit
def cached_second(
    acc_ptr,  # [K * T, C]
    bias_ptr,  # [V], from the tile's first column on
    norm_ptr,  # [K * T], log-sum-exp in bits
    out_ptr,  # [T]
    tokens,
    stride,
    used,
    alpha,
    cap,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Add a tile of products, still in cache, to the mutual information of a token."""
    token = tl.program_id(0)
    number = tl.arange(0, K_PAD)
    real = number < K
    row = number * tokens + token
    norm = tl.load(norm_ptr + row, real, -FLOOR)
    total = 0.0
    for start in range(0, used, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        at = row.to(tl.int64)[:, None] * stride + columns[None, :]
        acc = tl.load(acc_ptr + at, real[:, None] & (columns < used)[None, :], 0.0)
        x = to_bits(acc, columns, bias_ptr, alpha, cap, used, HAS_BIAS, HAS_CAP, True, True)
        logp = x - norm[:, None]  # [K_PAD, BLOCK_V]
        p = tl.exp2(logp)
        mean = tl.sum(p, 0) / K
        log_mean = tl.log2(tl.where(mean < TINY, TINY, mean))
        total += tl.sum(tl.sum(p * (logp - log_mean[None, :]), 0), 0) / K
    tl.store(out_ptr + token, tl.load(out_ptr + token) + total)
