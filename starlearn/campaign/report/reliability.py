"""Whether a model that is 80 % sure is right 80 times in 100: a diagram, and one number for it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starlearn.errors import InputError
from starlearn.evaluate.displays import as_plot_text, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_BINS = 15

Curve = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def reliability(correct: ArrayLike, confidence: ArrayLike, n_bins: int = N_BINS) -> Curve:
    """Sort N answers by confidence into bins of equal width, and compare each bin with the truth.

    Parameters
    ----------
    correct : array-like of shape (N,)
        Whether each answer is right.
    confidence : array-like of shape (N,)
        The probability that the model gave it, from 0 to 1.
    n_bins : int
        Bins in all; b of them hold an answer.

    Returns
    -------
    accuracy : ndarray of shape (b,)
        Share of right answers in each bin.
    mean_confidence : ndarray of shape (b,)
    count : ndarray of shape (b,)
        Answers in each bin.

    Raises
    ------
    InputError
        When there is no answer, or a confidence that is no probability.
    """
    from sklearn.calibration import calibration_curve

    correct = np.asarray(correct, dtype=bool)
    # Means of logarithms can come out a last bit above 1.
    confidence = np.asarray(confidence, dtype=np.float64)
    inside = (confidence >= 0) & (confidence <= 1 + 1e-9)
    if not len(confidence) or len(confidence) != len(correct) or not inside.all():
        raise InputError(
            "correct and confidence must hold one value for each of N >= 1 answers, confidence "
            f"from 0 to 1; got {len(correct)} and {len(confidence)} values."
        )
    confidence = np.minimum(confidence, 1.0)
    accuracy, mean_confidence = calibration_curve(
        correct, confidence, n_bins=n_bins, strategy="uniform", pos_label=True
    )
    # scikit-learn keeps the counts to itself; these are its bins, each open on the left.
    edges = np.linspace(0, 1, n_bins + 1)[1:-1]
    count = np.bincount(np.searchsorted(edges, confidence), minlength=n_bins)
    return accuracy, mean_confidence, count[count > 0]


def expected_calibration_error(
    correct: ArrayLike, confidence: ArrayLike, n_bins: int = N_BINS
) -> float:
    """Return the mean distance of confidence and accuracy over bins, weighted by their answers.

    Parameters
    ----------
    correct, confidence : array-like of shape (N,)
    n_bins : int

    Returns
    -------
    float
        From 0 (as sure as it is right) to 1. With few answers it is too large by chance.

    Notes
    -----
    ECE of the answer given, in bins of equal width: Guo et al. 2017, "On Calibration of Modern
    Neural Networks", arXiv 1706.04599, equation 3.

    Examples
    --------
    >>> expected_calibration_error([True, False], [0.75, 0.75])
    0.25
    """
    accuracy, mean_confidence, count = reliability(correct, confidence, n_bins)
    return float(np.sum(count * np.abs(accuracy - mean_confidence)) / count.sum())


class ReliabilityDiagram:
    """Share of right answers by confidence, one line a set of answers; the diagonal is the aim.

    scikit-learn's CalibrationDisplay imports pyplot, and draws one class against all others; here
    the answers given are drawn, with the size of each bin.

    Parameters
    ----------
    curves : mapping of str to (accuracy, mean_confidence, count)
        What `reliability` returns, by the name of the set.

    Attributes
    ----------
    ax_, figure_, lines_
        The matplotlib axes, figure and lines, after `plot`.
    """

    def __init__(self, curves: Mapping[str, Curve]) -> None:
        self.curves = curves

    @classmethod
    def from_predictions(
        cls, answers: Mapping[str, tuple[ArrayLike, ArrayLike]], n_bins: int = N_BINS
    ) -> Self:
        """Make the display of sets of answers, each as (correct, confidence) of shape (N,)."""
        return cls({name: reliability(*pair, n_bins) for name, pair in answers.items()})

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the curves; the area of a point is the share of answers in its bin.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. Without it a new figure is made, outside pyplot's global state.
        """
        ax = new_figure().add_subplot() if ax is None else ax
        ax.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        self.lines_ = []
        for name, (accuracy, confidence, count) in self.curves.items():
            (line,) = ax.plot(confidence, accuracy, linewidth=1.2, label=as_plot_text(name))
            sizes = 12 + 200 * count / count.sum()
            ax.scatter(confidence, accuracy, s=sizes, color=line.get_color(), alpha=0.7)
            self.lines_.append(line)
        ax.set(xlabel="confidence", ylabel="share of right answers")
        ax.set(xlim=(-0.02, 1.03), ylim=(-0.02, 1.03))
        ax.grid(alpha=0.3)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        self.ax_, self.figure_ = ax, ax.figure
        return self
