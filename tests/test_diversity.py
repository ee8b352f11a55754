"""Diverse batches: coverage, weights, guarantees, and the same items in any order."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from starlearn.errors import InputError, NotFiniteError
from starlearn.query.diversity import k_centre, kmeans_plus_plus, uncertainty_weights
from starlearn.query.selection import top_n

Selection = Callable[..., np.ndarray]
both = pytest.mark.parametrize("select", [kmeans_plus_plus, k_centre])


def keys_of(n_items: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n_items).astype(np.uint64)


@st.composite
def candidates(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Scores and points on a coarse grid, so that ties and copies are common."""
    c = draw(st.integers(1, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grid = draw(st.sampled_from([1, 2, 5, 1000]))
    scores = rng.integers(grid, size=c) / 4
    points = rng.integers(grid, size=(c, draw(st.integers(1, 4)))) - grid / 2
    return scores, points, rng.permutation(c).astype(np.uint64), draw(st.integers(1, c))


@both
@settings(deadline=None)
@given(data=candidates(), seed=st.integers(0, 100))
def test_n_distinct_items_whatever_the_points(
    select: Selection, data: tuple[np.ndarray, np.ndarray, np.ndarray, int], seed: int
) -> None:
    scores, points, keys, n = data
    chosen = select(scores, points, n, np.random.default_rng(seed), keys=keys)
    assert chosen.shape == (n,)
    assert len(set(chosen.tolist())) == n
    assert set(chosen.tolist()) <= set(range(len(scores)))


@both
@settings(deadline=None)
@given(data=candidates(), seed=st.integers(0, 100), shuffle=st.integers(0, 2**32 - 1))
def test_the_same_items_in_whatever_order_they_come(
    select: Selection,
    data: tuple[np.ndarray, np.ndarray, np.ndarray, int],
    seed: int,
    shuffle: int,
) -> None:
    scores, points, keys, n = data
    order = np.random.default_rng(shuffle).permutation(len(scores))
    chosen = select(scores, points, n, np.random.default_rng(seed), keys=keys)
    permuted = select(
        scores[order], points[order], n, np.random.default_rng(seed), keys=keys[order]
    )
    assert order[permuted].tolist() == chosen.tolist()


@both
@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
def test_one_point_for_all_falls_back_on_scores(select: Selection, value: float) -> None:
    # scikit-learn then draws the same item again and again.
    scores = np.array([0.1, 0.9, 0.5, 0.7, 0.3])
    chosen = select(
        scores, np.full((5, 3), value), 5, np.random.default_rng(0), keys=keys_of(5)
    ).tolist()
    assert sorted(chosen) == [0, 1, 2, 3, 4]
    rest = [i for i in top_n(scores, 5, keys_of(5)).tolist() if i != chosen[0]]
    assert chosen[1:] == rest
    if select is k_centre:
        assert chosen[0] == 1


@both
def test_equal_scores_and_copies_of_points(select: Selection) -> None:
    # scikit-learn raises for weights that are all 0.
    points = np.repeat(np.eye(3), 4, axis=0)
    chosen = select(np.zeros(12), points, 3, np.random.default_rng(0), keys=keys_of(12))
    assert sorted(chosen // 4) == [0, 1, 2]


@both
def test_a_batch_covers_clusters_where_the_top_does_not(select: Selection) -> None:
    # Six skills; the model is a little more uncertain about one of them than about the others.
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(6), 50)
    points = 10 * np.eye(6)[cluster] + rng.normal(size=(300, 6))
    scores = rng.uniform(0.6, 0.9, size=300) + 0.2 * (cluster == 2)
    keys = keys_of(300)
    assert set(cluster[top_n(scores, 12, keys)]) == {2}
    covered = [
        len(set(cluster[select(scores, points, 12, np.random.default_rng(seed), keys=keys)]))
        for seed in range(20)
    ]
    assert min(covered) == 6


@both
def test_certain_items_are_left_alone_however_far_they_are(select: Selection) -> None:
    points = np.array([[0.0], [1.0], [2.0], [1e6]])
    scores = np.array([0.9, 0.8, 0.7, 0.1])
    for seed in range(10):
        assert 3 not in select(scores, points, 3, np.random.default_rng(seed), keys=keys_of(4))


@both
def test_a_certain_item_never_comes_before_a_copy_of_an_uncertain_one(select: Selection) -> None:
    # Once all distances are 0 scikit-learn draws its first row, whatever it weighs.
    points, scores = np.array([[0.0], [0.0], [5.0]]), np.array([1.0, 0.5, 0.0])
    keys = np.array([1, 2, 0], dtype=np.uint64)
    for seed in range(5):
        assert 2 not in select(scores, points, 2, np.random.default_rng(seed), keys=keys)


@both
def test_a_shift_or_another_unit_changes_no_batch(select: Selection) -> None:
    # z-scores and residuals are negative for half the pool; scikit-learn's weights may not be.
    rng = np.random.default_rng(1)
    scores, points = rng.integers(1000, size=40) / 8, rng.normal(size=(40, 5))
    batches = [
        select(s, points, 10, np.random.default_rng(3), keys=keys_of(40)).tolist()
        for s in (scores, scores - 100, scores * 4)
    ]
    assert batches[0] == batches[1] == batches[2]


@both
def test_a_common_part_of_all_points_changes_no_batch(select: Selection) -> None:
    # Hidden states share a large mean, and scalar products lose the rest beside it.
    rng = np.random.default_rng(1)
    scores = rng.uniform(size=40)
    points = rng.integers(-8, 8, size=(40, 5)).astype(np.float64)
    batches = [
        select(scores, p, 20, np.random.default_rng(3), keys=keys_of(40)).tolist()
        for p in (points, points + 2.0**30)
    ]
    assert batches[0] == batches[1]


def radius(points: np.ndarray, weights: np.ndarray, chosen: list[int]) -> float:
    return float((weights * cdist(points, points[chosen]).min(axis=1)).max())


@settings(deadline=None)
@given(data=candidates(), equal=st.booleans())
def test_k_centre_keeps_its_guarantee(
    data: tuple[np.ndarray, np.ndarray, np.ndarray, int], equal: bool
) -> None:
    scores, points, keys, n = data
    scores, points, keys, n = scores[:9], points[:9], keys[:9], min(n, 4, len(scores[:9]))
    if equal:
        scores = np.zeros_like(scores)
    weights = uncertainty_weights(scores)
    greedy = radius(
        points,
        weights,
        k_centre(scores, points, n, np.random.default_rng(0), keys=keys).tolist(),
    )
    best = min(radius(points, weights, list(c)) for c in combinations(range(len(scores)), n))
    assert greedy <= (2 if equal else 3) * best + 1e-9


@settings(deadline=None)
@given(data=candidates())
def test_a_smaller_k_centre_batch_begins_a_larger_one(
    data: tuple[np.ndarray, np.ndarray, np.ndarray, int],
) -> None:
    scores, points, keys, n = data
    rng = np.random.default_rng(0)
    whole = k_centre(scores, points, len(scores), rng, keys=keys)
    assert k_centre(scores, points, n, rng, keys=keys).tolist() == whole[:n].tolist()


def test_k_centre_by_hand() -> None:
    points = np.array([[0.0], [1.0], [4.0], [10.0]])
    scores = np.array([1.0, 0.5, 0.4, 0.0])  # weights 1, 0.5, 0.4, 0
    # From 0: 0.5 * 1 against 0.4 * 4; then 0.5 * 1; the item of weight 0 is last.
    chosen = k_centre(scores, points, 4, np.random.default_rng(0), keys=keys_of(4))
    assert chosen.tolist() == [0, 2, 1, 3]


def test_first_draws_of_kmeans_plus_plus_follow_the_weights() -> None:
    # With n = 1 the draw is by weight alone: 0, 1/4, 1/2, 3/4 and 1 over 2.5.
    scores, points = np.arange(5) / 4, np.zeros((5, 2))
    rng = np.random.default_rng(0)
    counts = np.bincount(
        [kmeans_plus_plus(scores, points, 1, rng, keys=keys_of(5))[0] for _ in range(2000)],
        minlength=5,
    )
    expected = 2000 * scores / scores.sum()
    assert counts[0] == 0
    # chi-square with 3 degrees of freedom: 16.3 is its 0.999 quantile
    assert ((counts - expected)[1:] ** 2 / expected[1:]).sum() < 16.3


def test_seeds_of_kmeans_plus_plus_differ_and_repeat() -> None:
    rng = np.random.default_rng(0)
    scores, points, keys = rng.uniform(size=60), rng.normal(size=(60, 4)), keys_of(60)

    def batch(seed: int) -> tuple[int, ...]:
        return tuple(kmeans_plus_plus(scores, points, 8, np.random.default_rng(seed), keys=keys))

    assert batch(3) == batch(3)
    assert len({batch(seed) for seed in range(5)}) == 5


def test_weights() -> None:
    assert uncertainty_weights(np.array([2.0, -2.0, 0.0])).tolist() == [1, 0, 0.5]
    assert uncertainty_weights(np.array([0.3, 0.1 + 0.2, 0.3])).tolist() == [1, 1, 1]
    with pytest.raises(NotFiniteError, match="row 1"):
        uncertainty_weights(np.array([0.0, np.nan]))


@both
def test_what_cannot_be_used_is_said(select: Selection) -> None:
    rng, keys = np.random.default_rng(0), keys_of(3)
    points = np.eye(3)
    points[1, 2] = np.nan
    with pytest.raises(NotFiniteError, match=r"embeddings .* 1 of 3 items: row 1\."):
        select(np.ones(3), points, 2, rng, keys=keys)
    with pytest.raises(InputError, match=r"shape \(3, D\).*\(4, 4\)"):
        select(np.ones(3), np.eye(4), 2, rng, keys=keys)
    with pytest.raises(InputError, match="n=4 is more than the 3"):
        select(np.ones(3), np.eye(3), 4, rng, keys=keys)
    with pytest.raises(InputError, match="n must be at least 1"):
        select(np.ones(3), np.eye(3), 0, rng, keys=keys)
    with pytest.raises(InputError, match="keys of shape"):
        select(np.ones(3), np.eye(3), 2, rng, keys=keys[:2])
