"""The command line: fast to start, errors as messages, and run and demo from file to report."""

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
from starlearn.evaluate import runs, study_tasks
from starlearn.evaluate.arms import ARMS
from starlearn.evaluate.judging import Judgement
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.tasks import GenerationTask

FILES = ["learning_curve.png", "report.html", "rounds.jsonl"]
WORDS = ("red", "green", "blue")


class TinyLearner:
    """Stand-in for STARLearner: it answers with the label of the most similar labelled text."""

    trained: list["TinyLearner"] = []  # noqa: RUF012 - emptied before each test

    def __init__(self, run, data):
        self.run, self.task = run, data.task
        self.rng = np.random.default_rng(run.seed)
        self.X, self.y, self.rounds_, self.tested = [], [], [], 0

    def query(self, X_pool, n_instances):
        return self.rng.permutation(len(X_pool))[:n_instances], None

    def teach(self, X, y):
        if not self.X:
            TinyLearner.trained.append(self)
        self.rounds_.append({"train_loss": 0.0, "steps": 1})
        self.X += [x if isinstance(x, str) else x["question"] for x in X]
        self.y += y

    def answer(self, x):
        words = set((x if isinstance(x, str) else x["question"]).split())
        shared = [len(words & set(text.split())) for text in self.X]
        return self.y[int(np.argmax(shared))]


def judge_tiny(learner, X, y):
    learner.tested = len(X)
    correct = np.array([learner.answer(x) == label for x, label in zip(X, y, strict=True)])
    return Judgement(correct, np.full(len(X), 0.5), np.zeros(len(X)))


@pytest.fixture(autouse=True)
def _tiny_learner(monkeypatch, request):
    if "real_learner" not in request.fixturenames:
        TinyLearner.trained = []
        monkeypatch.setattr(runs, "make_learner", TinyLearner)
        monkeypatch.setattr(runs, "judge", judge_tiny)
        monkeypatch.setattr(runs, "model_fingerprint", lambda *_: "tiny")
        monkeypatch.setattr(runs, "checked_parts", lambda _: None)


@pytest.fixture
def real_learner():
    """Leave the language model in its place."""


needs_embedded_model = pytest.mark.skipif(
    not (model_folder() / "model.safetensors").exists(),
    reason="the embedded model is made by python benchmarks/pretrain.py",
)


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


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


def test_defaults_are_those_of_the_learner(files):
    run(files)
    settings = TinyLearner.trained[0].run.settings
    assert settings.quantization == "nf4"
    for arm, acquisition in (
        ("default", Acquisition()),
        ("random", Acquisition(strategy="random")),
    ):
        for part in (LoRA(), acquisition, Training()):
            (name,) = (name for name, kind in runs.PARTS.items() if isinstance(part, kind))
            made = runs.made_part(name, settings, ARMS[arm])
            assert made.get_params() == part.get_params()


def test_run_writes_rounds_curve_and_report(files, tmp_path):
    result = run(files)
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == FILES
    rounds = rounds_of(out)
    assert [(r["arm"], r["round"], r["n_labels"]) for r in rounds] == [
        ("default", 0, 10),
        ("default", 1, 15),
        ("default", 2, 20),
    ]
    for r in rounds:
        assert f"labels {r['n_labels']}  accuracy {r['accuracy']:.3f}" in result.stdout
    assert str(out / "report.html") in result.stdout.splitlines()[-1]
    learner = TinyLearner.trained[0]
    assert len(learner.y) == 20
    assert learner.task.choices == sorted(WORDS)
    assert learner.task.prompt == "{text}\nAnswer:"


def test_run_uses_the_chat_template_where_asked(files):
    assert run(files, "--chat", "--system", "Be brief.").exit_code == 0
    task = TinyLearner.trained[0].task
    assert (task.chat, task.system) == (True, "Be brief.")


