"""Statistics of a head that is known only as a function, a few rows of logits at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from starlearn_kernels.checks import check_device, check_number, check_target, check_tensor
from starlearn_kernels.reference import stats_of_logits
from starlearn_kernels.stats import FLOOR, EntropyStats

# Copies of a block's logits that `stats_of_logits` holds at the same time, in float64.
COPIES = 6


def logits_entropy(
    logits_of: Callable[[Tensor], Tensor],
    hidden: Tensor,
    *,
    target: Tensor | None = None,
    max_workspace_mb: float = 64,
) -> EntropyStats:
    """Return the statistics of `linear_entropy` for any head.

    Parameters
    ----------
    logits_of : callable
        The model's own head, from hidden states [rows, D] to logits [rows, V].
    hidden : Tensor [N, D] or [K, N, D]
    target : Tensor [N], optional
        Token ids in 0 .. V - 1.
    max_workspace_mb : float
        Upper bound on the copies of logits in this function, in MB of 10^6 bytes. At least one
        token's logits are computed at a time.

    Returns
    -------
    EntropyStats
        Computed in float64 and rounded to float32. The bits of a row may depend on other rows, as
        in ``logits_of``.
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
    """Return logits [K, n, V] in float64, with -inf below the floor."""
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
