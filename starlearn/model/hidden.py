"""Last hidden states at answer rows, and the output head as numbers instead of a module."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from starlearn.errors import InputError

LEAST_ROWS = 16
"""Matrix products of fewer rows take other code paths in CPU libraries and give other bits."""


@dataclass(frozen=True)
class Head:
    """logits = cap(scale * h W^T + bias), the last step of a causal language model."""

    weight: Tensor
    """[V, D]"""
    bias: Tensor | None
    """[V] or None"""
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of a few tokens.

        Parameters
        ----------
        hidden : Tensor of shape (N, D)
        tokens : Tensor of shape (U,)

        Returns
        -------
        Tensor of shape (N, U), float32
        """
        n_rows = hidden.shape[0]
        if n_rows < LEAST_ROWS:
            padding = hidden.new_zeros(LEAST_ROWS - n_rows, hidden.shape[1])
            hidden = torch.cat([hidden, padding])
        logits = self.scale * (hidden.float() @ self.weight[tokens].float().T)[:n_rows]  # [N, U]
        if self.bias is not None:
            logits = logits + self.bias[tokens].float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


def causal_model(model: Any) -> Any:
    """Return the transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: Any) -> Head:
    """Read the output head of a causal language model.

    Raises
    ------
    InputError
        When the model has no plain linear output head.
    """
    inner = causal_model(model)
    layer = inner.get_output_embeddings()
    if layer is None or not hasattr(layer, "weight") or layer.weight.ndim != 2:
        raise InputError(
            f"{type(inner).__name__} has no linear output head to read. starlearn needs a causal "
            "language model (AutoModelForCausalLM)."
        )
    config = inner.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(
        weight=layer.weight.detach(),
        bias=None if getattr(layer, "bias", None) is None else layer.bias.detach(),
        scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def attention_window(model: Any) -> float:
    """Return the tokens that every layer can look back on; infinite without a sliding window."""
    config = causal_model(model).config.get_text_config()
    names = ("sliding_window", "attention_chunk_size")
    return min(getattr(config, name, None) or float("inf") for name in names)


def row_hidden(
    model: Any,
    input_ids: Tensor,
    rows: Tensor,
    *,
    n_passes: int = 1,
    position_ids: Tensor | None = None,
    attention: Tensor | None = None,
) -> Tensor:
    """Run K stacked passes and keep the hidden states of some positions.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel
    input_ids : Tensor of shape (B, T)
        Padded on the right; causal attention keeps the padding out of all real positions.
    rows : Tensor of shape (B, R)
        Positions to keep in each item.
    n_passes : int
        K.
    position_ids : Tensor of shape (B, T), optional
        Where the sequence is not a plain one.
    attention : Tensor of shape (B, T, T), bool, optional
        Which position (second axis) sees which (third); None is causal.

    Returns
    -------
    Tensor of shape (K, B * R, D)
        After the final norm; the head never makes logits of all positions.
    """
    inner = causal_model(model)
    trunk = getattr(inner, inner.base_model_prefix)
    n_items, length = input_ids.shape
    if n_passes * n_items * length < LEAST_ROWS:
        n_copies = -(-LEAST_ROWS // (n_passes * length))
        input_ids = input_ids.repeat(n_copies, 1)
        position_ids = None if position_ids is None else position_ids.repeat(n_copies, 1)
        attention = None if attention is None else attention.repeat(n_copies, 1, 1)
    mask = None
    if attention is not None:
        mask = torch.zeros(attention.shape, dtype=inner.dtype, device=attention.device)
        mask = mask.masked_fill(~attention, torch.finfo(inner.dtype).min)
        mask = mask[:, None].repeat(n_passes, 1, 1, 1)  # [K * B, 1, T, T]
    if position_ids is not None:
        position_ids = position_ids.repeat(n_passes, 1)  # [K * B, T]
    states = trunk(
        input_ids=input_ids.repeat(n_passes, 1),
        attention_mask=mask,
        position_ids=position_ids,
        use_cache=False,
    ).last_hidden_state  # [K * B, T, D]
    states = states.reshape(n_passes, -1, length, states.shape[-1])[:, :n_items]  # [K, B, T, D]
    index = rows[None, :, :, None].expand(n_passes, -1, -1, states.shape[-1])
    return states.gather(2, index).flatten(1, 2)  # [K, B * R, D]
