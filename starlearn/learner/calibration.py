"""Temperature scaling of the probabilities of choices."""

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.errors import InputError

COLDEST, HOTTEST = 0.05, 20.0
"""Bounds of a temperature. For a set without errors the best one is not finite."""

Probabilities = NDArray[np.float64]


def tempered(probabilities: Probabilities, temperature: float) -> Probabilities:
    """Return probabilities [m, C] at temperature T: p^(1/T), normalised.

    Above 1 the model is less certain, below 1 more. The likeliest choice stays the same.
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
    """Return the temperature from 0.05 to 20 that maximises the likelihood of the right choices.

    `probabilities` [N, C] are of items that the model was not trained on, and `columns` [N] the
    index of the right choice of each.
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


def folds(
    items: Sequence[Mapping[str, str]], n_splits: Any, seed: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield the indices to train on and to predict, once per split.

    Items with the same text are never in both.
    """
    from sklearn.model_selection import KFold
    from sklearn.utils.validation import check_scalar

    numbers: dict[Any, int] = {}
    group = np.array([numbers.setdefault(tuple(item.items()), len(numbers)) for item in items])
    try:
        check_scalar(n_splits, "n_splits", Integral, min_val=2, max_val=len(numbers))
    except (TypeError, ValueError) as error:
        sizes = f"There are {len(items)} labels, of {len(numbers)} distinct items."
        raise InputError(f"{error} {sizes}") from None
    # Not stratified: a class with a single label is common and needs no warning.
    split = KFold(int(n_splits), shuffle=True, random_state=seed).split(np.zeros(len(numbers)))
    for train, judge in split:
        yield np.flatnonzero(np.isin(group, train)), np.flatnonzero(np.isin(group, judge))


def _logs(probabilities: Probabilities) -> Probabilities:
    return np.asarray(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)))
