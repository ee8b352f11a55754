"""The steps of a query in order: score the pool in chunks, combine the scores, choose a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from starlearn.data.pool import Rows, rows_of
from starlearn.data.tokens import Encoder, unknown_tokens, warn_of_unknown_tokens
from starlearn.model.memory import renumbered
from starlearn.progress import ItemBar
from starlearn.query.batch import BatchSelection, best_places
from starlearn.query.budget import Budget
from starlearn.query.columns import column, counted
from starlearn.query.mixing import exact_sum, pieces
from starlearn.query.score_table import Column, ScoreTable, Uncertainty, combine
from starlearn.query.scoring import Scorer
from starlearn.query.selection import item_keys
from starlearn.randomness import derived_seed
from starlearn.settings import Acquisition
from starlearn.tasks import Fields

KEPT_PROMPTS = 20_000
"""Items whose prompts stay in memory between their check and their scoring."""


@dataclass(frozen=True)
class RankedPool:
    """A pool with its uncertainty, and the part of it that a batch may be chosen from."""

    positions: NDArray[np.intp]
    """Rows of the pool that were scored, ascending, [m]."""
    keys: NDArray[np.uint64]
    """Number of each row that decides between equal uncertainties, [m]."""
    uncertainty: Uncertainty
    places: NDArray[np.intp]
    """Places in `positions` to choose from, ascending."""

    def means(self) -> dict[str, float]:
        """Return the mean uncertainties and the largest, for the record of a round.

        Means of the adapter are over the items that went through all passes, if a screen excluded
        the others.
        """
        found = {}
        for name in ("base", "full", "mixed"):
            values = getattr(self.uncertainty, name)
            if values is None:
                continue
            if name != "base" and len(self.places) < len(values):
                values = values[self.places]
            found[f"mean_{name}"] = exact_sum(values[p] for p in pieces(len(values))) / len(values)
            if name == "full":
                found["max_full"] = largest(values)
        return found


class Workers(Protocol):
    """Other processes that score in place of this one, with the same results."""

    def score(
        self,
        plan: "QueryPlan",
        positions: NDArray[np.intp],
        scores: ScoreTable,
        n_passes: int,
        places: NDArray[np.intp],
    ) -> None:
        """Fill in scores, as :func:`score_pool` does."""

    def embeddings(
        self, plan: "QueryPlan", prompts: list[list[int]], rows: NDArray[np.intp]
    ) -> Column:
        """Return the base model's mean hidden state per prompt, [c, D]; `rows` are their names."""


