"""Heads drawn at random for the kernel tests, and the comparisons that they share."""

from dataclasses import dataclass

import torch
from starlearn_kernels import EntropyStats, linear_entropy
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """Arguments of `linear_entropy`."""

    hidden: Tensor  # [K, N, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None
    target: Tensor | None
    scale: float
    softcap: float | None

    def run(self, route: str, **options: float) -> dict[str, Tensor]:
        return self.stats(route, **options).tensors()

    def stats(self, route: str, **options: float) -> EntropyStats:
        return linear_entropy(
            self.hidden,
            self.weight,
            self.bias,
            target=self.target,
            scale=self.scale,
            softcap=self.softcap,
            route=route,
            **options,
        )

    def logits(self) -> Tensor:
        """Return the logits in float64 by separate code, [K, N, V]."""
        x = torch.einsum("knd,vd->knv", self.hidden.double(), self.weight.double()) * self.scale
        if self.bias is not None:
            x = x + self.bias.double()
        return x if self.softcap is None else self.softcap * torch.tanh(x / self.softcap)

    def tolerance(self) -> float:
        """Return 1e-5 times the largest logit, and at least 1e-5."""
        x = self.logits()
        return 1e-5 * max(1.0, x[x.isfinite()].abs().max().item())


def make_case(
    seed: int,
    *,
    passes: int = 1,
    rows: int = 7,
    width: int = 16,
    vocabulary: int = 97,
    dtype: torch.dtype = torch.float32,
    spread: float = 1.0,
    bias: bool = False,
    target: bool = True,
    scale: float = 1.0,
    softcap: float | None = None,
    device: str = "cpu",
) -> Case:
    """Return a random head whose passes are noisy copies of one hidden state, as with dropout."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(1, rows, width, generator=draw)
    noise = torch.randn(passes, rows, width, generator=draw)
    hidden = base + 0.3 * noise
    weight = torch.randn(vocabulary, width, generator=draw) * spread / width**0.5
    shift = torch.randn(vocabulary, generator=draw)
    tokens = torch.randint(0, vocabulary, (rows,), generator=draw)
    return Case(
        hidden.to(device, dtype),
        weight.to(device, dtype),
        shift.to(device, dtype) if bias else None,
        tokens.to(device) if target else None,
        scale,
        softcap,
    )


def assert_close(found: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    """Check for the same fields, NaN and infinities, and differences within ``tolerance``."""
    assert found.keys() == truth.keys()
    for name, right in truth.items():
        value = found[name]
        assert value.dtype == torch.float32, name
        assert value.shape == right.shape, f"{name}: {value.shape} instead of {right.shape}"
        torch.testing.assert_close(
            value, right, atol=tolerance, rtol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_same_bits(found: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """Check that all fields are equal bit for bit, NaN included."""
    assert found.keys() == truth.keys()
    for name, right in truth.items():
        same = torch.equal(
            found[name].contiguous().view(torch.int32), right.contiguous().view(torch.int32)
        )
        assert same, f"{name} differs by {(found[name] - right).abs().max()}"
