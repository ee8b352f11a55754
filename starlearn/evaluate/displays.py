"""Figures as scikit-learn style displays: make one from results or values, then plot it."""

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starlearn.console import plain
from starlearn.evaluate.arms import arm_title
from starlearn.evaluate.results import TaskResults
from starlearn.evaluate.statistics import MARGIN, Contrast, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = NDArray[np.float64]

STYLES = ("-", "--", "-.", ":")
COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")
"""Colours of skills and classes, without the grey C7: grey is for all others together."""
LONGEST_NAME = 40


def new_figure() -> "Figure":
    """Return a figure outside pyplot's global state; it needs no screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(6.4, 4.0), layout="constrained")


def as_plot_text(text: str) -> str:
    """Return a text that matplotlib shows as it is: no formula, not hidden from the legend."""
    return plain(text).replace("$", r"\$").lstrip("_")


def png(figure: "Figure", dpi: int) -> bytes:
    """Return a figure as a PNG."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=dpi)
    return image.getvalue()


class Display:
    """Base class of the displays, which draw on given axes or on those of a new figure.

    After `plot`, `ax_` and `figure_` are matplotlib's axes and figure.
    """

    def _begin(self, ax: "Axes | None") -> "Axes":
        ax = new_figure().add_subplot() if ax is None else ax
        self.ax_, self.figure_ = ax, ax.figure
        return ax


class LearningCurves(Display):
    """Test accuracy, or another metric, by the number of labels: one line per curve.

    The points of each curve, by its name, are the number of labels and the value, or the values of
    several seeds. NaN values are left out. After `plot`, `lines_` has matplotlib's lines.
    """

    def __init__(
        self, curves: Mapping[str, Sequence[tuple[float, Any]]], label: str = "test accuracy"
    ) -> None:
        self.curves, self.label = curves, label

    @classmethod
    def from_results(
        cls,
        results: TaskResults,
        arms: Sequence[str] | None = None,
        metric: str = "accuracy",
        label: str = "test accuracy",
    ) -> Self:
        """Return the display of a task. `metric` is a key of a round's record; None is all arms."""
        n_labels = results.n_labels()
        curves = {
            arm_title(arm): list(zip(n_labels, results.by_round(arm, metric).T, strict=True))
            for arm in (results.arms if arms is None else arms)
        }
        return cls(curves, label)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the mean of each curve, and its 95 % interval where there are several seeds."""
        ax = self._begin(ax)
        self.lines_ = []
        for number, (name, points) in enumerate(self.curves.items()):
            values = [(n, np.atleast_1d(np.asarray(value, float))) for n, value in points]
            values = [(n, kept) for n, value in values if len(kept := value[~np.isnan(value)])]
            n_labels = [n for n, _ in values]
            n_seeds = max((len(value) for _, value in values), default=0)
            (line,) = ax.plot(
                n_labels,
                [value.mean() for _, value in values],
                STYLES[number % len(STYLES)],
                marker="o",
                markersize=4,
                label=as_plot_text(name) + (f" ({n_seeds} seeds)" if n_seeds > 1 else ""),
            )
            self.lines_.append(line)
            if n_seeds > 1 and all(len(value) > 1 for _, value in values):
                low, high = zip(*(mean_interval(value) for _, value in values), strict=True)
                ax.fill_between(n_labels, low, high, alpha=0.15, color=line.get_color())
        ax.set(xlabel="labels bought", ylabel=self.label)
        if self.label == "test accuracy":
            ax.set_ylim(0, 1.02)
        ax.grid(alpha=0.3)
        ax.legend(loc="lower right", fontsize="small")
        return self


class AulcForest(Display):
    """Differences of AULC with 95 % intervals, one row per contrast, and the margin.

    The task, and the arm that others are compared with, are named once where all rows share them.
    """

    def __init__(self, contrasts: Sequence[Contrast]) -> None:
        self.contrasts = contrasts

    @classmethod
    def from_results(cls, results: Sequence[TaskResults]) -> Self:
        """Return the display of all arms of all tasks against random choice."""
        return cls([one for task in results for one in task.contrasts()])

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the first contrast on top."""
        ax = self._begin(ax)
        rows = np.arange(len(self.contrasts))[::-1]
        for row, one in zip(rows, self.contrasts, strict=True):
            ax.plot([one.low, one.high], [row, row], color="tab:blue")
            ax.plot(one.mean, row, "o", color="tab:blue", markersize=5)
            for difference in one.differences:
                ax.plot(difference, row, "|", color="grey", alpha=0.5)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.axvspan(-MARGIN, 0, color="grey", alpha=0.2)
        tasks = {one.task for one in self.contrasts}
        against = {one.against for one in self.contrasts}
        names = [
            (f"{one.task}: " if len(tasks) > 1 else "")
            + arm_title(one.arm)
            + (f" - {arm_title(one.against)}" if len(against) > 1 else "")
            + f" ({len(one.seeds)})"
            for one in self.contrasts
        ]
        ax.set_yticks(rows, [as_plot_text(name) for name in names], fontsize="small")
        other = arm_title(against.pop()) if len(against) == 1 else "another arm"
        ax.set_xlabel(as_plot_text(f"AULC minus {other}, paired seeds"))
        if len(tasks) == 1:
            ax.set_title(as_plot_text(tasks.pop()))
        return self


