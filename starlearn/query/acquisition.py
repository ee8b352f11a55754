"""The steps of a query in order: score the pool piece by piece, bring to one scale, mix."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from starlearn.data.pool import Rows, rows_of
from starlearn.data.tokens import Encoder
from starlearn.model.memory import renumbered
from starlearn.progress import ItemBar
from starlearn.query.batch import Draw, best_places
from starlearn.query.budget import Budget
from starlearn.query.columns import column, counted
from starlearn.query.mixing import exact_sum, pieces
from starlearn.query.pool_scores import Column, PoolScores, Uncertainty, combine
from starlearn.query.scoring import Scorer
from starlearn.query.selection import item_keys
from starlearn.randomness import derived_seed
from starlearn.settings import Acquisition
from starlearn.tasks import Item, Task

KEPT_PROMPTS = 20_000
"""Items whose prompts are kept in memory between their check and their scoring."""

ROUNDING = 1e-7
"""Nats of mutual information that single precision makes of nothing: logits carry 7 digits."""


@dataclass(frozen=True)
class Ranked:
    """A pool with its uncertainty, and the part of it that a batch may be drawn from."""

    scores: PoolScores
    uncertainty: Uncertainty
    places: NDArray[np.intp]
    """Places in `scores`, ascending."""

    def means(self) -> dict[str, float]:
        """Mean uncertainties and the largest, for the record of a round.

        Those of the adapter are over the items that went through all passes, where a screen let
        only some of them through.
        """
        found = {}
        for name in ("base", "full", "mixed"):
            values = getattr(self.uncertainty, name)
            if name != "base" and len(self.places) < len(values):
                values = values[self.places]
            found[f"mean_{name}"] = exact_sum(values[p] for p in pieces(len(values))) / len(values)
            if name == "full":
                found["max_full"] = largest(values)
        return found


class Workers(Protocol):
    """Other processes that score in this one's place, with the same numbers."""

    def score(
        self, plan: "Plan", scores: PoolScores, n_passes: int, places: NDArray[np.intp]
    ) -> None:
        """Fill in scores, as :func:`score_pool` does."""

    def embeddings(self, plan: "Plan", prompts: list[list[int]], rows: NDArray[np.intp]) -> Column:
        """Return the base model's mean hidden state of each prompt, [c, D]; `rows` name them."""


