"""Figures of a study, as scikit-learn style displays: make one from results, then plot it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from starlearn.evaluate.results import REFERENCE, TaskResults
from starlearn.evaluate.run_report import STYLES, as_plot_text, new_figure
from starlearn.evaluate.statistics import MARGIN, Contrast, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = NDArray[np.float64]


class Display:
    """What all displays share: axes that are given, or new ones outside pyplot's global state.

    Attributes
    ----------
    ax_, figure_
        The matplotlib axes and figure, after `plot`.
    """

    def _begin(self, ax: "Axes | None") -> "Axes":
        ax = new_figure().add_subplot() if ax is None else ax
        self.ax_, self.figure_ = ax, ax.figure
        return ax


class LearningCurves(Display):
    """Mean test accuracy by the number of labels, with a 95 % interval of the mean.

    Parameters
    ----------
    n_labels : sequence of int, length R
    accuracy : mapping of str to ndarray of shape (seeds, R)
        By arm.
    """

    def __init__(self, n_labels: Sequence[int], accuracy: Mapping[str, Values]) -> None:
        self.n_labels = n_labels
        self.accuracy = accuracy

    @classmethod
    def from_results(cls, results: TaskResults, arms: Sequence[str] | None = None) -> Self:
        """Make the display of a task; None shows all arms."""
        shown = results.arms if arms is None else arms
        return cls(results.n_labels(), {arm: results.by_round(arm, "accuracy") for arm in shown})

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw one line an arm; a band needs at least two seeds."""
        ax = self._begin(ax)
        for place, (arm, values) in enumerate(self.accuracy.items()):
            style = STYLES[place % len(STYLES)]
            label = f"{as_plot_text(arm)} ({len(values)} seeds)"
            mean = values.mean(axis=0)
            line = ax.plot(self.n_labels, mean, style, marker="o", markersize=4, label=label)[0]
            if len(values) > 1:
                bounds = np.array([mean_interval(column) for column in values.T])
                ax.fill_between(self.n_labels, *bounds.T, alpha=0.15, color=line.get_color())
        ax.set(xlabel="labels bought", ylabel="test accuracy", ylim=(0, 1.02))
        ax.grid(alpha=0.3)
        ax.legend(loc="lower right", fontsize="small")
        return self


class AulcForest(Display):
    """Differences of AULC with 95 % intervals, one row a contrast, and the margin set beforehand.

    What all rows have in common, the task and the arm they are compared with, is said once.

    Parameters
    ----------
    contrasts : sequence of Contrast
    """

    def __init__(self, contrasts: Sequence[Contrast]) -> None:
        self.contrasts = contrasts

    @classmethod
    def from_results(cls, results: Sequence[TaskResults], against: str = REFERENCE) -> Self:
        """Make the display of all arms of all tasks against one arm."""
        return cls([one for task in results for one in task.contrasts(against)])

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
            + one.arm
            + (f" - {one.against}" if len(against) > 1 else "")
            + f" ({len(one.seeds)})"
            for one in self.contrasts
        ]
        ax.set_yticks(rows, [as_plot_text(name) for name in names], fontsize="small")
        other = against.pop() if len(against) == 1 else "another arm"
        ax.set_xlabel(as_plot_text(f"AULC minus {other}, paired seeds"))
        if len(tasks) == 1:
            ax.set_title(as_plot_text(tasks.pop()))
        return self


