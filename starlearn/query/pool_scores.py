"""The scores of a pool, a column each, and what they say together: an uncertainty for each item."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.errors import NotFiniteError, listed
from starlearn.query.columns import column
from starlearn.query.mixing import mixed, per_answer, pieces
from starlearn.query.scoring import Scores
from starlearn.settings import Acquisition

Column = NDArray[np.float64]

COLUMNS = {
    "entropy": "entropy",
    "predictive_entropy": "log",
    "mutual_information": "information",
}
"""Where `PoolScores` keeps what each measure ranks by."""


@dataclass(frozen=True)
class Uncertainty:
    """One value per item of a pool of m, in the pool's order."""

    base: Column
    """Entropy of the base model's answer, or its predictive entropy where that is the measure, by
    the chosen reduction, shape [m]."""
    full: Column
    """The measure under base and adapter over the passes, shape [m]: with mutual information
    another quantity than `base`, and much smaller. Before the first training it is `base`."""
    mixed: Column
    """What the query ranks by, shape [m]."""
    entropy: Column
    """Mean entropy over the passes, shape [m]."""
    mutual_information: Column
    """Between answer and pass, shape [m]."""
    n_tokens: NDArray[np.int64]
    """Scored tokens of the answer, shape [m]."""
    confidence: Column
    """Probability of the answer: the geometric mean over the passes, and over the tokens of a
    free-form answer, shape [m]."""
    answers: Any
    """The model's own answers, shape [m]: labels or texts at the public face; before that the
    index of the likeliest choice, or the tokens of the text. None where they were not kept."""


@dataclass(frozen=True)
class PoolScores:
    """Raw scores of a pool of m items, a column each; see `scoring.Scores`."""

    positions: NDArray[np.intp]
    """Rows of the pool that were scored, ascending, [m]."""
    base_entropy: Column
    base_log: Column
    entropy: Column
    log: Column
    information: Column
    lengths: NDArray[np.int64]
    """What a sum over tokens is to be divided by, [m]."""
    keys: NDArray[np.uint64]
    """A pseudo-random number for each item, which breaks ties, [m]."""
    answers: list[Any] | None

    @classmethod
    def empty(cls, positions: NDArray[np.intp], keep_answers: bool) -> "PoolScores":
        """Make room for the scores of these rows."""
        m = len(positions)
        numbers = ("base_entropy", "base_log", "entropy", "log", "information")
        answers: list[Any] | None = [None] * m if keep_answers else None
        return cls(
            positions=positions,
            lengths=column(m, np.int64),
            keys=column(m, np.uint64),
            answers=answers,
            **{name: column(m) for name in numbers},
        )

    def put(self, places: NDArray[np.intp], found: Scores) -> None:
        """Fill in the scores of a piece."""
        self.base_entropy[places], self.base_log[places] = found.base.T
        self.entropy[places], self.log[places], self.information[places] = found.full.T
        self.lengths[places] = found.n_tokens
        if self.answers is not None:
            for place, answer in zip(places, found.answers, strict=True):
                self.answers[place] = answer

    def reduced(self, name: str, reduce: str) -> Column:
        """Return a column of sums over tokens as one number an item."""
        return per_answer(getattr(self, name), self.lengths, reduce)

    def confidence(self) -> Column:
        """Return the probability of each answer, means in logarithms over passes and tokens."""
        found = self.reduced("log", "mean")
        for part in pieces(len(found)):
            found[part] = np.exp(-found[part])
        return found


def combine(
    scores: PoolScores, acquisition: Acquisition, *, weight: float, trained: bool
) -> Uncertainty:
    """Reduce, normalise and mix.

    Parameters
    ----------
    scores : PoolScores
    acquisition : Acquisition
    weight : float
        lambda(t), the base model's share.
    trained : bool
        False before the first training: then the base model's uncertainty is all there is.

    Raises
    ------
    NotFiniteError
        When a score is NaN or infinite.
    """
    measure, reduce = acquisition.measure, acquisition.reduce
    # The base model is deterministic: without dropout there is no mutual information.
    base = scores.reduced("base_log" if measure == "predictive_entropy" else "base_entropy", reduce)
    full = scores.reduced(COLUMNS[measure], reduce) if trained else base
    for part in pieces(len(base)):
        wrong = np.flatnonzero(~np.isfinite(base[part] + full[part]))
        if wrong.size:
            names = listed([f"row {row}" for row in scores.positions[part][wrong]])
            raise NotFiniteError(
                f"The model's uncertainty is NaN or infinite for {len(wrong)} of {len(base)} "
                f"items: {names}. Its numbers overflow, or its weights are broken; nothing was "
                "chosen. Try another quantization, or another copy of the model."
            )
    return Uncertainty(
        base=base,
        full=full,
        mixed=mixed(base, full, weight if trained else 1.0, acquisition.normalise),
        entropy=scores.reduced("entropy", reduce),
        mutual_information=scores.reduced("information", reduce),
        n_tokens=scores.lengths,
        confidence=scores.confidence(),
        answers=scores.answers,
    )
