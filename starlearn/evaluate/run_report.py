"""The report of a run: a learning curve, and one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlearn.errors import InputError
from starlearn.evaluate.displays import LearningCurves, new_figure, png
from starlearn.evaluate.html_page import as_text, render_page
from starlearn.evaluate.statistics import aulc
from starlearn.storage.files import write_file
from starlearn.version import versions

Record = Mapping[str, Any]


def write_report(
    folder: str | Path,
    records_by_arm: Mapping[str, Sequence[Record]],
    settings: Mapping[str, Any],
) -> None:
    """Write ``learning_curve.png`` and ``report.html`` into a folder, which is made if needed.

    `records_by_arm` has the records of `simulate` by the name of the arm. The report shows the
    settings as they are.
    """
    if not records_by_arm or not all(records_by_arm.values()):
        raise InputError("no rounds to report; give at least one arm with at least one round")
    curves = {
        arm: [(record["n_labels"], record["accuracy"]) for record in records]
        for arm, records in records_by_arm.items()
    }
    figure = new_figure()
    LearningCurves(curves).plot(figure.add_subplot())
    image = png(figure, dpi=150)
    page = render_page(
        "Accuracy by labels",
        BODY,
        arms=records_by_arm,
        aulc={arm: aulc(records) for arm, records in records_by_arm.items()},
        image=as_text(image),
        settings=settings,
        versions=versions(),
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "learning_curve.png", image, mode=0o666)
    write_file(folder / "report.html", page.encode(), mode=0o666)


BODY = """\
<p>Area under the learning curve (mean accuracy over the labels bought):
{% for arm, area in aulc.items() %}
<b>{{ arm }}</b> {{ "%.3f"|format(area) }}{{ ", " if not loop.last else "." }}
{% endfor %}</p>
<p>One seed shows how the rounds go. It is not evidence that one strategy is better than another:
that needs many paired seeds and an interval, which starlearn study computes.</p>
<img src="data:image/png;base64,{{ image }}"
alt="Test accuracy by the number of labels bought, one line per arm">
{% for arm, records in arms.items() %}
<h2>{{ arm }}</h2>
<div class="scroll"><table>
<tr><th>round</th><th>labels</th><th>accuracy</th><th>lambda</th><th>base</th><th>full</th>
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
<td class="text wide">
{% for label, count in r["class_mix"].items() %}
{% if loop.index <= 8 %}{{ label }} {{ count }}{{ ", " if not loop.last else "" }}
{% elif loop.index == 9 %}and {{ loop.length - 8 }} more{% endif %}
{% endfor %}</td></tr>
{% endfor %}
</table></div>
{% endfor %}
<p>lambda: weight of the base model in the score. base: mean entropy of the offered items under the
base model (predictive entropy where it is the measure). full: mean of the measure under the base
model with the adapter. label length: mean number of characters.</p>
{% for title, table in (("Settings", settings), ("Versions", versions)) %}
<h2>{{ title }}</h2>
<table>
{% for name, value in table.items() %}
<tr><th class="text">{{ name }}</th><td class="text wide">{{ value }}</td></tr>
{% endfor %}
</table>
{% endfor %}
"""
