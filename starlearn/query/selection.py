"""The n largest scores: seeded ties, independent of the order of the pool."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def item_keys(prompts: Sequence[Sequence[int]], seed: int) -> NDArray[np.uint64]:
    """Return a pseudo-random number per item, [m], from its prompt and the seed.

    It decides ties and random draws. The same items are chosen whatever the order of the pool, and
    whatever else is in it.
    """
    salt = seed.to_bytes(8, "big", signed=True)
    digests = (
        blake2b(np.asarray(prompt, dtype=np.int64).tobytes(), digest_size=8, salt=salt).digest()
        for prompt in prompts
    )
    return np.fromiter((int.from_bytes(d, "big") for d in digests), np.uint64, len(prompts))


def top_n(
    scores: NDArray[np.float64], n_instances: int, keys: NDArray[np.uint64]
) -> NDArray[np.intp]:
    """Return the positions of the n largest scores, largest first; ties by key.

    NaN counts as smallest. Scores are equal if they agree after rounding to 9 decimals: the last
    bits of a matrix product depend on the batch shape.
    """
    return _ranking(scores, keys)[:n_instances]


def _ranking(
    scores: NDArray[np.float64],
    keys: NDArray[np.uint64],
    positions: NDArray[np.intp] | None = None,
) -> NDArray[np.intp]:
    """Sort by score, largest first, then by key, then by position."""
    rounded = -np.round(np.asarray(scores, dtype=np.float64), 9)
    return np.lexsort((keys, rounded) if positions is None else (positions, keys, rounded))


class RunningTop:
    """The n largest scores of a pool that is added in pieces, in memory for n and one piece.

    The result is that of ``top_n`` for the whole pool, whatever the pieces and their order.

    Examples
    --------
    >>> top = RunningTop(2)
    >>> keys = np.arange(4, dtype=np.uint64)
    >>> top.add(np.array([0.1, 0.9]), keys[:2], np.arange(2))
    >>> top.add(np.array([0.7, 0.2]), keys[2:], np.arange(2, 4))
    >>> top.result().tolist()
    [1, 2]
    """

    def __init__(self, n_instances: int) -> None:
        self.n_instances = n_instances
        self.positions: NDArray[np.intp] = np.empty(0, dtype=np.intp)
        self.scores: NDArray[np.float64] = np.empty(0)
        self.keys: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)

    def add(
        self,
        scores: NDArray[np.float64],
        keys: NDArray[np.uint64],
        positions: NDArray[np.intp],
    ) -> None:
        """Add a piece of p items with these positions in the whole pool."""
        scores = np.concatenate([self.scores, scores])
        keys = np.concatenate([self.keys, keys])
        positions = np.concatenate([self.positions, positions])
        best = _ranking(scores, keys, positions)[: self.n_instances]
        self.scores, self.keys, self.positions = scores[best], keys[best], positions[best]

    def result(self) -> NDArray[np.intp]:
        """Return the positions of the n largest scores so far, largest first; ties by key."""
        return self.positions
