"""Input and output of every route, and the step from running sums to statistics."""

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

# Finite replacement of -inf: differences of two masked logits are then 0 instead of NaN.
FLOOR = -1e30
LN2 = math.log(2.0)
LOG2E = 1 / LN2


@dataclass(frozen=True)
class Head:
    """Checked input of a route: hidden states and the head that turns them into logits.

    The logits are ``cap(scale * hidden @ weight.T + bias)`` with ``cap(x) = softcap *
    tanh(x / softcap)``; they are never stored for all rows.
    """

    hidden: Tensor  # [K, N, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    target: Tensor | None  # [N]
    scale: float
    softcap: float | None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """K, N, D and V."""
        passes, rows, width = self.hidden.shape
        return passes, rows, width, self.weight.shape[0]


@dataclass(frozen=True)
class EntropyStats:
    """Statistics of the predictive distributions of N rows under K passes, all float32, in nats.

    For two-dimensional ``hidden`` (one pass) the fields marked [K, N] are [N].

    Attributes
    ----------
    entropy : Tensor [K, N]
        Entropy of each pass.
    logsumexp : Tensor [K, N]
        Log of the sum of the exponentials of the logits.
    max_prob : Tensor [K, N]
        Largest probability.
    margin : Tensor [K, N]
        Largest logit minus the second largest; 0 for a tie, inf if there is only one.
    logprob : Tensor [K, N] or None
        Log probability of the target; None without targets.
    expected_entropy : Tensor [N]
        Mean over the passes of their entropies.
    predictive_entropy : Tensor [N]
        Entropy of the mean of the K distributions.
    mutual_information : Tensor [N]
        Predictive minus expected entropy (BALD), computed directly, between 0 and log K.

    Notes
    -----
    A row without a finite logit has ``logsumexp`` -inf and NaN elsewhere. A row with a logit that
    is NaN or +inf has NaN everywhere. Neither changes another row.
    """

    entropy: Tensor
    logsumexp: Tensor
    max_prob: Tensor
    margin: Tensor
    logprob: Tensor | None
    expected_entropy: Tensor
    predictive_entropy: Tensor
    mutual_information: Tensor

    def squeezed(self) -> "EntropyStats":
        """Return the statistics of a single pass without the axis of passes."""
        per_pass = ("entropy", "logsumexp", "max_prob", "margin", "logprob")
        found = self.tensors()
        return replace(self, **{name: found[name][0] for name in per_pass if name in found})

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are not None, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


def mean_over_passes(values: Tensor) -> Tensor:
    """Return the mean of [K, ...] over K, added in a fixed order.

    The order of a library's sum may depend on the shape, which would change a row's bits.
    """
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total.div_(len(values))


def finish(
    top: Tensor,  # [K, N]
    mass: Tensor,  # [K, N]
    slope: Tensor,  # [K, N]
    second: Tensor,  # [K, N]
    target_logit: Tensor | None,  # [K, N]
    information: Tensor | None,  # [N]
) -> EntropyStats:
    """Turn the running sums of a route into statistics.

    Logits x and mutual information come in bits. ``top`` is the largest logit m, ``mass`` the sum
    of 2^(x - m), ``slope`` the sum of 2^(x - m) (x - m), and ``second`` the second largest logit.
    Mutual information is zero where it is not given.
    """
    log_mass = mass.log()
    unknown = torch.isnan(mass)
    empty = (top <= FLOOR) & ~unknown  # no finite logit
    bad = unknown | empty

    entropy = log_mass - LN2 * (slope / mass)
    # Comparisons instead of clamps, because a maximum with 0 can turn NaN into 0. Entropies below
    # 1e-30 come from probabilities that underflow.
    entropy = torch.where(entropy < 1e-30, 0.0, entropy)
    entropy = torch.where(bad, torch.nan, entropy)
    logsumexp = torch.where(empty, -torch.inf, LN2 * top + log_mass)
    margin = torch.where(second <= FLOOR, torch.inf, LN2 * (top - second))
    logprob = None
    if target_logit is not None:
        logprob = LN2 * (target_logit - top) - log_mass
        logprob = torch.where(target_logit <= FLOOR, -torch.inf, logprob)
        logprob = torch.where(logprob > 0, 0.0, logprob)
        logprob = torch.where(bad, torch.nan, logprob)

    expected = mean_over_passes(entropy)
    information = torch.zeros_like(expected) if information is None else LN2 * information
    ceiling = math.log(top.shape[0])
    information = torch.where(information < 0, 0.0, information)
    information = torch.where(information > ceiling, ceiling, information)
    information = torch.where(torch.isnan(expected), torch.nan, information)
    return EntropyStats(
        entropy=entropy,
        logsumexp=logsumexp,
        max_prob=torch.where(bad, torch.nan, 1 / mass),
        margin=torch.where(bad, torch.nan, margin),
        logprob=logprob,
        expected_entropy=expected,
        predictive_entropy=expected + information,
        mutual_information=information,
    )
