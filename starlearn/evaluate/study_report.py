"""The report of a study: one HTML file that needs no network, with all tasks and all arms."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlearn.evaluate.arms import ARMS, arm_title
from starlearn.evaluate.displays import (
    AulcForest,
    ConfidenceOnErrors,
    LearningCurves,
    MixByRound,
    ReliabilityDiagram,
    ScoreCorrelations,
    as_plot_text,
    new_figure,
    png,
)
from starlearn.evaluate.html_page import as_text, render_page
from starlearn.evaluate.results import (
    REFERENCE,
    RIVAL,
    STAR,
    TaskResults,
    primary_contrasts,
    read_results,
)
from starlearn.evaluate.statistics import LEAST_SEEDS, MARGIN
from starlearn.evaluate.study_tables import markdown, row
from starlearn.storage.files import write_file

PAGE_FILE, TABLES_FILE = "study.html", "study.md"
CURVES_FILE, FOREST_FILE = "study.png", "study_forest.png"
MOST_CURVES = 4
"""Number of arms in a figure; more lines are hard to distinguish."""


def write_study_report(folder: Path) -> Path:
    """Write a page, its tables and its main figures into the folder of one or more studies.

    Return the page, ``study.html``. ``study.md`` has its tables as Markdown, ``study.png`` the
    learning curves of all tasks, and ``study_forest.png`` all arms against random choice.
    """
    results = read_results(folder)
    for name, content in (
        (TABLES_FILE, markdown(results).encode()),
        (CURVES_FILE, draw_curves(results)),
        (FOREST_FILE, draw_forests(results)),
        (PAGE_FILE, render_study(results).encode()),
    ):
        write_file(folder / name, content, mode=0o666)
    return folder / PAGE_FILE


def render_study(results: Sequence[TaskResults]) -> str:
    """Return the page."""
    runs = [run for task in results for by_seed in task.runs.values() for run in by_seed.values()]
    return render_page(
        "Does it save labels?",
        BODY,
        title_of=arm_title,
        primary=primary_contrasts(results),
        forest=as_image(AulcForest.from_results(results)),
        tasks=[section(task) for task in results],
        arms={arm: ARMS[arm].description for task in results for arm in task.arms if arm in ARMS},
        margin=MARGIN,
        least_seeds=LEAST_SEEDS,
        reference=REFERENCE,
        n_runs=len(runs),
        hours=sum(run["seconds"] for run in runs) / 3600,
        machines=machines(runs),
    )


def section(task: TaskResults) -> dict[str, Any]:
    """Return the tables and the figures of one task."""
    shown = main_arms(task)
    figures = {
        "Learning curves, mean and 95 % interval": LearningCurves.from_results(task, shown),
        "Reliability after the last round": ReliabilityDiagram.from_results(task, shown),
        "Confidence of wrong answers after the last round": ConfidenceOnErrors.from_results(
            task, shown
        ),
        "Length of the bought items": LearningCurves.from_results(
            task, shown, "mean_item_length", "characters per item"
        ),
    }
    for arm in [arm for arm in shown if arm != REFERENCE][:2]:
        figures[f"Rank correlation of scores between rounds, {arm_title(arm)}"] = (
            ScoreCorrelations.from_results(task, arm)
        )
    for arm in shown[:3]:
        if task.mix(arm):
            figures[f"Items bought by {arm_title(arm)} in each round"] = MixByRound.from_results(
                task, arm
            )
    return {
        "name": task.name,
        "rows": [row(task, arm) for arm in task.arms],
        "contrasts": task.contrasts(),
        "figures": {title: as_image(display) for title, display in figures.items()},
    }


def main_arms(task: TaskResults) -> list[str]:
    """Return the arms whose curves are drawn: the first ones of the table of arms.

    An arm with fewer seeds than the others is left out: its wide interval would fill the figure.
    """
    first = [arm for arm in (REFERENCE, RIVAL, STAR) if arm in task.arms]
    most = max(map(len, task.runs.values()))
    others = [a for a in task.arms if a not in first and len(task.runs[a]) >= most - 1]
    return [*first, *others][:MOST_CURVES]


def machines(runs: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Count the runs per device and versions."""
    return Counter(
        f"{run['device']}; {', '.join(' '.join(pair) for pair in run['versions'].items())}"
        for run in runs
    )


def draw_curves(results: Sequence[TaskResults]) -> bytes:
    """Draw the learning curves of all tasks side by side, two in a row; return a PNG."""
    figure = new_figure()
    n_rows = (len(results) + 1) // 2
    figure.set_size_inches(10.0, 3.6 * n_rows)
    for place, task in enumerate(results, 1):
        axes = figure.add_subplot(n_rows, min(2, len(results)), place)
        LearningCurves.from_results(task, main_arms(task)).plot(axes)
        axes.set_title(as_plot_text(task.name))
    return png(figure, dpi=100)