class ReliabilityDiagram(Display):
    """Accuracy by confidence, one line per set of answers; a calibrated model is on the diagonal.

    The bins of each set, by its name, are those of `statistics.reliability`. After `plot`, `lines_`
    has matplotlib's lines.
    """

    def __init__(self, bins: Mapping[str, Mapping[str, ArrayLike]]) -> None:
        self.bins = bins

    @classmethod
    def from_results(cls, results: TaskResults, arms: Sequence[str] | None = None) -> Self:
        """Return the display of a task after its last round; seeds are pooled."""
        shown = results.arms if arms is None else arms
        return cls({arm_title(arm): results.last_bins(arm) for arm in shown})

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw one line per set; the area of a point is the share of answers in its bin."""
        ax = self._begin(ax)
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        self.lines_ = []
        for number, (name, bins) in enumerate(self.bins.items()):
            count, confidence, correct = (
                np.asarray(bins[key], float) for key in ("count", "confidence", "correct")
            )
            kept = count > 0
            count = count[kept]
            x, y = confidence[kept] / count, correct[kept] / count
            (line,) = ax.plot(x, y, STYLES[number % len(STYLES)], label=as_plot_text(name))
            ax.scatter(x, y, s=12 + 200 * count / count.sum(), color=line.get_color(), alpha=0.7)
            self.lines_.append(line)
        ax.set(xlabel="confidence", ylabel="accuracy", xlim=(-0.02, 1.03), ylim=(-0.02, 1.03))
        ax.grid(alpha=0.3)
        ax.legend(loc="upper left", fontsize="small")
        return self


class ConfidenceOnErrors(ReliabilityDiagram):
    """Distribution of the confidence of wrong answers, one line per set of answers."""

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the density of errors by confidence."""
        ax = self._begin(ax)
        for number, (name, bins) in enumerate(self.bins.items()):
            errors = np.subtract(bins["count"], bins["correct"])
            if errors.sum() == 0:
                continue
            edges = np.linspace(0, 1, len(errors) + 1)
            density = errors / errors.sum() * len(errors)
            label = f"{as_plot_text(name)} ({errors.sum():.0f} errors)"
            ax.stairs(density, edges, linestyle=STYLES[number % len(STYLES)], label=label)
        ax.set(xlabel="confidence of a wrong answer", ylabel="density", xlim=(0, 1))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper left", fontsize="small")
        return self


