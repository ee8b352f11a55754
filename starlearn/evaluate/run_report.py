"""The report of a run: rounds.jsonl, a learning curve, and one HTML file that needs no network."""

import base64
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from starlearn.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]

LIBRARIES = (
    "starlearn",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "scikit-learn",
    "numpy",
)
STYLES = ("-", "--", "-.", ":")


def aulc(records: Sequence[Mapping[str, Any]]) -> float:
    """Return the area under the learning curve: accuracy averaged over the label count.

    Parameters
    ----------
    records : sequence of dict
        Rounds of one arm, with ``n_labels`` and ``accuracy``.

    Returns
    -------
    float
        The trapezoid of accuracy over labels, divided by its range; the accuracy itself when
        there is but one round.

    Examples
    --------
    >>> aulc([{"n_labels": 10, "accuracy": 0.2}, {"n_labels": 30, "accuracy": 0.6}])
    0.4
    """
    points = [(record["n_labels"], record["accuracy"]) for record in records]
    if len(points) == 1:
        return float(points[0][1])
    area = sum((right - left) * (low + high) / 2 for (left, low), (right, high) in pairwise(points))
    return float(area / (points[-1][0] - points[0][0]))


class AccuracyByLabels:
    """Learning curves: test accuracy by the number of labels, one line an arm.

    Parameters
    ----------
    curves : mapping of str to sequence of (int, float)
        For each arm, its points (number of labels, accuracy).

    Attributes
    ----------
    ax_, figure_, lines_
        The matplotlib axes, figure and lines, after `plot`.
    """

    def __init__(self, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        self.curves = curves

    @classmethod
    def from_rounds(cls, records_by_arm: Mapping[str, Sequence[Mapping[str, Any]]]) -> Self:
        """Make the display of the records that `simulate` returns, by the name of the arm.

        Raises
        ------
        InputError
            When there is no arm, or an arm without a round.
        """
        check_records(records_by_arm)
        return cls(
            {
                arm: [(record["n_labels"], record["accuracy"]) for record in records]
                for arm, records in records_by_arm.items()
            }
        )

    def plot(self, ax: "Axes | None" = None) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. Without it a new figure is made, outside pyplot's global state.

        Returns
        -------
        AccuracyByLabels
            Itself.
        """
        ax = new_figure().add_subplot() if ax is None else ax
        self.lines_ = [
            ax.plot(
                [n_labels for n_labels, _ in points],
                [accuracy for _, accuracy in points],
                linestyle=STYLES[place % len(STYLES)],
                marker="o",
                markersize=4,
                label=as_plot_text(arm),
            )[0]
            for place, (arm, points) in enumerate(self.curves.items())
        ]
        ax.set(xlabel="labels bought", ylabel="test accuracy")
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        ax.legend(loc="lower right")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def new_figure() -> "Figure":
    """Make a figure outside pyplot's global state; it draws without a screen."""
    from matplotlib.figure import Figure

    return Figure(figsize=(6.4, 4.0), layout="constrained")


def as_plot_text(text: str) -> str:
    """Keep matplotlib from reading a name as a formula, or from leaving it out of the legend."""
    return text.replace("$", r"\$").lstrip("_")


def append_round(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append one round to a file of JSON lines, and wait until it is on the disk."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_report(
    folder: str | Path,
    records_by_arm: Mapping[str, Sequence[Mapping[str, Any]]],
    settings: Mapping[str, Any],
) -> None:
    """Write ``rounds.jsonl``, ``learning_curve.png`` and ``report.html`` into a folder.

    Parameters
    ----------
    folder : str or path
        Made if it is missing; files of these names are replaced, each as a whole.
    records_by_arm : mapping of str to sequence of dict
        What `simulate` returned, by the name of the arm.
    settings : mapping
        What was run; shown in the report as it is.

    Raises
    ------
    InputError
        When there is no arm, or an arm without a round.
    """
    figure = new_figure()
    AccuracyByLabels.from_rounds(records_by_arm).plot(figure.add_subplot())
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    lines = [
        json.dumps({"arm": arm, **record}, allow_nan=False) + "\n"
        for arm, records in records_by_arm.items()
        for record in records
    ]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "rounds.jsonl", "".join(lines).encode())
    replace_file(folder / "learning_curve.png", image.getvalue())
    page = render(records_by_arm, settings, image.getvalue())
    replace_file(folder / "report.html", page.encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that its old or its new content stands there, never a part of it."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def check_records(records_by_arm: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Refuse a report about nothing."""
    if not records_by_arm or not all(records_by_arm.values()):
        raise InputError("no rounds to report; give at least one arm with at least one round")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that figures depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def render(
    records_by_arm: Mapping[str, Sequence[Mapping[str, Any]]],
    settings: Mapping[str, Any],
    image: bytes,
) -> str:
    """Fill the page; every text that comes from outside is escaped."""
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        PAGE
    )
    return page.render(
        arms=records_by_arm,
        aulc={arm: aulc(records) for arm, records in records_by_arm.items()},
        image=base64.b64encode(image).decode(),
        settings=settings,
        versions=versions(),
    )


PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>starlearn: accuracy by labels</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td.text, th.text { text-align: left }
td.text { overflow-wrap: anywhere; font-size: .85rem; max-width: 26rem }
img { max-width: 100% }
.scroll { overflow-x: auto }
</style>
</head>
<body>
<h1>Accuracy by labels</h1>
<p>Area under the learning curve (mean accuracy over the labels bought):
{% for arm, area in aulc.items() %}
<b>{{ arm }}</b> {{ "%.3f"|format(area) }}{{ ", " if not loop.last else "." }}
{% endfor %}</p>
<p>One seed shows how the rounds go. It is no evidence that one way of choosing is better than
another: that takes many paired seeds and an interval.</p>
<img src="data:image/png;base64,{{ image }}"
alt="Test accuracy by the number of labels bought, one line for each arm">
{% for arm, records in arms.items() %}
<h2>{{ arm }}</h2>
<div class="scroll"><table>
<tr><th>round</th><th>labels</th><th>accuracy</th><th>weight of base</th><th>base</th><th>full</th>
<th>seconds to query</th><th>to train</th><th>to score</th><th>label length</th>
<th class="text">labels of the batch</th></tr>
{% for r in records %}
<tr><td>{{ r["round"] }}</td><td>{{ r["n_labels"] }}</td><td>{{ "%.3f"|format(r["accuracy"]) }}</td>
{% for name in ("lambda", "mean_base", "mean_full") %}
<td>{% if r[name] is not none %}{{ "%.3g"|format(r[name]) }}{% endif %}</td>
{% endfor %}
{% for name in ("seconds_query", "seconds_teach", "seconds_score", "mean_label_length") %}
<td>{{ "%.1f"|format(r[name]) }}</td>
{% endfor %}
<td class="text">
{% for label, count in r["class_mix"].items() %}
{% if loop.index <= 8 %}{{ label }} {{ count }}{{ ", " if not loop.last else "" }}
{% elif loop.index == 9 %}and {{ loop.length - 8 }} more{% endif %}
{% endfor %}</td></tr>
{% endfor %}
</table></div>
{% endfor %}
<p>"base": mean entropy of the offered items under the base model (predictive entropy where that is
the measure); "full": the mean of the measure under base and adapter; "weight of base": lambda.</p>
{% for title, table in (("Settings", settings), ("Versions", versions)) %}
<h2>{{ title }}</h2>
<table>
{% for name, value in table.items() %}
<tr><th class="text">{{ name }}</th><td class="text">{{ value }}</td></tr>
{% endfor %}
</table>
{% endfor %}
</body>
</html>
"""
