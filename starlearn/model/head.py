"""Output heads: weights for the entropy kernel where possible, else the model's own code."""

import logging
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from starlearn_kernels import EntropyStats, linear_entropy, logits_entropy
from torch import Tensor, nn

from starlearn.errors import InputError
from starlearn.model.structure import LEAST_ROWS, causal_model, trunk_of

logger = logging.getLogger(__name__)

PROBE_ROWS = 16
PROBE_TOKENS = 8192
PROBE_LOGIT = 100.0
"""Largest logit in the comparison. It is large, because a soft cap changes only large logits."""
PROBE_TOLERANCE = 0.02
"""Largest error relative to the largest logit. Rounding in bfloat16 stays below it; an overlooked
scale or cap exceeds it by far."""
OWN_ROWS = 64
"""Rows of [N, V] logits that the model's own head computes at a time."""


class Head(Protocol):
    """Last step of a causal language model, from hidden states [N, D] to logits [N, V]."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of U tokens [U] for N rows [N, D] in float32, [N, U]."""

    def statistics(self, hidden: Tensor, target: Tensor | None = None) -> EntropyStats:
        """Return statistics of rows [N, D] or [K, N, D]; `target` [N] are token ids."""


@dataclass(frozen=True)
class LinearHead:
    """Head whose logits are cap(scale * h W^T + bias), as the entropy kernel needs."""

    weight: Tensor
    """[V, D]"""
    bias: Tensor | None
    """[V] or None"""
    scale: float
    softcap: float | None

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return self.weight.device

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of a few tokens; see `Head`."""
        rows = _enough_rows(hidden).float()
        logits = self.scale * (rows @ self.weight[tokens].float().T)[: len(hidden)]  # [N, U]
        if self.bias is not None:
            logits = logits + self.bias[tokens].float()
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def statistics(self, hidden: Tensor, target: Tensor | None = None) -> EntropyStats:
        """Return statistics without storing logits; see `Head`."""
        return linear_entropy(
            hidden,
            self.weight,
            self.bias,
            target=target,
            scale=self.scale,
            softcap=self.softcap,
        )


@dataclass(frozen=True)
class OwnHead:
    """Head that runs the model's own code, a few rows at a time."""

    model: Any
    """PreTrainedModel"""

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return torch.device(next(self.model.parameters()).device)

    def all_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [N, V] of rows [N, D], as the model computes them."""
        rows = _enough_rows(hidden).to(self.model.dtype)
        ids = torch.zeros((1, len(rows)), dtype=torch.long, device=rows.device)
        trunk, name = trunk_of(self.model), self.model.base_model_prefix
        setattr(self.model, name, _FixedTrunk(rows[None]))
        try:
            return self.model(input_ids=ids, use_cache=False).logits[0, : len(hidden)]  # [N, V]
        finally:
            setattr(self.model, name, trunk)

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of a few tokens; see `Head`."""
        parts = [self.all_logits(rows)[:, tokens].float() for rows in hidden.split(OWN_ROWS)]
        return torch.cat(parts)

    def statistics(self, hidden: Tensor, target: Tensor | None = None) -> EntropyStats:
        """Return statistics from logits in chunks; see `Head`."""
        return logits_entropy(self.all_logits, hidden, target=target)


@torch.no_grad()
def head_of(model: Any) -> Head:
    """Read the output head of a causal language model.

    The configuration gives the head's formula, which is compared with the model's own logits of a
    few random rows. If they differ, the model's own code is used, and a warning is logged.
    """
    inner = causal_model(model)
    layer = inner.get_output_embeddings()
    if layer is None or not hasattr(layer, "weight"):
        raise InputError(
            f"{type(inner).__name__} has no output head. starlearn needs a causal language model "
            "(AutoModelForCausalLM)."
        )
    own = OwnHead(inner)
    if layer.weight.is_floating_point() and layer.weight.ndim == 2:
        config = inner.config.get_text_config()
        scale = float(getattr(config, "logit_scale", None) or 1.0)
        scale /= float(getattr(config, "logits_scaling", None) or 1.0)
        head = LinearHead(
            weight=layer.weight.detach(),
            bias=None if getattr(layer, "bias", None) is None else layer.bias.detach(),
            scale=scale,
            softcap=getattr(config, "final_logit_softcapping", None),
        )
        if _agree(head, own):
            return head
    logger.warning(
        "The output head of %s is not a linear map with scale, bias and soft cap, so its own "
        "logits are used, %d rows at a time. This is slower; scores are the same.",
        type(inner).__name__,
        OWN_ROWS,
    )
    return own


def _agree(head: LinearHead, own: OwnHead) -> bool:
    """Return whether both heads give the same logits at random rows."""
    size, width = head.weight.shape
    generator = torch.Generator().manual_seed(0)
    tokens = torch.arange(size, device=head.device)
    rows = torch.randn(PROBE_ROWS, width, generator=generator).to(head.device, own.model.dtype)

    def logits(head: LinearHead, rows: Tensor) -> Tensor:
        # In parts, because the whole head in float32 would not fit into a small GPU.
        return torch.cat([head.logits(rows, part) for part in tokens.split(PROBE_TOKENS)], dim=1)

    largest = float(logits(replace(head, softcap=None), rows).abs().max())
    for factor in (1.0, max(PROBE_LOGIT / max(largest, 1e-6), 1.0)):
        expected = own.all_logits(rows * factor).float()
        if expected.shape[-1] != size:
            return False
        off = (logits(head, rows * factor) - expected).abs().max()
        if not float(off) <= PROBE_TOLERANCE * max(float(expected.abs().max()), 1e-6):
            return False
    return True


def _enough_rows(hidden: Tensor) -> Tensor:
    """Append zero rows to rows [N, D], so that products on a CPU round as with many rows."""
    missing = LEAST_ROWS - len(hidden)
    if missing <= 0:
        return hidden
    return torch.cat([hidden, hidden.new_zeros(missing, hidden.shape[1])])


class _FixedTrunk(nn.Module):
    """Replacement of a trunk that returns given hidden states [B, T, D]."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    @property
    def decoder(self) -> "_FixedTrunk":
        """Part of the trunk that some models call directly (OPT)."""
        return self

    def forward(self, *_: Any, **__: Any) -> "_TrunkOutput":
        return _TrunkOutput(self.states)


class _TrunkOutput:
    """Output of a trunk with hidden states only; other fields, such as a router's, are None."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None
