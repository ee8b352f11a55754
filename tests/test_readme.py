"""The README runs: its Python blocks, its commands, its files.

A Python block with the tag ``needs-download`` names a model on the hub, so it does not run as it
is: a test runs it with a tiny model in place of the hub's.
"""

import json
import re
import shlex
from pathlib import Path

import pages
import pytest
import tiny_models

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_examples_run_and_print_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def shorter(code: str) -> str:
        return code.replace("max_steps=150", "max_steps=3").replace("n_test=100", "n_test=10")

    assert shorter(README) != README
    names = pages.run_python(README, {}, shorter)
    assert len(names["learner"].y_training) == 60


def test_the_block_that_needs_a_download_runs_with_a_tiny_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((_, code),) = pages.blocks(README, "python needs-download")
    words = re.findall(r"[\w?:]+", code)
    monkeypatch.setattr(tiny_models, "WORDS", words)
    folder = tiny_models.build_model(tmp_path)
    questions: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text: questions.append(text) or "card")
    for written, here in [
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", str(folder)),
        ("max_steps=100", "max_steps=2, learning_rate=0.02"),
    ]:
        assert written in code, written
        code = code.replace(written, here)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own README
    assert len(questions) == 2
    assert capsys.readouterr().out.splitlines()[-1] in ("['card']", "['payment']", "['other']")


def test_the_first_block_is_the_one_that_needs_a_download() -> None:
    assert pages.blocks(README)[0][0] == "python needs-download"


def test_the_command_for_own_data_runs(tiny_model: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from starlearn.cli.app import app

    labels = {word: "red" if word < "n" else "blue" for word in "bgmopqrs"}
    for name, article in (("train", "the"), ("test", "a")):
        rows = [{"text": f"{article} {word} is", "label": labels[word]} for word in labels]
        lines = [json.dumps(row) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    block = next(b for _, b in pages.blocks(README, "bash") if "starlearn run" in b)
    command = block.replace("\\\n", " ").splitlines()[0]
    for written, here in [
        ("FOLDER_OR_HUB_ID", tiny_model),
        ("train.jsonl", str(tmp_path / "train.jsonl")),
        ("test.jsonl", str(tmp_path / "test.jsonl")),
        ("runs/mine", str(tmp_path / "out")),
        ("--rounds 5 --n-instances 77", "--rounds 1 --n-instances 2"),
    ]:
        assert written in command, written
        command = command.replace(written, here)
    # Two labels at the default learning rate, for large models, teach nothing and cause a warning.
    result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--learning-rate", "0.02"])
    assert result.exit_code == 0, result.output
    left = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"rounds.jsonl", "learning_curve.png", "report.html"} <= left


def test_make_targets_and_files_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
