"""Free-form answers: written greedily in large batches from which finished items leave."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from starlearn.data.tokens import Batch, padded_lengths
from starlearn.model.forward import Workload
from starlearn.model.structure import LEAST_ROWS, causal_model

GRAINS = 2
"""Prompts are padded on a coarse grid here: with few widths there are many rows in a batch, and a
step costs the same however wide the prompts are."""
KEEP = 0.75
"""A batch is packed anew when fewer of its rows than this share are still being written: packing
copies all keys and values, a finished row costs its share of every further step."""


@torch.no_grad()
def generate_answers(
    work: Workload,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_id: int,
    context: int,
) -> list[list[int]]:
    """Let the model answer, greedily, without dropout.

    Parameters
    ----------
    work : Workload
        Its dropout takes no part.
    prompts : sequence of token sequences, length m
    max_new_tokens : int
    eos_id : int
    context : int
        Longest sequence that the model was made for; padding must not go beyond it either.

    Returns
    -------
    list of list of int, length m
        Tokens of each answer; the end of sequence is the last one where the model wrote it.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    widths = padded_lengths([len(prompt) for prompt in prompts], GRAINS)

    def compute(batch: Batch) -> None:
        width = min(batch.parts[0], context - max_new_tokens)
        chosen = [prompts[i] for i in batch.indices]
        written = _write(work, chosen, width, max_new_tokens, eos_id)
        for index, answer in zip(batch.indices, written, strict=True):
            answers[index] = answer
        work.progress(len(chosen), len(chosen) * (width + max_new_tokens))

    # Keys and values of the whole answer are there at the end, so they count from the start.
    work.run(np.stack([widths, np.full_like(widths, max_new_tokens)], axis=1), compute)
    return answers


def _write(
    work: Workload, prompts: list[Sequence[int]], width: int, max_new_tokens: int, eos_id: int
) -> list[list[int]]:
    model = causal_model(work.model)
    device = next(model.parameters()).device
    answers: list[list[int]] = [[] for _ in prompts]
    # On a CPU fewer rows would take another path in the matrix product, with other bits: rows that
    # are finished, or copies of the first, fill up.
    least = LEAST_ROWS if device.type == "cpu" else 1
    rows = [*range(len(prompts)), *[0] * max(0, least - len(prompts))]
    ids = torch.full((len(rows), width), work.pad_id, device=device)
    seen = torch.zeros((len(rows), width + max_new_tokens), dtype=torch.long, device=device)
    for place, row in enumerate(rows):
        prompt = torch.tensor(prompts[row], device=device)
        ids[place, width - len(prompt) :] = prompt
        seen[place, width - len(prompt) :] = 1
    cache, live = DynamicCache(), np.arange(len(rows)) < len(prompts)
    members = np.array(rows)
    positions = seen[:, :width].cumsum(1).sub_(1).clamp_(min=0)  # [B, P]
    for step in range(max_new_tokens):
        logits: Tensor = model(
            input_ids=ids,
            attention_mask=seen[:, : width + step],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        ids = logits[:, -1].float().argmax(-1, keepdim=True)  # [B, 1]
        positions = positions[:, -1:] + 1
        tokens = ids[:, 0].tolist()
        for place in np.flatnonzero(live).tolist():
            answers[int(members[place])].append(tokens[place])
            live[place] = tokens[place] != eos_id
        if not live.any():
            break
        wanted = max(int(live.sum()), least)
        if wanted <= KEEP * len(live):
            kept = np.sort(np.argsort(~live, kind="stable")[:wanted])
            index = torch.from_numpy(kept).to(device)
            cache.batch_select_indices(index)
            ids, seen, positions = ids[index], seen[index], positions[index]
            members, live = members[kept], live[kept]
    return answers