def test_both_arms_share_the_start(files, tmp_path):
    result = run(files, "--strategy", "both", "--seed", 3)
    assert result.exit_code == 0, result.output
    rounds = rounds_of(tmp_path / "out")
    assert [r["arm"] for r in rounds] == ["default"] * 3 + ["random"] * 3
    assert rounds[0]["chosen"] == rounds[3]["chosen"]
    assert [learner.run.arm for learner in TinyLearner.trained] == ["default", "random"]
    assert "one seed is not evidence" in result.stdout


def test_options_reach_the_learner(files):
    more = "--r 4 --alpha 8 --dropout 0.2 --learning-rate 0.01 --epochs 2 --max-steps 7"
    rest = "--n-passes 5 --measure predictive_entropy --quantization none --seed 9 --sub-pool 20"
    result = run(files, *more.split(), *rest.split(), "--prompt", r"{text}\nIntent:")
    assert result.exit_code == 0, result.output
    learner = TinyLearner.trained[0]
    settings = learner.run.settings
    assert settings.adapter == {"r": 4, "alpha": 8, "dropout": 0.2}
    assert settings.training == {"epochs": 2, "max_steps": 7, "learning_rate": 0.01}
    assert settings.acquisition["n_passes"] == 5
    assert settings.acquisition["measure"] == "predictive_entropy"
    assert (settings.quantization, settings.sub_pool, learner.run.seed) == ("none", 20, 9)
    assert learner.task.prompt == "{text}\nIntent:"


def test_fewer_test_rows_and_shorter_rows(files, tmp_path):
    assert run(files, "--n-test", 4, "--max-chars", 19).exit_code == 0
    learner = TinyLearner.trained[0]
    assert learner.tested == 4
    assert max(len(x + y) for x, y in zip(learner.X, learner.y, strict=True)) <= 19
    assert run(files, "--max-chars", 3, "--overwrite").exit_code == 2


def test_free_form_answers(files):
    result = run(files, "--max-new-tokens", 20, "--answer-pattern", r"(\w+)")
    assert result.exit_code == 0, result.output
    task = TinyLearner.trained[0].task
    assert isinstance(task, GenerationTask)
    assert (task.max_new_tokens, task.answer_pattern) == (20, r"(\w+)")


