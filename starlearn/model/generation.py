"""Free-form answers, generated greedily in large batches that drop finished items."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from starlearn.data.tokens import Batch, padded_lengths
from starlearn.model.forward import Workload
from starlearn.model.structure import LEAST_ROWS, causal_model

GRAINS = 2
"""Padded lengths between two powers of two. The grid is coarse, because few widths give batches of
many rows, and the cost of a step hardly depends on the width of the prompts."""
KEEP = 0.75
"""Share of unfinished rows at which finished rows are removed from a batch. Removing them copies
all keys and values; keeping them costs their share of every further step."""


@torch.no_grad()
def generate_answers(
    work: Workload,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_id: int,
    context: int,
) -> list[list[int]]:
    """Generate an answer per prompt, greedily and without dropout.

    The last token of an answer is the end of sequence if the model generated it. `context` is the
    longest sequence that the model supports, padding included.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    widths = padded_lengths([len(prompt) for prompt in prompts], GRAINS)

    def compute(batch: Batch) -> None:
        width = min(batch.parts[0], context - max_new_tokens)
        chosen = [prompts[i] for i in batch.indices]
        generated = _generate(work, chosen, width, max_new_tokens, eos_id)
        for index, answer in zip(batch.indices, generated, strict=True):
            answers[index] = answer
        work.progress(len(chosen), len(chosen) * (width + max_new_tokens))

    # At the end the keys and values of the whole answer are in memory, so all its tokens count.
    work.run(np.stack([widths, np.full_like(widths, max_new_tokens)], axis=1), compute)
    return answers


def _generate(
    work: Workload, prompts: list[Sequence[int]], width: int, max_new_tokens: int, eos_id: int
) -> list[list[int]]:
    model = causal_model(work.model)
    device = next(model.parameters()).device
    answers: list[list[int]] = [[] for _ in prompts]
    # On a CPU, matrix products of fewer rows round differently. A batch is therefore filled up to
    # `least` rows, with finished rows or with copies of the first.
    least = LEAST_ROWS if device.type == "cpu" else 1
    rows = [*range(len(prompts)), *[0] * max(0, least - len(prompts))]
    ids = torch.full((len(rows), width), work.pad_id, device=device)
    mask = torch.zeros((len(rows), width + max_new_tokens), dtype=torch.long, device=device)
    for place, row in enumerate(rows):
        prompt = torch.tensor(prompts[row], device=device)
        ids[place, width - len(prompt) :] = prompt
        mask[place, width - len(prompt) :] = 1
    cache, unfinished = DynamicCache(), np.arange(len(rows)) < len(prompts)
    members = np.array(rows)
    positions = mask[:, :width].cumsum(1).sub_(1).clamp_(min=0)  # [B, P]
    for step in range(max_new_tokens):
        logits: Tensor = model(
            input_ids=ids,
            attention_mask=mask[:, : width + step],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits  # [B, 1, V]
        ids = logits[:, -1].float().argmax(-1, keepdim=True)  # [B, 1]
        positions = positions[:, -1:] + 1  # [B, 1]
        tokens = ids[:, 0].tolist()
        for place in np.flatnonzero(unfinished).tolist():
            answers[int(members[place])].append(tokens[place])
            unfinished[place] = tokens[place] != eos_id
        if not unfinished.any():
            break
        wanted = max(int(unfinished.sum()), least)
        # Removes finished rows from the cache and all tensors, once enough rows are finished.
        if wanted <= KEEP * len(unfinished):
            kept = np.sort(np.argsort(~unfinished, kind="stable")[:wanted])
            index = torch.from_numpy(kept).to(device)
            cache.batch_select_indices(index)
            ids, mask, positions = ids[index], mask[index], positions[index]
            members, unfinished = members[kept], unfinished[kept]
    return answers
