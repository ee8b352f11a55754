"""What is computed from finished runs: paired tests, intervals, calibration; pure functions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starlearn.errors import InputError

Curve = Sequence[tuple[float, float]]
"""Points (number of labels, accuracy) of one run or of a mean of runs, by label count."""

MARGIN = 0.005
"""Half a point of accuracy: what "not worse" may lose."""
LEAST_SEEDS = 10
"""With fewer paired seeds nothing is said, whatever the interval."""
N_BINS = 15
EXACT_UP_TO = 40
"""Differences whose sign flips are all counted, 2^40; of more, a random sample is."""
N_RESAMPLES = 99_999


def labels_to_reach(curve: Curve, target: float) -> float:
    """Return the number of labels at which a curve first reaches an accuracy.

    Between two points the curve is a line; infinite where it never gets there.

    Examples
    --------
    >>> labels_to_reach([(50, 0.2), (100, 0.6)], 0.5)
    87.5
    """
    before: tuple[float, float] | None = None
    for n_labels, accuracy in curve:
        if accuracy >= target:
            if before is None or accuracy == before[1]:
                return float(n_labels)
            share = (target - before[1]) / (accuracy - before[1])
            return float(before[0] + share * (n_labels - before[0]))
        before = (n_labels, accuracy)
    return math.inf


def speed_up(curve: Curve, reference: Curve) -> float:
    """Return how many times fewer labels a curve needs for the final accuracy of a reference.

    2 stands for half the labels; 0 where the accuracy is never reached.
    """
    last, target = reference[-1]
    return float(last) / labels_to_reach(curve, target)


def ripl(area: float, reference: float) -> float:
    """Return the relative improvement over a reference, RIPL = (a - r) / (1 - r).

    The share of what the reference leaves to gain; NaN where that is nothing.
    """
    return (area - reference) / (1 - reference) if reference < 1 else math.nan


def sign_flip_test(differences: ArrayLike, *, random_state: int = 0) -> float:
    """Return the two-sided p-value of a paired sign-flip permutation test of mean 0.

    Parameters
    ----------
    differences : array-like of shape (S,)
        One difference a seed.
    random_state : int
        Used above 40 seeds only, where the flips are sampled.

    Returns
    -------
    float
        Exact up to 40 seeds: twice the share of the 2^S sign patterns whose sum is at least as far
        on the same side, at most 1. With S seeds it cannot be below 2^(1 - S): 5 seeds never reach
        0.05.

    Notes
    -----
    The sums of one half of the seeds are sorted, and those of the other are looked up in them: 2^20
    patterns in a millisecond, where scipy.stats.permutation_test goes through them one by one.
    """
    values = checked(differences)
    if len(values) > EXACT_UP_TO:
        return _sampled_flips(values, random_state)
    half = len(values) // 2
    left, right = _signed_sums(values[:half]), np.sort(_signed_sums(values[half:]))
    observed = abs(values.sum())
    # Sums that are equal on paper differ in their last bits: they count as reaching it.
    reach = observed - left - 1e-12 * np.abs(values).sum()
    at_least = len(right) * len(left) - int(np.searchsorted(right, reach, "left").sum())
    return min(1.0, 2.0 * at_least / (len(left) * len(right)))


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums under all sign patterns, shape [2^length]."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _sampled_flips(values: NDArray[np.float64], random_state: int) -> float:
    from scipy.stats import permutation_test

    found = permutation_test(
        (values,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=N_RESAMPLES,
        batch=2**12,
        rng=np.random.default_rng(random_state),
    )
    return float(found.pvalue)


def mean_interval(
    differences: ArrayLike, confidence: float = 0.95, *, method: str = "t", random_state: int = 0
) -> tuple[float, float]:
    """Return a confidence interval of the mean of paired differences.

    Parameters
    ----------
    differences : array-like of shape (S,)
        At least 2.
    confidence : float
    method : {"t", "bca"}
        Student's t, or the bias-corrected and accelerated bootstrap (9,999 resamples).
    random_state : int
        Of the bootstrap.
    """
    from scipy.stats import bootstrap, ttest_1samp

    values = checked(differences)
    if len(values) < 2:
        raise InputError("an interval takes at least 2 paired seeds, got 1; run more seeds")
    if np.ptp(values) <= 1e-9 * np.abs(values).max():  # equal but for their last bits
        return float(values.mean()), float(values.mean())
    if method == "bca":
        found: Any = bootstrap(
            (values,),
            np.mean,
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(random_state),
        ).confidence_interval
    elif method == "t":
        found = ttest_1samp(values, 0.0).confidence_interval(confidence)
    else:
        raise InputError(f"method must be 't' or 'bca', got {method!r}")
    return float(found.low), float(found.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given.

    Notes
    -----
    Holm 1979: the i-th smallest of m is multiplied by m - i + 1, and made no smaller than those
    before it. The chance of any false claim stays below the level, whatever depends on whatever.

    Examples
    --------
    >>> holm([0.04, 0.01])
    [0.04, 0.02]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values)[order] * factors))
    result = np.empty(len(order))
    result[order] = adjusted
    return [float(p) for p in result]


@dataclass(frozen=True)
class Contrast:
    """Two arms compared over the seeds that both have finished."""

    task: str
    arm: str
    against: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    """AULC of the arm less that of the other, one a seed."""
    mean: float
    low: float
    high: float
    """95 % t-interval of the mean."""
    bca: tuple[float, float]
    """The same by the BCa bootstrap."""
    p: float

    @property
    def verdict(self) -> str:
        """What the interval allows to say; fixed before the first run."""
        if len(self.seeds) < LEAST_SEEDS:
            return "too few seeds"
        return verdict(self.low, self.high)


def verdict(low: float, high: float, margin: float = MARGIN) -> str:
    """Return "better", "not worse", "worse" or "undecided" for an interval of a difference.

    "better" when it lies above 0, "worse" when it lies below 0, "not worse" when it lies above
    -margin.
    """
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "not worse" if low > -margin else "undecided"


def contrast(
    task: str, arm: str, against: str, areas: Mapping[str, Mapping[int, float]]
) -> Contrast | None:
    """Compare two arms by the seeds that both have; None where those are fewer than 2.

    Parameters
    ----------
    areas : mapping of str to mapping of int to float
        AULC by arm and seed.
    """
    one, other = areas.get(arm, {}), areas.get(against, {})
    seeds = tuple(sorted(set(one) & set(other)))
    if len(seeds) < 2:
        return None
    differences = tuple(one[seed] - other[seed] for seed in seeds)
    low, high = mean_interval(differences)
    return Contrast(
        task,
        arm,
        against,
        seeds,
        differences,
        float(np.mean(differences)),
        low,
        high,
        mean_interval(differences, method="bca"),
        sign_flip_test(differences),
    )


def reliability(
    confidence: ArrayLike, correct: ArrayLike, n_bins: int = N_BINS
) -> dict[str, list[float]]:
    """Sort answers by confidence into bins of equal width.

    Parameters
    ----------
    confidence : array-like of shape (q,)
        Probability of the given answer, from 0 to 1.
    correct : array-like of shape (q,)
    n_bins : int
        The upper edge belongs to a bin, the lower one does not, but for 0.

    Returns
    -------
    dict of str to list of length n_bins
        ``count``, ``confidence`` (sum) and ``correct`` (count) of each bin.
    """
    chance, right = np.asarray(confidence, float), np.asarray(correct, bool)
    if chance.size == 0 or not (np.isfinite(chance).all() and 0 <= chance.min() <= chance.max()):
        raise InputError("confidences must be numbers from 0 to 1, at least one")
    place = np.clip(np.ceil(np.minimum(chance, 1.0) * n_bins).astype(int) - 1, 0, n_bins - 1)
    return {
        name: [round(float(value), 9) for value in np.bincount(place, weights, n_bins)]
        for name, weights in (("count", None), ("confidence", chance), ("correct", right))
    }


def calibration_error(bins: Mapping[str, Sequence[float]]) -> float:
    """Return the expected calibration error of bins: sum_b (n_b / q) |accuracy_b - confidence_b|.

    Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    count = np.asarray(bins["count"], float)
    gap = np.abs(np.asarray(bins["correct"], float) - np.asarray(bins["confidence"], float))
    return float(gap.sum() / count.sum())


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Return the rank correlation of two samples; None where one of them does not vary."""
    from scipy.stats import spearmanr

    x, y = np.asarray(a, float), np.asarray(b, float)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return round(float(spearmanr(x, y).statistic), 6)


def checked(differences: ArrayLike) -> NDArray[np.float64]:
    """Return differences as an array; InputError for none, or for one that is not finite."""
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise InputError(f"give one finite difference a seed, at least one; got {values!r:.60}")
    return values
