"""The figures of a campaign's report, each as an image that stands in the page itself."""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlearn.campaign.campaign import Campaign
from starlearn.campaign.report.reliability import ReliabilityDiagram
from starlearn.campaign.report.round_displays import ClassMixByRound, UncertaintyByRound, classes_of
from starlearn.campaign.report.trials import Trial
from starlearn.errors import InputError
from starlearn.evaluate.displays import LearningCurves, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRIALS = ("held-out test file", "each batch before it was taught")
"""What the two kinds of trials are called in every figure."""


def learning_curve(
    tested: Sequence[Trial], before: Sequence[Trial], costs: Mapping[int, float] | None = None
) -> str | None:
    """Draw accuracy by labels, or by what they cost; None where there is no trial.

    Parameters
    ----------
    tested, before : sequence of Trial
    costs : mapping of int to float, optional
        The cost of the labels up to an event.
    """
    groups = {name: group for name, group in zip(TRIALS, (tested, before), strict=True) if group}
    if not groups:
        return None

    def place(trial: Trial) -> float:
        return trial.model.n_labels if costs is None else costs[trial.model.taught]

    curves: dict[str, Any] = {
        name: [(place(trial), trial.accuracy) for trial in group] for name, group in groups.items()
    }
    figure = new_figure()
    display = LearningCurves(curves).plot(figure.add_subplot())
    for line, group in zip(display.lines_, groups.values(), strict=True):
        lows, highs = zip(*(trial.interval for trial in group), strict=True)
        display.ax_.vlines(
            [place(trial) for trial in group],
            lows,
            highs,
            colors=line.get_color(),
            alpha=0.6,
            linewidth=1.5,
        )
    places = [place(trial) for group in groups.values() for trial in group]
    if min(places) == max(places):
        display.ax_.set_xlim(places[0] - 1, places[0] + 1)
    display.ax_.set(ylabel="accuracy", ylim=(0, 1.02))
    display.ax_.set(xlabel="labels taught" if costs is None else "cost of the labels taught")
    display.ax_.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    return as_image(figure)


def reliability_diagram(tested: Sequence[Trial], before: Sequence[Trial]) -> str | None:
    """Draw the newest model on the test file, and all batches together; None without a trial."""
    import numpy as np

    answers = {}
    if tested:
        answers[f"{TRIALS[0]}, newest model"] = (tested[-1].correct, tested[-1].confidence)
    if before:
        correct = np.concatenate([trial.correct for trial in before])
        confidence = np.concatenate([trial.confidence for trial in before])
        answers[f"{TRIALS[1]}, all rounds"] = (correct, confidence)
    if not answers:
        return None
    figure = new_figure()
    figure.set_size_inches(5.4, 4.8)
    ReliabilityDiagram.from_predictions(answers).plot(figure.add_subplot())
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
    """Draw the labels of each batch beside the model's answers to its pool, in equal colours."""
    given = ClassMixByRound.from_answers(labels)
    pool = ClassMixByRound.from_answers(predicted)
    if not given.by_round and not pool.by_round:
        return None
    names = classes_of([given, pool])
    figure = new_figure()
    figure.set_size_inches(9.6, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, display, title in zip(
        axes, (given, pool), ("labels of the batch", "the model's answers to the pool"), strict=True
    ):
        if display.by_round:
            display.plot(ax, names)
        else:
            ax.text(0.5, 0.5, "none yet", ha="center", transform=ax.transAxes)
        ax.set_title(title, fontsize="medium")
    axes[1].set_ylabel("")
    handles = {
        label: handle
        for ax in axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize="small")
    return as_image(figure)


def as_image(figure: "Figure") -> str:
    """Return a figure as the address of an image that is in the address itself."""
    import matplotlib as mpl

    file = io.BytesIO()
    # Text stays text, so that the browser's fonts serve every script; the one of matplotlib,
    # which only measures, need not have the character.
    drawing = {"svg.fonttype": "none", "svg.hashsalt": "starlearn"}
    with mpl.rc_context(drawing), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
