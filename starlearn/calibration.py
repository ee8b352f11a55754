"""Temperature: one number that brings the probabilities of choices in line with their errors."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.errors import InputError

COLDEST, HOTTEST = 0.05, 20.0
"""Bounds of a temperature; a set whose answers are all right has no finite best one."""

Probabilities = NDArray[np.float64]


def tempered(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Return probabilities at another temperature: p^(1/T), normalised.

    Parameters
    ----------
    probabilities : ndarray of shape (m, C)
    temperature : float
        T; above 1 less certain, below 1 more. The likeliest choice stays the same.

    Returns
    -------
    ndarray of shape (m, C)

    Notes
    -----
    Guo et al. 2017 (arXiv 1706.04599), section 4.2: softmax(z / T), with z known up to a constant.

    Examples
    --------
    >>> tempered(np.array([[0.8, 0.2]]), 2.0).round(3).tolist()
    [[0.667, 0.333]]
    """
    if temperature == 1:
        return probabilities
    from scipy.special import softmax

    return np.asarray(softmax(_logs(probabilities) / temperature, axis=1))


def best_temperature(probabilities: Probabilities, columns: NDArray[np.intp]) -> float:
    """Return the temperature at which the given choices are likeliest.

    Parameters
    ----------
    probabilities : ndarray of shape (N, C)
        Of items that the model was not trained on.
    columns : ndarray of shape (N,)
        The right choice of each.

    Returns
    -------
    float
        From 0.05 to 20.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logs, rows = _logs(probabilities), np.arange(len(columns))

    def loss(log_temperature: float) -> float:
        tempered_logs = log_softmax(logs / math.exp(log_temperature), axis=1)
        return float(-tempered_logs[rows, columns].mean())

    # Convex in 1/T, so it has one minimum in log T as well.
    bounds = (math.log(COLDEST), math.log(HOTTEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def folds(n_labels: int, n_splits: Any, seed: int) -> Iterator[tuple[Any, Any]]:
    """Yield the labels to train on and those to judge, once for each split.

    Raises
    ------
    InputError
        When `n_splits` is no whole number from 2 to the number of labels.
    """
    from sklearn.model_selection import KFold
    from sklearn.utils.validation import check_scalar

    try:
        check_scalar(n_splits, "n_splits", int, min_val=2, max_val=n_labels)
    except (TypeError, ValueError) as error:
        raise InputError(f"{error} There are {n_labels} labels.") from None
    # Not by class: a class with one label is common, and nothing to warn about.
    yield from KFold(n_splits, shuffle=True, random_state=seed).split(np.zeros(n_labels))


def _logs(probabilities: Probabilities) -> Probabilities:
    return np.asarray(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)))
