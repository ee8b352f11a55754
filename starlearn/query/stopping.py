"""Stopping rules: advice from the history of the rounds, each rule with its source."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from starlearn.errors import InputError


@dataclass(frozen=True)
class RoundResult:
    """Results of one round that the rules use; None where not measured."""

    n_labels: int
    """Number of labels that the round's model was trained on."""
    accuracy: float | None = None
    """Accuracy on a fixed test set, from 0 to 1."""
    agreement: float | None = None
    """Agreement of its predictions with those of the round before, by :func:`agreement`."""
    uncertainty: float | None = None
    """Mean or maximum over the pool, not normalised: ranks have the same mean in every round."""
    n_pool: int | None = None
    """Number of unlabelled items after the round's batch."""
    budget_left: float | None = None
    """Rest of the budget."""


@dataclass(frozen=True)
class StopAdvice:
    """Advice of one rule."""

    stop: bool
    reason: str
    """Reason for stopping or for continuing."""
    rule: str
    """The rule's name in :data:`RULES`."""
    value: float
    """Number that was compared with the rule's level; NaN while there is none."""


def rounds_of(
    records: Sequence[Mapping[str, Any]],
    *,
    accuracy: Sequence[float | None] = (),
    agreement: Sequence[float | None] = (),
    budget_left: Sequence[float | None] = (),
) -> list[RoundResult]:
    """Return the results of a learner's rounds, with measurements of its user.

    Parameters
    ----------
    records : sequence of dict
        ``learner.rounds_``.
    accuracy, agreement, budget_left : sequences of float or None
        One per round, from the first on. Missing ones at the end are unknown.

    Returns
    -------
    list of RoundResult

    Examples
    --------
    >>> query = {"n_pool": 900, "n_instances": 50}
    >>> found = rounds_of([{"n_labels": 50, "query": query}], accuracy=[0.6])
    >>> found[0].n_pool, found[0].accuracy
    (850, 0.6)
    """
    columns = [[*values, *[None] * len(records)] for values in (accuracy, agreement, budget_left)]
    rounds = []
    for record, *measured in zip(records, *columns, strict=False):
        query = record.get("query", {})
        rounds.append(
            RoundResult(
                n_labels=record["n_labels"],
                accuracy=measured[0],
                agreement=measured[1],
                uncertainty=query.get("mean_full"),
                n_pool=query["n_pool"] - query["n_instances"] if "n_pool" in query else None,
                budget_left=measured[2],
            )
        )
    return rounds


def agreement(before: Sequence[Any], after: Sequence[Any]) -> float:
    """Return Cohen's kappa between the predictions of two models on the same items.

    Parameters
    ----------
    before, after : sequences of labels or answers, length s
        On a fixed set of unlabelled items. The source recommends about 2000.

    Returns
    -------
    float
        1 for equal predictions, about 0 for agreement by chance. Equal predictions of a single
        class, where kappa itself is 0/0, count as 1.

    Raises
    ------
    InputError
        When lengths differ or there are none.
    """
    if len(before) != len(after) or len(before) == 0:
        raise InputError(
            f"{len(before)} predictions before and {len(after)} after: give one of each for every "
            "item of the stop set."
        )
    codes: dict[Any, int] = {}
    first, second = (
        np.array([codes.setdefault((type(label), label), len(codes)) for label in labels])
        for labels in (_plain(before), _plain(after))
    )
    return 1.0 if (first == second).all() else float(cohen_kappa_score(first, second))


def _plain(labels: Sequence[Any]) -> list[Any]:
    return [label.item() if isinstance(label, np.generic) else label for label in labels]


def stabilised_predictions(
    agreements: Sequence[float], *, window: int = 3, level: float = 0.99
) -> StopAdvice:
    """Stop when the models of successive rounds agree: mean kappa of at least `level`.

    Parameters
    ----------
    agreements : sequence of float
        By :func:`agreement`, oldest first.
    window : int
        Number of last agreements to average.
    level : float
        A lower level stops earlier.

    Notes
    -----
    Bloodgood and Vijay-Shanker 2009, "A method for stopping active learning based on stabilizing
    predictions and the need for user-adjustable stopping" (arXiv 1409.5165): a window of 3 and a
    level of 0.99. Small batches change a model little, and so its predictions agree as well.
    """
    rule = "stabilised_predictions"
    _check(rule, window=window, level=level)
    if len(agreements) < window:
        return _too_early(rule, len(agreements), window, "comparisons of predictions")
    mean = float(np.mean(agreements[-window:]))
    stop = mean >= level - 1e-9  # within rounding
    return StopAdvice(
        stop,
        f"the predictions of successive rounds agreed with a kappa of {mean:.4g} over "
        f"{_last(window, 'comparison')}, {'at least' if stop else 'below'} {level:g}",
        rule,
        mean,
    )


