"""Reference: every statistic by its definition, in float64, with all logits in memory."""

import math

import torch
from torch import Tensor

from starlearn_kernels.stats import FLOOR, EntropyStats, Head


def head_logits(head: Head) -> Tensor:
    """Return all logits of a head in float64, [K, N, V], with -inf below the floor."""
    logits = head.scale * (head.hidden.double() @ head.weight.double().T)  # [K, N, V]
    if head.bias is not None:
        logits = logits + head.bias.double()
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.where(logits <= FLOOR, -torch.inf, logits)


def reference(head: Head) -> EntropyStats:
    """Return the statistics of a head by definition, in float64, rounded to float32 at the end."""
    return stats_of_logits(head_logits(head), head.target)


def stats_of_logits(logits: Tensor, target: Tensor | None) -> EntropyStats:
    """Return statistics of logits [K, N, V] by definition, in their dtype; ``target`` is [N]."""
    logsumexp = logits.logsumexp(-1)  # [K, N]
    logp = logits - logsumexp[..., None]  # [K, N, V]
    p = logp.exp()

    entropy = -_times_log(p, logp).sum(-1)  # [K, N]
    mean_p = p.mean(0)  # [N, V]
    predictive = -_times_log(mean_p, mean_p.log()).sum(-1)  # [N]
    # A mean below the smallest number rounds to 0. It is at least 1 / K of the largest p.
    log_mean = torch.maximum(mean_p.log(), logp.amax(0) - math.log(len(logits)))  # [N, V]
    information = _times_log(p, logp - log_mean).sum(-1).mean(0)  # [N]

    pair = logits.topk(min(2, logits.shape[-1])).values  # [K, N, 2]
    single = pair.shape[-1] == 1  # V = 1
    margin = torch.full_like(entropy, torch.inf) if single else pair[..., 0] - pair[..., 1]
    bad = torch.isnan(entropy)
    margin = torch.where(bad, torch.nan, margin)
    logsumexp = torch.where(bad & (logsumexp != -torch.inf), torch.nan, logsumexp)
    logprob = None
    if target is not None:
        chosen = target.expand(logp.shape[:2])[..., None]  # [K, N, 1]
        logprob = torch.where(bad, torch.nan, logp.gather(-1, chosen)[..., 0])
    return EntropyStats(
        entropy=entropy.float(),
        logsumexp=logsumexp.float(),
        max_prob=p.amax(-1).float(),
        margin=margin.float(),
        logprob=None if logprob is None else logprob.float(),
        expected_entropy=entropy.mean(0).float(),
        predictive_entropy=predictive.float(),
        # Rounding can leave the bounds by 1e-17.
        mutual_information=information.clamp(0, math.log(len(logits))).float(),
    )


def _times_log(p: Tensor, log: Tensor) -> Tensor:
    """Return p * log, with 0 where p is 0; NaN in p stays NaN."""
    return torch.where(p == 0, 0.0, p * log)
