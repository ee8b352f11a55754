"""The baselines of the query benchmark: real dropout, our scores with our masks, one smoke run."""

import csv
from dataclasses import replace
from typing import Any

import bench_budget
import bench_linear_baseline
import bench_query as bench
import numpy as np
import profile_query
import pytest

from starlearn.learner.base_models import base_of


def make_case(learner: Any, items: list[str], labels: list[str]) -> Any:
    learner.fit(items, labels)
    learner.uncertainty(items)
    base = base_of(learner).store.without_adapters()
    return bench.Case("tiny", learner, items, 0.0, 1.0, base)


@pytest.fixture
def tasks(pool: list[str]) -> dict[str, Any]:
    from starlearn.tasks import ChoiceTask, GenerationTask

    return {
        "one token": ChoiceTask("{text} Answer :", choices=["red", "green", "blue"]),
        "several tokens": ChoiceTask("{text} Answer :", choices=["a b c", "a b", "red", "blue d"]),
        "free-form": GenerationTask("{text} Answer :", max_new_tokens=5),
    }


@pytest.mark.parametrize("kind", ["one token", "several tokens", "free-form"])
@pytest.mark.parametrize("baseline", ["naive", "strong"])
def test_with_our_masks_a_baseline_gives_our_scores(tasks, make_learner, pool, kind, baseline):
    items = pool[:8]
    labels = ["a b", "red", "blue d", "a b c"] if kind == "several tokens" else ["red", "blue"] * 2
    case = make_case(make_learner(task=tasks[kind]), items, labels * 2)
    run = getattr(bench, baseline)
    difference, n_other = bench.check_equal(case, run, 3, list(range(8)), 1e-4)
    assert n_other == 0
    assert difference < 1e-4


def test_the_check_sees_other_masks(tasks, make_learner, pool):
    case = make_case(make_learner(task=tasks["one token"]), pool[:8], ["red", "blue"] * 4)
    case.learner.set_params(training__max_steps=30, training__learning_rate=0.05)
    case.learner.fit(pool[:8], ["red", "blue"] * 4)

    def with_other_masks(work):
        return bench.strong(replace(work, mask_seed=work.mask_seed + 1))

    with pytest.raises(RuntimeError, match="differ by"):
        bench.check_equal(case, with_other_masks, 3, list(range(8)), 1e-4)


@pytest.mark.parametrize("kind", ["one token", "free-form"])
@pytest.mark.parametrize("baseline", ["naive", "strong"])
def test_stock_dropout_is_really_on(tasks, make_learner, pool, kind, baseline):
    import torch

    learner = make_learner(task=tasks[kind])
    learner.set_params(training__max_steps=30, training__learning_rate=0.05)
    case = make_case(learner, pool[:8], ["red", "blue"] * 4)
    run = getattr(bench, baseline)
    work = bench.work_of(case, 3, range(8))
    torch.manual_seed(0)
    first, second = run(work), run(work)
    assert first.answers == second.answers or kind == "one token"
    assert np.abs(first.entropy - second.entropy).max() > 1e-6
    assert first.mutual_information.max() > 1e-6
    np.testing.assert_array_equal(first.base_entropy, second.base_entropy)
    assert not any(module.training for module in work.model.modules()), "left as it was found"
    sure = run(replace(work, n_passes=1))
    np.testing.assert_array_equal(sure.entropy, run(replace(work, n_passes=1)).entropy)


def test_no_dropout_is_an_error(tasks, make_learner, pool):
    from starlearn.settings import Acquisition, LoRA

    learner = make_learner(
        task=tasks["one token"],
        adapter=LoRA(r=4, dropout=0.0),
        acquisition=Acquisition(measure="entropy", n_passes=1),
    )
    case = make_case(learner, pool[:8], ["red", "blue"] * 4)
    for run in (bench.naive, bench.strong):
        with pytest.raises(RuntimeError, match=r"no nn\.Dropout"):
            run(bench.work_of(case, 3, range(2)))


