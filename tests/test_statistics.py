"""Paired tests, intervals and calibration: by hand, against scipy, and over simulated studies."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from starlearn.errors import InputError
from starlearn.evaluate.statistics import (
    calibration_error,
    contrast,
    holm,
    labels_to_reach,
    mean_interval,
    reliability,
    ripl,
    sign_flip_test,
    spearman,
    speed_up,
    verdict,
)

THREE_DEVIATIONS = 3 * math.sqrt(1000 * 0.05 * 0.95)
"""What chance adds to 50 false positives in 1,000 studies at most, but for 1 time in 700: 21."""


def by_hand(values):
    """Count all sign patterns, and the tail on the side of the mean twice."""
    sums = [
        sum(sign * value for sign, value in zip(signs, values, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(values))
    ]
    tail = sum(total >= abs(sum(values)) - 1e-12 for total in sums)
    return min(1.0, 2 * tail / len(sums))


# Paired permutation test


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3], 2 / 8),  # only +++ reaches 6
        ([1, -2, 3], 6 / 8),  # 6, 4 and 2 of 6, 4, 2, 0, 0, -2, -4, -6
        ([-1, -2, -3], 2 / 8),
        ([0, 0, 0, 0], 1.0),
        ([1, -1], 1.0),
        ([5], 1.0),
        ([1] * 5, 2 / 32),
        ([1] * 6, 2 / 64),
    ],
)
def test_sign_flips_counted_by_hand(differences, p):
    assert sign_flip_test(differences) == pytest.approx(p)


def test_five_seeds_can_never_be_significant():
    assert sign_flip_test([0.3, 0.31, 0.32, 0.33, 0.34]) == 2 / 32 > 0.05


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=8))
def test_sign_flips_are_all_counted(differences):
    assert sign_flip_test(differences) == pytest.approx(by_hand(differences))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_sign_flips_as_scipy_counts_them(differences):
    differences = np.round(differences, 3)  # scipy's tolerance for ties is another than ours
    found = stats.permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_test(differences) == pytest.approx(found.pvalue)


def test_twenty_seeds_are_still_exact():
    assert sign_flip_test(np.arange(1.0, 21)) == 2 / 2**20
    assert sign_flip_test(np.full(40, 0.1)) == 2 / 2**40


def test_more_seeds_are_sampled_and_repeatable():
    differences = np.random.default_rng(0).normal(0.3, 1, 40)
    one_more = np.append(differences, 0.0)  # changes no sum
    found = sign_flip_test(one_more)
    assert found == sign_flip_test(one_more)
    assert found == pytest.approx(sign_flip_test(differences), abs=0.005)


@pytest.mark.parametrize("wrong", [[], [[1.0]], [1.0, math.nan], [math.inf]])
def test_differences_that_cannot_be_tested(wrong):
    with pytest.raises(InputError, match="one finite difference per seed"):
        sign_flip_test(wrong)


def test_false_positives_over_a_thousand_null_studies():
    # AULC of a test set is coarse, so differences repeat: rounding keeps that.
    rng = np.random.default_rng(1)
    studies = np.round(rng.normal(0, 0.02, (1000, 10)), 3)
    found = sum(sign_flip_test(differences) <= 0.05 for differences in studies)
    assert found <= 50
    claims = [verdict(*mean_interval(differences)) for differences in studies]
    assert claims.count("better") + claims.count("worse") <= 50


def test_a_known_shift_is_found():
    rng = np.random.default_rng(2)
    studies = rng.normal(0.02, 0.02, (200, 20))  # one standard deviation: power 0.99
    assert sum(sign_flip_test(differences) <= 0.05 for differences in studies) >= 190
    assert sum(verdict(*mean_interval(d)) == "better" for d in studies) >= 190


# Intervals


def test_t_interval_by_hand():
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653
    low, high = mean_interval([1, 2, 3])
    assert (low, high) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))


def test_intervals_cover_the_mean():
    rng = np.random.default_rng(3)
    bounds = [mean_interval(rng.normal(1, 1, 10)) for _ in range(1000)]
    missed = sum(not low <= 1 <= high for low, high in bounds)
    assert abs(missed - 50) <= THREE_DEVIATIONS


def test_bootstrap_is_close_to_t_and_repeatable():
    differences = np.random.default_rng(4).normal(0.1, 0.05, 20)
    found = mean_interval(differences, method="bca")
    assert found == mean_interval(differences, method="bca")
    assert found == pytest.approx(mean_interval(differences), abs=0.01)


def test_equal_differences_have_an_interval_without_a_warning():
    assert mean_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)
    assert mean_interval([0.0, 0.0], method="bca") == (0.0, 0.0)


def test_intervals_that_cannot_be_given():
    with pytest.raises(InputError, match="at least 2 paired seeds"):
        mean_interval([0.1])
    with pytest.raises(InputError, match="'t' or 'bca'"):
        mean_interval([0.1, 0.2], method="z")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.02, "better"),
        (0.0, 0.02, "not worse"),
        (-0.004, 0.02, "not worse"),
        (-0.005, 0.02, "undecided"),
        (-0.02, 0.0, "undecided"),
        (-0.02, -0.001, "worse"),
        (-0.004, -0.001, "worse"),
    ],
)
def test_verdicts(low, high, expected):
    assert verdict(low, high) == expected


# Several tests at once


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04 times 3, 2, 1: 0.03, 0.06, and 0.04 raised to 0.06
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.floats(0.001, 0.5))
def test_holm_rejects_what_the_steps_reject(p_values, level):
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = set()
    for rank, i in enumerate(order):
        if p_values[i] * (len(order) - rank) > level:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected


def test_holm_keeps_the_chance_of_any_false_claim():
    families = np.random.default_rng(5).uniform(size=(1000, 8))
    found = sum(min(holm(family)) <= 0.05 for family in families)
    assert found <= 50 + THREE_DEVIATIONS
    assert sum(min(family) <= 0.05 for family in families) > 200, "uncorrected, a third are false"


def test_contrasts_pair_the_seeds_that_both_have():
    areas = {"a": {1: 0.7, 2: 0.6, 3: 0.9}, "b": {2: 0.5, 3: 0.7, 4: 0.1}}
    found = contrast("t", "a", "b", areas)
    assert found.seeds == (2, 3)
    assert found.differences == pytest.approx((0.1, 0.2))
    assert found.mean == pytest.approx(0.15)
    assert contrast("t", "a", "c", areas) is None
    assert contrast("t", "a", "b", {"a": {1: 0.7}, "b": {1: 0.5}}) is None


# Curves


def test_labels_to_reach():
    curve = [(50, 0.2), (100, 0.6), (150, 0.5), (200, 0.9)]
    assert labels_to_reach(curve, 0.1) == 50
    assert labels_to_reach(curve, 0.4) == 75
    assert labels_to_reach(curve, 0.6) == 100
    assert labels_to_reach(curve, 0.7) == 175
    assert labels_to_reach(curve, 0.95) == math.inf


def test_speed_up_and_ripl():
    reference = [(50, 0.2), (200, 0.6)]
    assert speed_up([(50, 0.2), (100, 0.6), (200, 0.9)], reference) == 2.0
    assert speed_up(reference, reference) == 1.0
    assert speed_up([(50, 0.2), (200, 0.5)], reference) == 0.0
    assert ripl(0.8, 0.6) == pytest.approx(0.5)
    assert math.isnan(ripl(1.0, 1.0))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0, 1))
def test_the_first_point_that_reaches_it(accuracy, target):
    curve = [(10 * (i + 1), value) for i, value in enumerate(accuracy)]
    found = labels_to_reach(curve, target)
    if max(accuracy) < target:
        assert found == math.inf
    else:
        first = next(n for n, value in curve if value >= target)
        assert first - 10 <= found <= first
        between = np.interp(found, *zip(*curve, strict=True))
        assert between >= target - 1e-9


# Calibration


def test_calibration_error_by_hand():
    # 4 bins; 0.3 and 0.5 share the second: accuracy 1/2, confidence 0.4; 1.0 in the last: wrong
    bins = reliability([0.3, 0.5, 1.0, 0.0], [True, False, False, False], n_bins=4)
    assert bins["count"] == [1, 2, 0, 1]
    assert bins["correct"] == [0, 1, 0, 0]
    assert bins["confidence"] == [0, 0.8, 0, 1.0]
    assert calibration_error(bins) == pytest.approx((2 * 0.1 + 1.0) / 4)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_every_answer_is_in_its_bin(answers):
    confidence, correct = zip(*answers, strict=True)
    bins = reliability(confidence, correct)
    assert sum(bins["count"]) == len(answers)
    assert sum(bins["correct"]) == sum(correct)
    assert sum(bins["confidence"]) == pytest.approx(sum(confidence), abs=1e-8)  # 9 decimals a bin
    for place, (count, total) in enumerate(zip(bins["count"], bins["confidence"], strict=True)):
        if count:
            assert place / 15 - 1e-6 <= total / count <= (place + 1) / 15 + 1e-6
    assert 0 <= calibration_error(bins) <= 1


def test_a_calibrated_model_has_no_error():
    rng = np.random.default_rng(6)
    confidence = rng.uniform(size=100_000)
    correct = rng.uniform(size=100_000) < confidence
    assert calibration_error(reliability(confidence, correct)) < 0.01
    assert calibration_error(reliability(confidence, rng.uniform(size=100_000) < 0.5)) > 0.2


@pytest.mark.parametrize("wrong", [[], [math.nan], [-0.1]])
def test_confidences_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="from 0 to 1"):
        reliability(wrong, [True] * len(wrong))


def test_spearman():
    assert spearman([1, 2, 3], [10, 20, 15]) == 0.5
    assert spearman([1, 2, 3], [1, 1, 1]) is None
    x, y = np.random.default_rng(7).normal(size=(2, 50))
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-6)


@pytest.mark.parametrize(
    "module",
    ["evaluate.statistics", "evaluate.displays", "evaluate.study_report", "cli.cost_model"],
)
def test_arithmetic_and_reports_import_no_torch(module):
    code = f"import sys, starlearn.{module}; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
