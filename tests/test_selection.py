"""Mixing and choosing: arithmetic that needs no model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from starlearn.errors import InputError
from starlearn.query.mixing import mixed, per_answer, scale_of
from starlearn.query.selection import RunningTop, item_keys, top_n
from starlearn.settings import Acquisition

# On a grid, so that scaling and shifting neither makes nor breaks ties by rounding.
numbers = st.integers(-4000, 4000).map(lambda i: i / 4)
values = arrays(np.float64, st.integers(1, 30), elements=numbers)


def normalised(x: np.ndarray, how: str) -> np.ndarray:
    return scale_of(x, how)(x)


@settings(deadline=None)
@given(values, st.sampled_from(["rank", "zscore", "none"]))
def test_the_ends_of_the_mix_are_base_and_full(base: np.ndarray, how: str) -> None:
    full = base[::-1].copy()
    assert np.allclose(mixed(base, full, 1.0, how), normalised(base, how))
    assert np.allclose(mixed(base, full, 0.0, how), normalised(full, how))


@settings(deadline=None)
@given(values)
def test_both_sides_of_the_mix_are_on_one_scale(x: np.ndarray) -> None:
    # The published code scales the base side only; then the other side's units decide.
    for how in ("rank", "zscore"):
        assert np.allclose(normalised(x, how), normalised(x * 4 + 1, how), atol=1e-6)
    ranks = normalised(x, "rank")
    assert ranks.min() >= 0
    assert ranks.max() <= 1


def test_one_item_and_equal_items_have_a_finite_scale() -> None:
    for how in ("rank", "zscore"):
        assert np.isfinite(normalised(np.array([3.0]), how)).all()
        assert np.ptp(normalised(np.full(4, 0.1), how)) == 0


def test_residual_takes_the_length_off() -> None:
    rng = np.random.default_rng(0)
    n_tokens = rng.integers(1, 50, size=200)
    sums = 0.3 * n_tokens + rng.normal(size=200)
    residual = per_answer(sums, n_tokens, "residual")
    assert abs(np.corrcoef(residual, n_tokens)[0, 1]) < 1e-9
    assert np.corrcoef(sums, n_tokens)[0, 1] > 0.9  # what sums reward: length
    assert per_answer(sums, n_tokens, "mean") == pytest.approx(sums / n_tokens)


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=30), st.data())
def test_top_n_does_not_depend_on_the_order_of_the_pool(
    scores: list[float], data: st.DataObject
) -> None:
    prompts = [[i, 5] for i in range(len(scores))]
    n = data.draw(st.integers(1, len(scores)))
    order = np.array(data.draw(st.permutations(range(len(scores)))))
    x = np.array(scores)
    keys = item_keys(prompts, seed=3)
    chosen = top_n(x, n, keys)
    permuted = top_n(x[order], n, keys[order])
    assert list(order[permuted]) == list(chosen)
    equal = np.zeros_like(x)
    assert list(order[top_n(equal, n, keys[order])]) == list(top_n(equal, n, keys))


def test_ties_are_broken_by_the_seed_not_by_position() -> None:
    keys = [item_keys([[i] for i in range(50)], seed) for seed in range(4)]
    picks = {tuple(top_n(np.zeros(50), 5, k)) for k in keys}
    assert len(picks) == 4


def test_random_draws_are_uniform() -> None:
    prompts = [[i] for i in range(20)]
    counts = np.zeros(20)
    for seed in range(600):
        counts[top_n(np.zeros(20), 5, item_keys(prompts, seed))] += 1
    # chi-square with 19 degrees of freedom: 43.8 is its 0.999 quantile
    assert ((counts - 150) ** 2 / 150).sum() / 0.75 < 43.8


@st.composite
def pools(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, exact and within rounding, with keys that may be shared."""
    m = draw(st.integers(1, 40))
    steps = st.sampled_from([0.0, 1e-12, 4.9e-10, 5e-10, 5.1e-10, 1e-9, 1e-3, 0.5, -0.5, 7.0])
    scores = draw(arrays(np.float64, m, elements=steps)) + draw(
        arrays(np.float64, m, elements=steps)
    )
    scores[draw(arrays(np.bool_, m))] = draw(st.sampled_from([0.0, np.nan, np.inf, -np.inf]))
    keys = draw(arrays(np.uint64, m, elements=st.integers(0, 2**64 - 1) | st.integers(0, 2)))
    return scores, keys


@settings(deadline=None)
@given(pools(), st.data())
def test_a_pool_in_pieces_has_the_top_of_the_whole(
    pool: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    scores, keys = pool
    m = len(scores)
    n = data.draw(st.integers(1, m))
    cuts = sorted(data.draw(st.lists(st.integers(0, m), max_size=6)))
    pieces = np.split(np.arange(m), cuts)
    top = RunningTop(n)
    for piece in data.draw(st.permutations(pieces)):
        top.add(scores[piece], keys[piece], piece)
        assert len(top.positions) <= n  # no more than n are kept
    whole = top_n(scores, n, keys)
    assert top.result().tolist() == whole.tolist()
    assert np.array_equal(top.scores, scores[whole], equal_nan=True)
    assert np.array_equal(top.keys, keys[whole])


def test_what_else_is_in_the_pool_changes_no_tie() -> None:
    # With a tolerance relative to the largest score, an outlier made all others equal.
    scores, keys = np.array([0.3, 0.4, 0.5]), np.arange(3, dtype=np.uint64)
    assert top_n(np.append(scores, 1e12), 2, np.append(keys, 9)).tolist() == [3, 2]


def test_scores_within_rounding_are_equal() -> None:
    keys = np.array([2, 1, 0], dtype=np.uint64)
    assert top_n(np.array([0.5 + 1e-12, 0.5, 0.5 - 1e-12]), 3, keys).tolist() == [2, 1, 0]
    assert top_n(np.array([500 + 1e-8, 500, 1]), 2, keys).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [
        ("published", [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1]),
        (0.25, [0.25, 0.25]),
        ([1.0, 0.0], [1.0, 0.0, 0.0]),
        (0, [0.0]),
    ],
)
def test_schedule_by_round(schedule: object, weights: list[float]) -> None:
    acquisition = Acquisition(schedule=schedule)  # type: ignore[arg-type]
    acquisition.check()
    assert [acquisition.base_weight(t) for t in range(len(weights))] == weights


@pytest.mark.parametrize("schedule", ["linear", 1.5, -0.1, [], [0.5, 2.0]])
def test_schedule_that_cannot_be_used(schedule: object) -> None:
    with pytest.raises(InputError, match="schedule"):
        Acquisition(schedule=schedule).check()  # type: ignore[arg-type]