def test_data_set_from_a_folder(tmp_path):
    for split, numbers in (("train", range(30)), ("test", range(30, 60))):
        rows = [(f"is {i} odd?\n\nAnswer format", i % 2 == 1) for i in numbers]
        lines = [
            json.dumps({"question": q, "answer": f"the correct answer is {str(a).lower()}"})
            for q, a in rows
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    data = ["--dataset", "boolq", "--data", tmp_path, "--out", tmp_path / "out"]
    result = run(data)
    assert result.exit_code == 0, result.output
    assert set(TinyLearner.trained[0].y) == {"true", "false"}
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


def test_a_refused_run_leaves_nothing_and_the_corrected_command_works(files, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise InputError("row 3 is too long")

    out = tmp_path / "new" / "out"
    for method in ("teach", "query"):  # before the first round, and after it
        with monkeypatch.context() as patch:
            patch.setattr(TinyLearner, method, refuse)
            assert run([*files[:4], "--out", out]).exit_code == 2
        assert not out.parent.exists()
    assert run([*files[:4], "--out", out]).exit_code == 0


def test_a_refused_run_keeps_the_earlier_run(files, tmp_path, monkeypatch):
    assert run(files).exit_code == 0
    before = (tmp_path / "out" / "rounds.jsonl").read_text()

    def refuse(*_, **__):
        raise InputError("row 3 is too long")

    monkeypatch.setattr(TinyLearner, "teach", refuse)
    assert run(files, "--overwrite").exit_code == 2
    assert (tmp_path / "out" / "rounds.jsonl").read_text() == before


def test_an_empty_file_of_rounds_is_no_run(files, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rounds.jsonl").touch()
    assert run(files).exit_code == 0


def test_ctrl_c_before_the_first_round_says_that_nothing_was_written(files, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(TinyLearner, "teach", stop)
    result = run(files)
    assert result.exit_code == 130
    assert "No round was finished" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["same file", "copy", "link", "other order", "part"])
def test_a_test_set_out_of_the_pool_is_refused(files, tmp_path, how):
    train, other = files[1], tmp_path / "other.jsonl"
    lines = train.read_text().splitlines(keepends=True)
    if how == "link":
        other.symlink_to(train)
    else:
        chosen = {"other order": lines[::-1], "part": lines[:9]}.get(how, lines)
        other.write_text("".join(chosen))
    test = train if how == "same file" else other
    result = run(["--train", train, "--test", test, *files[4:]], "--n-test", 5)
    assert result.exit_code == 2
    assert "every test item is also in the pool" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_the_share_of_test_items_in_the_pool_is_reported(files, tmp_path):
    train, test = files[1], files[3]
    assert "Note" not in run(files).stdout
    assert "no test item is in the pool" in (tmp_path / "out" / "report.html").read_text()
    first = json.loads(train.read_text().splitlines()[0])
    with test.open("a") as file:
        file.write(json.dumps(first | {"text": first["text"].upper() + "!"}) + "\n")
    study_tasks._files.cache_clear()
    result = run(files, "--overwrite")
    assert "1 of 16 test items (6.2%) are also in the pool" in " ".join(result.stdout.split())
    assert "1 of 16 test items (6.2%)" in (tmp_path / "out" / "report.html").read_text()
    assert all("accuracy_without_leaks" in r for r in rounds_of(tmp_path / "out"))


def test_a_folder_that_cannot_be_written(files, tmp_path):
    (tmp_path / "out").write_text("a file")
    result = run(files)
    assert result.exit_code == 2
    assert "use another folder with --out" in result.stderr
    assert not TinyLearner.trained


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
    assert not TinyLearner.trained


def test_missing_files_and_test_labels_never_seen(files, tmp_path):
    assert "--dataset" in run(["--out", tmp_path / "out"]).stderr
    assert "No such file" in run([*files[:2], "--test", tmp_path / "x.csv", *files[4:]]).stderr
    other = write_rows(tmp_path / "other.jsonl", [("a", "pink")])
    assert "'pink'" in run([*files[:2], "--test", other, *files[4:]]).stderr
    assert "no field" in run([*files, "--text-field", "question"]).stderr
    assert "add max_new_tokens" in run([*files, "--answer-pattern", "x"]).stderr
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
        (arm, n) for arm in ("default", "random") for n in (40, 80, 120)
    ]
    last = result.stdout.splitlines()[-1]
    assert "default 0." in last
    assert "random 0." in last
    assert "not evidence" in last
    assert str(tmp_path / "demo" / "report.html") in last
    assert call("demo", "--rounds", 1, "--out", tmp_path / "demo").exit_code == 0, "runs again"


@pytest.mark.parametrize("pool", ["homogeneous", "noisy", "steps"])
def test_demo_takes_the_other_pools(tmp_path, pool):
    result = call("demo", "--rounds", 1, "--pool", pool, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert isinstance(TinyLearner.trained[0].task, GenerationTask) == (pool == "steps")


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
    default, random = rounds[:3], rounds[3:]
    assert default[0]["chosen"] == random[0]["chosen"]
    assert default[0]["accuracy"] == random[0]["accuracy"]
    assert [r["lambda"] for r in default] == [None, 0.9, 0.8]
    assert all(r["mean_full"] > 0 for r in default[1:])
    assert [r["lambda"] for r in random] == [None, None, None]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == FILES


def test_a_model_folder_without_weights(real_learner, files, tmp_path):
    (tmp_path / "model").mkdir()
    result = call("run", *files, "--model", tmp_path / "model", "--rounds", 1, "--n-instances", 5)
    assert result.exit_code == 2
    assert "config.json" in result.stderr