class ScoreCorrelations(Display):
    """Rank correlation, [R + 1, R + 1], of the same items' scores between rounds, base first."""

    def __init__(self, matrix: Values, title: str = "") -> None:
        self.matrix, self.title = matrix, title

    @classmethod
    def from_results(cls, results: TaskResults, arm: str) -> Self:
        """Return the display of one arm: the mean matrix over its seeds."""
        return cls(results.correlations(arm), f"{results.name}: {arm_title(arm)}")

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the matrix with its numbers."""
        ax = self._begin(ax)
        ax.imshow(self.matrix, vmin=-1, vmax=1, cmap="RdBu")
        names = ["base", *map(str, range(1, len(self.matrix)))]
        ax.set_xticks(range(len(names)), names)
        ax.set_yticks(range(len(names)), names)
        for (row, column), value in np.ndenumerate(self.matrix):
            colour = "white" if abs(value) > 0.6 else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, size=8)
        ax.set(title=as_plot_text(self.title), xlabel="training", ylabel="training")
        return self


class MixByRound(Display):
    """Shares of the skills, or of the classes, in each round: one stacked bar per round.

    `shares` has an array of shape (R,) per skill or class, `rounds` the R numbers of the rounds, by
    default 0, 1, ... After `plot`, `bars_` has matplotlib's bars of each name.
    """

    def __init__(
        self, shares: Mapping[str, Values], title: str = "", rounds: Sequence[int] | None = None
    ) -> None:
        self.shares, self.title, self.rounds = shares, title, rounds

    @classmethod
    def from_results(cls, results: TaskResults, arm: str) -> Self:
        """Return the display of one arm."""
        return cls(results.mix(arm), f"{results.name}: {arm_title(arm)}")

    @classmethod
    def from_counts(cls, counts: Mapping[int, Mapping[str, int]], title: str = "") -> Self:
        """Return the display of the counts of each round; rounds without a count are left out."""
        kept = {number: count for number, count in counts.items() if sum(count.values())}
        return cls(
            {
                name: np.array([c.get(name, 0) / sum(c.values()) for c in kept.values()])
                for name in sorted({name for count in kept.values() for name in count})
            },
            title,
            list(kept),
        )

    def plot(
        self, ax: "Axes | None" = None, names: Sequence[str] | None = None, *, legend: bool = True
    ) -> Self:
        """Draw the bars of at most 9 names, by default the most frequent ones; others are grey.

        Two displays with the same names have the same colours.
        """
        ax = self._begin(ax)
        names = sorted(most_frequent([self])) if names is None else names
        others = [share for name, share in self.shares.items() if name not in names]
        shown: list[tuple[str, Any, str]] = [
            (name, self.shares[name], colour)
            for name, colour in zip(names, COLOURS, strict=False)
            if name in self.shares
        ]
        if others:
            shown.append((f"{len(others)} others", np.sum(others, axis=0), "0.85"))
        n_rounds = len(next(iter(self.shares.values()), ()))
        places = [str(number) for number in self.rounds or range(n_rounds)]
        bottom = np.zeros(n_rounds)
        self.bars_ = []
        for name, share, colour in shown:
            short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
            label = as_plot_text(short)
            bars = ax.bar(places, share, bottom=bottom, color=colour, label=label, width=0.7)
            self.bars_.append(bars)
            bottom = bottom + share
        ax.set(title=as_plot_text(self.title), xlabel="round", ylabel="share", ylim=(0, 1))
        ax.set_xlim(-0.6, max(n_rounds, 3) - 0.4)  # one bar alone would fill the plot
        if legend and self.bars_:
            ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
        return self


def most_frequent(displays: Sequence[MixByRound]) -> list[str]:
    """Return the 9 names with the largest shares over all displays, then by name."""
    total: defaultdict[str, float] = defaultdict(float)
    for display in displays:
        for name, share in display.shares.items():
            total[name] += float(share.sum())
    return sorted(total, key=lambda name: (-total[name], name))[: len(COLOURS)]
