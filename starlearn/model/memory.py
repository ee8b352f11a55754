"""Token budgets: batches as large as memory allows, and smaller ones after it ran out."""

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

CPU_TOKENS, CPU_GENERATED = 1024, 16384
"""Padded tokens on a CPU, of a forward pass and of a batch while answers are generated. Both were
measured with models of 2 and 6 million parameters on one thread. A larger forward pass leaves the
cache. Answers are generated one token at a time, so there larger batches still pay."""
GPU_TOKENS = 65536
"""First guess on a GPU for both; the first batch, which is the longest, shows whether it fits.
Other values were not measured. With this one a query of Llama-3.2-1B's shape takes 11 to 18 GB
(docs/memory.md)."""


class TokenBudget:
    """Number of padded tokens that one forward pass may hold, lowered after memory ran out.

    Scores do not depend on how items are cut into batches (in float32; for bfloat16 see the
    performance notes). A smaller budget therefore changes the time only.
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

        `lengths` are the tokens of each item [m], or of each of its parts [m, parts]. `compute`
        stores the results of one batch, and may be called again for the same items. `copies` is the
        number of times that each part runs. `most` is an upper bound set by the user.

        A single item that does not fit gets a second try after all memory was released. Then
        OutOfMemoryError has its position in `lengths` as ``index``.
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
            # Half the tokens for all that is left, so that later batches and chunks fit at once. A
            # single item gets a second try, because the failed batch held memory until now.
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


OUT_OF_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "[CUDA]: out of memory")
"""Messages of CUDA, cuBLAS and Triton, whose own memory torch does not allocate."""


def _fits(compute: Callable[[Batch], Any], batch: Batch) -> bool:
    """Compute a batch and return whether memory was enough.

    Returning frees the error's frames, and with them the tensors that they hold.
    """
    try:
        compute(batch)
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        return False
    return True


def ran_out(error: Exception) -> bool:
    """Return whether an error means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


@contextmanager
def renumbered(rows: Sequence[int] | NDArray[np.intp]) -> Iterator[None]:
    """Replace the index of an OutOfMemoryError by the number in the caller's rows."""
    try:
        yield
    except OutOfMemoryError as error:
        raise OutOfMemoryError(
            int(rows[error.index]), error.length, error.n_passes
        ) from error.__cause__
