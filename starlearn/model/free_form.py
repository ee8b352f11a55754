"""Free-form answers scored token by token: the model's own, never the gold ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from starlearn_kernels import segment_reduce
from torch import Tensor

from starlearn.data.tokens import Batch
from starlearn.model.forward import Sequences, Workload, row_hidden


@dataclass(frozen=True)
class AnswerStatistics:
    """Sums over the tokens of each answer; K passes, m items."""

    entropy: NDArray[np.float64]
    """Sum of token entropies in nats, shape [K, m]."""
    log_probability: NDArray[np.float64]
    """Log-probability of the answer, shape [K, m]."""
    mutual_information: NDArray[np.float64]
    """Sum over tokens of the mutual information of token and pass, shape [m]."""


@torch.no_grad()
def answer_statistics(
    work: Workload,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    keys: NDArray[np.int64],
) -> AnswerStatistics:
    """Score the given answers, teacher-forced, in the workload's K passes.

    Parameters
    ----------
    work : Workload
    prompts, answers : sequences of token sequences, length m
        Every answer has at least one token.
    keys : ndarray of shape (m,)
        A number for each item; masks per token are drawn by it.
    """
    n_passes, n_items = work.n_passes, len(prompts)
    found = AnswerStatistics(
        np.full((n_passes, n_items), np.nan),
        np.full((n_passes, n_items), np.nan),
        np.full(n_items, np.nan),
    )
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
        found.entropy[:, batch.indices] = _sum_by_item(stats.entropy, offsets)
        found.log_probability[:, batch.indices] = _sum_by_item(stats.logprob, offsets)
        found.mutual_information[batch.indices] = _sum_by_item(stats.mutual_information, offsets)
        work.progress(len(chosen), batch.tokens(work.copies))

    work.run(lengths if work.split else lengths.sum(axis=1), compute)
    return found


def answer_input(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch: Batch,
    pad_id: int,
    keys: NDArray[np.int64],
    device: torch.device,
) -> tuple[Sequences, Tensor]:
    """Lay out prompt and answer in rows of T tokens.

    Returns
    -------
    sequences : Sequences
        R rows an item, R the longest padded answer; shorter ones repeat their last position.
    targets : Tensor of shape (B, R)
        The answer tokens; -1 behind the end of a shorter answer.
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