class ReliabilityDiagram(Display):
    """Accuracy by confidence after the last round; on the diagonal a model knows what it knows.

    Parameters
    ----------
    bins : mapping of str to mapping of str to ndarray of shape (n_bins,)
        By arm: count, confidence (sum) and correct (count).
    """

    def __init__(self, bins: Mapping[str, Mapping[str, Values]]) -> None:
        self.bins = bins

    @classmethod
    def from_results(cls, results: TaskResults, arms: Sequence[str] | None = None) -> Self:
        """Make the display of a task; the answers of all seeds go together."""
        return cls({a: results.last_bins(a) for a in (results.arms if arms is None else arms)})

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw one line an arm; the size of a point tells how many answers are in its bin."""
        ax = self._begin(ax)
        ax.plot([0, 1], [0, 1], color="black", linewidth=0.8)
        for place, (arm, bins) in enumerate(self.bins.items()):
            kept = bins["count"] > 0
            count = bins["count"][kept]
            x, y = bins["confidence"][kept] / count, bins["correct"][kept] / count
            line = ax.plot(x, y, STYLES[place % len(STYLES)], label=as_plot_text(arm))[0]
            ax.scatter(x, y, s=5 + 100 * count / count.sum(), color=line.get_color())
        ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        ax.legend(loc="upper left", fontsize="small")
        return self


class ConfidenceOnErrors(Display):
    """How sure a model is where it is wrong, after the last round.

    Parameters
    ----------
    bins : mapping of str to mapping of str to ndarray of shape (n_bins,)
        As of :class:`ReliabilityDiagram`.
    """

    def __init__(self, bins: Mapping[str, Mapping[str, Values]]) -> None:
        self.bins = bins

    @classmethod
    def from_results(cls, results: TaskResults, arms: Sequence[str] | None = None) -> Self:
        """Make the display of a task; the errors of all seeds go together."""
        return cls(ReliabilityDiagram.from_results(results, arms).bins)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the density of errors by confidence, one line an arm."""
        ax = self._begin(ax)
        for place, (arm, bins) in enumerate(self.bins.items()):
            errors = bins["count"] - bins["correct"]
            if errors.sum() == 0:
                continue
            edges = np.linspace(0, 1, len(errors) + 1)
            density = errors / errors.sum() * len(errors)
            label = f"{as_plot_text(arm)} ({errors.sum():.0f} errors)"
            ax.stairs(density, edges, linestyle=STYLES[place % len(STYLES)], label=label)
        ax.set(xlabel="confidence of a wrong answer", ylabel="density", xlim=(0, 1))
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper left", fontsize="small")
        return self


class ScoreCorrelations(Display):
    """Rank correlation of the same items' scores between rounds, the base model first.

    Parameters
    ----------
    matrix : ndarray of shape (R + 1, R + 1)
    title : str
    """

    def __init__(self, matrix: Values, title: str = "") -> None:
        self.matrix = matrix
        self.title = title

    @classmethod
    def from_results(cls, results: TaskResults, arm: str) -> Self:
        """Make the display of one arm: the mean of its seeds' matrices."""
        return cls(results.correlations(arm), f"{results.name}: {arm}")

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
    """What each batch was made of: shares of the skills, or of the classes.

    Parameters
    ----------
    shares : mapping of str to ndarray of shape (R,)
    title : str
    most : int
        So many names are shown, the others go together.
    """

    def __init__(self, shares: Mapping[str, Values], title: str = "", most: int = 9) -> None:
        self.shares = shares
        self.title = title
        self.most = most

    @classmethod
    def from_results(cls, results: TaskResults, arm: str) -> Self:
        """Make the display of one arm."""
        return cls(results.mix(arm), f"{results.name}: {arm}")

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw stacked bars, the initial batch first."""
        ax = self._begin(ax)
        by_size = sorted(self.shares, key=lambda name: -float(self.shares[name].sum()))
        # By name, so that a skill has the same colour in the figures of two arms.
        shown: dict[str, Any] = {name: self.shares[name] for name in sorted(by_size[: self.most])}
        others = [self.shares[name] for name in by_size[self.most :]]
        if others:
            shown[f"{len(others)} others"] = np.sum(others, axis=0)
        floor: Any = 0.0
        for name, share in shown.items():
            ax.bar(range(len(share)), share, bottom=floor, label=as_plot_text(name))
            floor = floor + share
        ax.set(title=as_plot_text(self.title), xlabel="round", ylabel="share of the batch")
        if shown:
            ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
        return self


class FigureByRound(Display):
    """Any figure of the rounds, such as the length of what was bought: its mean, one line an arm.

    Parameters
    ----------
    values : mapping of str to ndarray of shape (seeds, R)
    label : str
    """

    def __init__(self, values: Mapping[str, Values], label: str) -> None:
        self.values = values
        self.label = label

    @classmethod
    def from_results(
        cls, results: TaskResults, name: str, label: str, arms: Sequence[str] | None = None
    ) -> Self:
        """Make the display of a task; `name` is a key of a round's record."""
        shown = results.arms if arms is None else arms
        return cls({arm: results.by_round(arm, name) for arm in shown}, label)

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the mean over the seeds that have the figure."""
        ax = self._begin(ax)
        for place, (arm, values) in enumerate(self.values.items()):
            known = ~np.isnan(values)
            count = known.sum(axis=0)
            total = np.where(known, values, 0.0).sum(axis=0)
            rounds = np.flatnonzero(count)
            style = STYLES[place % len(STYLES)]
            mean = total[rounds] / count[rounds]
            ax.plot(rounds, mean, style, marker="o", markersize=4, label=as_plot_text(arm))
        ax.set(xlabel="round", ylabel=self.label)
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
        return self