def test_a_small_run_writes_its_rows(tasks, make_learner, pool, tmp_path, monkeypatch):
    labels = ["red", "blue"] * (len(pool) // 2)
    case = make_case(make_learner(task=tasks["one token"]), pool, labels)
    monkeypatch.setattr(bench, "make_case", lambda args, name: case)
    common = ["--passes", "2", "--repeats", "1", "--naive-items", "2", "--strong-items", "4"]
    out, agreement = tmp_path / "query.csv", tmp_path / "agreement.csv"
    files = ["--out", str(out), "--agreement-out", str(agreement)]
    bench.main([*common, *files, "--settings", "default", "one-pass"])
    bench.main([*common, *files, "--settings", "default", "one-pass", "--agreement"])
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["contender"], row["round"]) for row in rows] == [
        (name, when)
        for when in ("first", "later")
        for name in ("default", "one-pass", "naive", "strong")
    ]
    assert all(float(row["ms_per_item_median"]) > 0 for row in rows)
    kept = [row["base_items_kept"] for row in rows]
    assert kept == [*["0"] * 2, "", "", *[str(len(pool))] * 2, "", ""]
    assert all(
        float(row["largest_difference"]) < 1e-4 for row in rows if row["contender"] == "naive"
    )
    case.set_store(later=True)
    assert len(case.loaded.store) == len(pool), "the base model's scores and no adapter's"
    with agreement.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["contender"] for row in rows} == {"other seed", "one-pass"}
    assert all(-1 <= float(row["rho"]) <= 1 and 0 <= float(row["overlap"]) <= 1 for row in rows)


@pytest.mark.parametrize("stage", ["passes", "writing"])
def test_all_token_budgets_take_turns(tasks, make_learner, pool, tmp_path, stage):
    learner = make_learner(task=tasks["free-form"])
    case = make_case(learner, pool[:8], ["red", "blue"] * 4)
    usual = case.loaded.backbone.budget.tokens
    out = tmp_path / "budget.csv"
    args = bench_budget.parse(["--repeats", "1", "--passes", "2", "--out", str(out)])
    bench_budget.bench(args, case, stage)
    assert case.loaded.backbone.budget.tokens == usual
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["budget"]) for row in rows] == bench_budget.BUDGETS[stage]
    assert all(float(row["ms_per_item_median"]) > 0 for row in rows)
    assert [row["note"] for row in rows].count("default") == 1


@pytest.mark.parametrize("kind", ["one token", "free-form"])
def test_a_profile_names_every_stage(tasks, make_learner, pool, tmp_path, kind):
    case = make_case(make_learner(task=tasks[kind]), pool[:8], ["red", "blue"] * 4)
    out = tmp_path / "profile.csv"
    args = profile_query.parse(["--passes", "2", "--shown", "3", "--out", str(out)])
    profile_query.bench(args, case)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = [row["name"] for row in rows if row["kind"] == "stage"]
    writing = ["writing answers"] if kind == "free-form" else []
    assert found == [*writing, "base model", "K passes", "the rest"]
    total = sum(float(row["share"]) for row in rows if row["kind"] == "stage")
    assert total == pytest.approx(1, abs=0.01)
    assert len(rows) == len(found) + 3


STUDY = """
name = "small"
purpose = "tuning"
arms = ["random", "plain_entropy"]
seeds = { first = 1000, count = 2 }
[settings]
n_initial = 20
n_instances = 10
n_rounds = 2
sub_pool = 40
adapter = { r = 4 }
training = { max_steps = 1 }
[[tasks]]
name = "skewed"
source = "embedded"
pool = "skewed"
n_items = 120
n_test = 40
"""


def test_a_linear_model_plays_the_seeds_of_a_study(tmp_path, monkeypatch, capsys):
    study, out = tmp_path / "small.toml", tmp_path / "rows.csv"
    study.write_text(STUDY, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["bench", str(study), "--out", str(out)])
    bench_linear_baseline.main()
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3
    # the same initial labels for all arms of a seed
    assert len({(row["seed"], row["first_accuracy"]) for row in rows}) == 2
    assert "| 40 | margin | 2 |" in capsys.readouterr().out
