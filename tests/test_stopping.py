"""Stop advice: rules by hand, on curves whose truth is known, and in words."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from starlearn.errors import InputError
from starlearn.query.stopping import (
    RULES,
    RoundResult,
    StopAdvice,
    advise,
    agreement,
    exhausted_budget,
    exhausted_pool,
    flat_learning_curve,
    low_uncertainty,
    rounds_of,
    stabilised_predictions,
)


@pytest.mark.parametrize(
    ("before", "after", "kappa"),
    [
        (["a", "a"], ["a", "a"], 1.0),  # kappa is 0/0: scikit-learn gives NaN and warns
        (["a", "a"], ["b", "b"], 0.0),
        (["a", "b", "a", "b"], ["a", "b", "b", "a"], 0.0),
        (["a", "b"], ["b", "a"], -1.0),
        (["a", "b", "a", "b"], ["a", "b", "a", "a"], 0.5),
        ([1, 2], ["1", "2"], 0.0),  # 1 and '1' are different answers
        ([True, False], [1, 0], 0.0),
        ([None, "5"], [None, "5"], 1.0),  # an answer that could not be parsed
    ],
)
def test_agreement(before: list[Any], after: list[Any], kappa: float) -> None:
    assert agreement(before, after) == pytest.approx(kappa)


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from("abc")] * 2), min_size=1, max_size=20))
def test_agreement_is_a_number_in_any_case(pairs: list[tuple[str, str]]) -> None:
    before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    kappa = agreement(before, after)
    assert -1 <= kappa <= 1
    assert agreement(after, before) == pytest.approx(kappa)
    assert (kappa == 1) == (before == after)
    assert agreement(np.array(before, dtype=object), np.array(after)) == kappa


def test_predictions_are_stable_when_their_mean_agreement_is_high() -> None:
    assert not stabilised_predictions([1.0, 1.0]).stop
    assert stabilised_predictions([0.2, 1.0, 0.98, 0.99]).stop
    assert not stabilised_predictions([1.0, 1.0, 1.0, 0.96]).stop
    assert stabilised_predictions([0.2, 0.96], window=1, level=0.95).stop


def test_uncertainty_must_stay_low() -> None:
    assert low_uncertainty([0.5, 0.09], level=0.1).stop
    assert not low_uncertainty([0.09, 0.5], level=0.1).stop
    assert not low_uncertainty([0.2, 0.09], level=0.1, window=2).stop
    assert low_uncertainty([0.2, 0.08, 0.09], level=0.1, window=2).value == 0.09
    assert not low_uncertainty([0.1], level=0.1).stop  # not below


def test_slope_of_the_learning_curve_by_hand() -> None:
    # y = 0, 1, 0 at x = 0, 1, 2: slope 0, residual sum 2/3, standard error sqrt(2/3 / 1 / 2).
    error = np.sqrt(2 / 3 / 2)
    advice = flat_learning_curve([0, 1, 2], [0, 1, 0], next_labels=10, window=3)
    assert advice.value == pytest.approx(10 * stats.t.ppf(0.975, 1) * error)
    # On a line there is no noise, and older points do not count.
    advice = flat_learning_curve([0, 1, 2, 3], [9, 0.1, 0.2, 0.3], next_labels=5, window=3)
    assert advice.value == pytest.approx(0.5)
    # A constant curve: scipy's standard error is NaN.
    assert flat_learning_curve([1, 2, 3], [0.8] * 3, next_labels=5, window=3).value == 0


def share_of_stops(gain: float, noise: float, n_times: int) -> float:
    """The share of noisy curves that gain so much a batch and are stopped at one look."""
    rng = np.random.default_rng(0)
    labels = 50 * np.arange(1, 6)
    return float(
        np.mean(
            [
                flat_learning_curve(
                    labels, 0.5 + gain * np.arange(5) + rng.normal(0, noise, 5), next_labels=50
                ).stop
                for _ in range(n_times)
            ]
        )
    )


def test_false_stops_are_as_rare_as_the_interval_says() -> None:
    # A gain of just the least that is worth it: 2.5 % stop, here +- 4 standard deviations.
    spread = 4 * np.sqrt(0.025 * 0.975 / 1500)
    for noise in (0.005, 0.01):
        assert abs(share_of_stops(0.01, noise, 1500) - 0.025) < spread
    assert share_of_stops(0.03, 0.01, 500) == 0


def test_flat_curves_stop_though_they_are_noisy() -> None:
    assert share_of_stops(0.0, 0.005, 500) > 0.9
    assert share_of_stops(-0.01, 0.005, 500) == 1
    assert share_of_stops(0.0, 0.05, 500) < 0.2  # drowned in noise: no advice to stop


def test_a_curve_that_bends_is_stopped_where_it_is_flat() -> None:
    def curve(labels: np.ndarray) -> np.ndarray:
        return 0.5 + 0.4 * (1 - np.exp(-labels / 200))

    rng = np.random.default_rng(0)
    labels = 50 * np.arange(1, 31)
    for _ in range(50):
        accuracies = curve(labels) + rng.normal(0, 0.005, 30)
        stops = (
            t
            for t in range(5, 31)
            if flat_learning_curve(labels[:t], accuracies[:t], next_labels=50).stop
        )
        t = next(stops)
        assert curve(labels[t - 1] + 50) - curve(labels[t - 1]) < 0.01  # none too early
        assert t < 25


def test_what_is_exhausted() -> None:
    assert [exhausted_pool([9, left], next_labels=5).stop for left in (5, 4, 0)] == [0, 1, 1]
    assert not exhausted_pool([1]).stop
    assert [exhausted_budget([left], cheapest=0.3).stop for left in (0.3, 0.29, 0)] == [0, 1, 1]
    assert not exhausted_budget([1 - 0.9], cheapest=0.1).stop  # 0.09999999999999998 in floats


def test_reasons_are_sentences_with_the_users_numbers() -> None:
    rows = [0.800, 0.801, 0.802, 0.8025]
    reason = flat_learning_curve([50, 100, 150, 200], rows, next_labels=50, window=4).reason
    assert reason == (
        "the last 3 rounds gained 0.3 points for 150 labels; another 50 are expected to give at "
        "most 0.1, below 1"
    )
    assert stabilised_predictions([0.5, 0.6, 0.7]).reason == (
        "the predictions of successive rounds agreed with a kappa of 0.6 over the last "
        "3 comparisons, below 0.99"
    )
    assert low_uncertainty([0.05], level=0.1).reason == (
        "the largest uncertainty of the last round was 0.05, below 0.1"
    )
    assert exhausted_pool([1], next_labels=5).reason == (
        "1 item left in the pool, the next batch needs 5"
    )
    assert exhausted_budget([0.5]).reason == "0.5 left of the budget, the cheapest label costs 1"
    assert stabilised_predictions([1.0]).reason == "needs 3 comparisons of predictions, has 1"


PARAMETERS: dict[str, dict[str, Any]] = {
    "stabilised_predictions": {},
    "low_uncertainty": {"level": 0.1},
    "flat_learning_curve": {"next_labels": 50},
    "exhausted_pool": {"next_labels": 50},
    "exhausted_budget": {"cheapest": 2.0},
}


def test_each_rule_reads_its_own_history() -> None:
    rounds = [
        RoundResult(
            n_labels=50 * (t + 1),
            accuracy=0.8,
            agreement=None if t == 0 else 0.995,
            uncertainty=0.2,
            n_pool=300 - 50 * t,
            budget_left=10.0 - t,
        )
        for t in range(6)
    ]
    found = advise(rounds, PARAMETERS)
    assert [advice.rule for advice in found] == list(PARAMETERS) == list(RULES)
    assert [advice.stop for advice in found] == [True, False, True, False, False]
    assert [advice.value for advice in found] == pytest.approx([0.995, 0.2, 0, 50, 5])


def test_rounds_without_a_measurement_are_left_out() -> None:
    rounds = [RoundResult(50 * t, accuracy=0.8 if t % 2 else None) for t in range(1, 11)]
    (advice,) = advise(rounds, {"flat_learning_curve": {"next_labels": 50}})
    assert advice.reason.startswith("the last 4 rounds gained 0.0 points for 400 labels")
    for advice in advise([RoundResult(50)], PARAMETERS):
        assert isinstance(advice, StopAdvice)
        assert not advice.stop
        assert np.isnan(advice.value)
        assert advice.reason.startswith("needs ")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"flat": {}}, "No stopping rule 'flat'; there are stabilised_predictions, "),
        ({"low_uncertainty": {}}, "'low_uncertainty': missing a required argument: 'level'"),
        ({"exhausted_pool": {"lables": 3}}, "unexpected keyword argument 'lables'"),
        ({"stabilised_predictions": {"window": 0}}, "window must be a number above 0, got 0"),
        ({"flat_learning_curve": {"next_labels": 5, "window": 2}}, "at least 3, got 2"),
        ({"low_uncertainty": {"level": np.nan}}, "level must be a number above 0, got nan"),
    ],
)
def test_rules_that_do_not_exist_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        advise([RoundResult(50)], rules)


def test_histories_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(InputError, match="2 predictions before and 1 after"):
        agreement(["a", "b"], ["a"])
    with pytest.raises(InputError, match="must increase"):
        flat_learning_curve([1, 2, 2], [0, 0, 0], next_labels=5, window=3)
    with pytest.raises(InputError, match="3 label counts, 2 accuracies"):
        flat_learning_curve([1, 2, 3], [0, 0], next_labels=5, window=3)


def test_a_learners_own_history_is_read(make_learner: Any, labelled: Any, pool: list) -> None:
    learner = make_learner().fit(*labelled)
    for _ in range(2):
        _, batch = learner.query(pool, 3)
        learner.teach(batch, ["red", "blue", "green"])
        pool = [text for text in pool if text not in batch]
    rounds = rounds_of(learner.rounds_, accuracy=[0.5, 0.6], budget_left=[10, 7, 4])
    assert [r.n_labels for r in rounds] == [8, 11, 14]
    assert [r.n_pool for r in rounds] == [45, 42, None]
    assert len(pool) == 42
    assert [r.accuracy for r in rounds] == [0.5, 0.6, None]
    assert [r.budget_left for r in rounds] == [10, 7, 4]
    assert rounds[0].uncertainty == learner.rounds_[0]["query"]["mean_full"]
    advice = advise(rounds[:2], {"exhausted_pool": {"next_labels": 43}})[0]
    assert advice.stop
    assert not advise(rounds[:2], {"exhausted_pool": {"next_labels": 42}})[0].stop
