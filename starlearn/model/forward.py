"""Forward passes: hidden states at chosen rows in K passes, and their means over prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from starlearn.data.tokens import Batch
from starlearn.model.dropout import MonteCarlo
from starlearn.model.head import Head
from starlearn.model.memory import TokenBudget
from starlearn.model.structure import LEAST_ROWS, additive_mask, trunk_of


@dataclass(frozen=True)
class Workload:
    """A model in evaluation mode, with everything that running a pool through it needs."""

    model: Any
    """PeftModel or PreTrainedModel."""
    head: Head
    pad_id: int
    budget: TokenBudget
    max_batch_tokens: int | None = None
    """Upper bound on the budget, set by the user."""
    dropout: MonteCarlo | None = None
    """K passes with dropout; None for one pass without."""
    by_positions: bool = True
    """Whether trees of choices can be scored in one row; see `structure.goes_by_positions`."""
    progress: Callable[[int, int], object] = lambda items, tokens: None
    """Function that receives the number of finished items and of their padded tokens."""

    @property
    def n_passes(self) -> int:
        """K."""
        return 1 if self.dropout is None else self.dropout.n_passes

    @property
    def split(self) -> bool:
        """Whether the prompt runs once and only the answer in K copies, both padded separately."""
        return self.dropout is not None and self.dropout.answer_only

    @property
    def copies(self) -> int | tuple[int, ...]:
        """How many times a forward pass runs an item, or each of its parts."""
        return (1, self.n_passes) if self.split else self.n_passes

    def run(self, lengths: Any, compute: Callable[[Batch], None]) -> None:
        """Compute items of these lengths in batches that fit; see `TokenBudget.run`."""
        self.budget.run(lengths, compute, copies=self.copies, most=self.max_batch_tokens)


@dataclass(frozen=True)
class Sequences:
    """Prompts followed by the tokens that are scored, padded on the right to T tokens."""

    input_ids: Tensor
    """[B, T]"""
    rows: Tensor
    """Positions whose hidden states are returned, [B, R]: the prompt's last token, then those of
    the answer. Shorter answers repeat their last position."""
    keys: Tensor
    """Number of each item, [B], int64, from which masks per token are drawn."""
    prompt_width: int
    """Padded length of the prompts, where they are padded separately from the answers."""
    position_ids: Tensor | None = None
    """[B, T]; None for plain text."""
    attention: Tensor | None = None
    """Which position (second axis) attends to which (third), bool [B, T, T]; None is causal."""

    def repeated(self, times: int) -> "Sequences":
        """Return the same items several times."""

        def repeat(values: Tensor) -> Tensor:
            return torch.cat([values] * times)

        return Sequences(
            repeat(self.input_ids),
            repeat(self.rows),
            repeat(self.keys),
            self.prompt_width,
            None if self.position_ids is None else repeat(self.position_ids),
            None if self.attention is None else repeat(self.attention),
        )


def row_hidden(model: Any, batch: Sequences, dropout: MonteCarlo | None = None) -> Tensor:
    """Run one pass, or the K passes of `dropout`, and return the hidden states of some rows.

    The states [K, B * R, D] are those after the final norm. Logits of all positions are never
    computed.
    """
    n_items = len(batch.input_ids)
    split = dropout is not None and dropout.answer_only
    length = batch.input_ids.shape[1]
    if split:  # two runs: over the prompts, and over the rows that follow them
        length = min(batch.rows.shape[1], batch.prompt_width)
    if n_items * length < LEAST_ROWS:
        batch = batch.repeated(-(-LEAST_ROWS // (n_items * length)))
    if dropout is not None and split:
        states = _after_prompt(model, batch, dropout)  # [K, B, R, D]
    else:
        states = _whole(model, batch, dropout)  # [K, B, R, D]
    return states[:, :n_items].flatten(1, 2)  # [K, B * R, D]


def _whole(model: Any, batch: Sequences, dropout: MonteCarlo | None) -> Tensor:
    """Run prompt and answer together; return the hidden states [K, B, R, D]."""
    n_passes = 1 if dropout is None else dropout.n_passes
    n_items, length = batch.input_ids.shape
    positions = batch.position_ids
    mask = None if batch.attention is None else additive_mask(model, batch.attention)
    if dropout is not None:
        dropout.item_keys = batch.keys
        plain = torch.arange(length, device=batch.input_ids.device).expand(n_items, -1)
        dropout.positions = plain if positions is None else positions
    states = trunk_of(model)(
        input_ids=batch.input_ids.repeat(n_passes, 1),
        attention_mask=None if mask is None else mask.repeat(n_passes, 1, 1, 1),
        position_ids=None if positions is None else positions.repeat(n_passes, 1),
        use_cache=False,
    ).last_hidden_state  # [K * B, T, D]
    states = states.unflatten(0, (n_passes, n_items))  # [K, B, T, D]
    index = batch.rows[None, :, :, None].expand(n_passes, -1, -1, states.shape[-1])
    return states.gather(2, index)  # [K, B, R, D]


def _after_prompt(model: Any, batch: Sequences, dropout: MonteCarlo) -> Tensor:
    """Run the prompts once, then K copies of the rows that follow; return [K, B, R, D].

    The first run has no dropout, so all K passes share its keys and values, P padded tokens per
    prompt. The second run holds the prompt's last token and the answer, R rows per item. Those
    rows attend to the keys of the first P tokens and to each other, by an explicit mask.
    """
    starts = batch.rows[:, 0]  # tokens before the prompt's last one, [B]
    n_rows, width, n_passes = batch.rows.shape[1], batch.prompt_width, dropout.n_passes
    device = batch.input_ids.device
    cache = DynamicCache()
    with dropout.without_dropout():
        trunk_of(model)(input_ids=batch.input_ids[:, :width], past_key_values=cache, use_cache=True)
    ids = batch.input_ids.gather(1, batch.rows)  # [B, R]
    positions = (
        batch.rows if batch.position_ids is None else batch.position_ids.gather(1, batch.rows)
    )  # [B, R]
    if batch.attention is None:
        sees = batch.rows[:, :, None] >= batch.rows[:, None, :]  # [B, R, R]
    else:
        index = batch.rows[:, :, None].expand(-1, -1, batch.attention.shape[2])
        sees = batch.attention.gather(1, index)  # [B, R, T]
        sees = sees.gather(2, batch.rows[:, None, :].expand(-1, n_rows, -1))  # [B, R, R]
    # A shorter answer repeats its last row as a filler. No other row may attend to a filler, or
    # its token would count twice; a filler attends to itself, because softmax needs one key.
    filler = torch.zeros_like(batch.rows, dtype=torch.bool)
    filler[:, 1:] = batch.rows[:, 1:] == batch.rows[:, :-1]
    itself = torch.eye(n_rows, dtype=torch.bool, device=device)
    sees = (sees & ~filler[:, None, :]) | itself
    # The first run also computed keys for padding and for the prompt's last token, which runs
    # again with dropout. The mask hides both.
    before = torch.arange(width, device=device) < starts[:, None]  # [B, P]
    sees = torch.cat([before[:, None, :].expand(-1, n_rows, -1), sees], dim=2)  # [B, R, P + R]
    dropout.item_keys, dropout.positions = batch.keys, positions
    cache.layers = [_PromptLayer(layer, n_passes) for layer in cache.layers]
    states = trunk_of(model)(
        input_ids=ids.repeat(n_passes, 1),
        attention_mask=additive_mask(model, sees).repeat(n_passes, 1, 1, 1),
        position_ids=positions.repeat(n_passes, 1),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state  # [K * B, R, D]
    return states.unflatten(0, (n_passes, -1))  # [K, B, R, D]


class _PromptLayer(DynamicLayer):
    """Keys and values of one layer at the prompts, read by all passes and extended by none.

    The K copies are made when the layer runs and freed after it, so that only one layer's copies
    are in memory at a time.
    """

    def __init__(self, layer: Any, n_copies: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values, self.n_copies = layer.keys, layer.values, n_copies

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the prompts' keys and values, followed by those of the rows after them."""
        times = (self.n_copies, 1, 1, 1)
        return (
            torch.cat([self.keys.repeat(times), keys], dim=-2),
            torch.cat([self.values.repeat(times), values], dim=-2),
        )


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
