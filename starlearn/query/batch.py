"""Choice of a batch from ranked items: distinct, diverse, within a budget."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.errors import InputError
from starlearn.query.budget import Budget, within_budget
from starlearn.query.diversity import k_centre, kmeans_plus_plus
from starlearn.query.duplicates import split_duplicates, text_digest
from starlearn.query.mixing import pieces
from starlearn.query.selection import RunningTop
from starlearn.settings import Acquisition
from starlearn.tasks import Fields, Item

STRATEGIES = {"kmeans++": kmeans_plus_plus, "k-centre": k_centre}
GROWTH = 4
"""Factor by which the number of candidates grows when too few of them can be chosen."""


@dataclass(frozen=True)
class BatchSelection:
    """Everything that the choice of a batch depends on, except the ranking."""

    acquisition: Acquisition
    rng: np.random.Generator
    items_at: Callable[[NDArray[np.intp]], Sequence[Item]]
    """Returns the items at some places of the ranking; for their costs."""
    fields_at: Callable[[NDArray[np.intp]], Sequence[Fields]]
    """Returns the fields of these items."""
    embed: Callable[[Sequence[Fields], Any], NDArray[np.float64]]
    """Returns the base hidden states of items, [c, D], from their fields and places. The places of
    items outside the pool are None."""
    labelled: Sequence[Fields]
    """Fields of the labelled items, which are not chosen again."""
    budget: Budget | None
    select: Callable[..., Any] | None = None
    """The user's own strategy."""

    def batch(
        self,
        values: NDArray[np.float64],
        keys: NDArray[np.uint64],
        places: NDArray[np.intp],
        n: int,
    ) -> NDArray[np.intp]:
        """Choose n items, or fewer where the budget allows no more; return places, best first.

        `values` and `keys` [m] are the uncertainties, and numbers that decide between equal ones.
        `places` [c] are those of them that a batch may be chosen from. A diverse batch is in the
        order in which it was chosen.
        """
        if self.budget is not None:
            n = min(n, self.budget.most)
        if n == 0:
            return places[:0]
        if self.select is not None:
            return self._selected(self.select, values, places, n)
        wanted = n * self.acquisition.candidates if self._diverse else n
        while True:
            wanted = min(wanted, len(places))
            best = best_places(values, keys, places, wanted)
            chosen, repeats, enough = self._from(best, values[best], keys[best], n)
            if enough or wanted == len(places):
                break
            wanted *= GROWTH
        missing = n - len(chosen)
        if missing and self.budget is None:
            warnings.warn(
                f"Only {len(chosen)} of the {len(places)} items to choose from are new. The others "
                "repeat one another or a labelled item. The best of them complete the batch.",
                UserWarning,
                stacklevel=5,
            )
            chosen = np.concatenate([chosen, repeats[:missing]])
        return best[chosen]

    def _selected(
        self,
        select: Callable[..., Any],
        values: NDArray[np.float64],
        places: NDArray[np.intp],
        n: int,
    ) -> NDArray[np.intp]:
        """Return the places that the user's own strategy chooses."""
        given = np.asarray(select(np.array(values[places]), n, self.rng))
        whole = given.ndim == 1 and np.issubdtype(given.dtype, np.integer)
        inside = whole and bool(((given >= 0) & (given < len(places))).all())
        if not inside or len(given) != n or len(np.unique(given)) != n:
            raise InputError(
                f"Acquisition(select=...) must return {n} different indices from 0 to "
                f"{len(places) - 1}; got {given!r:.200}."
            )
        chosen = places[given]
        if self.budget is None:
            return chosen
        costs = self.budget.costs(self.items_at(chosen))
        return chosen[within_budget(np.arange(n), costs, self.budget.remaining)]

    def _from(
        self, best: NDArray[np.intp], values: NDArray[np.float64], keys: NDArray[np.uint64], n: int
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], bool]:
        """Choose up to n distinct items from the c best.

        Return positions among the c, of the batch and of the items that repeat others, and whether
        more candidates would not change the batch. A diverse batch that the budget ends had enough.
        A plain ranking may still have a cheaper item further down.
        """
        fields = self.fields_at(best)
        uses_states = self._diverse or self.acquisition.cosine_threshold is not None
        states = self.embed(fields, best) if uses_states else None  # [c, D]
        order, repeats = self._distinct(fields, np.arange(len(best)), states)
        costs = None
        if self.budget is not None:
            costs = self.budget.costs(self.items_at(best))
            order = order[self.budget.allows(costs[order])]
        enough = len(order) >= n
        if self._diverse and len(order):
            strategy = STRATEGIES[self.acquisition.diversity]
            # With a budget some of the chosen may be skipped, so all candidates are ordered.
            size = min(n, len(order)) if costs is None else len(order)
            some = strategy(values[order], states[order], size, self.rng, keys=keys[order])  # type: ignore[index]
            order = order[some]
        if costs is not None and self.budget is not None:
            order = within_budget(order, costs, self.budget.remaining)
            spent = not self.budget.lasts(costs[order].sum())
            enough = spent or (enough and (self._diverse or len(order) >= n))
        return order[:n], repeats, enough

    def _distinct(
        self, fields: Sequence[Fields], order: NDArray[np.intp], states: Any
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Split a ranking into distinct items and near-duplicates of better or labelled ones."""
        if self.acquisition.distinct == "none":
            return order, order[:0]
        cosines: dict[str, Any] = {}
        threshold = self.acquisition.cosine_threshold
        if threshold is not None:
            cosines = {"embeddings": states, "threshold": threshold}
            if len(self.labelled):
                cosines["labelled_embeddings"] = self.embed(self.labelled, None)
        labelled = set(digests(self.labelled))
        return split_duplicates(order, digests(fields), labelled=labelled, **cosines)

    @property
    def _diverse(self) -> bool:
        return self.acquisition.diversity != "none"


def digests(fields: Sequence[Fields]) -> list[bytes]:
    """Return a digest of each item's normalised text; equal for duplicates."""
    return [text_digest(*texts.values()) for texts in fields]


def best_places(
    values: NDArray[np.float64], keys: NDArray[np.uint64], places: NDArray[np.intp], n: int
) -> NDArray[np.intp]:
    """Return the n best places, best first, reading a piece of the columns at a time."""
    top = RunningTop(n)
    for part in pieces(len(places)):
        some = places[part]
        top.add(values[some], keys[some], some)
    return top.result()
