"""Statistics of finished runs: learning curves, paired tests, intervals and calibration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starlearn.errors import InputError

Curve = Sequence[tuple[float, float]]
"""Points (number of labels, accuracy) of one run or of a mean of runs, by label count."""

MARGIN = 0.005
"""The largest loss of accuracy that counts as "not worse": half a percentage point."""
LEAST_SEEDS = 10
"""With fewer paired seeds there is no verdict."""
N_BINS = 15
EXACT_UP_TO = 40
"""Up to this number of differences, all 2^S sign flips are counted; above it, a sample."""
N_RESAMPLES = 99_999


def aulc(records: Sequence[Mapping[str, Any]]) -> float:
    """Return the area under the learning curve: accuracy averaged over the number of labels.

    Parameters
    ----------
    records : sequence of dict
        Rounds of one arm, with ``n_labels`` and ``accuracy``.

    Returns
    -------
    float
        The trapezoid of accuracy over labels, divided by the range of labels. With one round it
        is the accuracy.

    Examples
    --------
    >>> aulc([{"n_labels": 10, "accuracy": 0.2}, {"n_labels": 30, "accuracy": 0.6}])
    0.4
    """
    points = [(record["n_labels"], record["accuracy"]) for record in records]
    if len(points) == 1:
        return float(points[0][1])
    area = sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(points))
    return float(area / (points[-1][0] - points[0][0]))


def labels_to_reach(curve: Curve, target: float) -> float:
    """Return the number of labels at which a curve first reaches an accuracy.

    The curve is linear between two points. The result is infinite where the curve stays below.

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
    """Return the factor by which a curve needs fewer labels for a reference's final accuracy.

    2 means half the labels. The result is 0 where the accuracy is never reached.
    """
    last, target = reference[-1]
    return float(last) / labels_to_reach(curve, target)


def ripl(area: float, reference: float) -> float:
    """Return the relative improvement over a reference, RIPL = (a - r) / (1 - r).

    It is the share of the reference's errors that are gone; NaN where the reference has none.
    """
    return (area - reference) / (1 - reference) if reference < 1 else math.nan


def sign_flip_test(differences: ArrayLike) -> float:
    """Return the two-sided p-value of a paired sign-flip permutation test of mean 0.

    It is exact up to S = 40 differences: twice the share of the 2^S sign patterns whose sum is at
    least as large as the observed one, at most 1. It is at least 2^(1 - S), so 5 seeds never reach
    0.05. Above 40 the patterns are sampled.

    The sums of one half of the seeds are sorted, and those of the other half are looked up in
    them. This takes a millisecond for 2^20 patterns, which scipy.stats.permutation_test visits
    one by one.
    """
    values = checked(differences)
    if len(values) > EXACT_UP_TO:
        return _sampled_flips(values)
    half = len(values) // 2
    left, right = _signed_sums(values[:half]), np.sort(_signed_sums(values[half:]))
    observed = abs(values.sum())
    # Rounding can separate sums that are equal in exact arithmetic: the tolerance counts them.
    reach = observed - left - 1e-12 * np.abs(values).sum()
    at_least = len(right) * len(left) - int(np.searchsorted(right, reach, "left").sum())
    return min(1.0, 2.0 * at_least / (len(left) * len(right)))


def _signed_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums under all sign patterns, shape [2^length]."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _sampled_flips(values: NDArray[np.float64]) -> float:
    from scipy.stats import permutation_test

    found = permutation_test(
        (values,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=N_RESAMPLES,
        batch=2**12,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def mean_interval(differences: ArrayLike, *, method: str = "t") -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of at least 2 paired differences.

    The method is Student's "t", or "bca": the bias-corrected and accelerated bootstrap (9,999
    resamples).
    """
    from scipy.stats import bootstrap, ttest_1samp

    values = checked(differences)
    if len(values) < 2:
        raise InputError("an interval needs at least 2 paired seeds, got 1; run more seeds")
    if np.ptp(values) <= 1e-9 * np.abs(values).max():  # equal up to rounding
        return float(values.mean()), float(values.mean())
    if method == "bca":
        rng = np.random.default_rng(0)
        found: Any = bootstrap((values,), np.mean, method="BCa", rng=rng).confidence_interval
    elif method == "t":
        found = ttest_1samp(values, 0.0).confidence_interval()
    else:
        raise InputError(f"method must be 't' or 'bca', got {method!r}")
    return float(found.low), float(found.high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the order given.

    Holm 1979: the i-th smallest of m p-values is multiplied by m - i + 1, and made at least as
    large as those before it. The probability of any false claim stays below the level under any
    dependence.

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
    """Comparison of two arms over the seeds that both have finished."""

    task: str
    arm: str
    against: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    """AULC of the arm minus AULC of the other arm, one per seed."""
    mean: float
    low: float
    high: float
    """95 % t-interval of the mean."""
    bca: tuple[float, float]
    """95 % interval of the mean by the BCa bootstrap."""
    p: float

    @property
    def verdict(self) -> str:
        """The conclusion from the interval; its rule was fixed before the first run."""
        if len(self.seeds) < LEAST_SEEDS:
            return "too few seeds"
        return verdict(self.low, self.high)


def verdict(low: float, high: float) -> str:
    """Return "better", "not worse", "worse" or "undecided" for an interval of a difference.

    "better" when it lies above 0, "worse" when it lies below 0, "not worse" when it lies above
    -MARGIN.
    """
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "not worse" if low > -MARGIN else "undecided"


def contrast(
    task: str, arm: str, against: str, areas: Mapping[str, Mapping[int, float]]
) -> Contrast | None:
    """Compare two arms, by their AULC by arm and seed; None with fewer than 2 common seeds."""
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
    """Sort q answers by confidence into bins of equal width: count, sum of confidence, n correct.

    A bin contains its upper edge. Only the first bin contains its lower edge, 0.
    """
    chance, right = np.asarray(confidence, float), np.asarray(correct, bool)
    # A mean of log-probabilities can exceed 1 by rounding. NaN fails the comparison.
    in_range = (chance >= 0) & (chance <= 1 + 1e-9)
    if not chance.size or chance.shape != right.shape or not in_range.all():
        raise InputError(
            "confidence and correct must have one value per answer, confidence from 0 to 1; got "
            f"{chance.size} and {right.size} values"
        )
    chance = np.minimum(chance, 1.0)
    place = np.clip(np.ceil(chance * n_bins).astype(int) - 1, 0, n_bins - 1)
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
    """Return the rank correlation of two samples; None where one of them is constant."""
    from scipy.stats import spearmanr

    x, y = np.asarray(a, float), np.asarray(b, float)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return round(float(spearmanr(x, y).statistic), 6)


def checked(differences: ArrayLike) -> NDArray[np.float64]:
    """Return differences as an array; raise InputError for none, or for a value not finite."""
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise InputError(f"give one finite difference per seed, at least one; got {values!r:.60}")
    return values
