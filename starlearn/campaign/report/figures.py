"""Figures of a campaign's report, as images that the page itself contains."""

import base64
import io
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from starlearn.campaign.campaign import Campaign
from starlearn.campaign.report.evaluations import Evaluation
from starlearn.campaign.report.uncertainty import UncertaintyByRound
from starlearn.console import plain
from starlearn.errors import InputError
from starlearn.evaluate.displays import (
    LearningCurves,
    MixByRound,
    ReliabilityDiagram,
    most_frequent,
    new_figure,
)
from starlearn.evaluate.statistics import reliability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = ("held-out test file", "each batch before it was taught")
"""Names of the two kinds of evaluations in every figure."""


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
    display = LearningCurves(curves).plot(ax)
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
        bins[name] = reliability(confidence, correct)
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
    given, answered = (
        MixByRound.from_counts(
            {number: Counter(map(plain, some)) for number, some in by_round.items()}, title
        )
        for title, by_round in (
            ("labels of the batch", labels),
            ("the model's answers to the pool", predicted),
        )
    )
    names = most_frequent([given, answered])
    if not names:
        return None
    figure = new_figure()
    figure.set_size_inches(9.6, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    handles: dict[Any, Any] = {}
    for ax, display in zip(axes, (given, answered), strict=True):
        if display.shares:
            display.plot(ax, names, legend=False)
            handles |= {bars.get_label(): bars for bars in display.bars_}
        else:
            ax.text(0.5, 0.5, "none yet", ha="center", transform=ax.transAxes)
            ax.set_title(display.title)
    # Both panels have the same colours, so they share a legend.
    figure.legend(handles.values(), handles, loc="outside right center", fontsize="small")
    return as_image(figure)


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
