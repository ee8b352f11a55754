"""Checks of a model's layers: use of position ids and masks, and no recurrent state."""

import inspect
from typing import Any

import torch

from starlearn.errors import InputError
from starlearn.model.structure import causal_model, trunk_of

START, ASIDE, REST = 4, 8, 8
"""Tokens of the probe: a start, tokens that the mask hides, and the continuation of the start."""
TOLERANCE = 0.05
"""Largest relative error. Rounding in bfloat16 stays below it; positions off by eight do not."""
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


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
    dtype = inner.dtype
    mask = torch.zeros(sees.shape, dtype=dtype, device=device)
    mask = mask.masked_fill_(~sees, torch.finfo(dtype).min)[None, None]
    try:
        found = trunk(
            input_ids=ids,
            attention_mask=mask,
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
