"""From one number per item to the items to ask for: plain functions, seeded, order-free."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def item_keys(prompts: Sequence[Sequence[int]], seed: int) -> NDArray[np.uint64]:
    """Return a pseudo-random number per item that depends on its prompt and the seed alone.

    It breaks ties and draws random batches, so that the same items are picked in whatever order
    the pool comes and whatever else is in it.

    Returns
    -------
    ndarray of shape (m,)
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

    Parameters
    ----------
    scores : ndarray of shape (m,)
        Values that differ by less than 1e-9 of the largest count as equal: between batch
        shapes that far apart are the last bits of a matrix product.
    n_instances : int
    keys : ndarray of shape (m,)
    """
    largest = float(np.abs(scores).max(initial=0.0)) or 1.0
    rounded = np.round(scores / largest, 9)
    return np.asarray(np.lexsort((keys, -rounded))[:n_instances])


def random_n(n_instances: int, keys: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Return the positions of the n smallest keys: a seeded random draw."""
    return np.asarray(np.argsort(keys, kind="stable")[:n_instances])
