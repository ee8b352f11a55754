"""Results read back, the displays made of them, and the page of a study."""

import base64
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import made_line

from starlearn.errors import InputError
from starlearn.evaluate.displays import (
    AulcForest,
    ConfidenceOnErrors,
    LearningCurves,
    MixByRound,
    ReliabilityDiagram,
    ScoreCorrelations,
    most_frequent,
)
from starlearn.evaluate.results import grouped, primary_contrasts, read_results
from starlearn.evaluate.run_log import append_line
from starlearn.evaluate.statistics import holm, mean_interval, reliability
from starlearn.evaluate.study_report import main_arms, render_study, write_study_report
from starlearn.evaluate.study_tables import row

GAIN = {"random": 0.0, "plain_entropy": 0.05, "star_entropy": 0.1}


def lines_of(task="skewed", seeds=4, gain=GAIN):
    return [
        made_line(task, arm, seed, [0.2, 0.4 + more + seed / 100, 0.6 + more + (seed % 3) / 50])
        for seed in range(seeds)
        for arm, more in gain.items()
    ]


@pytest.fixture
def results():
    return grouped(lines_of())[0]


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_runs_are_sorted_by_task_arm_and_seed(results):
    assert results.arms == ["random", "plain_entropy", "star_entropy"]
    assert results.n_labels() == [10, 20, 30]
    assert results.areas["random"][1] == pytest.approx((0.2 / 2 + 0.41 + 0.62 / 2) / 2)
    assert results.by_round("random", "accuracy").shape == (4, 3)
    np.testing.assert_allclose(results.by_round("random", "accuracy")[1], [0.2, 0.41, 0.62])
    with pytest.raises(InputError, match="no finished run of 'bald'"):
        results.by_round("bald", "accuracy")


def test_what_failed_or_was_for_tuning_is_left_out_and_first_lines_count():
    good = lines_of()
    twice = made_line("skewed", "random", 0, [0.9, 0.9, 0.9])
    tuning = made_line("skewed", "random", 1000, [0.9, 0.9, 0.9], purpose="tuning")
    failed = made_line("skewed", "random", 7, [0.9, 0.9, 0.9], error="it broke")
    (found,) = grouped([failed, tuning, *good, twice])
    assert sorted(found.runs["random"]) == [0, 1, 2, 3]
    assert found.areas == grouped(good)[0].areas
    with pytest.raises(InputError, match="no finished run to report"):
        grouped([failed, tuning])


def test_other_settings_are_another_task():
    other = [made_line("skewed", "random", s, [0.5, 0.5, 0.5], protocol="qqqqq") for s in (0, 1)]
    found = grouped([*lines_of(), *other])
    assert [task.name for task in found] == ["skewed (p-sk)", "skewed (qqqq)"]
    assert [len(task.runs["random"]) for task in found] == [4, 2]


def test_lines_of_other_defaults_are_another_task():
    """What an arm sets itself may differ; all else is a default that a later version changed."""
    mine = {"acquisition": {"measure": "entropy"}, "training": {"learning_rate": 3}}

    def line(arm, seed, area, measure, rate, changes=None):
        parameters = {"acquisition": {"measure": measure}, "training": {"learning_rate": rate}}
        settings = {"changes": changes or {"acquisition": {}, "training": {}}}
        made = made_line("skewed", arm, seed, [area] * 3)
        return {**made, "parameters": parameters, "settings": settings}

    old = [line("random", s, 0.1, "mi", 1) for s in (0, 1)]
    star = [line("star_entropy", s, 0.2, "entropy", 3, mine) for s in (0, 1)]
    new = [line("random", s, 0.9, "mi", 2) for s in (0, 1, 2)]
    first, second = grouped([*old, *star, *new])
    assert (first.name, second.name) == ("skewed (p-sk, defaults 1)", "skewed (p-sk, defaults 2)")
    assert {arm: sorted(runs) for arm, runs in first.runs.items()} == {
        "random": [0, 1],
        "star_entropy": [0, 1],
    }
    # The arm that sets both itself is the same run under either default.
    assert second.areas["random"] == {0: 0.9, 1: 0.9, 2: 0.9}
    assert second.areas["star_entropy"] == first.areas["star_entropy"]


def test_contrasts_by_hand(results):
    found = {one.arm: one for one in results.contrasts()}
    assert list(found) == ["plain_entropy", "star_entropy"]
    # 0.1 more in the second and third round: 0.1 and 0.05 of two trapezoids
    assert found["star_entropy"].differences == pytest.approx([0.075] * 4)
    assert found["star_entropy"].p == 2 / 16


