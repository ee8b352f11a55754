"""Diverse and uncertain batches: k-means++ and k-centre on hidden states."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.cluster import kmeans_plusplus

from starlearn.data.containers import as_count
from starlearn.errors import InputError, NotFiniteError, listed
from starlearn.query.selection import top_n


def uncertainty_weights(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weights of scores [c], from 0 (the least uncertain candidate) to 1 (the most).

    w_i = (u_i - min u) / (max u - min u) over the candidates, rounded to 9 decimals; all 1 when
    the scores are equal. A shift or a change of unit then changes no batch. Ranks, z-scores and
    residuals have no natural zero, so they cannot weight a distance directly.
    """
    scores = np.asarray(scores, dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(scores))
    if wrong.size:
        raise NotFiniteError(
            f"The score is NaN or infinite for {len(wrong)} of {len(scores)} candidates: "
            f"{listed([f'row {row}' for row in wrong])}. Nothing was chosen."
        )
    spread = float(np.ptp(scores))
    # Equal scores have a small spread from rounding, which must not become a signal.
    if spread <= 1e-9 * max(1.0, float(np.abs(scores).max())):
        return np.ones_like(scores)
    return np.round((scores - scores.min()) / spread, 9)


def kmeans_plus_plus(
    scores: NDArray[np.float64],
    embeddings: Any,
    n: int,
    rng: np.random.Generator,
    *,
    keys: NDArray[np.uint64],
) -> NDArray[np.intp]:
    """Return a batch drawn like the first centres of k-means++, weighted by uncertainty.

    The first item is drawn with probability proportional to its weight w_i, each further one
    proportional to w_i d_i^2, where d_i is the Euclidean distance to the nearest item drawn so far.
    Of a few draws the one with the smallest remaining sum of w_i d_i^2 is kept (scikit-learn's
    greedy variant). Items of weight 0 and copies of drawn items come last, by weight, ties by
    key.

    Scores and keys are [c], embeddings [c, D], n is from 1 to c. The batch holds positions among
    the candidates, in the order they were drawn. By their keys, numbers as by
    :func:`starlearn.query.selection.item_keys`, the same items are drawn in any order of the
    candidates.

    Arthur and Vassilvitskii 2007, "k-means++: the advantages of careful seeding"; with the
    uncertainty as the weight of a point as in Zhdanov 2019 (arXiv 1901.05954). Time O(c D n log n),
    memory one copy of the embeddings in double precision and O(c log n).
    """
    points, n = _checked(scores, embeddings, n, keys)
    weights = uncertainty_weights(scores)
    order = np.lexsort((weights, keys))
    order = order[weights[order] > 0]
    points = points[order].astype(np.float64)
    # Distances are computed from scalar products, and a large common part would dominate them.
    points -= points.mean(axis=0)
    _, drawn = kmeans_plusplus(
        points,
        min(n, len(order)),
        sample_weight=weights[order],
        random_state=int(rng.integers(2**32)),
    )
    # When all distances are 0, scikit-learn draws an item repeatedly.
    chosen = order[list(dict.fromkeys(drawn.tolist()))]
    rest = np.setdiff1d(np.arange(len(weights)), chosen)
    fill = rest[top_n(weights[rest], n - len(chosen), keys[rest])]
    return np.concatenate([chosen, fill])


def k_centre(
    scores: NDArray[np.float64],
    embeddings: Any,
    n: int,
    rng: np.random.Generator,
    *,
    keys: NDArray[np.uint64],
) -> NDArray[np.intp]:
    """Choose a batch that leaves no uncertain candidate far from it: greedy weighted k-centre.

    The first item is the most uncertain one, every further one that with the largest w_i d_i,
    with d_i the Euclidean distance to the nearest item chosen before; ties by weight, then by
    key. So a smaller n gives the beginning of the batch of a larger one. Arguments are as for
    :func:`kmeans_plus_plus`; nothing here is random.

    The largest w_i d_i that is left is at most twice the smallest possible when all weights are
    equal (Gonzalez 1985), and at most min(3, 1 + a) times when they are not, a the ratio of the
    largest weight to the smallest (Dyer and Frieze 1985; it needs the heaviest item first). Sener
    and Savarese 2018 (arXiv 1708.00489) use it for active learning, without weights. Time
    O(c D n), memory one copy of the embeddings in double precision and O(c).
    """
    points, n = _checked(scores, embeddings, n, keys)
    weights = uncertainty_weights(scores)
    order = np.lexsort((keys, -weights))
    points, weights = points[order].astype(np.float64), weights[order]
    chosen = np.zeros(n, dtype=np.intp)  # the first is the heaviest: position 0
    nearest = np.full(len(points), np.inf)
    for i in range(1, n):
        # By differences, not by scalar products: copies are exactly 0 apart.
        newest = points[chosen[i - 1], np.newaxis]
        np.minimum(nearest, cdist(points, newest)[:, 0], out=nearest)
        gain = weights * nearest  # [c]
        gain[chosen[:i]] = -1
        chosen[i] = gain.argmax()
    return order[chosen]


def _checked(
    scores: NDArray[np.float64], embeddings: Any, n: int, keys: NDArray[np.uint64]
) -> tuple[NDArray[Any], int]:
    if np.ndim(scores) != 1 or np.shape(scores) != np.shape(keys):
        raise InputError(
            f"Scores of shape {np.shape(scores)} and keys of shape {np.shape(keys)}: give one of "
            "each for every candidate."
        )
    return checked_embeddings(embeddings, len(scores)), as_count(n, "n", len(scores))


def checked_embeddings(embeddings: Any, n_items: int, name: str = "embeddings") -> NDArray[Any]:
    """Return embeddings as finite floats, [n_items, D]; floats are not copied."""
    points = np.asarray(embeddings)
    if not np.issubdtype(points.dtype, np.floating):
        points = points.astype(np.float64)
    if points.ndim != 2 or len(points) != n_items or points.shape[1] == 0:
        raise InputError(
            f"{name} must have the shape ({n_items}, D), one row per item; got {points.shape}."
        )
    wrong = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if wrong.size:
        raise NotFiniteError(
            f"{name} are NaN or infinite for {len(wrong)} of {n_items} items: "
            f"{listed([f'row {row}' for row in wrong])}. The model's numbers overflow, or its "
            "weights are broken; nothing was chosen."
        )
    return points
