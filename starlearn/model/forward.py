"""Sequences through the model in K passes: hidden states at the rows that are asked for."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from starlearn.data.tokens import Batch
from starlearn.model.dropout import MonteCarlo
from starlearn.model.head import Head
from starlearn.model.memory import TokenBudget
from starlearn.model.structure import LEAST_ROWS, causal_model, decoder_layers, trunk_of


@dataclass(frozen=True)
class Workload:
    """A model in evaluation mode, and what all functions that run a pool through it share."""

    model: Any
    """PeftModel or PreTrainedModel."""
    head: Head
    pad_id: int
    budget: TokenBudget
    max_batch_tokens: int | None = None
    """A bound on the budget that the user has set."""
    dropout: MonteCarlo | None = None
    """K passes with dropout, or one without."""
    by_positions: bool = True
    """Whether trees can be laid out in a row; see `layout.goes_by_positions`."""
    progress: Callable[[int, int], object] = lambda items, tokens: None
    """Called with the items and the padded tokens that were finished."""

    @property
    def n_passes(self) -> int:
        """K."""
        return 1 if self.dropout is None else self.dropout.n_passes

    @property
    def split(self) -> bool:
        """Whether the prompt runs once, apart from the K copies of what stands behind it; each of
        both is then a part of its own, padded by itself."""
        return self.dropout is not None and self.dropout.answer_only

    @property
    def copies(self) -> int | tuple[int, ...]:
        """How many times a pass runs an item, or each of its parts."""
        return (1, self.n_passes) if self.split else self.n_passes

    def run(self, lengths: Any, compute: Callable[[Batch], None]) -> None:
        """Compute items of these lengths in batches that fit; see `TokenBudget.run`."""
        self.budget.run(lengths, compute, copies=self.copies, most=self.max_batch_tokens)


@dataclass(frozen=True)
class Sequences:
    """Prompts with what is scored behind them, padded on the right to T tokens."""

    input_ids: Tensor
    """[B, T]"""
    rows: Tensor
    """Positions whose hidden states are wanted, [B, R]: the prompt's last token, then those of
    the answer; shorter answers repeat their last one."""
    keys: Tensor
    """A number for each item, [B], int64; masks per token are drawn by it."""
    prompt_width: int
    """Padded length of the prompts alone, where they are padded apart from the answers."""
    position_ids: Tensor | None = None
    """[B, T]; None where the sequence is plain text."""
    attention: Tensor | None = None
    """Which position (second axis) sees which (third), bool [B, T, T]; None is causal."""

    def repeated(self, times: int) -> "Sequences":
        """The same items several times over."""

        def more(values: Tensor) -> Tensor:
            return torch.cat([values] * times)

        return Sequences(
            more(self.input_ids),
            more(self.rows),
            more(self.keys),
            self.prompt_width,
            None if self.position_ids is None else more(self.position_ids),
            None if self.attention is None else more(self.attention),
        )


def row_hidden(model: Any, batch: Sequences, dropout: MonteCarlo | None = None) -> Tensor:
    """Run one pass, or the K passes of `dropout`, and keep the hidden states of some rows.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel, in evaluation mode
    batch : Sequences
        B items.
    dropout : MonteCarlo, optional
        From :func:`starlearn.model.dropout.mc_dropout`.

    Returns
    -------
    Tensor of shape (K, B * R, D)
        After the final norm; the head never makes logits of all positions.
    """
    n_items = len(batch.input_ids)
    split = dropout is not None and dropout.answer_only
    length = batch.input_ids.shape[1]
    if split:  # two runs: over the prompts, and over the rows behind them
        length = min(batch.rows.shape[1], batch.prompt_width)
    if n_items * length < LEAST_ROWS:
        batch = batch.repeated(-(-LEAST_ROWS // (n_items * length)))
    if dropout is not None and split:
        states = _behind_prompt(model, batch, dropout)  # [K, B, R, D]
    else:
        states = _whole(model, batch, dropout)
    return states[:, :n_items].flatten(1, 2)


def _whole(model: Any, batch: Sequences, dropout: MonteCarlo | None) -> Tensor:
    """Hidden states of prompt and answer in one run, [K, B, R, D]."""
    n_passes = 1 if dropout is None else dropout.n_passes
    inputs = batch.input_ids
    mask, positions = _additive(model, batch.attention), batch.position_ids
    n_items, length = inputs.shape
    if dropout is not None:
        dropout.item_keys = batch.keys
        plain = torch.arange(length, device=inputs.device).expand(n_items, -1)
        dropout.positions = plain if positions is None else positions
    with ExitStack() as hooks:
        inputs = inputs.repeat(n_passes, 1)  # [K * B, T]
        mask = None if mask is None else mask.repeat(n_passes, 1, 1, 1)
        positions = None if positions is None else positions.repeat(n_passes, 1)
        hooks.enter_context(_last_mlp_at(model, batch.rows, n_passes, dropout))
        states = trunk_of(model)(
            input_ids=inputs, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state  # [K * B, T, D]
    return _gathered(states, batch.rows, n_passes)


def _behind_prompt(model: Any, batch: Sequences, dropout: MonteCarlo) -> Tensor:
    """Hidden states of the answer's rows behind a prompt that ran once, [K, B, R, D]."""
    starts = batch.rows[:, 0]  # tokens before the prompt's last one, [B]
    n_items, n_rows = batch.rows.shape
    width = batch.prompt_width
    device = batch.input_ids.device
    cache = DynamicCache()
    with dropout.without_dropout(), _last_mlp_at(model, batch.rows[:, :1], 1, None):
        # What stands behind a prompt here is masked below.
        trunk_of(model)(input_ids=batch.input_ids[:, :width], past_key_values=cache, use_cache=True)
    ids = batch.input_ids.gather(1, batch.rows)  # [B, R]
    positions = (
        batch.rows if batch.position_ids is None else batch.position_ids.gather(1, batch.rows)
    )
    if batch.attention is None:
        sees = batch.rows[:, :, None] >= batch.rows[:, None, :]  # [B, R, R]
    else:
        index = batch.rows[:, :, None].expand(-1, -1, batch.attention.shape[2])
        sees = batch.attention.gather(1, index)
        sees = sees.gather(2, batch.rows[:, None, :].expand(-1, n_rows, -1))
    # A row that only fills up repeats the one before it, and must not be seen twice.
    filler = torch.zeros_like(batch.rows, dtype=torch.bool)
    filler[:, 1:] = batch.rows[:, 1:] == batch.rows[:, :-1]
    itself = torch.eye(n_rows, dtype=torch.bool, device=device)
    sees = (sees & ~filler[:, None, :]) | itself
    before = torch.arange(width, device=device) < starts[:, None]  # [B, P]
    whole = torch.cat([before[:, None, :].expand(-1, n_rows, -1), sees], dim=2)  # [B, R, P + R]
    dropout.item_keys, dropout.positions = batch.keys, positions
    n_passes = dropout.n_passes
    mask = _additive(model, whole)
    cache.layers = [_PromptLayer(layer, n_passes) for layer in cache.layers]
    states = trunk_of(model)(
        input_ids=ids.repeat(n_passes, 1),
        attention_mask=None if mask is None else mask.repeat(n_passes, 1, 1, 1),
        position_ids=positions.repeat(n_passes, 1),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state  # [K * B, R, D]
    return states.unflatten(0, (n_passes, n_items))


class _PromptLayer(DynamicLayer):
    """Keys and values of a layer at the prompts, which all passes read and none adds to.

    They are copied when the layer runs, and let go after it: the copies of one layer are there at
    a time.
    """

    def __init__(self, layer: Any, n_copies: int) -> None:
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values, self.n_copies = layer.keys, layer.values, n_copies

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the prompts' keys and values with those of the rows behind them."""
        times = (self.n_copies, 1, 1, 1)
        return (
            torch.cat([self.keys.repeat(times), keys], dim=-2),
            torch.cat([self.values.repeat(times), values], dim=-2),
        )


def _additive(model: Any, sees: Tensor | None) -> Tensor | None:
    """A mask that is added to attention scores, [B, 1, T, T], in the model's type."""
    if sees is None:
        return None
    dtype = causal_model(model).dtype
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def _gathered(states: Tensor, rows: Tensor, n_passes: int) -> Tensor:
    """Pick rows [B, R] from states [K * B, T, D]: [K, B, R, D]."""
    states = states.unflatten(0, (n_passes, -1))
    index = rows[None, :, :, None].expand(n_passes, -1, -1, states.shape[-1])
    return states.gather(2, index)


@contextmanager
def _last_mlp_at(
    model: Any, rows: Tensor, n_passes: int, dropout: MonteCarlo | None
) -> Iterator[None]:
    """Compute the last layer's feed-forward part at the wanted rows only.

    Nothing behind the last layer looks at another row. Models that keep this part elsewhere, or
    give it more than the states (BLOOM: the residual), compute all rows; so do masks per token,
    which need the rows' places.
    """
    layers = decoder_layers(model)
    mlp = None if layers is None else getattr(layers[-1], "mlp", None)
    if mlp is None or (dropout is not None and dropout.per_token):
        yield
        return
    n_rows = rows.shape[1]
    least = -(-LEAST_ROWS // len(rows))  # rows of an item, so that a pass has enough
    places = rows[:, torch.arange(max(n_rows, least), device=rows.device).clamp(max=n_rows - 1)]
    whole: list[Tensor] = []

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) != 1 or kwargs or args[0].dim() != 3:
            return None
        whole.append(args[0])
        return (_gathered(args[0], places, n_passes).flatten(0, 1),), kwargs

    def after(_: Any, __: Any, output: Any) -> Any:
        if not whole:
            return None
        if isinstance(output, tuple):  # experts give their router's numbers too
            return (after(_, __, output[0]), *output[1:])
        index = places.repeat(n_passes, 1)[:, :, None].expand(-1, -1, output.shape[-1])
        return torch.zeros_like(whole.pop()).scatter_(1, index, output)

    hooks = [
        mlp.register_forward_pre_hook(before, with_kwargs=True),
        mlp.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
