"""Plot of a campaign's uncertainty by round."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from starlearn.campaign import rounds
from starlearn.campaign.campaign import Campaign
from starlearn.errors import InputError
from starlearn.evaluate.displays import Display

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERCENTILES = (5, 25, 50, 75, 95)
"""Percentiles of a box and its whiskers."""

Values = NDArray[np.float64]


class UncertaintyByRound(Display):
    """Distribution of uncertainty over the pool and over the batch, two boxes per round.

    `by_round` holds two arrays per round: the entropies of the scored and of the chosen items, in
    nats. After `plot`, `boxes_` holds the boxes of pool and batch.
    """

    def __init__(self, by_round: Mapping[int, tuple[Values, Values]]) -> None:
        self.by_round = by_round

    @classmethod
    def from_campaign(cls, campaign: Campaign) -> Self:
        """Make the display from the scores that a campaign has kept; InputError without any."""
        found = {}
        for each in rounds.rounds(campaign.store):
            table = campaign.scores(each.id)
            if table is None or "entropy" not in table.column_names or not table.num_rows:
                continue
            batch = [issued.item for issued in rounds.batch_of(campaign.store, each.id)]
            chosen = pc.is_in(table["id"], value_set=pa.array(batch, type=pa.string()))
            entropies = table["entropy"]
            found[each.id] = (entropies.to_numpy(), entropies.filter(chosen).to_numpy())
        if not found:
            raise InputError("The campaign has kept no scores. Query a batch first.")
        return cls(found)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the boxes: median, quartiles, and whiskers from the 5th to the 95th percentile."""
        ax = self._begin(ax)
        places = np.arange(len(self.by_round))
        self.boxes_ = []
        for which, name in enumerate(["all items that were scored", "the batch"]):
            rows = [_percentiles(pair[which]) for pair in self.by_round.values()]
            low, first, median, third, high = np.reshape(rows, (-1, len(PERCENTILES))).T
            # Axes.boxplot reads all of matplotlib's settings, which imports pyplot.
            at, colour = places + 0.38 * which - 0.19, f"C{which}"
            boxes = ax.bar(at, third - first, 0.3, first, color=colour, alpha=0.5, label=name)
            ax.vlines([at, at], [low, third], [first, high], colors=colour)
            ax.hlines([low, high], [at - 0.08] * 2, [at + 0.08] * 2, colors=colour)
            ax.hlines(median, at - 0.15, at + 0.15, colors="black")
            self.boxes_.append(boxes)
        ax.set_xticks(places, [str(number) for number in self.by_round])
        ax.set(xlabel="round", ylabel="entropy of the answer (nats)")
        ax.set_ylim(bottom=0)
        ax.grid(axis="y", alpha=0.3)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
        return self


def _percentiles(values: Values) -> Values:
    """Return the percentiles of a box; NaN, which is not drawn, without values."""
    return np.percentile(values, PERCENTILES) if len(values) else np.full(len(PERCENTILES), np.nan)
