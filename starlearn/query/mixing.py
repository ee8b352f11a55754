"""Base and full uncertainty on one scale, and the dynamic mix of both."""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Values = NDArray[np.float64]


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
    if reduce == "mean":
        return sums / n_tokens
    if reduce == "sum":
        return sums
    centred = n_tokens - n_tokens.mean()
    spread = float((centred**2).sum())
    slope = float((centred * sums).sum()) / spread if spread > 0 else 0.0
    return np.asarray(sums - sums.mean() - slope * centred)


def normalised(values: Values, how: str) -> Values:
    """Bring uncertainties of a pool to a scale that base and full model share.

    Parameters
    ----------
    values : ndarray of shape (m,)
    how : {"rank", "zscore", "none"}
        "rank": position within the pool from 0 to 1, equal values sharing their mean position.
    """
    if how == "rank":
        return np.asarray(rankdata(values) - 1) / max(len(values) - 1, 1)
    if how == "zscore":
        spread = values.std()
        # Rounding alone gives equal values a spread; it must not be blown up to a signal.
        if spread <= 1e-9 * max(1.0, float(np.abs(values).max(initial=0.0))):
            return np.zeros_like(values)
        return np.asarray((values - values.mean()) / spread)
    return values


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
    """
    return base_weight * normalised(base, how) + (1 - base_weight) * normalised(full, how)