def low_uncertainty(uncertainties: Sequence[float], *, level: float, window: int = 1) -> StopAdvice:
    """Stop when the uncertainty was below `level` in the last `window` rounds.

    Parameters
    ----------
    uncertainties : sequence of float
        One per round, oldest first: the maximum over the pool, or the mean.
    level : float
        In the unit of the measure, such as nats.
    window : int

    Notes
    -----
    Zhu, Wang and Hovy 2008, "Multi-criteria-based strategy to stop active learning for data
    annotation": their maximum uncertainty and overall uncertainty. It also stops for a model that
    is confident and wrong.
    """
    rule = "low_uncertainty"
    _check(rule, window=window, level=level)
    if len(uncertainties) < window:
        return _too_early(rule, len(uncertainties), window, "rounds with an uncertainty")
    largest = float(np.max(uncertainties[-window:]))
    stop = largest < level
    return StopAdvice(
        stop,
        f"the largest uncertainty of {_last(window, 'round')} was {largest:.3g}, "
        f"{'below' if stop else 'not below'} {level:g}",
        rule,
        largest,
    )


def flat_learning_curve(
    n_labels: Sequence[float],
    accuracies: Sequence[float],
    *,
    next_labels: int,
    min_gain: float = 0.01,
    window: int = 5,
) -> StopAdvice:
    """Stop when the next batch is not expected to gain `min_gain`, given the noise.

    A line is fitted to the last `window` points by least squares. The advice is to stop when the
    upper end of the 95 % interval (Student's t, window - 2 degrees of freedom) of slope x
    `next_labels` is below `min_gain`.

    Parameters
    ----------
    n_labels : sequence of float
        Strictly increasing.
    accuracies : sequence of float
        From 0 to 1, on one test set.
    next_labels : int
        Size of the next batch.
    min_gain : float
        Smallest gain of accuracy that justifies a batch; 0.01 is one point.
    window : int
        At least 3. With fewer points the interval is too wide to stop.

    Raises
    ------
    InputError
        When lengths differ, numbers of labels do not increase, or a parameter is out of range.

    Notes
    -----
    Slope of the curve as in Laws and Schütze 2008, "Stopping criteria for active learning of
    named entity recognition", with the interval of simple regression in place of a fixed level.

    A curve that flattens lies below its fitted line later, so the rule stops late rather than
    early. It does not foresee a curve that rests before it rises again. In simulations with
    independent noise of 0.5 and 1 points and the defaults, a curve that gains exactly `min_gain`
    per batch is stopped in 2.4 and 2.7 % of single tests (2.5 % in theory), but in 27 % of
    campaigns of 20 rounds, because the chances add up. A curve that gains twice as much is stopped
    in none of 1000. A flat curve is found at the first test in 98 and 57 % of cases.
    """
    rule = "flat_learning_curve"
    _check(rule, window=window, next_labels=next_labels, min_gain=min_gain)
    if window < 3:
        raise InputError(f"{rule}: window must be at least 3, got {window}.")
    if len(n_labels) != len(accuracies):
        raise InputError(f"{rule}: {len(n_labels)} label counts, {len(accuracies)} accuracies.")
    if len(accuracies) < window:
        return _too_early(rule, len(accuracies), window, "rounds with an accuracy")
    x = np.asarray(n_labels[-window:], dtype=np.float64)
    y = np.asarray(accuracies[-window:], dtype=np.float64)
    if not (np.diff(x) > 0).all():
        raise InputError(f"{rule}: label counts must increase, got {x.tolist()}.")
    fit = stats.linregress(x, y)
    # A constant curve has no noise. linregress returns NaN for its standard error.
    error = 0.0 if np.ptp(y) == 0 else float(fit.stderr)
    margin = float(stats.t.ppf(0.975, window - 2)) * error
    most = float(fit.slope + margin) * next_labels
    gained = 100 * float(fit.slope) * float(x[-1] - x[0])
    stop = most < min_gain
    return StopAdvice(
        stop,
        f"the last {window - 1} rounds gained {gained:.1f} points for {x[-1] - x[0]:g} labels; "
        f"another {next_labels} are expected to give at most {100 * most:.1f}, "
        f"{'below' if stop else 'not below'} {100 * min_gain:g}",
        rule,
        most,
    )