def test_p_is_exact_though_lines_hold_rounded_areas():
    """Areas are multiples of 1 / 1200 here; as rounded in the lines their sums have no ties."""
    lines = []
    for seed, more in enumerate([-2, -2, -2, 1, 1]):
        lines.append(made_line("t", "random", seed, [0.1, 0.2, 90 / 300]))
        lines.append(made_line("t", "star_entropy", seed, [0.1, 0.2, (90 + more) / 300]))
    for line in lines:
        line["aulc"] = round(line["aulc"], 6)
    (found,) = grouped(lines)[0].contrasts()
    assert found.p == pytest.approx(14 / 32)


def test_primary_contrasts_are_corrected_over_all_tasks():
    rng = np.random.default_rng(0)
    lines = [
        made_line(task, arm, seed, [0.2, 0.5, 0.5 + more + rng.normal(0, 0.05)])
        for task in ("one", "two")
        for seed in range(8)
        for arm, more in GAIN.items()
    ]
    found = primary_contrasts(grouped(lines))
    assert [(p.contrast.task, p.contrast.against) for p in found] == [
        ("one", "random"),
        ("one", "plain_entropy"),
        ("two", "random"),
        ("two", "plain_entropy"),
    ]
    assert [p.p_holm for p in found] == holm([p.contrast.p for p in found])


def test_learning_curves_show_mean_and_interval(results):
    display = LearningCurves.from_results(results).plot()
    line = display.ax_.lines[2]
    values = results.by_round("star_entropy", "accuracy")
    np.testing.assert_allclose(line.get_xdata(), [10, 20, 30])
    np.testing.assert_allclose(line.get_ydata(), values.mean(axis=0))
    band = display.ax_.collections[2].get_paths()[0].vertices
    low, high = mean_interval(values[:, 1])
    assert {round(y, 9) for x, y in band if x == 20} == {round(low, 9), round(high, 9)}
    assert texts(display.ax_)[2] == "published (STAR) (4 seeds)"


def test_one_seed_has_no_band():
    (one,) = grouped(lines_of(seeds=1))
    display = LearningCurves.from_results(one).plot()
    assert len(display.ax_.lines) == 3
    assert not display.ax_.collections
    assert one.contrasts() == []


def test_forest_shows_every_contrast_with_its_interval(results):
    display = AulcForest.from_results([results]).plot()
    names = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert names == ["plain_entropy (4)", "published (STAR) (4)"]
    assert display.ax_.get_title() == "skewed"
    assert display.ax_.get_xlabel() == "AULC minus random, paired seeds"
    star = results.contrasts()[1]
    intervals = [line.get_xdata() for line in display.ax_.lines if len(line.get_xdata()) == 2]
    assert any(np.allclose(ends, [star.low, star.high]) for ends in intervals)


def test_forest_of_several_tasks_and_rivals_names_both():
    one, two = grouped([*lines_of(), *lines_of("steps", seeds=3)])
    mixed = [*one.contrasts(), *two.contrasts("plain_entropy")]
    display = AulcForest(mixed).plot()
    names = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert names[0] == "skewed: plain_entropy - random (4)"
    assert names[-1] == "steps: published (STAR) - plain_entropy (3)"
    assert display.ax_.get_title() == ""


def test_an_arm_with_few_seeds_is_not_drawn_with_those_with_many():
    lines = lines_of(seeds=6)
    few = [made_line("skewed", "bald", seed, [0.2, 0.3, 0.4]) for seed in range(3)]
    more = [made_line("skewed", "lambda_0", seed, [0.2, 0.3, 0.4]) for seed in range(5)]
    shown = main_arms(grouped([*lines, *few, *more])[0])
    assert shown == ["random", "plain_entropy", "star_entropy", "lambda_0"]


def test_reliability_and_confidence_on_errors(results):
    display = ReliabilityDiagram.from_results(results, ["random"]).plot()
    # 4 seeds of 4 answers in the last bin, confidence 3.8 of 4, 2 or 3 of 4 right
    x, y = display.ax_.lines[1].get_data()
    assert x == pytest.approx([0.95])
    assert y == pytest.approx([results.last_bins("random")["correct"][14] / 16])
    errors = ConfidenceOnErrors.from_results(results, ["random"]).plot()
    stairs = errors.ax_.patches[0].get_data()
    assert stairs.values.sum() / 15 == pytest.approx(1.0), "a density"
    assert stairs.values[-1] == pytest.approx(15.0)
    assert re.match(r"random \(\d+ errors\)", texts(errors.ax_)[0])


def test_without_errors_there_is_no_density():
    lines = [made_line("t", "random", seed, [1.0, 1.0]) for seed in (0, 1)]
    assert not ConfidenceOnErrors.from_results(grouped(lines)[0]).plot().ax_.patches


