"""The command line: quick to start, plain about errors, and the loop from file to report."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from starlearn import __version__
from starlearn.cli.app import app
from starlearn.embedded.location import model_folder
from starlearn.errors import (
    InputError,
    MissingDependencyError,
    ModelMismatchError,
    TrainingDivergedError,
    UntrustedFileError,
)
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.tasks import ChoiceTask, GenerationTask

FILES = ["learning_curve.png", "report.html", "rounds.jsonl"]
WORDS = ("red", "green", "blue")


class TinyLearner:
    """In place of the language model: the label of the labelled text that shares most words."""

    made: list["TinyLearner"] = []  # noqa: RUF012 - emptied before each test

    def __init__(self, plan, task, strategy):
        self.plan, self.task, self.strategy = plan, task, strategy
        self.rng = np.random.default_rng(plan.seed)
        self.X, self.y, self.tested = [], [], 0
        TinyLearner.made.append(self)

    def query(self, X_pool, n_instances):
        return self.rng.permutation(len(X_pool))[:n_instances], None

    def teach(self, X, y):
        self.X += [x if isinstance(x, str) else x["question"] for x in X]
        self.y += y

    def score(self, X, y):
        self.tested = len(X)
        return float(np.mean([self.answer(x) == label for x, label in zip(X, y, strict=True)]))

    def answer(self, x):
        words = set((x if isinstance(x, str) else x["question"]).split())
        shared = [len(words & set(text.split())) for text in self.X]
        return self.y[int(np.argmax(shared))]


@pytest.fixture(autouse=True)
def _tiny_learner(monkeypatch, request):
    if "real_learner" not in request.fixturenames:
        TinyLearner.made = []
        monkeypatch.setattr("starlearn.cli.app.make_learner", TinyLearner)


@pytest.fixture
def real_learner():
    """Leave the language model in its place."""


needs_embedded_model = pytest.mark.skipif(
    not (model_folder() / "model.safetensors").exists(),
    reason="the embedded model is made by python benchmarks/pretrain.py",
)


def call(*arguments):
    return CliRunner().invoke(app.app, [str(argument) for argument in arguments])


def write_rows(path, rows):
    path.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows))
    return path


@pytest.fixture
def files(tmp_path):
    rows = [(f"{WORDS[i % 3]} thing {i}", WORDS[i % 3]) for i in range(60)]
    train, test = write_rows(tmp_path / "train.jsonl", rows[:45]), tmp_path / "test.jsonl"
    return ["--train", train, "--test", write_rows(test, rows[45:]), "--out", tmp_path / "out"]


def run(files, *more):
    small = ["--model", "none", "--rounds", 2, "--n-instances", 5, "--initial", 10]
    return call("run", *files, *small, *more)


def rounds_of(folder: Path):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom starlearn.cli.app import app\n"
        "try:\n    app(['run', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'peft', 'sklearn', 'pandas', 'numpy', 'datasets', "
        "'matplotlib', 'jinja2', 'modAL'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--n-instances" in ran.stdout
    assert ran.stdout.strip().endswith("heavy: []")


def test_version_and_bare_command():
    assert call("--version").stdout == f"starlearn {__version__}\n"
    assert "demo" in call().output


def test_defaults_are_those_of_the_learner(files, monkeypatch):
    run([*files])
    plan = TinyLearner.made[0].plan
    for part in (LoRA(), Training(), Acquisition()):
        for name, value in part.get_params().items():
            if hasattr(plan, name) and name != "strategy":
                assert getattr(plan, name) == value, name
    monkeypatch.undo()
    learner = app.make_learner(plan, ChoiceTask(), "random")
    assert learner.adapter.get_params() == LoRA().get_params()
    assert learner.training.get_params() == Training().get_params()
    assert learner.acquisition.get_params() == Acquisition(strategy="random").get_params()
    assert learner.quantization == "nf4"


def test_run_writes_rounds_curve_and_report(files, tmp_path):
    result = run(files)
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == FILES
    rounds = rounds_of(out)
    assert [(r["arm"], r["round"], r["n_labels"]) for r in rounds] == [
        ("star", 0, 10),
        ("star", 1, 15),
        ("star", 2, 20),
    ]
    for r in rounds:
        assert f"labels {r['n_labels']}  accuracy {r['accuracy']:.3f}" in result.stdout
    assert str(out / "report.html") in result.stdout.splitlines()[-1]
    learner = TinyLearner.made[0]
    assert len(learner.y) == 20
    assert learner.task.choices == sorted(WORDS)
    assert learner.task.prompt == "{text}\nAnswer:"


def test_both_arms_share_the_start(files, tmp_path):
    result = run(files, "--strategy", "both", "--seed", 3)
    assert result.exit_code == 0, result.output
    rounds = rounds_of(tmp_path / "out")
    assert [r["arm"] for r in rounds] == ["star"] * 3 + ["random"] * 3
    assert rounds[0]["chosen"] == rounds[3]["chosen"]
    assert [learner.strategy for learner in TinyLearner.made] == ["star", "random"]
    assert "one seed: a look, not evidence" in result.stdout


def test_options_reach_the_learner(files):
    more = "--r 4 --alpha 8 --dropout 0.2 --learning-rate 0.01 --epochs 2 --max-steps 7"
    rest = "--n-passes 5 --measure mutual_information --quantization none --seed 9 --sub-pool 20"
    result = run(files, *more.split(), *rest.split(), "--prompt", r"{text}\nIntent:")
    assert result.exit_code == 0, result.output
    learner = TinyLearner.made[0]
    plan = learner.plan
    assert (plan.r, plan.alpha, plan.dropout, plan.learning_rate) == (4, 8, 0.2, 0.01)
    assert (plan.epochs, plan.max_steps, plan.n_passes, plan.seed) == (2, 7, 5, 9)
    assert (plan.measure, plan.quantization, plan.sub_pool) == ("mutual_information", "none", 20)
    assert learner.task.prompt == "{text}\nIntent:"


def test_fewer_test_rows_and_shorter_rows(files, tmp_path):
    assert run(files, "--n-test", 4, "--max-chars", 19).exit_code == 0
    learner = TinyLearner.made[0]
    assert learner.tested == 4
    assert max(len(x + y) for x, y in zip(learner.X, learner.y, strict=True)) <= 19
    assert run(files, "--max-chars", 3, "--overwrite").exit_code == 2


def test_free_form_answers(files):
    result = run(files, "--max-new-tokens", 20, "--answer-pattern", r"#### (\d+)")
    assert result.exit_code == 0, result.output
    task = TinyLearner.made[0].task
    assert isinstance(task, GenerationTask)
    assert (task.max_new_tokens, task.answer_pattern) == (20, r"#### (\d+)")


def test_data_set_from_a_folder(tmp_path):
    for split in ("train", "test"):
        rows = [(f"is {i} odd?\n\nAnswer format", i % 2 == 1) for i in range(30)]
        lines = [
            json.dumps({"question": q, "answer": f"the correct answer is {str(a).lower()}"})
            for q, a in rows
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    data = ["--dataset", "boolq", "--data", tmp_path, "--out", tmp_path / "out"]
    result = run(data)
    assert result.exit_code == 0, result.output
    assert set(TinyLearner.made[0].y) == {"true", "false"}
    assert run([*data, "--train", "x.jsonl"]).exit_code == 2
    assert run([*data, "--max-new-tokens", 3]).exit_code == 2


def test_settings_are_refused_before_a_folder_is_touched(real_learner, files, tmp_path):
    for wrong in (["--schedule", "2"], ["--n-passes", 1], ["--dropout", 0]):
        assert run(files, *wrong).exit_code == 2
        assert not (tmp_path / "out").exists()


def test_an_earlier_run_is_not_overwritten_by_chance(files, tmp_path):
    assert run(files).exit_code == 0
    before = (tmp_path / "out" / "rounds.jsonl").read_text()
    refused = run(files)
    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert (tmp_path / "out" / "rounds.jsonl").read_text() == before
    assert run(files, "--overwrite").exit_code == 0


def test_a_folder_that_cannot_be_written(files, tmp_path):
    (tmp_path / "out").write_text("a file")
    result = run(files)
    assert result.exit_code == 2
    assert "give another folder with --out" in result.stderr
    assert not TinyLearner.made[0].y


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("bad input"), 2),
        (ModelMismatchError("another base"), 5),
        (TrainingDivergedError("step 3: nan"), 5),
        (UntrustedFileError("a pickle"), 5),
        (MissingDependencyError("pip install it"), 1),
    ],
)
def test_errors_are_one_message_and_a_code(files, monkeypatch, error, code):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(TinyLearner, "query", fail)
    result = run(files)
    assert result.exit_code == code
    assert result.stderr == f"Error: {error}\n"
    assert "Traceback" not in result.output


def test_ctrl_c_keeps_the_rounds_that_had_ended(files, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(TinyLearner, "query", stop)
    result = run(files)
    assert result.exit_code == 130
    assert "rounds.jsonl" in result.stderr
    assert [r["round"] for r in rounds_of(tmp_path / "out")] == [0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a", "Yes"), ("b", "yes")], "labels that differ only in case: 'Yes' and 'yes'"),
        ([("a", "up"), ("b", "up")], "at least two choices"),
        ([("a", "up"), ("", "down")], "line 2: text is empty"),
    ],
)
def test_bad_files(tmp_path, rows, words):
    path = write_rows(tmp_path / "train.jsonl", rows)
    result = run(["--train", path, "--test", path, "--out", tmp_path / "out"])
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "out").exists()
    assert not TinyLearner.made


def test_missing_files_and_test_labels_never_seen(files, tmp_path):
    assert "--dataset" in run(["--out", tmp_path / "out"]).stderr
    assert "No such file" in run([*files[:2], "--test", tmp_path / "x.csv", *files[4:]]).stderr
    other = write_rows(tmp_path / "other.jsonl", [("a", "pink")])
    assert "'pink'" in run([*files[:2], "--test", other, *files[4:]]).stderr
    assert "no field" in run([*files, "--text-field", "question"]).stderr
    assert "add --max-new-tokens" in run([*files, "--answer-pattern", "x"]).stderr
    assert "no field" in run([*files, "--prompt", "Answer:"]).stderr


def test_text_of_the_user_cannot_steer_the_terminal(files, tmp_path):
    nasty = write_rows(tmp_path / "n.jsonl", [("a", "[red]\x1b[31m\u202e:smile:[/red]")])
    result = run([*files[:2], "--test", nasty, *files[4:]])
    assert result.exit_code == 2
    assert "\x1b" not in result.stderr
    assert "\u202e" not in result.stderr
    assert "[red]" in result.stderr
    assert ":smile:[/red]" in result.stderr


def test_control_characters_in_an_error_are_spelled_out(files, monkeypatch):
    def fail(*_, **__):
        raise InputError("a\x1b[31m\u202e\x07b\nc")

    monkeypatch.setattr(TinyLearner, "query", fail)
    assert run(files).stderr == r"Error: a\x1b[31m\u202e\x07b" + "\nc\n"


def test_demo_shows_both_arms(tmp_path):
    result = call("demo", "--rounds", 2, "--n-instances", 40, "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "demo").iterdir()) == FILES
    rounds = rounds_of(tmp_path / "demo")
    assert [(r["arm"], r["n_labels"]) for r in rounds] == [
        (arm, n) for arm in ("star", "random") for n in (40, 80, 120)
    ]
    last = result.stdout.splitlines()[-1]
    assert "star 0." in last
    assert "random 0." in last
    assert "not evidence" in last
    assert str(tmp_path / "demo" / "report.html") in last
    assert call("demo", "--rounds", 1, "--out", tmp_path / "demo").exit_code == 0, "runs again"


@pytest.mark.parametrize("pool", ["homogeneous", "noisy", "steps"])
def test_demo_takes_the_other_pools(tmp_path, pool):
    result = call("demo", "--rounds", 1, "--pool", pool, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert isinstance(TinyLearner.made[0].task, GenerationTask) == (pool == "steps")


@needs_embedded_model
def test_end_to_end_on_the_embedded_model(real_learner, tmp_path):
    from starlearn.embedded.pools import make_pool

    pool = make_pool("skewed", 60, 20)
    for name, items, labels in (
        ("train", pool.items, pool.labels),
        ("test", pool.test_items, pool.test_labels),
    ):
        rows = [(item["question"], label) for item, label in zip(items, labels, strict=True)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    files = ["--train", tmp_path / "train.jsonl", "--test", tmp_path / "test.jsonl"]
    small = "--rounds 2 --n-instances 8 --sub-pool 30 --max-steps 3 --r 4 --strategy both"
    published = "--measure entropy --schedule published"
    result = call(
        "run",
        *files,
        "--model",
        model_folder(),
        "--prompt",
        "{text}",
        "--out",
        tmp_path / "out",
        *small.split(),
        *published.split(),
    )
    assert result.exit_code == 0, result.output
    rounds = rounds_of(tmp_path / "out")
    star, random = rounds[:3], rounds[3:]
    assert star[0]["chosen"] == random[0]["chosen"]
    assert star[0]["accuracy"] == random[0]["accuracy"]
    assert [r["lambda"] for r in star] == [None, 0.9, 0.8]
    assert all(r["mean_full"] > 0 for r in star[1:])
    assert [r["lambda"] for r in random] == [None, None, None]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES


def test_a_model_folder_without_weights(real_learner, files, tmp_path):
    (tmp_path / "model").mkdir()
    result = call("run", *files, "--model", tmp_path / "model", "--rounds", 1, "--n-instances", 5)
    assert result.exit_code == 2
    assert "config.json" in result.stderr
