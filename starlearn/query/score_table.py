"""The scores of a pool, one column each, and the uncertainty computed from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, logsumexp

from starlearn.errors import NotFiniteError, listed
from starlearn.model.free_form import mean_over_passes
from starlearn.query.columns import column
from starlearn.query.mixing import mixed, per_answer, pieces
from starlearn.settings import Acquisition

Column = NDArray[np.float64]

BASE = ("base_entropy", "base_log")
FULL = ("entropy", "log", "information")
MEASURES = {
    "entropy": "entropy",
    "predictive_entropy": "log",
    "mutual_information": "information",
}
"""Column of `ScoreTable` that each measure ranks by."""


@dataclass(frozen=True)
class ScoreTable:
    """Raw scores of m items in nats, one column each; sums over tokens for free-form answers."""

    base_entropy: Column | None
    """Entropy under the base model, [m]; None where the base model was not run."""
    base_log: Column | None
    """Minus log-probability of the answer under the base model, [m]."""
    entropy: Column
    """Mean over the K passes of the entropy, [m]."""
    log: Column
    """Mean over the K passes of minus the log-probability of the answer, [m]."""
    information: Column
    """Mutual information between answer and pass, [m]."""
    n_tokens: NDArray[np.int64]
    """Number of tokens that a sum over tokens is divided by, [m]."""
    keys: NDArray[np.uint64]
    """Pseudo-random number of each item, for ties, [m]."""
    answers: list[Any] | None
    """Index of the likeliest choice or tokens of the text, length m; None where not kept."""

    @classmethod
    def empty(cls, m: int, *, with_base: bool, with_answers: bool) -> "ScoreTable":
        """Return a table of zeros for m items."""
        base: dict[str, Any] = {name: column(m) if with_base else None for name in BASE}
        return cls(
            **base,
            **{name: column(m) for name in FULL},
            n_tokens=column(m, np.int64),
            keys=column(m, np.uint64),
            answers=[None] * m if with_answers else None,
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the columns of numbers by name, without those of a base model that was not run."""
        names = (*BASE, *FULL, "n_tokens", "keys")
        found = {name: getattr(self, name) for name in names}
        return {name: values for name, values in found.items() if values is not None}

    def put(self, places: NDArray[np.intp], chunk: "ScoreTable") -> None:
        """Copy the scores of c items to these places, shape [c]."""
        given = chunk.columns()
        for name, values in self.columns().items():
            values[places] = given[name]
        if self.answers is not None and chunk.answers is not None:
            for place, answer in zip(places, chunk.answers, strict=True):
                self.answers[place] = answer

    def at(self, places: NDArray[np.intp]) -> "ScoreTable":
        """Return the scores of the items at these places."""
        answers = None if self.answers is None else [self.answers[i] for i in places]
        found: dict[str, Any] = {"base_entropy": None, "base_log": None}
        found |= {name: np.asarray(values[places]) for name, values in self.columns().items()}
        return ScoreTable(**found, answers=answers)


@dataclass(frozen=True)
class Uncertainty:
    """One value per item of a pool of m, in the pool's order."""

    base: Column | None
    """Entropy of the base model's answer, or its predictive entropy where that is the measure,
    shape [m]. None where the base model was not run."""
    full: Column
    """The measure under base and adapter over the passes, shape [m]. With mutual information it is
    another quantity than `base`, and much smaller. Before the first training it is `base`."""
    mixed: Column
    """Value that the query ranks by, shape [m]."""
    entropy: Column
    """Mean entropy over the passes, shape [m]."""
    mutual_information: Column
    """Mutual information between answer and pass, shape [m]."""
    n_tokens: NDArray[np.int64]
    """Scored tokens of the answer, shape [m]."""
    confidence: Column
    """Probability of the answer: the geometric mean over the passes, and over the tokens of a
    free-form answer, shape [m]."""
    answers: Any
    """The model's own answers, shape [m]: labels or texts. None where they were not kept."""


def choice_scores(
    log_probabilities: NDArray[np.float64], answers: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return scores from the log-probabilities of choices, [K, m, C] to [m, 4].

    They are the mean over passes of the entropy in nats, the mean over passes of minus the
    log-probability of the answer, the mutual information between answer and pass (0 for one pass),
    and the index of the answer. By default that is the likeliest choice, by the mean over passes.
    """
    n_passes, n_items, _ = log_probabilities.shape
    probabilities = np.exp(log_probabilities)
    entropies = entr(probabilities).sum(axis=-1)  # [K, m]
    log_mean = logsumexp(log_probabilities, axis=0) - np.log(n_passes)  # [m, C]
    if answers is None:
        answers = log_mean.argmax(axis=-1)
    # The mean divergence from the mean distribution. The difference of two entropies equals it,
    # but is lost in rounding where it is small.
    information = (probabilities * (log_probabilities - log_mean)).sum(axis=-1)  # [K, m]
    return np.column_stack(
        [
            mean_over_passes(entropies),
            -mean_over_passes(log_probabilities[:, np.arange(n_items), answers]),
            np.clip(mean_over_passes(information), 0, np.log(n_passes)),
            answers,
        ]
    )


def combine(
    scores: ScoreTable,
    positions: Sequence[int] | NDArray[np.intp],
    acquisition: Acquisition,
    *,
    weight: float,
    trained: bool,
) -> Uncertainty:
    """Return the uncertainty of each item: reduced to one number, normalised and mixed.

    `positions` are row numbers for error messages, and `weight` is lambda(t), that of the base
    model. Before the first training only the base model's uncertainty is known.
    """
    measure, reduce = acquisition.measure, acquisition.reduce
    n_tokens = scores.n_tokens
    # The base model has no dropout, and so no mutual information: its entropy is used instead.
    raw = scores.base_log if measure == "predictive_entropy" else scores.base_entropy
    base = None if raw is None else per_answer(raw, n_tokens, reduce)
    if trained or base is None:
        full = per_answer(getattr(scores, MEASURES[measure]), n_tokens, reduce)
    else:
        full = base
    for part in pieces(len(full)):
        total = full[part] if base is None else base[part] + full[part]
        wrong = np.flatnonzero(~np.isfinite(total))
        if wrong.size:
            rows = np.asarray(positions[part])[wrong]
            raise NotFiniteError(
                f"The model's uncertainty is NaN or infinite for {len(wrong)} of {len(full)} "
                f"items: {listed([f'row {row}' for row in rows])}. Its numbers overflow, or its "
                "weights are broken; nothing was chosen. Try another quantization, or another copy "
                "of the model."
            )
    confidence = per_answer(scores.log, n_tokens, "mean")
    for part in pieces(len(confidence)):
        confidence[part] = np.exp(-confidence[part])
    return Uncertainty(
        base=base,
        full=full,
        mixed=mixed(base, full, weight if trained else 1.0, acquisition.normalise),
        entropy=per_answer(scores.entropy, n_tokens, reduce),
        mutual_information=per_answer(scores.information, n_tokens, reduce),
        n_tokens=n_tokens,
        confidence=confidence,
        answers=scores.answers,
    )
