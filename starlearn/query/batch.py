"""From a ranking to a batch: distinct items, unlike each other, within a budget."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.query.budget import Budget, within_budget
from starlearn.query.diversity import k_centre, kmeans_plus_plus
from starlearn.query.duplicates import first_distinct, text_digest
from starlearn.query.mixing import pieces
from starlearn.query.selection import RunningTop
from starlearn.settings import Acquisition
from starlearn.tasks import Item, Task

DRAWS = {"kmeans++": kmeans_plus_plus, "k-centre": k_centre}
GROWTH = 4
"""How many times more candidates are looked at when too few of them will do."""


@dataclass(frozen=True)
class Draw:
    """What a batch is drawn by, besides the ranking."""

    acquisition: Acquisition
    task: Task
    rng: np.random.Generator
    items_at: Callable[[NDArray[np.intp]], Sequence[Item]]
    """Items at some places of the ranking's columns."""
    embed: Callable[[Sequence[Item], Any], NDArray[np.float64]]
    """Base hidden states of items, [c, D], from them and their places, None where they are not of
    the pool; called only where they are needed."""
    asked: Sequence[Item]
    """The labelled items, which are not asked again."""
    budget: Budget | None

    def batch(
        self,
        values: NDArray[np.float64],
        keys: NDArray[np.uint64],
        places: NDArray[np.intp],
        n: int,
    ) -> NDArray[np.intp]:
        """Draw n items, fewer where the budget allows no more.

        Parameters
        ----------
        values, keys : ndarray of shape (m,)
            Uncertainties, and numbers that break ties.
        places : ndarray of shape (c,)
            Where in them a batch may be drawn from.
        n : int

        Returns
        -------
        ndarray of shape (at most n,)
            Places; best first, or in the order in which a diverse batch was drawn.
        """
        if self.budget is not None:
            n = min(n, self.budget.most)
        if n == 0:
            return places[:0]
        wanted = n * self.acquisition.candidates if self._diverse else n
        while True:
            wanted = min(wanted, len(places))
            best = best_places(values, keys, places, wanted)
            drawn, repeats, enough = self._from(best, values[best], keys[best], n)
            if enough or wanted == len(places):
                break
            wanted *= GROWTH
        missing = n - len(drawn)
        if missing and self.budget is None:
            warnings.warn(
                f"Only {len(drawn)} of the {len(places)} items to choose from are new: the others "
                "repeat one another or what is labelled already. The best of them fill up.",
                UserWarning,
                stacklevel=4,
            )
            drawn = np.concatenate([drawn, repeats[:missing]])
        return best[drawn]

    def _from(
        self, best: NDArray[np.intp], values: NDArray[np.float64], keys: NDArray[np.uint64], n: int
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], bool]:
        """Draw up to n distinct items from a ranking of c; and those that repeat others.

        Also say whether there were enough. A diverse batch that the money ends early was drawn
        from enough candidates; down a plain ranking, a cheaper item may still come.
        """
        items = list(self.items_at(best))
        wanted = self._diverse or self.acquisition.near is not None
        embedded = self.embed(items, best) if wanted else None
        order = np.arange(len(best))
        order, repeats = self._distinct(items, order, embedded)
        costs = None if self.budget is None else self.budget.costs(items)
        if costs is not None and self.budget is not None:
            order = order[self.budget.allows(costs[order])]
        enough = len(order) >= n
        if self._diverse and len(order):
            draw = DRAWS[self.acquisition.diversity]
            # A budget may pass over some of those drawn, so all are put in order.
            room = min(n, len(order)) if costs is None else len(order)
            some = draw(values[order], embedded[order], room, self.rng, keys=keys[order])  # type: ignore[index]
            order = order[some]
        if costs is not None and self.budget is not None:
            order = within_budget(order, costs, self.budget.remaining)
            spent = not self.budget.lasts(costs[order].sum())
            enough = spent or (enough and (self._diverse or len(order) >= n))
        return order[:n], repeats, enough

    def _distinct(
        self, items: Sequence[Item], order: NDArray[np.intp], embedded: Any
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        if self.acquisition.distinct == "none":
            return order, order[:0]
        cosines: dict[str, Any] = {}
        if self.acquisition.near is not None:
            cosines = {"embeddings": embedded, "threshold": self.acquisition.near}
            if len(self.asked):
                cosines["asked_embeddings"] = self.embed(self.asked, None)
        asked = set(self._digests(self.asked))
        found, n_repeated = first_distinct(
            order, self._digests(items), len(order), asked=asked, **cosines
        )
        cut = len(found) - n_repeated
        return found[:cut], found[cut:]

    @property
    def _diverse(self) -> bool:
        return self.acquisition.diversity != "none"

    def _digests(self, items: Sequence[Item]) -> list[bytes]:
        return [text_digest(*fields.values()) for fields in self.task.fill(items)] if items else []


def best_places(
    values: NDArray[np.float64], keys: NDArray[np.uint64], places: NDArray[np.intp], n: int
) -> NDArray[np.intp]:
    """The n best places, best first, a piece of the columns at a time."""
    top = RunningTop(n)
    for part in pieces(len(places)):
        some = places[part]
        top.add(values[some], keys[some], some)
    return top.result()
