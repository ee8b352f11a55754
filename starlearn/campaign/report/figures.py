"""Figures of a campaign's report, as images that the page itself contains."""

import base64
import io
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from starlearn.campaign.campaign import Campaign
from starlearn.campaign.report.evaluations import Evaluation
from starlearn.campaign.report.uncertainty import UncertaintyByRound
from starlearn.console import plain
from starlearn.errors import InputError
from starlearn.evaluate.displays import MixByRound, ReliabilityDiagram
from starlearn.evaluate.run_report import AccuracyByLabels, new_figure
from starlearn.evaluate.statistics import reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("held-out test file", "each batch before it was taught")
"""Names of the two kinds of evaluations in every figure."""
MAX_CLASSES = 9
"""Number of classes with a colour of their own."""
OTHERS = "other classes"
LONGEST_NAME = 40

Values = NDArray[np.float64]


def learning_curve(
    tested: Sequence[Evaluation],
    before: Sequence[Evaluation],
    costs: Mapping[int, float] | None = None,
) -> str | None:
    """Draw accuracy by the number of labels, or by their cost; None without an evaluation.

    Parameters
    ----------
    tested, before : sequence of Evaluation
    costs : mapping of int to float, optional
        The cost of all labels up to an event, by event.
    """
    groups = {name: group for name, group in zip(NAMES, (tested, before), strict=True) if group}
    if not groups:
        return None

    def x_of(evaluation: Evaluation) -> float:
        model = evaluation.model
        return model.n_labels if costs is None else costs[model.last_event]

    curves: dict[str, Any] = {
        name: [(x_of(one), one.accuracy) for one in group] for name, group in groups.items()
    }
    figure = new_figure()
    ax = figure.add_subplot()
    display = AccuracyByLabels(curves).plot(ax)
    for line, group in zip(display.lines_, groups.values(), strict=True):
        lows, highs = zip(*(one.interval for one in group), strict=True)
        places = [x_of(one) for one in group]
        ax.vlines(places, lows, highs, colors=line.get_color(), alpha=0.6, linewidth=1.5)
    places = [x_of(one) for group in groups.values() for one in group]
    if min(places) == max(places):
        ax.set_xlim(places[0] - 1, places[0] + 1)
    ax.set(ylabel="accuracy", ylim=(0, 1.02))
    ax.set(xlabel="labels taught" if costs is None else "cost of the labels taught")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    return as_image(figure)


def reliability_diagram(tested: Sequence[Evaluation], before: Sequence[Evaluation]) -> str | None:
    """Draw the newest model on the test file, and all batches together; None without either."""
    groups = {}
    if tested:
        groups[f"{NAMES[0]}, newest model"] = tested[-1:]
    if before:
        groups[f"{NAMES[1]}, all rounds"] = before
    if not groups:
        return None
    bins = {}
    for name, group in groups.items():
        confidence = np.concatenate([one.confidence for one in group])
        correct = np.concatenate([one.correct for one in group])
        found = reliability(confidence, correct)
        bins[name] = {column: np.asarray(values) for column, values in found.items()}
    figure = new_figure()
    figure.set_size_inches(5.4, 4.8)
    ax = ReliabilityDiagram(bins).plot(figure.add_subplot()).ax_
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return as_image(figure)


def uncertainty(campaign: Campaign) -> str | None:
    """Draw the distribution of uncertainty by round; None where no scores were kept."""
    try:
        display = UncertaintyByRound.from_campaign(campaign)
    except InputError:
        return None
    figure = new_figure()
    display.plot(figure.add_subplot())
    return as_image(figure)


def class_mix(
    labels: Mapping[int, Sequence[str]], predicted: Mapping[int, Sequence[str]]
) -> str | None:
    """Draw the labels of each batch next to the model's answers to its pool; None without both."""
    panels = {
        "labels of the batch": {r: Counter(given) for r, given in labels.items() if given},
        "the model's answers to the pool": {r: Counter(a) for r, a in predicted.items() if a},
    }
    classes = by_frequency([counts for found in panels.values() for counts in found.values()])
    if not classes:
        return None
    figure = new_figure()
    figure.set_size_inches(9.6, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (title, by_round) in zip(axes, panels.items(), strict=True):
        if by_round:
            shares = class_shares(list(by_round.values()), classes)
            MixByRound(shares, title, most=MAX_CLASSES + 1).plot(ax)
            ax.set_xticks(range(len(by_round)), [str(number) for number in by_round])
            ax.set_xlim(-0.6, max(len(by_round), 3) - 0.4)  # a single bar would fill the panel
            for text in ax.get_legend().get_texts():
                name = plain(text.get_text())
                text.set_text(name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…")
        else:
            ax.text(0.5, 0.5, "none yet", ha="center", transform=ax.transAxes)
            ax.set_title(title)
        ax.set_ylabel("share")
    if panels["the model's answers to the pool"] and axes[0].get_legend():
        axes[0].get_legend().remove()  # both panels have the same colours
    return as_image(figure)


def by_frequency(rounds: Sequence[Counter[str]]) -> list[str]:
    """Return the classes by the sum of their shares over the rounds, ties by name."""
    total: defaultdict[str, float] = defaultdict(float)
    for counts in rounds:
        for name, count in counts.items():
            total[name] += count / counts.total()
    return sorted(total, key=lambda name: (-total[name], name))


def class_shares(rounds: Sequence[Counter[str]], classes: Sequence[str]) -> dict[str, Values]:
    """Return the share of each class by round, [R]; those after `MAX_CLASSES` count together."""
    total = np.array([counts.total() for counts in rounds])
    shares = {name: np.array([counts[name] for counts in rounds]) / total for name in classes}
    rest = [shares.pop(name) for name in classes[MAX_CLASSES:]]
    return {**shares, OTHERS: np.sum(rest, axis=0)} if rest else shares


def as_image(figure: "Figure") -> str:
    """Return a figure as a data URL."""
    import matplotlib as mpl

    file = io.BytesIO()
    # Text stays text in the SVG, so that the browser's fonts draw every script. The warning is
    # about matplotlib's own font, which only measures the text.
    settings = {"svg.fonttype": "none", "svg.hashsalt": "starlearn"}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
