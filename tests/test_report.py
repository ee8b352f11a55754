"""The report of a run: a curve, and one HTML page that is safe and complete."""

import base64
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from starlearn.errors import InputError
from starlearn.evaluate.displays import LearningCurves
from starlearn.evaluate.run_report import write_report
from starlearn.evaluate.statistics import aulc

NASTY = "<script>alert('x')</script> [red]{{ 7 * 7 }}"


def a_record(number, n_labels, accuracy, **more):
    return {
        "round": number,
        "n_labels": n_labels,
        "accuracy": accuracy,
        "seconds_query": 1.0,
        "seconds_teach": 2.0,
        "seconds_score": 0.5,
        "lambda": 0.9 if number else None,
        "mean_base": 0.5 if number else None,
        "mean_full": 0.25 if number else None,
        "mean_mixed": 0.4 if number else None,
        "n_offered": 100,
        "chosen": ["0123456789abcdef"],
        "class_mix": {NASTY: 1},
        "mean_label_length": 4.0,
    } | more


ROUNDS = {
    "default": [a_record(0, 20, 0.25), a_record(1, 40, 0.5), a_record(2, 80, 0.75)],
    "random": [a_record(0, 20, 0.25), a_record(1, 40, 0.375), a_record(2, 80, 0.5)],
}


def curves(rounds):
    return {arm: [(r["n_labels"], r["accuracy"]) for r in some] for arm, some in rounds.items()}


def test_area_under_the_curve_weighs_by_labels():
    assert aulc(ROUNDS["default"]) == pytest.approx((20 * 0.375 + 40 * 0.625) / 60)
    assert aulc(ROUNDS["default"][:1]) == 0.25
    flat = [a_record(0, 5, 0.3), a_record(1, 500, 0.3)]
    assert aulc(flat) == pytest.approx(0.3)


def test_display_draws_one_line_an_arm_into_the_given_axes():
    axes = Figure().add_subplot()
    display = LearningCurves(curves(ROUNDS)).plot(axes)
    assert display.ax_ is axes
    assert display.figure_ is axes.figure
    assert [line.get_label() for line in display.lines_] == ["default", "random"]
    assert list(display.lines_[0].get_xdata()) == [20, 40, 80]
    assert list(display.lines_[1].get_ydata()) == [0.25, 0.375, 0.5]
    assert axes.get_ylim()[0] == 0


def test_arm_names_are_no_formulas(tmp_path):
    write_report(tmp_path, {"_$x^$": ROUNDS["default"]}, {})
    display = LearningCurves(curves({"_$x^$": ROUNDS["default"]})).plot()
    assert len(display.ax_.get_legend().get_texts()) == 1


def test_pyplot_is_not_used(tmp_path):
    before = mpl.get_backend(auto_select=False)
    code = (
        "import sys; from test_report import ROUNDS; from starlearn.evaluate.run_report import *; "
        f"write_report({str(tmp_path)!r}, ROUNDS, {{}}); print('matplotlib.pyplot' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    assert ran.stdout.strip() == "False"
    assert mpl.get_backend(auto_select=False) == before


def test_files(tmp_path):
    folder = tmp_path / "new" / "folder"
    write_report(folder, ROUNDS, {"seed": 0})
    assert sorted(p.name for p in folder.iterdir()) == [
        "learning_curve.png",
        "report.html",
    ]
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


class Page(HTMLParser):
    """Collects the tags of a page, their links, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_page_is_one_file_with_everything_escaped(tmp_path):
    arms = {NASTY: ROUNDS["default"], "random": ROUNDS["random"]}
    write_report(tmp_path, arms, {NASTY: NASTY, "sub_pool": None})
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert page.tags.count("img") == len(page.links) == 1
    prefix = "data:image/png;base64,"
    assert page.links[0].startswith(prefix)
    image = base64.b64decode(page.links[0].removeprefix(prefix))
    assert image == (tmp_path / "learning_curve.png").read_bytes()
    assert not re.search(r"https?://|url\(|@import", text)
    assert page.text.count(NASTY) >= 4, "shown as it is: arm, settings, class mix"
    for words in ("0.750", "0.542", "sub_pool", "Versions", "transformers", "One seed"):
        assert words in page.text


@pytest.mark.parametrize("arms", [{}, {"default": []}])
def test_nothing_to_report(tmp_path, arms):
    with pytest.raises(InputError, match="no rounds"):
        write_report(tmp_path, arms, {})
    assert not list(tmp_path.iterdir())
