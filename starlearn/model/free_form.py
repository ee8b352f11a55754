"""Scores of free-form answers, token by token."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from starlearn_kernels import segment_reduce
from torch import Tensor

from starlearn.data.tokens import Batch
from starlearn.model.forward import Sequences, Workload, row_hidden


@torch.no_grad()
def answer_scores(
    work: Workload,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    keys: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Score given answers of at least one token, teacher-forced, in the workload's K passes.

    The scores [m, 3] are sums over the tokens of an answer, in nats: mean over passes of the
    entropy, mean over passes of minus the log-probability, and mutual information between token
    and pass. Masks per token are drawn from `keys`, one number per item.
    """
    scores = np.full((len(prompts), 3), np.nan)
    head, device = work.head, work.head.device
    lengths = np.array(
        [(len(p), len(a)) for p, a in zip(prompts, answers, strict=True)], dtype=np.intp
    ).reshape(-1, 2)

    def compute(batch: Batch) -> None:
        chosen = [answers[i] for i in batch.indices]
        laid, targets = answer_input(
            [prompts[i] for i in batch.indices], chosen, batch, work.pad_id, keys, device
        )
        hidden = row_hidden(work.model, laid, work.dropout)  # [K, B * R, D]
        real = targets.flatten() >= 0  # [B * R]
        stats = head.statistics(hidden[:, real], target=targets.flatten()[real])
        ends = np.cumsum([0, *map(len, chosen)])
        offsets = torch.from_numpy(ends).to(device)  # [B + 1]
        scores[batch.indices, 0] = mean_over_passes(_sum_by_item(stats.entropy, offsets))
        scores[batch.indices, 1] = -mean_over_passes(_sum_by_item(stats.logprob, offsets))
        scores[batch.indices, 2] = _sum_by_item(stats.mutual_information, offsets)
        work.progress(len(chosen), batch.tokens(work.copies))

    work.run(lengths if work.split else lengths.sum(axis=1), compute)
    return scores


def answer_input(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch: Batch,
    pad_id: int,
    keys: NDArray[np.int64],
    device: torch.device,
) -> tuple[Sequences, Tensor]:
    """Return prompts and answers in rows of T tokens, and the answer tokens as targets [B, R].

    R is the longest padded answer. A shorter one repeats its last position, with target -1.
    """
    longest = batch.parts[-1] if len(batch.parts) > 1 else max(map(len, answers))
    ids = np.full((len(prompts), batch.length), pad_id, dtype=np.int64)
    rows = np.zeros((len(prompts), longest), dtype=np.int64)
    targets = np.full((len(prompts), longest), -1, dtype=np.int64)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt) + len(answer)] = [*prompt, *answer]
        last = len(prompt) + len(answer) - 2
        rows[row] = np.minimum(np.arange(len(prompt) - 1, len(prompt) - 1 + longest), last)
        targets[row, : len(answer)] = answer
    ids_, rows_, targets_, keys_ = (
        torch.from_numpy(array).to(device) for array in (ids, rows, targets, keys[batch.indices])
    )
    return Sequences(ids_, rows_, keys_, batch.parts[0]), targets_


def _sum_by_item(values: Tensor | None, offsets: Tensor) -> NDArray[np.float64]:
    if values is None:
        raise TypeError("the kernel returned no value for a statistic that was asked for")
    return segment_reduce(values.double(), offsets, how="sum").cpu().numpy()


def mean_over_passes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over K passes of values [K, m], added up in one order, shape (m,).

    NumPy's own mean adds in another order for m = 1, and a score would depend on the batch.
    """
    total = values[0].copy()
    for row in values[1:]:
        total += row
    return np.asarray(total / len(values))
