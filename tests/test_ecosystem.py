"""The code of docs/ecosystem.md and of its pages runs; a script for modAL changes two lines."""

import difflib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import modAL.models.learners
import numpy as np
import pages
import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def text_of(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def run(name: str) -> dict[str, Any]:
    """Run a page, after the page whose example it continues, with shorter trainings."""
    names: dict[str, Any] = {}
    for page in (text_of("ecosystem"), text_of(name)):
        pages.run_python(page, names, lambda code: code.replace("max_steps=30", "max_steps=12"))
    return names


def test_the_code_for_scikit_learn_runs() -> None:
    names = run("ecosystem/scikit_learn")
    assert names["search"].best_params_["adapter__r"] in (4, 8)
    for name in ("pipeline", "calibrated", "probe", "vote"):
        assert set(names[name].predict(names["texts"])) <= set(names["data"].choices)
    assert str(names["seen"][-1]) == "Progress(stage='training', done=10, total=12)"


def test_the_code_for_modal_runs() -> None:
    names = run("ecosystem/modal")
    assert len(names["committee"].learner_list[0].X_training) == 25
    assert len(names["index"]) == 5


def test_the_code_for_scikit_activeml_runs() -> None:
    pytest.importorskip("skactiveml", reason="scikit-activeml is not installed (an extra)")
    names = run("ecosystem/scikit_activeml")
    assert len(names["classifier"].estimator_.X_training) == 25


# A user's script for plain modAL

BLOCKS = pages.blocks(text_of("ecosystem/modal"))
BEFORE = next(code for _, code in BLOCKS if "from transformer_classifier import" in code)
CHANGES = next(code for kind, code in BLOCKS if kind == "diff").splitlines()
AFTER = BEFORE
for old, new in zip(CHANGES[::2], CHANGES[1::2], strict=True):
    assert AFTER.count(old[1:]) == 1
    AFTER = AFTER.replace(old[1:], new[1:])


@pytest.fixture
def users_data(tiny_model: str, labelled: Any, pool: list) -> dict[str, Any]:
    items, labels = labelled
    y_pool = np.array([labels[i % 8] for i in range(len(pool))])
    return {
        "folder": tiny_model,
        "X_seed": np.array(items[:6], dtype=object),
        "y_seed": np.array(labels[:6]),
        "X_pool": np.array(pool, dtype=object),
        "y_pool": y_pool,
        "X_test": np.array(items[6:], dtype=object),
        "y_test": np.array(labels[6:]),
    }


def played(script: str, data: dict[str, Any]) -> dict[str, Any]:
    names = dict(data)
    exec(compile(script, "script.py", "exec"), names)  # noqa: S102 - our own page
    return names


def test_the_script_differs_in_two_lines() -> None:
    difference = list(difflib.ndiff(BEFORE.splitlines(), AFTER.splitlines()))
    assert [line[0] for line in difference if line[0] in "+-"].count("+") == 2
    assert [line[0] for line in difference if line[0] in "+-"].count("-") == 2
    assert len(BEFORE.splitlines()) == len(AFTER.splitlines())


def test_the_script_runs_on_plain_modal_of_before_scikit_learn_1_8(
    users_data: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = modAL.models.learners.check_X_y

    def with_the_old_argument(*args: Any, force_all_finite: bool = True, **kwargs: Any) -> Any:
        return check(*args, ensure_all_finite=force_all_finite, **kwargs)

    monkeypatch.setattr(modAL.models.learners, "check_X_y", with_the_old_argument)
    names = played(BEFORE, users_data)
    assert type(names["learner"]) is modAL.models.ActiveLearner
    assert type(names["estimator"]).__name__ == "TransformerClassifier"
    assert len(names["learner"].X_training) == 12
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_changed_script_runs(
    users_data: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names = played(AFTER, users_data)
    learner, estimator = names["learner"], names["estimator"]
    assert type(learner).__module__ == "starlearn.modal"
    assert type(estimator).__name__ == "STARLearner"
    assert len(learner.X_training) == len(estimator.X_training) == 12
    assert len(names["X_pool"]) == 48 - 6
    assert [r["n_labels"] for r in estimator.rounds_] == [6, 9, 12]
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_script_as_it_is_does_not_run_today(users_data: dict[str, Any]) -> None:
    # When this fails, modAL is repaired, and the page should say so.
    with pytest.raises(TypeError, match="force_all_finite"):
        played(BEFORE, users_data)


# The script that runs modAL's own suite

SUITE = """
import unittest

import modAL.models.learners


class TestClasses(unittest.TestCase):
    def test_whose(self):
        self.assertEqual(modAL.models.learners.ActiveLearner.__module__, "starlearn.modal")
        self.assertEqual(modAL.models.Committee.__module__, "starlearn.modal")

    def test_always(self):
        pass
"""


def test_the_suite_is_run_against_the_classes_asked_for(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "core_tests.py").write_text(SUITE, encoding="utf-8")
    script = str(ROOT / "benchmarks" / "run_modal_suite.py")

    def call(*arguments: str) -> Any:
        return subprocess.run(
            [sys.executable, script, *arguments], capture_output=True, text=True, check=False
        )

    for classes in ("modal", "starlearn"):
        out = str(tmp_path / f"{classes}.json")
        done = call("run", str(tmp_path), "--classes", classes, "--out", out)
        assert done.returncode == 0, done.stderr
    outcomes = json.loads((tmp_path / "modal.json").read_text())["tests"]
    assert outcomes == {"TestClasses.test_whose": "failed", "TestClasses.test_always": "passed"}
    won = call("compare", str(tmp_path / "modal.json"), str(tmp_path / "starlearn.json"))
    assert won.returncode == 0
    assert "test_whose: failed -> passed" in won.stdout
    lost = call("compare", str(tmp_path / "starlearn.json"), str(tmp_path / "modal.json"))
    assert lost.returncode == 1
    assert "1 tests passed before and do not pass after." in lost.stdout


def test_the_suite_names_the_command_that_brings_pkg_resources(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    missing = "raise ModuleNotFoundError('No module', name='pkg_resources')"
    (tmp_path / "tests" / "pkg_resources.py").write_text(missing, encoding="utf-8")
    (tmp_path / "tests" / "core_tests.py").write_text("import pkg_resources", encoding="utf-8")
    script = str(ROOT / "benchmarks" / "run_modal_suite.py")
    command = [sys.executable, script, "run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("Type: pip install 'setuptools<81'\n")
    assert "Traceback" not in done.stderr
