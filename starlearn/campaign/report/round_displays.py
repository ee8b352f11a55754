"""Plots of a campaign by round: how uncertain its pool was, and which classes came."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from starlearn.campaign import rounds
from starlearn.campaign.campaign import Campaign
from starlearn.console import plain
from starlearn.errors import InputError
from starlearn.evaluate.displays import as_plot_text, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")
"""Of the most frequent classes, without the grey that the others share."""
LEVELS = (5, 25, 50, 75, 95)
"""Percentiles of a box and its whiskers."""
POOL_COLOUR, BATCH_COLOUR = "C0", "C1"

Values = NDArray[np.float64]


class UncertaintyByRound:
    """Distribution of uncertainty over the pool and over the batch, a pair of boxes a round.

    Parameters
    ----------
    by_round : mapping of int to (pool, batch)
        Of each round, the entropies of the items that took part and of those chosen, in nats.

    Attributes
    ----------
    ax_, figure_, boxes_
        The matplotlib axes, figure, and the boxes of pool and batch, after `plot`.
    """

    def __init__(self, by_round: Mapping[int, tuple[Values, Values]]) -> None:
        self.by_round = by_round

    @classmethod
    def from_campaign(cls, campaign: Campaign) -> Self:
        """Make the display of the scores that a campaign has kept.

        Raises
        ------
        InputError
            When none were kept.
        """
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
            raise InputError("The campaign has kept no scores: ask for a batch first.")
        return cls(found)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the boxes: median, quartiles, and whiskers from the 5th to the 95th percentile.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. Without it a new figure is made, outside pyplot's global state.
        """
        ax = new_figure().add_subplot() if ax is None else ax
        places = np.arange(len(self.by_round))
        self.boxes_ = []
        for which, (name, colour) in enumerate(
            [("all items that took part", POOL_COLOUR), ("the batch", BATCH_COLOUR)]
        ):
            levels = [percentiles(pair[which]) for pair in self.by_round.values()]
            low, first, median, third, high = np.reshape(levels, (-1, len(LEVELS))).T
            # Axes.boxplot goes through all of matplotlib's settings, which imports pyplot.
            at = places + 0.38 * which - 0.19
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
        self.ax_, self.figure_ = ax, ax.figure
        return self


def percentiles(values: Values) -> Values:
    """Return the percentiles of a box; NaN, which is not drawn, where there is no value."""
    return np.percentile(values, LEVELS) if len(values) else np.full(len(LEVELS), np.nan)


class ClassMixByRound:
    """Shares of the classes, a stacked bar a round.

    Parameters
    ----------
    by_round : mapping of int to mapping of str to int
        Of each round, how often each class came; at least one.

    Attributes
    ----------
    ax_, figure_, bars_
        The matplotlib axes, figure, and the bars of each class, after `plot`.
    """

    def __init__(self, by_round: Mapping[int, Mapping[str, int]]) -> None:
        self.by_round = by_round

    @classmethod
    def from_answers(cls, answers: Mapping[int, Sequence[str]]) -> Self:
        """Make the display of the answers of each round; rounds without one are left out."""
        return cls({number: Counter(given) for number, given in answers.items() if given})

    def classes(self) -> list[str]:
        """Return the classes, by the sum of their shares over the rounds, then by name."""
        return classes_of([self])

    def plot(self, ax: "Axes | None" = None, names: Sequence[str] | None = None) -> Self:
        """Draw the bars.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. Without it a new figure is made, outside pyplot's global state.
        names : sequence of str, optional
            Classes with a colour of their own, so that two plots can share their colours; by
            default the most frequent ones.
        """
        ax = new_figure().add_subplot() if ax is None else ax
        names = (self.classes() if names is None else names)[: len(COLOURS)]
        shares = self._shares(names)  # [rounds, classes + 1]
        places = [str(number) for number in self.by_round]
        bottom = np.zeros(len(places))
        self.bars_: list[Any] = []
        rest = set(self.classes()) - set(names)
        for name, share in zip([*names, "other classes"], shares.T, strict=True):
            if name in names or rest:
                colour = COLOURS[len(self.bars_)] if name in names else "0.85"
                label = as_plot_text(plain(name if len(name) <= 40 else name[:39] + "…"))
                bars = ax.bar(places, share, bottom=bottom, color=colour, label=label, width=0.7)
                self.bars_.append(bars)
                bottom += share
        ax.set(xlabel="round", ylabel="share", ylim=(0, 1))
        ax.set_xlim(-0.6, max(len(places), 3) - 0.4)  # one bar alone would fill the plot
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _shares(self, names: Sequence[str]) -> Values:
        rows = []
        for counts in self.by_round.values():
            named = [counts.get(name, 0) for name in names]
            total = sum(counts.values())
            rows.append([*named, total - sum(named)])
        shares = np.array(rows, dtype=np.float64)
        return shares / shares.sum(axis=1, keepdims=True)


def classes_of(displays: Sequence[ClassMixByRound]) -> list[str]:
    """Return the classes of several displays, by the sum of their shares, then by name."""
    total: defaultdict[str, float] = defaultdict(float)
    for display in displays:
        for counts in display.by_round.values():
            for name, count in counts.items():
                total[name] += count / sum(counts.values())
    return sorted(total, key=lambda name: (-total[name], name))
