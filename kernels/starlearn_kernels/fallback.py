"""Statistics from a head that is only known as a function: its logits, a few rows at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from starlearn_kernels.checks import check_device, check_number, check_target, check_tensor
from starlearn_kernels.reference import stats_of_logits
from starlearn_kernels.stats import FLOOR, EntropyStats

# Live copies of a block's logits in `stats_of_logits`, in float64.
COPIES = 6


def logits_entropy(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Tensor,
    *,
    target: Tensor | None = None,
    max_workspace_mb: float = 64,
) -> EntropyStats:
    """The statistics of `linear_entropy` for a head that is not a linear map with a soft cap.

    Parameters
    ----------
    logits_of : callable
        Takes hidden states [rows, D], gives logits [rows, V], row by row: the model's own head.
    hidden : Tensor [N, D] or [K, N, D]
    target : Tensor [N], optional
        Token ids in 0 .. V - 1.
    max_workspace_mb : float
        Bound on this function's own copies of logits, in MB of 10^6 bytes; at least one token's
        logits are computed at a time.

    Returns
    -------
    EntropyStats
        In float64 inside, float32 outside. Bits may depend on the company of a row, as they do in
        ``logits_of``.
    """
    hidden = check_tensor("hidden", hidden, "[N, D] or [K, N, D]", (2, 3))
    check_number("max_workspace_mb", max_workspace_mb, "a number above 0")
    stacked = hidden.detach() if hidden.dim() == 3 else hidden.detach()[None]  # [K, N, D]
    passes, rows, _ = stacked.shape
    with torch.no_grad():
        vocabulary = _logits(logits_of, stacked[:, :1]).shape[-1]
        if target is not None:
            target = check_tensor("target", target, "[N]", (1,))
            check_device("target", target, hidden.device)
            target = check_target(target, rows, vocabulary)
        step = max(1, int(max_workspace_mb * 1e6) // (COPIES * 8 * passes * vocabulary))
        parts = []
        for start in range(0, rows, step):
            logits = _logits(logits_of, stacked[:, start : start + step])  # [K, n, V]
            chosen = None if target is None else target[start : start + step]
            parts.append(stats_of_logits(logits, chosen).tensors())
    joined = {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}
    stats = EntropyStats(**{"logprob": None, **joined})  # type: ignore[arg-type]
    return stats if hidden.dim() == 3 else stats.squeezed()


def _logits(logits_of: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Logits [K, n, V] in float64, with -inf below the floor."""
    logits = logits_of(hidden.flatten(0, 1))
    if not isinstance(logits, Tensor):
        raise TypeError(f"`logits_of` must return a torch.Tensor, got {type(logits).__name__}")
    passes, rows = hidden.shape[:2]
    if logits.dim() != 2 or len(logits) != passes * rows or logits.shape[1] == 0:
        raise ValueError(
            f"`logits_of` must return [rows, V] with rows = {passes * rows}, "
            f"got {list(logits.shape)}"
        )
    logits = logits.double().view(passes, rows, -1)
    return torch.where(logits <= FLOOR, -torch.inf, logits)
