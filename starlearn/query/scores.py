"""Raw uncertainty of items under one model: entropies, log-probabilities, answers."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from starlearn.model.choices import mean_log_probability
from starlearn.model.free_form import AnswerStatistics


def choice_scores(
    log_probabilities: NDArray[np.float64], answers: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Turn distributions over choices into scores.

    Parameters
    ----------
    log_probabilities : ndarray of shape (K, m, C)
    answers : ndarray of shape (m,), optional
        The choice that counts as the answer of each item; by default the likeliest, by the mean
        over passes.

    Returns
    -------
    ndarray of shape (m, 4)
        Mean over passes of the entropy in nats, minus the mean log-probability of the answer,
        mutual information of answer and pass (0 for one pass), and the answer.
    """
    n_passes, n_items, _ = log_probabilities.shape
    probabilities = np.exp(log_probabilities)
    entropies = entr(probabilities).sum(axis=-1)  # [K, m]
    log_mean = mean_log_probability(log_probabilities)  # [m, C]
    if answers is None:
        answers = log_mean.argmax(axis=-1)
    # Directly as a mean divergence: as a difference of entropies it drowns in rounding.
    information = (probabilities * (log_probabilities - log_mean)).sum(axis=-1).mean(axis=0)
    return np.column_stack(
        [
            entropies.mean(axis=0),
            -log_probabilities[:, np.arange(n_items), answers].mean(axis=0),
            np.clip(information, 0, np.log(n_passes)),
            answers,
        ]
    )


def answer_scores(statistics: AnswerStatistics) -> NDArray[np.float64]:
    """Turn sums over the tokens of free-form answers into scores.

    Returns
    -------
    ndarray of shape (m, 3)
        Mean over passes of the entropy in nats, minus the mean log-probability of the answer, and
        mutual information of token and pass; sums over tokens.
    """
    return np.column_stack(
        [
            statistics.entropy.mean(axis=0),
            -statistics.log_probability.mean(axis=0),
            statistics.mutual_information,
        ]
    )
