"""What the base model says, computed once per item and answer and kept over rounds."""

from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def cache_key(fingerprint: str, kind: str, *tokens: Sequence[int]) -> bytes:
    """Identify a value by all that decides it.

    Parameters
    ----------
    fingerprint : str
        Of the base model, its tokenizer and its quantisation.
    kind : str
        What is computed, with a closed set of answers where there is one.
    *tokens : sequences of int
        The prompt, and the answer where it is free-form. The prompt's tokens stand for item,
        template and tokenizer together.
    """
    digest = blake2b(digest_size=16)
    for part in (fingerprint, kind, *(",".join(map(str, ids)) for ids in tokens)):
        digest.update(f"{len(part)}:{part}".encode())
    return digest.digest()


class BaseCache:
    """Rows of numbers in memory: about 150 bytes an item, and 8 for each number."""

    def __init__(self) -> None:
        self._rows: dict[bytes, NDArray[np.float64]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def get(
        self,
        keys: Sequence[bytes],
        compute: Callable[[list[int]], NDArray[np.float64]],
    ) -> NDArray[np.float64]:
        """Return a row for each key; what is not there yet is computed first.

        Parameters
        ----------
        keys : sequence of bytes, length m
        compute : callable
            Takes positions in `keys`, returns an array of shape (number of positions, width).

        Returns
        -------
        ndarray of shape (m, width)
        """
        first = {key: position for position, key in reversed(list(enumerate(keys)))}
        missing = sorted(first[key] for key in first if key not in self._rows)
        if missing:
            for position, row in zip(missing, compute(missing), strict=True):
                self._rows[keys[position]] = row
        return np.stack([self._rows[key] for key in keys])
