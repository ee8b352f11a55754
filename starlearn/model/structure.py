"""Structure of a causal language model: its trunk, its window, its use of positions and masks."""

import inspect
from typing import Any

import torch
from torch import Tensor

from starlearn.errors import InputError

LEAST_ROWS = 16
"""Matrix products of fewer rows take other code paths in CPU libraries, which round differently."""
START, ASIDE, REST = 4, 8, 8
"""Tokens of the probe: a start, tokens that the mask hides, and the continuation of the start."""
TOLERANCE = 0.05
"""Largest relative error. Rounding in bfloat16 stays below it; positions off by eight do not."""
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def causal_model(model: Any) -> Any:
    """Return the transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk_of(model: Any) -> Any:
    """Return the part that turns tokens into hidden states: the model without its head."""
    inner = causal_model(model)
    return getattr(inner, inner.base_model_prefix)


def attention_window(config: Any) -> float:
    """Return how many tokens every layer can attend to; infinite without a sliding window."""
    config = config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "window_size")  # the last: GPT-Neo
    return min(getattr(config, name, None) or float("inf") for name in names)


def additive_mask(model: Any, sees: Tensor) -> Tensor:
    """Turn a mask [B, T, T] into one that is added to attention scores, [B, 1, T, T]."""
    dtype = causal_model(model).dtype
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


@torch.no_grad()
def goes_by_positions(model: Any) -> bool:
    """Return whether a model uses position ids and mask alone, not the place in the row.

    Trees of choices and prompts that run once need this. Models with ALiBi (BLOOM, MPT, some
    Falcon) count places in the row, and would silently give other numbers.
    """
    trunk, inner = trunk_of(model), causal_model(model)
    if "position_ids" not in inspect.signature(trunk.forward).parameters:
        return False
    device, size = next(inner.parameters()).device, inner.config.get_text_config().vocab_size
    length = START + ASIDE + REST
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size, (1, length), generator=generator).to(device)  # [1, T]
    place = torch.arange(length, device=device)  # [T]
    aside = (place >= START) & (place < START + ASIDE)
    rest = place >= START + ASIDE
    # One row with hidden tokens in its middle must give the states of the row without them.
    sees = (place[:, None] >= place) & ~(rest[:, None] & aside)  # [T, T]
    try:
        found = trunk(
            input_ids=ids,
            attention_mask=additive_mask(model, sees[None]),
            position_ids=(place - ASIDE * rest)[None],
            use_cache=False,
        ).last_hidden_state[0, rest]
    except (RuntimeError, ValueError, TypeError):  # the model does not support such a mask
        return False
    plain = trunk(input_ids=ids[:, ~aside], use_cache=False).last_hidden_state[0, START:]
    off = (found.float() - plain.float()).abs().mean()
    return bool(off <= TOLERANCE * plain.float().abs().mean())


def refuse_recurrent(model_class: Any, config: Any) -> None:
    """Raise InputError for a model with recurrent layers, whose state padding would change."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ()) - ATTENTION
    if kinds or getattr(model_class, "_is_stateful", False):
        reason = (
            f"has layers of other kinds ({', '.join(sorted(kinds))})" if kinds else "keeps a state"
        )
        raise InputError(
            f"{type(config).__name__[:-6]} {reason}, but starlearn needs a model with attention "
            "layers only, such as Llama, Qwen3, Gemma or Mistral."
        )
