"""Token budgets: batches as large as memory allows, and smaller ones when it runs out."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from numpy.typing import NDArray

from starlearn.data.tokens import Batch, batches
from starlearn.errors import OutOfMemoryError

CPU_TOKENS, CPU_WRITTEN = 1024, 16384
"""Padded tokens of a pass, and of a batch of answers while they are written, on a CPU. Measured
with models of 2 and 6 million parameters on one thread: a pass of more leaves the cache, and fresh
memory costs more than it gains; answers are written a token at a time, so more rows pay longer."""
GPU_TOKENS = 65536
"""Where the search starts for both; the first, longest batch shows what fits. Not compared with
other numbers; a query of Llama-3.2-1B's shape takes 11 to 18 GB with it (docs/memory.md)."""


class TokenBudget:
    """How many padded tokens one forward pass may hold; what did not fit once is remembered.

    Parameters
    ----------
    tokens : int
        The first guess.

    Notes
    -----
    Memory decides the budget alone: scores do not depend on how items are cut into batches, so
    a smaller budget changes their time only (float32; see the performance notes for bfloat16).
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def run(
        self,
        lengths: Any,
        compute: Callable[[Batch], None],
        *,
        copies: int | tuple[int, ...] = 1,
        most: int | None = None,
    ) -> None:
        """Compute all items, longest batch first, in batches that fit.

        Parameters
        ----------
        lengths : array of int, shape (m,) or (m, parts)
            Tokens of each item.
        compute : callable
            Computes one batch and keeps its results; may be called again for the same items.
        copies : int or tuple of int, shape (parts,)
            How many times each part runs; each copy counts.
        most : int, optional
            A bound that the user has set.

        Raises
        ------
        OutOfMemoryError
            When one item alone does not fit, even on a second try with all memory released; its
            ``index`` is the item's position in `lengths`.
        """
        lengths = np.asarray(lengths, dtype=np.intp)
        waiting = deque(self._plan(lengths, copies, most))
        second_try = False
        while waiting:
            batch = waiting.popleft()
            if _fits(compute, batch):
                second_try = False
                continue
            clear_device_cache(garbage_collection=True)
            if len(batch.indices) > 1:
                self.tokens = max(1, batch.tokens(copies) // 2)
                left = np.sort(np.concatenate([batch.indices, *(b.indices for b in waiting)]))
                waiting = deque(
                    Batch(left[part.indices], part.parts)
                    for part in self._plan(lengths[left], copies, most)
                )
            elif second_try:
                raise OutOfMemoryError(int(batch.indices[0]), batch.length, int(np.max(copies)))
            else:
                waiting.appendleft(batch)
                second_try = True

    def _plan(
        self, lengths: NDArray[np.intp], copies: int | tuple[int, ...], most: int | None
    ) -> list[Batch]:
        tokens = self.tokens if most is None else min(self.tokens, most)
        return list(batches(lengths, max(1, tokens), copies))


BESIDE_TORCH = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "[CUDA]: out of memory")
"""How memory is said to have run out for kernels and handles, which torch does not allocate."""


def _fits(compute: Callable[[Batch], Any], batch: Batch) -> bool:
    """Compute a batch; False when memory ran out. The error's frames, and what they hold, go."""
    try:
        compute(batch)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return False
    return True


def ran_out(error: Exception) -> bool:
    """Tell whether an error says that memory ran out, in whatever words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in BESIDE_TORCH)


@contextmanager
def renumbered(rows: Sequence[int] | NDArray[np.intp]) -> Iterator[None]:
    """Give an item that does not fit its number in the caller's own rows."""
    try:
        yield
    except OutOfMemoryError as error:
        raise OutOfMemoryError(
            int(rows[error.index]), error.length, error.n_passes
        ) from error.__cause__