def draw_forests(results: Sequence[TaskResults]) -> bytes:
    """Draw all arms against random choice, one panel per task; return a PNG."""
    figure = new_figure()
    compared = [task for task in results if task.contrasts()]
    n_rows = max((len(compared) + 1) // 2, 1)
    most = max((len(task.contrasts()) for task in compared), default=1)
    figure.set_size_inches(10.0, n_rows * (1.2 + 0.24 * most))
    shared = None
    for place, task in enumerate(compared, 1):
        shared = figure.add_subplot(n_rows, min(2, len(compared)), place, sharex=shared)
        AulcForest.from_results([task]).plot(shared)
    return png(figure, dpi=100)


def as_image(display: Any) -> str:
    """Draw a display and return it as a PNG in base64."""
    figure = new_figure()
    if isinstance(display, AulcForest):
        figure.set_size_inches(8.0, 1.5 + 0.28 * len(display.contrasts))
    display.plot(figure.add_subplot())
    return as_text(png(figure, dpi=110))


BODY = """\
<p>{{ n_runs }} finished runs, {{ "%.1f"|format(hours) }} hours of computing. Seeds are paired: for
one seed all arms share pool, initial labels, test set, initial adapter, order of training and
number of steps. AULC is the area under the learning curve: test accuracy averaged over the number
of labels.</p>
{% macro signed(value) %}{{ "%+.4f"|format(value) }}{% endmacro %}
{% macro number(value, form) %}
{% if value is not none %}{{ form|format(value) }}{% endif %}
{% endmacro %}
{% if primary %}
<h2>Primary contrasts</h2>
<p>These contrasts were named before the first run. p: exact two-sided sign-flip test. Holm: p
corrected over all rows. The verdict is "better" when the 95 % t-interval lies above 0, "worse" when
it lies below 0, and "not worse" when it lies above -{{ margin }}. With fewer than
{{ least_seeds }} seeds there is no verdict. While a study is running, the table is preliminary: a
study ends with its last seed, not with a win.</p>
<div class="scroll"><table>
<tr><th>task</th><th class="text">contrast</th><th>seeds</th><th>AULC difference</th>
<th>95 % interval</th><th>bootstrap (BCa)</th><th>p</th><th>Holm</th>
<th class="text">verdict</th></tr>
{% for one in primary %}
{% set c = one.contrast %}
<tr><td class="text">{{ c.task }}</td>
<td class="text">{{ title_of(c.arm) }} - {{ title_of(c.against) }}</td>
<td>{{ c.seeds|length }}</td><td>{{ signed(c.mean) }}</td>
<td>{{ signed(c.low) }} to {{ signed(c.high) }}</td>
<td>{{ signed(c.bca[0]) }} to {{ signed(c.bca[1]) }}</td>
<td>{{ "%.4g"|format(c.p) }}</td><td>{{ "%.4g"|format(one.p_holm) }}</td>
<td class="text">{{ c.verdict }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
<h2>All arms against {{ reference }}</h2>
<p>Points are means over paired seeds (their number in brackets), lines are 95 % t-intervals, ticks
are single seeds. These intervals are not corrected for multiple comparisons: use the primary
contrasts for claims.</p>
<img src="data:image/png;base64,{{ forest }}" alt="Differences of AULC with intervals">
{% for task in tasks %}
<h2>{{ task.name }}</h2>
<div class="scroll"><table>
<tr><th>arm</th><th>seeds</th><th>AULC</th><th>final accuracy</th><th>RIPL</th><th>speed-up</th>
<th>test NLL</th><th>ECE</th><th>confidence on errors</th><th>score and length</th></tr>
{% for r in task.rows %}
<tr><td class="text">{{ title_of(r.arm) }}</td>
<td>{{ r.seeds }}</td><td>{{ "%.4f"|format(r.aulc) }}</td>
<td>{{ "%.4f"|format(r.final) }}</td><td>{{ number(r.ripl, "%+.3f") }}</td>
<td>{{ number(r.speed_up, "%.2f") }}</td><td>{{ number(r.test_nll, "%.3f") }}</td>
<td>{{ number(r.ece, "%.3f") }}</td><td>{{ number(r.confidence_on_errors, "%.3f") }}</td>
<td>{{ number(r.spearman_answer_length, "%+.2f") }}</td></tr>
{% endfor %}
</table></div>
<div class="scroll"><table>
<tr><th>against {{ reference }}</th><th>seeds</th><th>AULC difference</th><th>95 % interval</th>
<th>p, uncorrected</th><th class="text">verdict</th></tr>
{% for c in task.contrasts %}
<tr><td class="text">{{ title_of(c.arm) }}</td>
<td>{{ c.seeds|length }}</td><td>{{ signed(c.mean) }}</td>
<td>{{ signed(c.low) }} to {{ signed(c.high) }}</td><td>{{ "%.4g"|format(c.p) }}</td>
<td class="text">{{ c.verdict }}</td></tr>
{% endfor %}
</table></div>
{% for title, image in task.figures.items() %}
<figure><figcaption>{{ title }}</figcaption>
<img src="data:image/png;base64,{{ image }}" alt="{{ task.name }}: {{ title }}"></figure>
{% endfor %}
{% endfor %}
<p>RIPL: the share of the errors of {{ reference }} that are gone. Speed-up: the factor by which the
mean curve needs fewer labels for the final accuracy of {{ reference }}; 0 where it never reaches
it. Test NLL: negative log-likelihood of the gold answer, in nats (free-form: per token). ECE:
expected calibration error, 15 bins of equal width. Score and length: rank correlation of the query
score with the number of tokens of the answer, empty where all answers have the same length.</p>
<h2>Arms</h2>
<table>
{% for arm, description in arms.items() %}
<tr><th class="text">{{ title_of(arm) }}</th><td class="text">{{ arm }}</td>
<td class="text">{{ description }}</td></tr>
{% endfor %}
</table>
<h2>Machines</h2>
<table>
{% for name, count in machines.items() %}
<tr><th class="text">{{ count }} runs</th><td class="text">{{ name }}</td></tr>
{% endfor %}
</table>
"""
