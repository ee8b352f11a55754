"""Prompt embeddings: the base model's hidden states, averaged over the tokens of a prompt."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from starlearn.data.tokens import Batch
from starlearn.model.forward import Sequences, Workload, row_hidden


@torch.no_grad()
def prompt_embeddings(work: Workload, prompts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Return the mean over each prompt's tokens of the states after the final norm, [m, D]."""
    device = work.head.device
    found: dict[int, NDArray[np.float64]] = {}

    def compute(batch: Batch) -> None:
        chosen = [prompts[i] for i in batch.indices]
        ids = np.full((len(chosen), batch.length), work.pad_id, dtype=np.int64)
        for row, prompt in enumerate(chosen):
            ids[row, : len(prompt)] = prompt
        rows = np.tile(np.arange(batch.length), (len(chosen), 1))
        tensors = [torch.from_numpy(array).to(device) for array in (ids, rows, batch.indices)]
        sequences = Sequences(tensors[0], tensors[1], tensors[2], batch.length)
        states = row_hidden(work.model, sequences)[0].double()  # [B * T, D]
        states = states.unflatten(0, (len(chosen), batch.length)).cpu()  # [B, T, D]
        for index, prompt, state in zip(batch.indices.tolist(), chosen, states, strict=True):
            found[index] = state[: len(prompt)].mean(0).numpy()
        work.progress(len(chosen), len(chosen) * batch.length)

    work.run(np.array([len(prompt) for prompt in prompts], dtype=np.intp), compute)
    return np.stack([found[i] for i in range(len(prompts))])
