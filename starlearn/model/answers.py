"""Free-form answers: written by the model itself, and scored token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from starlearn_kernels import linear_entropy, segment_reduce
from torch import Tensor
from transformers import GenerationConfig

from starlearn.data.tokens import batches
from starlearn.model.hidden import LEAST_ROWS, Head, row_hidden


@torch.no_grad()
def generate_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    max_batch_tokens: int,
    progress: Callable[[int], object],
) -> list[list[int]]:
    """Let the model answer, greedily, without dropout.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel, in evaluation mode
    prompts : sequence of token sequences, length m
    max_batch_tokens : int
        Bound of B * (T + max_new_tokens).
    progress : callable
        Called with the number of items that were finished.

    Returns
    -------
    list of list of int, length m
        Tokens of each answer; the end of sequence is the last one where the model wrote it.
    """
    device = next(model.parameters()).device
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
    )
    answers: list[list[int]] = [[] for _ in prompts]
    lengths = [len(prompt) + max_new_tokens for prompt in prompts]
    for batch in batches(lengths, max_batch_tokens):
        width = batch.length - max_new_tokens  # of the prompts
        chosen = [list(prompts[i]) for i in batch.indices]
        if device.type == "cpu":
            # Fewer rows would take another path in the matrix product, with other bits.
            chosen += [chosen[0]] * max(0, LEAST_ROWS - len(chosen))
        ids = torch.full((len(chosen), width), pad_id, device=device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(chosen):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
            mask[row, width - len(prompt) :] = 1
        written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        for index, row in zip(batch.indices, written[:, width:].tolist(), strict=False):
            end = row.index(eos_id) + 1 if eos_id in row else len(row)
            answers[index] = row[:end]
        progress(len(batch.indices))
    return answers


@dataclass(frozen=True)
class AnswerStatistics:
    """Sums over the tokens of each answer; K passes, m items."""

    entropy: NDArray[np.float64]
    """Sum of token entropies in nats, shape [K, m]."""
    log_probability: NDArray[np.float64]
    """Log-probability of the answer, shape [K, m]."""
    mutual_information: NDArray[np.float64]
    """Sum over tokens of the mutual information of token and pass, shape [m]."""


def answer_input(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    length: int,
    pad_id: int,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out prompt and answer in rows of T tokens.

    Returns
    -------
    input_ids : Tensor of shape (B, T)
    rows : Tensor of shape (B, R)
        Positions at which answer tokens are predicted; R is the longest answer of the batch,
        shorter ones repeat their last position.
    targets : Tensor of shape (B, R)
        The answer tokens; -1 behind the end of a shorter answer.
    """
    longest = max(len(answer) for answer in answers)
    ids = np.full((len(prompts), length), pad_id, dtype=np.int64)
    rows = np.zeros((len(prompts), longest), dtype=np.int64)
    targets = np.full((len(prompts), longest), -1, dtype=np.int64)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt) + len(answer)] = [*prompt, *answer]
        last = len(prompt) + len(answer) - 2
        rows[row] = np.minimum(np.arange(len(prompt) - 1, len(prompt) - 1 + longest), last)
        targets[row, : len(answer)] = answer
    return tuple(torch.from_numpy(array).to(device) for array in (ids, rows, targets))  # type: ignore[return-value]


def answer_statistics(
    model: Any,
    head: Head,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    length: int,
    pad_id: int,
    n_passes: int,
) -> AnswerStatistics:
    """Score the given answers of one batch, teacher-forced, in K stacked passes.

    Parameters
    ----------
    prompts, answers : sequences of token sequences, length B
        Every answer has at least one token.
    length : int
        T, the padded length of prompt and answer.
    """
    device = head.weight.device
    ids, rows, targets = answer_input(prompts, answers, length, pad_id, device)
    hidden = row_hidden(model, ids, rows, n_passes=n_passes)  # [K, B * R, D]
    real = targets.flatten() >= 0  # [B * R]
    stats = linear_entropy(
        hidden[:, real],
        head.weight,
        head.bias,
        target=targets.flatten()[real],
        scale=head.scale,
        softcap=head.softcap,
    )
    ends = np.cumsum([0, *map(len, answers)])
    offsets = torch.from_numpy(ends).to(device)  # [B + 1]
    return AnswerStatistics(
        entropy=_sum_by_item(stats.entropy, offsets),
        log_probability=_sum_by_item(stats.logprob, offsets),
        mutual_information=_sum_by_item(stats.mutual_information, offsets),
    )


def _sum_by_item(values: Tensor | None, offsets: Tensor) -> NDArray[np.float64]:
    if values is None:
        raise TypeError("linear_entropy returned no value for a statistic that was asked for")
    return segment_reduce(values.double(), offsets, how="sum").cpu().numpy()