@dataclass(frozen=True)
class Plan:
    """How a pool is scored: what scores an item, how items become prompts, and the seeds."""

    scorer: Scorer
    rows: Rows
    encode: Encoder
    weight: float
    """lambda(t), the base model's share; 1 before the first training."""
    seed: int
    """Of ties, of random draws and of the sub-pool."""
    verbose: int
    callbacks: tuple[Any, ...] = ()
    workers: Workers | None = None
    """Who scores; None is this process."""

    @property
    def acquisition(self) -> Acquisition:
        """The settings of the query."""
        return self.scorer.acquisition

    def uncertainty(self) -> Uncertainty:
        """Score all items, with the model's answers."""
        scores = PoolScores.empty(counted(len(self.rows)), keep_answers=True)
        self._fill(scores, self.acquisition.n_passes)
        return combine(scores, self.acquisition, weight=self.weight, trained=self.trained)

    def ranked(self, n: int) -> Ranked:
        """Score what the settings ask for, so that a batch of n can be drawn from it."""
        part = self.acquisition
        scores = PoolScores.empty(self._positions(n), keep_answers=False)
        everything = counted(len(scores.positions))
        screened = part.screen is not None and part.n_passes > 1 and self.trained
        self._fill(scores, 1 if screened else part.n_passes)
        if not screened:
            return Ranked(scores, self._combined(scores), everything)
        first = combine(scores, screening(part), weight=self.weight, trained=True)
        wanted = min(n * int(part.screen or 1), len(everything))
        best = np.sort(best_places(first.mixed, scores.keys, everything, wanted))
        self._fill(scores, part.n_passes, only=best)
        return Ranked(scores, self._combined(scores), best)

    def chosen(
        self, ranked: Ranked, n: int, task: Task, asked: Sequence[Item], budget: Budget | None
    ) -> tuple[NDArray[np.intp], Column]:
        """Draw a batch of n, or what the budget allows: rows of the pool, and their uncertainty."""
        positions = ranked.scores.positions
        draw = self._draw(self.acquisition, positions, task, asked, budget)
        best = draw.batch(ranked.uncertainty.mixed, ranked.scores.keys, ranked.places, n)
        return positions[best], np.asarray(ranked.uncertainty.mixed[best])

    def _draw(
        self,
        acquisition: Acquisition,
        positions: NDArray[np.intp],
        task: Task,
        asked: Sequence[Item],
        budget: Budget | None,
    ) -> Draw:
        return Draw(
            acquisition,
            task,
            np.random.default_rng(derived_seed(self.seed, "diversity")),
            lambda places: rows_of(self.rows, positions[places]),
            lambda items, places: self.embeddings(
                items, None if places is None else positions[places]
            ),
            asked,
            budget,
        )

    def embeddings(self, items: Sequence[Item], rows: NDArray[np.intp] | None = None) -> Column:
        """Return the base model's mean hidden state of each item, [c, D]; `rows` name them."""
        rows = np.arange(len(items)) if rows is None else rows
        prompts = self.encode(items, rows, room=0)  # a labelled item may leave no room
        if self.workers is not None:
            return self.workers.embeddings(self, prompts, rows)
        return self.embedded(prompts, rows)

    def embedded(self, prompts: list[list[int]], rows: NDArray[np.intp]) -> Column:
        """Return the base model's mean hidden state of each prompt, [c, D], by this process."""
        parts = []
        size = self.acquisition.chunk_size
        with (
            self.scorer.ready(),
            ItemBar("embedding", len(prompts), self.verbose, self.callbacks) as bar,
        ):
            for start in range(0, len(prompts), size):
                with renumbered(rows[start : start + size]):
                    parts.append(self.scorer.embeddings(prompts[start : start + size], bar))
                bar.finish(len(parts[-1]))
        return np.concatenate(parts)

    def random(
        self, n: int, task: Task, asked: Sequence[Item], budget: Budget | None
    ) -> tuple[NDArray[np.intp], Column]:
        """Draw n distinct rows at random, or what the budget allows; nothing is known of them."""
        rows = counted(len(self.rows))
        distinct = "none" if self.acquisition.distinct == "none" else "exact"  # no model takes part
        plain = clone(self.acquisition).set_params(diversity="none", distinct=distinct)
        draw = self._draw(plain, rows, task, asked, budget)
        # Of equal scores those with the smallest keys come first: as good as drawn.
        drawn = draw.batch(column(len(rows)), self._keys(self.seed), rows, n)
        return drawn, np.full(len(drawn), np.nan)

    def _keys(self, seed: int) -> NDArray[np.uint64]:
        """Return a pseudo-random number for each row, [m]; what an item says and the seed decide.

        Rows that say the same have the same.
        """
        m = len(self.rows)
        keys = column(m, np.uint64)
        for start in range(0, m, self.acquisition.chunk_size):
            positions = np.arange(start, min(start + self.acquisition.chunk_size, m))
            keys[positions] = item_keys(self.prompts(positions), seed)
        return keys

    def prompts(self, positions: NDArray[np.intp]) -> list[list[int]]:
        """Return the prompts of some rows of the pool."""
        return self.encode(rows_of(self.rows, positions), positions)

    @property
    def trained(self) -> bool:
        """Whether there is an adapter yet."""
        return self.scorer.adapter is not None

    def _combined(self, scores: PoolScores) -> Uncertainty:
        part = self.acquisition
        found = combine(scores, part, weight=self.weight, trained=self.trained)
        if part.measure == "mutual_information" and self.trained:
            top = largest(found.full)
            if top < ROUNDING:
                warnings.warn(
                    "The dropout masks hardly change an answer: the largest mutual information of "
                    f"{len(found.full)} items is {top:.1e} nats, which is rounding, so that the "
                    "adapter ranks as good as at random. It has hardly learned: train it longer or "
                    "with a higher learning rate, or set measure='entropy'.",
                    UserWarning,
                    stacklevel=4,
                )
        return found

    def _positions(self, n: int) -> NDArray[np.intp]:
        """Rows of the pool to score: all, or a sub-pool of at least n."""
        size = self.acquisition.sub_pool
        if size is None or size >= len(self.rows):
            return counted(len(self.rows))
        m, keys = len(self.rows), self._keys(derived_seed(self.seed, "sub-pool"))
        return np.sort(best_places(column(m), keys, counted(m), max(size, n)))

    def _fill(
        self, scores: PoolScores, n_passes: int, only: NDArray[np.intp] | None = None
    ) -> None:
        places = counted(len(scores.positions)) if only is None else only
        if self.workers is None:
            score_pool(self, scores, n_passes, places)
        else:
            self.workers.score(self, scores, n_passes, places)


def largest(values: Column) -> float:
    """Return the largest of a column, which may lie in a file, piece by piece."""
    return max(float(values[part].max()) for part in pieces(len(values)))


def screening(acquisition: Acquisition) -> Acquisition:
    """Return the settings of a look without dropout, where mutual information is always 0."""
    if acquisition.measure != "mutual_information":
        return acquisition
    return clone(acquisition).set_params(measure="entropy")


def score_pool(plan: Plan, scores: PoolScores, n_passes: int, places: NDArray[np.intp]) -> None:
    """Fill in scores, piece by piece; the scorer's store keeps the pieces that are finished.

    Parameters
    ----------
    plan : Plan
    scores : PoolScores
        Filled in.
    n_passes : int
        K.
    places : ndarray of shape (c,)
        What to fill in.

    Raises
    ------
    OutOfMemoryError
        When one item alone does not fit into memory.
    """
    size = plan.acquisition.chunk_size
    kept = _checked_prompts(plan, scores.positions[places], n_passes)
    with (
        plan.scorer.ready(),
        ItemBar("query", len(places), plan.verbose, plan.callbacks) as bar,
    ):
        for start in range(0, len(places), size):
            part = places[start : start + size]
            positions = scores.positions[part]
            prompts = kept[start : start + size] if kept else plan.prompts(positions)
            with renumbered(positions):
                found = plan.scorer.score(prompts, n_passes, bar)
            scores.keys[part] = item_keys(prompts, plan.seed)
            scores.put(part, found)
            bar.finish(len(positions))


def _checked_prompts(
    plan: Plan, positions: NDArray[np.intp], n_passes: int
) -> list[list[int]] | None:
    """Encode all items before the model is loaded, so that one too long is found at once.

    Prompts of usual pools are kept; those of large ones are made again when they are scored, which
    costs a few per cent of the scoring.
    """
    kept: list[list[int]] = []
    size = plan.acquisition.chunk_size
    for start in range(0, len(positions), size):
        rows = positions[start : start + size]
        prompts = plan.prompts(rows)
        plan.scorer.check(prompts, rows, n_passes)
        if len(positions) <= KEPT_PROMPTS:
            kept += prompts
    return kept or None
