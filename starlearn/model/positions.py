"""Whether a model goes by the positions and the mask that it is given, not by places in a row."""

import inspect
from typing import Any

import torch

from starlearn.errors import InputError
from starlearn.model.structure import causal_model, trunk_of

START, ASIDE, REST = 4, 8, 8
"""Tokens of the probe: a beginning, what is not to be seen, and what goes on from the beginning."""
TOLERANCE = 0.05
"""Relative; rounding in bfloat16 stays below, what is eight places off does not."""
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


@torch.no_grad()
def goes_by_positions(model: Any) -> bool:
    """Try whether tokens may stand anywhere in a row, as long as position and mask say where.

    Trees of choices and keys and values behind padded prompts need that. Models with ALiBi (BLOOM,
    MPT, some Falcon) count places in the row instead, and would give other numbers without a word.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel, in evaluation mode, without Monte-Carlo passes
    """
    trunk, inner = trunk_of(model), causal_model(model)
    if "position_ids" not in inspect.signature(trunk.forward).parameters:
        return False
    device, size = next(inner.parameters()).device, inner.config.get_text_config().vocab_size
    length = START + ASIDE + REST
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size, (1, length), generator=generator).to(device)
    place = torch.arange(length, device=device)
    aside = (place >= START) & (place < START + ASIDE)
    rest = place >= START + ASIDE
    sees = (place[:, None] >= place) & ~(rest[:, None] & aside)
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
    except (RuntimeError, ValueError, TypeError):  # such a mask is not understood at all
        return False
    plain = trunk(input_ids=ids[:, ~aside], use_cache=False).last_hidden_state[0, START:]
    off = (found.float() - plain.float()).abs().mean()
    return bool(off <= TOLERANCE * plain.float().abs().mean())


def refuse_recurrent(model_class: Any, config: Any) -> None:
    """Raise InputError for a model whose layers keep a state, which padding would run through."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ()) - ATTENTION
    if kinds or getattr(model_class, "_is_stateful", False):
        has = (
            f"has layers of other kinds ({', '.join(sorted(kinds))})" if kinds else "keeps a state"
        )
        raise InputError(
            f"{type(config).__name__[:-6]} {has}, and starlearn scores models whose layers are "
            "attention alone. Use one of these, such as Llama, Qwen3, Gemma or Mistral."
        )