def test_correlations_are_means_and_unknown_ones_are_left_out():
    lines = lines_of(seeds=2)
    lines[0]["spearman_rounds"][0][1] = None
    lines[3]["spearman_rounds"][0][1] = 0.9
    lines[3]["spearman_rounds"][0][2] = 0.9
    (found,) = grouped(lines)
    matrix = found.correlations("random")
    assert matrix[0, 1] == pytest.approx(0.9)
    assert matrix[0, 2] == pytest.approx(0.7)
    display = ScoreCorrelations.from_results(found, "random").plot()
    assert "0.70" in [text.get_text() for text in display.ax_.texts]
    assert display.ax_.get_xticklabels()[0].get_text() == "base"


def test_mix_is_a_share_of_each_batch(results):
    found = results.mix("random")
    np.testing.assert_allclose(found["easy"], [7 / 10, 7 / 11, 7 / 12])
    np.testing.assert_allclose(found["easy"] + found["hard"], 1.0)
    display = MixByRound.from_results(results, "random").plot()
    tops = [bar.get_y() + bar.get_height() for bar in display.ax_.patches[-3:]]
    assert tops == pytest.approx([1.0] * 3)
    many = MixByRound({f"class {i}": np.full(2, 1 / 20) for i in range(20)}).plot()
    assert texts(many.ax_)[-1] == "11 others"


@given(
    st.dictionaries(
        st.integers(1, 9),
        st.dictionaries(st.sampled_from("abcdefghijklmno"), st.integers(1, 9)),
        max_size=4,
    )
)
def test_shares_of_the_classes_fill_each_bar(counts):
    display = MixByRound.from_counts(counts)
    kept = {number: count for number, count in counts.items() if count}
    assert display.rounds == list(kept)
    if kept:
        first, *_ = names = most_frequent([display])
        bars = display.plot(names=names).bars_
        heights = np.array([[bar.get_height() for bar in some] for some in bars])
        np.testing.assert_allclose(heights.sum(axis=0), 1)
        shares = [count.get(first, 0) / sum(count.values()) for count in kept.values()]
        np.testing.assert_allclose(heights[0], shares)


def test_reliability_of_predictions():
    diagram = ReliabilityDiagram({"_a$": reliability([0.9, 0.2], [True, False])}).plot()
    assert diagram.lines_[0].get_xydata().tolist() == [[0.2, 0.0], [0.9, 1.0]]
    assert texts(diagram.ax_) == [r"a\$"]


def test_other_metrics_leave_out_missing_values(results):
    display = LearningCurves.from_results(results, None, "mean_item_length", "characters").plot()
    np.testing.assert_allclose(display.lines_[0].get_ydata(), [20, 21, 22])
    display = LearningCurves.from_results(results, None, "spearman_answer_length", "rho").plot()
    assert len(display.lines_[0].get_ydata()) == 0


def test_a_row_of_the_table_by_hand(results):
    found = row(results, "star_entropy")
    area = np.mean(list(results.areas["random"].values()))
    assert found["ripl"] == pytest.approx(0.075 / (1 - area))
    # Random ends at 0.615 + ..., which the mean curve of the arm reaches in its last third.
    assert 1.0 < found["speed_up"] < 1.5
    assert row(results, "random")["speed_up"] is None
    assert found["spearman_answer_length"] is None


def test_the_page_needs_no_network_and_escapes_names(tmp_path):
    for line in [*lines_of(), *lines_of("<script>alert(1)</script>")]:
        append_line(tmp_path / "made.jsonl", line)
    page = write_study_report(tmp_path).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count("published (STAR) - random") >= 2
    for image in re.findall(r'src="data:image/png;base64,([^"]+)"', page):
        assert base64.b64decode(image).startswith(b"\x89PNG")
    assert "24 finished runs" in page
    for name in ("study.png", "study_forest.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    tables = (tmp_path / "study.md").read_text()
    assert "| skewed | published (STAR) - random | 4 | +0.0750 | +0.0750 to +0.0750 |" in tables
    assert "## skewed, 4 seeds of all arms" in tables
    rivals = ("random", "plain_entropy", "published (STAR)")
    assert "".join(f"| minus {arm} (95 %) " for arm in rivals) in tables
    assert "| +0.0750 (+0.0750 to +0.0750) | +0.0375 (+0.0375 to +0.0375) |" in tables


def test_losses_are_on_the_page_too():
    lines = lines_of(gain={"random": 0.2, "star_entropy": 0.0}, seeds=10)
    page = render_study(grouped(lines))
    assert "-0.1500" in page
    assert '<td class="text">worse</td>' in page
    fewer = render_study(grouped(lines[:18]))
    assert '<td class="text">worse</td>' not in fewer
    assert '<td class="text">too few seeds</td>' in fewer


def test_a_folder_without_lines(tmp_path):
    with pytest.raises(InputError, match="run a study with --out first"):
        read_results(tmp_path)
