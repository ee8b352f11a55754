"""Raw uncertainty of items under one model: entropies, log-probabilities, answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import entr

from starlearn.data.tokens import batches
from starlearn.model.answers import answer_statistics
from starlearn.model.choices import mean_log_probability
from starlearn.model.hidden import head_of


@dataclass(frozen=True)
class Scores:
    """One value per item: what one model, with K passes or one, says about its answers."""

    entropy: NDArray[np.float64]
    """Mean over passes of the answer's entropy in nats, shape [m]; a sum over tokens."""
    predictive_entropy: NDArray[np.float64]
    """Minus the log-probability of the answer, mean over passes, shape [m]."""
    mutual_information: NDArray[np.float64]
    """Between answer and pass, shape [m]; 0 for one pass."""


def empty_scores(n_items: int) -> Scores:
    """Return scores to be filled in; NaN shows what was not."""
    return Scores(*(np.full(n_items, np.nan) for _ in fields(Scores)))


def fill_scores(target: Scores, index: NDArray[np.intp], source: Scores) -> None:
    """Write the scores of some items into those of all."""
    for field in fields(Scores):
        getattr(target, field.name)[index] = getattr(source, field.name)


def choice_scores(log_probabilities: NDArray[np.float64], answers: NDArray[np.intp]) -> Scores:
    """Turn distributions over choices into scores.

    Parameters
    ----------
    log_probabilities : ndarray of shape (K, m, C)
    answers : ndarray of shape (m,)
        The choice that counts as the answer of each item, for the predictive entropy.
    """
    n_passes, n_items, _ = log_probabilities.shape
    probabilities = np.exp(log_probabilities)
    entropies = entr(probabilities).sum(axis=-1)  # [K, m]
    log_mean = mean_log_probability(log_probabilities)  # [m, C]
    # Directly as a mean divergence: as a difference of entropies it drowns in rounding.
    information = (probabilities * (log_probabilities - log_mean)).sum(axis=-1).mean(axis=0)
    return Scores(
        entropy=entropies.mean(axis=0),
        predictive_entropy=-log_probabilities[:, np.arange(n_items), answers].mean(axis=0),
        mutual_information=np.clip(information, 0, np.log(n_passes)),
    )


@torch.no_grad()
def answer_scores(
    model: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    n_passes: int,
    pad_id: int,
    max_batch_tokens: int,
    progress: Callable[[int], object],
) -> Scores:
    """Score free-form answers, token by token, in K stacked passes.

    Parameters
    ----------
    model : PeftModel or PreTrainedModel, in evaluation mode
    prompts, answers : sequences of token sequences, length m
    """
    head = head_of(model)
    scores = empty_scores(len(prompts))
    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    for batch in batches(lengths, max_batch_tokens // n_passes):
        stats = answer_statistics(
            model,
            head,
            [prompts[i] for i in batch.indices],
            [answers[i] for i in batch.indices],
            batch.length,
            pad_id,
            n_passes,
        )
        part = Scores(
            entropy=stats.entropy.mean(axis=0),
            predictive_entropy=-stats.log_probability.mean(axis=0),
            mutual_information=stats.mutual_information,
        )
        fill_scores(scores, batch.indices, part)
        progress(len(batch.indices))
    return scores
