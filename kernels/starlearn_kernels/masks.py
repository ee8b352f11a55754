"""Dropout masks from a counter, with the same bits on every device, and the masked LoRA product.

A mask is a pure function of its keys: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011) in integer arithmetic. It does not depend on the batch, its order or a
generator's state. Two dropout rates share their random numbers.
"""

import hashlib

import torch
from torch import Tensor

from starlearn_kernels.checks import check_integer, check_tensor

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
# Last counter word, which separates the uses of the generator.
TIED, PER_TOKEN = 1, 2


def feature_mask(
    *,
    seed: int,
    n_passes: int,
    layer: int,
    module: int | str,
    n_features: int,
    p: float,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return dropout masks shared by all tokens and items, one per pass, layer and module.

    Parameters
    ----------
    seed : int
        0 to 2^64 - 1.
    n_passes : int
        K. More passes do not change the first ones.
    layer : int
    module : int or str
        Number or name of the projection, such as "q_proj".
    n_features : int
        D, the input features of the LoRA layer.
    p : float
        Probability that a feature is dropped, 0 <= p < 1.
    device, dtype
        Of the result; the pattern is the same on all of them.

    Returns
    -------
    Tensor [K, D]
        0 or 1 / (1 - p), rounded to ``dtype``.
    """
    threshold = _check(seed, n_passes, layer, n_features, p, dtype)
    groups = torch.arange(-(-n_features // 4), device=device)  # [D / 4]
    kept = []
    for number in range(n_passes):
        key = _key(seed, number, layer, module, TIED)
        words = philox((groups, 0, 0, 0), key)  # 4 x [D / 4]
        kept.append(torch.stack(words, -1).flatten(-2)[:n_features] >= threshold)
    return _scaled(torch.stack(kept), p, dtype)


def token_mask(
    *,
    seed: int,
    n_passes: int,
    layer: int,
    module: int | str,
    n_features: int,
    p: float,
    item_keys: Tensor,
    positions: Tensor,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return dropout masks per token, keyed by item and position instead of by batch.

    Parameters
    ----------
    seed, n_passes, layer, module, n_features, p, device, dtype
        As for `feature_mask`.
    item_keys : Tensor [B] int64
        Fixed number of each item, such as its index in the pool.
    positions : Tensor [B, T] int64
        Position of each token in its item, 0 to 2^32 - 1; any number for padding.

    Returns
    -------
    Tensor [K, B, T, D]
        0 or 1 / (1 - p), rounded to ``dtype``.
    """
    threshold = _check(seed, n_passes, layer, n_features, p, dtype)
    check_tensor("item_keys", item_keys, "[B]", (1,))
    check_tensor("positions", positions, "[B, T]", (2,))
    for name, value in (("item_keys", item_keys), ("positions", positions)):
        if value.dtype != torch.int64:
            raise TypeError(f"`{name}` must be int64, got {value.dtype}")
    if len(positions) != len(item_keys):
        raise ValueError(
            f"`positions` must have shape [B, T] with B = {len(item_keys)} as in `item_keys`, "
            f"got {list(positions.shape)}"
        )
    groups = torch.arange(-(-n_features // 4), device=device)  # [D / 4]
    position = positions.to(device)[..., None] & WORD  # [B, T, 1]
    item = item_keys.to(device)[:, None, None]  # [B, 1, 1]
    counter = (groups, position, item & WORD, (item >> 32) & WORD)
    batch, tokens = positions.shape
    out = torch.empty((n_passes, batch, tokens, n_features), dtype=dtype, device=device)
    for number in range(n_passes):
        words = philox(counter, _key(seed, number, layer, module, PER_TOKEN))  # 4 x [B, T, D / 4]
        kept = torch.stack(words, -1).flatten(-2)[..., :n_features] >= threshold
        out[number] = _scaled(kept, p, dtype)
    return out


def lora_product(x: Tensor, A: Tensor, mask: Tensor) -> Tensor:
    """Return the first LoRA product of K stacked passes with shared masks, (x * mask) A^T.

    Parameters
    ----------
    x : Tensor [K, B, T, D]
        Inputs of the K passes (any number of axes between the first and the last).
    A : Tensor [r, D]
    mask : Tensor [K, D]
        From `feature_mask`.

    Returns
    -------
    Tensor [K, B, T, r]

    Notes
    -----
    (x * m) A^T = x (A * m)^T, so the mask multiplies A, r x D numbers, instead of x, B x T x D
    numbers. One masked A is in memory at a time. K = 8 of them would take 1.2 GB in a model of 7
    billion parameters.
    """
    check_tensor("A", A, "[r, D]", (2,))
    check_tensor("mask", mask, "[K, D]", (2,))
    if not isinstance(x, Tensor):
        raise TypeError(f"`x` must be a torch.Tensor [K, B, T, D], got {type(x).__name__}")
    if x.dim() < 2 or x.shape[0] != mask.shape[0] or x.shape[-1] != mask.shape[1]:
        raise ValueError(
            f"`x` must have shape [K, B, T, D] with K, D = {list(mask.shape)} as in `mask`, "
            f"got {list(x.shape)}"
        )
    if A.shape[1] != mask.shape[1]:
        raise ValueError(
            f"`A` must have shape [r, D] with D = {mask.shape[1]} as in `mask`, got {list(A.shape)}"
        )
    parts = [torch.nn.functional.linear(xk, A * m) for xk, m in zip(x, mask, strict=True)]
    return torch.stack(parts)  # [K, B, T, r]


Counter = tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int]


def philox(counter: Counter, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return four words of 32 bits by Philox-4x32-10 from four counter words and a key.

    Words are in 0 .. 2^32 - 1. Those of the counter broadcast together, and at least one is a
    tensor; those that are returned are int64 tensors of the broadcast shape.
    """
    device = next(word.device for word in counter if isinstance(word, Tensor))
    words = [torch.as_tensor(word, dtype=torch.int64, device=device) for word in counter]
    c0, c1, c2, c3 = torch.broadcast_tensors(*words)
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _wide_product(c0, MULTIPLIERS[0])
        high1, low1 = _wide_product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3


def _wide_product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Return high and low word of a 32 x 32 bit product; no intermediate exceeds 2^63."""
    upper = a * (b >> 16)  # < 2^48
    lower = a * (b & 0xFFFF)  # < 2^48
    middle = upper + (lower >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (lower & 0xFFFF)


def _key(seed: int, number: int, layer: int, module: int | str, use: int) -> tuple[int, int]:
    """Return a key per pass, layer and module, by the generator with the seed as its key."""
    if isinstance(module, str):
        # Python's own hash of a string differs between processes.
        digest = hashlib.blake2b(module.encode(), digest_size=4).digest()
        word, use = int.from_bytes(digest, "little"), use + 2  # names and numbers never share a key
    else:
        word = check_integer("module", module, 0, 2**32)
    counter = (torch.tensor(number), layer, word, use)
    first, second, _, _ = philox(counter, (seed & WORD, seed >> 32))
    return int(first), int(second)


def _check(
    seed: object, n_passes: object, layer: object, n_features: object, p: object, dtype: object
) -> int:
    """Check the shared arguments; return the threshold below which a word drops its feature."""
    check_integer("seed", seed, 0, 2**64)
    check_integer("n_passes", n_passes, 1, 2**31)
    check_integer("layer", layer, 0, 2**32)
    check_integer("n_features", n_features, 1, 2**31)
    if isinstance(p, bool) or not isinstance(p, int | float):
        raise TypeError(f"`p` must be a number with 0 <= p < 1, got {type(p).__name__}")
    if not 0 <= p < 1:
        raise ValueError(f"`p` must be a number with 0 <= p < 1, got {p!r}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"`dtype` must be a floating point torch.dtype, got {dtype!r}")
    return round(p * 2**32)


def _scaled(kept: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    return kept.to(dtype) * torch.tensor(1 / (1 - p), dtype=dtype, device=kept.device)
