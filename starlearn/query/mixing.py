"""Base and full uncertainty on one scale, and the dynamic mix of both, piece by piece.

Sums over a pool are exact (`math.fsum`), so that no number depends on the order of the pool; and no
step needs more memory than a piece, but for one sorted copy of a column that is ranked.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.query.columns import copy_of, empty_like

Values = NDArray[np.float64]
Transform = Callable[[Values], Values]

PIECE = 65536
"""Numbers that are worked on at a time."""


def pieces(length: int) -> Iterator[slice]:
    """Cut 0 .. length - 1 into pieces."""
    return (slice(start, min(start + PIECE, length)) for start in range(0, length, PIECE))


def exact_sum(parts: Iterable[NDArray[np.floating[Any]]]) -> float:
    """Sum all numbers of all parts, rounded once."""
    return math.fsum(value for part in parts for value in part.tolist())


def per_answer(sums: Values, n_tokens: NDArray[np.int64], reduce: str) -> Values:
    """Bring sums over answer tokens to one number per item.

    Parameters
    ----------
    sums : ndarray of shape (m,)
    n_tokens : ndarray of shape (m,)
        Scored tokens of each answer, at least 1.
    reduce : {"mean", "sum", "residual"}
        "residual" takes off what a linear regression on the number of tokens explains.

    Returns
    -------
    ndarray of shape (m,)

    Notes
    -----
    The published code takes sums, whose rank correlation with the length of the answer is about
    0.85 on GSM8K: it asks for long answers, not for uncertain ones.
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
    """Return what brings uncertainties of a pool to a scale that base and full model share.

    Parameters
    ----------
    values : ndarray of shape (m,)
        All values of the pool.
    how : {"rank", "zscore", "none"}
        "rank": position within the pool from 0 to 1, equal values sharing their mean position.

    Returns
    -------
    callable
        From some of the values to their place on the scale.
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
        # Rounding alone gives equal values a spread; it must not be blown up to a signal.
        if spread <= 1e-9 * max(1.0, largest):
            return np.zeros_like
        return lambda some: np.asarray((some - mean) / spread)
    return np.asarray


def mixed(base: Values, full: Values, base_weight: float, how: str) -> Values:
    """Return the dynamic uncertainty of each item.

    u = lambda(t) u_b + (1 - lambda(t)) u_f, arXiv 2403.01165, equation 5, with both sides
    brought to one scale first (the published code scales one side only).

    Parameters
    ----------
    base, full : ndarray of shape (m,)
    base_weight : float
        lambda(t), from 0 to 1.
    how : {"rank", "zscore", "none"}

    Returns
    -------
    ndarray of shape (m,)
        Where base and full are kept in a file, so is the result.
    """
    scale_base, scale_full = scale_of(base, how), scale_of(full, how)
    result = empty_like(base)
    for part in pieces(len(base)):
        result[part] = base_weight * scale_base(base[part])
        result[part] += (1 - base_weight) * scale_full(full[part])
    return result
