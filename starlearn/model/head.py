"""The output head: as numbers for the entropy kernel, or as the model's own code where it must."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
"""Size of the largest logit that the comparison sees: a soft cap bends only large ones."""
PROBE_TOLERANCE = 0.02
"""Relative to the largest logit: room for bfloat16 heads, far below what a forgotten scale or cap
would do."""
OWN_ROWS = 64
"""Rows of [N, V] logits that the model's own head makes at a time."""


class Head(Protocol):
    """The last step of a causal language model: hidden states [N, D] to logits [N, V]."""

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of U tokens [U] for N rows [N, D]: float32, [N, U]."""

    def statistics(self, hidden: Tensor, target: Tensor | None = None) -> EntropyStats:
        """Return entropies and more of rows [N, D] or [K, N, D]; `target` [N] are token ids."""


@dataclass(frozen=True)
class LinearHead:
    """logits = cap(scale * h W^T + bias): what the entropy kernel computes without logits."""

    weight: Tensor
    """[V, D]"""
    bias: Tensor | None
    """[V] or None"""
    scale: float
    softcap: float | None

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
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
        """Return entropies and more without making logits; see `Head`."""
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
    """The model's own code from hidden states to logits, a few rows at a time."""

    model: Any
    """PreTrainedModel"""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(next(self.model.parameters()).device)

    def all_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [N, V] of rows [N, D], as the model computes them."""
        rows = _enough_rows(hidden).to(self.model.dtype)
        with _trunk_that_gives(self.model, rows[None]):
            ids = torch.zeros((1, len(rows)), dtype=torch.long, device=rows.device)
            return self.model(input_ids=ids, use_cache=False).logits[0, : len(hidden)]

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits of a few tokens; see `Head`."""
        parts = [self.all_logits(rows)[:, tokens].float() for rows in hidden.split(OWN_ROWS)]
        return torch.cat(parts)

    def statistics(self, hidden: Tensor, target: Tensor | None = None) -> EntropyStats:
        """Return entropies and more from logits in chunks; see `Head`."""
        return logits_entropy(self.all_logits, hidden, target=target)


@torch.no_grad()
def head_of(model: Any) -> Head:
    """Read the output head of a causal language model.

    Its formula is taken from the configuration and then held against the model's own logits of a
    few random rows. Where the two differ, the model's own code is used, and a warning logged.

    Raises
    ------
    InputError
        When the model has no output head at all.
    """
    inner = causal_model(model)
    layer = inner.get_output_embeddings()
    if layer is None or not hasattr(layer, "weight"):
        raise InputError(
            f"{type(inner).__name__} has no output head to read. starlearn needs a causal "
            "language model (AutoModelForCausalLM)."
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
        "The output head of %s is not a linear map with scale, bias and soft cap: its own logits "
        "are used, %d rows at a time. Scores are the same, slower.",
        type(inner).__name__,
        OWN_ROWS,
    )
    return own


def _agree(head: LinearHead, own: OwnHead) -> bool:
    """Compare both heads at random rows of a usual size."""
    size, width = head.weight.shape
    generator = torch.Generator().manual_seed(0)
    tokens = torch.arange(size, device=head.device)
    rows = torch.randn(PROBE_ROWS, width, generator=generator).to(head.device, own.model.dtype)

    def logits(head: LinearHead, rows: Tensor) -> Tensor:
        # In parts: the whole head in float32 beside it would not fit into a small GPU.
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
    """Rows [N, D] with zero rows below, so that a CPU's product takes its usual path."""
    missing = LEAST_ROWS - len(hidden)
    if missing <= 0:
        return hidden
    return torch.cat([hidden, hidden.new_zeros(missing, hidden.shape[1])])


class _Given(nn.Module):
    """Stands in for a trunk: gives hidden states that are already there."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    @property
    def decoder(self) -> "_Given":
        """The part of the trunk that some models call by itself (OPT)."""
        return self

    def forward(self, *_: Any, **__: Any) -> "_Output":
        return _Output(self.states)


class _Output:
    """What a trunk returns; all that comes beside hidden states, such as a router's, is None."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def _trunk_that_gives(inner: Any, states: Tensor) -> Iterator[None]:
    """Let a model go on from hidden states [B, T, D] instead of tokens."""
    trunk, name = trunk_of(inner), inner.base_model_prefix
    setattr(inner, name, _Given(states))
    try:
        yield
    finally:
        setattr(inner, name, trunk)
