"""Base and full uncertainty on one scale, and the dynamic mix of both, piece by piece.

Sums over a pool are exact (`math.fsum`), so that no number depends on the order of the pool. Each
step needs the memory of one piece, and ranking a sorted copy of the column.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.query.columns import column, copy_of

Values = NDArray[np.float64]
Transform = Callable[[Values], Values]

PIECE = 65536
"""Numbers per piece."""


def pieces(length: int) -> Iterator[slice]:
    """Return the slices that cut 0 .. length - 1 into pieces."""
    return (slice(start, min(start + PIECE, length)) for start in range(0, length, PIECE))


def exact_sum(parts: Iterable[NDArray[np.floating[Any]]]) -> float:
    """Return the sum of all numbers of all parts, rounded once."""
    return math.fsum(value for part in parts for value in part.tolist())


def per_answer(sums: Values, n_tokens: NDArray[np.int64], reduce: str) -> Values:
    """Return one number per item from sums over its answer's tokens, both [m].

    "residual" subtracts the prediction of a linear regression on the number of tokens. The
    published code uses sums. Their rank correlation with the length of the answer is about 0.85
    on GSM8K, so they select long answers rather than uncertain ones.
    """
    m, result = len(sums), copy_of(sums)
    if reduce == "mean":
        for part in pieces(m):
            result[part] /= n_tokens[part]
    elif reduce == "residual":
        mean_length = int(n_tokens.sum()) / m
        mean_sum = exact_sum(sums[p] for p in pieces(m)) / m
        spread = exact_sum((n_tokens[p] - mean_length) ** 2 for p in pieces(m))
        shared = exact_sum((n_tokens[p] - mean_length) * sums[p] for p in pieces(m))
        slope = shared / spread if spread > 0 else 0.0
        for part in pieces(m):
            result[part] -= mean_sum + slope * (n_tokens[part] - mean_length)
    return result


def scale_of(values: Values, how: str) -> Transform:
    """Return the function that maps the uncertainties of a pool to a scale shared by both models.

    "rank" is the position within the pool from 0 to 1. Equal values get their mean position.
    """
    m = len(values)
    if how == "rank":
        ordered = copy_of(values)
        ordered.sort()

        def rank(some: Values) -> Values:
            below = np.searchsorted(ordered, some, "left")
            upto = np.searchsorted(ordered, some, "right")
            return np.asarray((below + upto - 1) / 2 / max(m - 1, 1))

        return rank
    if how == "zscore":
        mean = exact_sum(values[p] for p in pieces(m)) / m
        spread = math.sqrt(exact_sum((values[p] - mean) ** 2 for p in pieces(m)) / m)
        largest = max(float(np.abs(values[p]).max()) for p in pieces(m))
        # Equal values have a small spread from rounding, which must not become a signal.
        if spread <= 1e-9 * max(1.0, largest):
            return np.zeros_like
        return lambda some: np.asarray((some - mean) / spread)
    return np.asarray


def mixed(base: Values | None, full: Values, base_weight: float, how: str) -> Values:
    """Return the dynamic uncertainty of each item, [m].

    u = lambda(t) u_b + (1 - lambda(t)) u_f, arXiv 2403.01165, equation 5. Both terms are brought to
    one scale first (the published code scales one of them). `base` may be None where its weight
    lambda(t) is 0.
    """
    scale_full, result = scale_of(full, how), column(len(full))
    for part in pieces(len(full)):
        result[part] = (1 - base_weight) * scale_full(full[part])
    if base is not None and base_weight > 0:
        scale_base = scale_of(base, how)
        for part in pieces(len(base)):
            result[part] += base_weight * scale_base(base[part])
    return result