@dataclass(frozen=True)
class QueryPlan:
    """Everything that a query of one pool depends on: scorer, prompts and seeds."""

    scorer: Scorer
    rows: Rows
    """The pool."""
    fields: Any
    """The fields of each row: a list, or a pool that fills them when they are read."""
    encode: Encoder
    weight: float
    """lambda(t), the weight of the base model; 1 before the first training."""
    seed: int
    """Seed of ties, random draws and the sub-pool."""
    labelled: Sequence[Fields]
    """Fields of the labelled items."""
    select: Callable[..., Any] | None
    """The user's own strategy."""
    verbose: int
    callbacks: tuple[Any, ...] = ()
    workers: Workers | None = None
    """Processes that score; None is this process."""

    @property
    def acquisition(self) -> Acquisition:
        """The settings of the query."""
        return self.scorer.acquisition

    @property
    def trained(self) -> bool:
        """Whether there is an adapter yet."""
        return self.scorer.adapter is not None

    def for_query(self) -> "QueryPlan":
        """Return this plan without the base model where its weight is 0."""
        return replace(self, scorer=replace(self.scorer, with_base=self.weight > 0))

    def uncertainty(self) -> Uncertainty:
        """Score all items, and keep the model's answers."""
        positions = counted(len(self.rows))
        scores = self._empty(len(positions), with_answers=True)
        self._fill(positions, scores, self.acquisition.n_passes, positions)
        return self._combine(positions, scores)

    def ranked(self, n: int) -> RankedPool:
        """Score the items that the settings ask for, so that a batch of n can be chosen."""
        part = self.acquisition
        positions = self._positions(n)
        scores = self._empty(len(positions), with_answers=False)
        places = counted(len(positions))
        if part.screen is not None and part.n_passes > 1 and self.trained:
            self._fill(positions, scores, 1, places)
            # Without dropout there is no mutual information: the first ranking is by entropy.
            first = self._combine(positions, scores, screening(part))
            wanted = min(n * int(part.screen), len(places))
            places = np.sort(best_places(first.mixed, scores.keys, places, wanted))
        self._fill(positions, scores, part.n_passes, places)
        return RankedPool(positions, scores.keys, self._combine(positions, scores), places)

    def chosen(
        self, ranked: RankedPool, n: int, budget: Budget | None
    ) -> tuple[NDArray[np.intp], Column]:
        """Return a batch of at most n rows of the pool, and their uncertainty."""
        selection = self._selection(self.acquisition, ranked.positions, budget, self.select)
        best = selection.batch(ranked.uncertainty.mixed, ranked.keys, ranked.places, n)
        return ranked.positions[best], np.asarray(ranked.uncertainty.mixed[best])

    def random(self, n: int, budget: Budget | None) -> tuple[NDArray[np.intp], Column]:
        """Return at most n distinct rows at random; their uncertainty is NaN."""
        rows = counted(len(self.rows))
        # No model is used: duplicates are found by their text alone.
        distinct = "none" if self.acquisition.distinct == "none" else "exact"
        plain = clone(self.acquisition).set_params(diversity="none", distinct=distinct)
        selection = self._selection(plain, rows, budget)
        # All scores are equal, so the items with the smallest pseudo-random keys come first.
        chosen = selection.batch(column(len(rows)), self._keys(self.seed), rows, n)
        return chosen, np.full(len(chosen), np.nan)

    def embeddings(self, fields: Sequence[Fields], rows: NDArray[np.intp] | None = None) -> Column:
        """Return the base model's mean hidden state per item, [c, D]; `rows` are their names."""
        rows = np.arange(len(fields)) if rows is None else rows
        prompts = self.encode(fields, rows, room=0)  # a labelled item may leave no room
        if self.workers is not None:
            return self.workers.embeddings(self, prompts, rows)
        return self.embedded(prompts, rows)

    def embedded(self, prompts: list[list[int]], rows: NDArray[np.intp]) -> Column:
        """Return the base model's mean hidden state per prompt, [c, D], from this process."""
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

    def prompts(self, positions: NDArray[np.intp]) -> list[list[int]]:
        """Return the prompts of some rows of the pool."""
        return self.encode(rows_of(self.fields, positions), positions)

    def _empty(self, m: int, *, with_answers: bool) -> ScoreTable:
        with_base = self.scorer.with_base or not self.trained
        return ScoreTable.empty(m, with_base=with_base, with_answers=with_answers)

    def _selection(
        self,
        acquisition: Acquisition,
        positions: NDArray[np.intp],
        budget: Budget | None,
        select: Callable[..., Any] | None = None,
    ) -> BatchSelection:
        return BatchSelection(
            acquisition,
            np.random.default_rng(derived_seed(self.seed, "diversity")),
            lambda places: rows_of(self.rows, positions[places]),
            lambda places: rows_of(self.fields, positions[places]),
            lambda fields, places: self.embeddings(
                fields, None if places is None else positions[places]
            ),
            self.labelled,
            budget,
            select,
        )

    def _keys(self, seed: int) -> NDArray[np.uint64]:
        """Return a number per row from seed and text, [m]; equal texts have equal numbers."""
        m = len(self.rows)
        keys = column(m, np.uint64)
        for start in range(0, m, self.acquisition.chunk_size):
            positions = np.arange(start, min(start + self.acquisition.chunk_size, m))
            keys[positions] = item_keys(self.prompts(positions), seed)
        return keys

    def _combine(
        self,
        positions: NDArray[np.intp],
        scores: ScoreTable,
        acquisition: Acquisition | None = None,
    ) -> Uncertainty:
        part = self.acquisition if acquisition is None else acquisition
        return combine(scores, positions, part, weight=self.weight, trained=self.trained)

    def _positions(self, n: int) -> NDArray[np.intp]:
        """Return the rows of the pool to score: all, or a sub-pool of at least n."""
        size = self.acquisition.sub_pool
        if size is None or size >= len(self.rows):
            return counted(len(self.rows))
        m, keys = len(self.rows), self._keys(derived_seed(self.seed, "sub-pool"))
        return np.sort(best_places(column(m), keys, counted(m), max(size, n)))

    def _fill(
        self,
        positions: NDArray[np.intp],
        scores: ScoreTable,
        n_passes: int,
        places: NDArray[np.intp],
    ) -> None:
        score = score_pool if self.workers is None else self.workers.score
        score(self, positions, scores, n_passes, places)


def largest(values: Column) -> float:
    """Return the largest value of a column, which may be in a file, piece by piece."""
    return max(float(values[part].max()) for part in pieces(len(values)))


def screening(acquisition: Acquisition) -> Acquisition:
    """Return settings for scores without dropout, where mutual information is always 0."""
    if acquisition.resolved().measure != "mutual_information":
        return acquisition
    return clone(acquisition).set_params(measure="entropy")


def score_pool(
    plan: QueryPlan,
    positions: NDArray[np.intp],
    scores: ScoreTable,
    n_passes: int,
    places: NDArray[np.intp],
) -> None:
    """Fill in the scores at some places, chunk by chunk; the scorer's store keeps finished chunks.

    `positions` [m] are the rows of the pool that `scores` is about, `places` [c] those of `scores`
    to fill in.
    """
    size = plan.acquisition.chunk_size
    kept = _checked_prompts(plan, positions[places], n_passes)
    with (
        plan.scorer.ready(),
        ItemBar("query", len(places), plan.verbose, plan.callbacks) as bar,
    ):
        for start in range(0, len(places), size):
            part = places[start : start + size]
            rows = positions[part]
            prompts = kept[start : start + size] if kept else plan.prompts(rows)
            with renumbered(rows):
                scores.put(part, plan.scorer.score(prompts, n_passes, bar, plan.seed))
            bar.finish(len(rows))


def _checked_prompts(
    plan: QueryPlan, positions: NDArray[np.intp], n_passes: int
) -> list[list[int]] | None:
    """Encode all items before the model is loaded, so that an unusable item is found at once.

    Prompts of usual pools are kept. Those of large pools are encoded again when they are scored,
    which takes a few per cent of the time.
    """
    kept: list[list[int]] = []
    counts = np.zeros(2, np.intp)
    size = plan.acquisition.chunk_size
    for start in range(0, len(positions), size):
        rows = positions[start : start + size]
        prompts = plan.prompts(rows)
        plan.scorer.check(prompts, rows, n_passes)
        counts += unknown_tokens(plan.encode.tokenizer, prompts)
        if len(positions) <= KEPT_PROMPTS:
            kept += prompts
    warn_of_unknown_tokens(plan.encode.tokenizer, counts)
    return kept or None