def exhausted_pool(n_pool: Sequence[int], *, next_labels: int = 1) -> StopAdvice:
    """Stop when fewer items are left than the next batch needs."""
    rule = "exhausted_pool"
    _check(rule, next_labels=next_labels)
    if not len(n_pool):
        return _too_early(rule, 0, 1, "rounds with the size of the pool")
    left = int(n_pool[-1])
    items = "1 item" if left == 1 else f"{left} items"
    reason = f"{items} left in the pool, the next batch needs {next_labels}"
    return StopAdvice(left < next_labels, reason, rule, float(left))


def exhausted_budget(budget_left: Sequence[float], *, cheapest: float = 1.0) -> StopAdvice:
    """Stop when the cheapest label costs more than is left."""
    rule = "exhausted_budget"
    _check(rule, cheapest=cheapest)
    if not len(budget_left):
        return _too_early(rule, 0, 1, "rounds with a budget")
    left = float(budget_left[-1])
    reason = f"{left:g} left of the budget, the cheapest label costs {cheapest:g}"
    return StopAdvice(left < cheapest * (1 - 1e-9), reason, rule, left)


RULES: dict[str, tuple[Callable[..., StopAdvice], tuple[str, ...]]] = {
    "stabilised_predictions": (stabilised_predictions, ("agreement",)),
    "low_uncertainty": (low_uncertainty, ("uncertainty",)),
    "flat_learning_curve": (flat_learning_curve, ("n_labels", "accuracy")),
    "exhausted_pool": (exhausted_pool, ("n_pool",)),
    "exhausted_budget": (exhausted_budget, ("budget_left",)),
}
"""Each rule by name, and the fields of :class:`RoundResult` that it uses."""


def advise(
    rounds: Sequence[RoundResult], rules: Mapping[str, Mapping[str, Any]]
) -> list[StopAdvice]:
    """Return the advice of several rules on one history.

    Parameters
    ----------
    rounds : sequence of RoundResult, oldest first
    rules : mapping of names in :data:`RULES` to the rule's parameters

    Returns
    -------
    list of StopAdvice
        One per rule, in the order of `rules`. A rule uses the rounds that have all fields it
        needs, and advises to continue while these are too few.

    Raises
    ------
    InputError
        When a rule or a parameter has another name, or a value is out of range.

    Examples
    --------
    >>> history = [RoundResult(n_labels=50 * t, accuracy=0.8, n_pool=100) for t in range(1, 6)]
    >>> for advice in advise(history, {"exhausted_pool": {"next_labels": 50},
    ...                                "flat_learning_curve": {"next_labels": 50}}):
    ...     print(advice.stop, advice.reason)
    False 100 items left in the pool, the next batch needs 50
    True the last 4 rounds gained 0.0 points for 200 labels; another 50 are expected to give at \
most 0.0, below 1
    """
    advice = []
    for name, parameters in rules.items():
        if name not in RULES:
            raise InputError(f"No stopping rule {name!r}; there are {', '.join(RULES)}.")
        function, fields = RULES[name]
        rows = [[getattr(entry, field) for field in fields] for entry in rounds]
        rows = [row for row in rows if None not in row]
        histories = [[row[i] for row in rows] for i in range(len(fields))]
        try:
            inspect.signature(function).bind(*histories, **parameters)
        except TypeError as error:
            raise InputError(f"Stopping rule {name!r}: {error}.") from None
        advice.append(function(*histories, **parameters))
    return advice


def _check(rule: str, **parameters: float) -> None:
    for name, value in parameters.items():
        if not (value > 0 and np.isfinite(value)):
            raise InputError(f"{rule}: {name} must be a number above 0, got {value!r}.")


def _too_early(rule: str, n_seen: int, n_needed: int, what: str) -> StopAdvice:
    return StopAdvice(False, f"needs {n_needed} {what}, has {n_seen}", rule, float("nan"))


def _last(number: int, noun: str) -> str:
    return f"the last {noun}" if number == 1 else f"the last {number} {noun}s"
