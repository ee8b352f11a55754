"""Studies: their files, their lines, and how they resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import SETTINGS, made_line, tiny_study
from typer.testing import CliRunner

from starlearn.cli.app import app
from starlearn.errors import CampaignLockedError, InputError, StarlearnError, StorageError
from starlearn.evaluate import study as study_module
from starlearn.evaluate import study_tasks
from starlearn.evaluate.run_log import append_line, read_lines, repair, split
from starlearn.evaluate.runs import hashed, heading, runs_of, without_times
from starlearn.evaluate.study import (
    expected,
    failures,
    file_of,
    progress_of,
    run_study,
    verified,
)
from starlearn.evaluate.study_file import read_study
from starlearn.settings import LoRA

STUDIES = sorted((Path(__file__).parent.parent / "benchmarks" / "studies").glob("*.toml"))
FILE = """
name = "small"
arms = ["random", "star_entropy"]
seeds = { count = 2 }
[settings]
n_initial = 5
n_instances = 5
n_rounds = 1
training = { max_steps = 4 }
[[tasks]]
name = "skewed"
source = "embedded"
pool = "skewed"
n_items = 60
n_test = 10
settings = { n_rounds = 2, training = { learning_rate = 0.01 } }
"""


@pytest.fixture
def small(tmp_path):
    """A study that is never really played."""
    path = tmp_path / "small.toml"
    path.write_text(FILE)
    return read_study(path)


def faked(run):
    """Return the line of a run without playing it; seed and arm decide the accuracy."""
    line = made_line(run.task.name, run.arm, run.seed, [0.5, 0.6 + run.seed / 100])
    return {**line, **heading(run), "seconds": 10.0 if run.arm == "random" else 30.0}


def call(*arguments):
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


# The file


def test_a_task_changes_the_settings_key_by_key(small):
    found = small.settings_of(small.tasks[0])
    assert (found.n_initial, found.n_rounds) == (5, 2)
    assert found.training == {"max_steps": 4, "learning_rate": 0.01}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_of_this_repository_can_be_read(path):
    names = ("BANKING77", "GUTWIKI", "PAPER_MODEL")
    found = read_study(path, dict.fromkeys(names, "somewhere"))
    assert found.name == path.stem
    assert "/" not in "".join(str(task.folder or "") for task in found.tasks)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"star_entropy"', '"star_entrpy"', "Did you mean 'star_entropy'"),
        ('"star_entropy"', '"random"', "an arm is named twice"),
        ("n_initial = 5", "n_inital = 5", "settings.n_inital: Extra inputs"),
        ("n_initial = 5", "n_initial = -1", "settings.n_initial: .*greater than or equal to 0"),
        ("n_initial = 5", 'n_initial = "5"', "settings.n_initial: .*valid integer"),
        ("max_steps = 4", "steps = 4", r"\[training\] steps: unknown setting"),
        ("max_steps = 4", "max_steps = 0", "'max_steps' parameter of Training"),
        ("learning_rate = 0.01", "rate = 1", r"\[training\] rate: unknown setting"),
        ('pool = "skewed"', "", 'source = "embedded" needs pool'),
        ("n_test = 10", "", "needs n_items and n_test"),
        ("count = 2", "first = 999, count = 2", "seeds from 1000 on are for"),
        ('name = "small"', 'name = "small"\npurpose = "tuning"', "takes seeds from 1000 on"),
        ('name = "small"', 'name = "../small"', "name: String should match"),
        ('name = "small"', "name = ", "is not TOML"),
        (
            'source = "embedded"',
            'source = "files"\nfolder = "${NOWHERE_77}/x"',
            "--where NOWHERE_77",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path, old, new, message):
    path = tmp_path / "small.toml"
    assert old in FILE
    path.write_text(FILE.replace(old, new, 1))
    with pytest.raises(InputError, match=f"(?s)small.toml: .*{message}"):
        read_study(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_items = 60", "n_items = 14", "are 15 labels, the pool has 14 items"),
        (
            "n_rounds = 1",
            "n_rounds = 1\nsub_pool = 4",
            "sub_pool must be a whole number of at least 5",
        ),
    ],
)
def test_a_pool_that_is_too_small_is_found_before_the_first_run(tmp_path, old, new, message):
    path = tmp_path / "small.toml"
    path.write_text(FILE.replace(old, new, 1))
    with pytest.raises(InputError, match=f"task skewed: .*{message}"):
        list(runs_of(read_study(path)))


def test_folders_are_filled_in_and_decide_nothing(tmp_path, tiny_model):
    one = tiny_study(tmp_path / "one", tiny_model)
    other = tiny_study(tmp_path / "other", tiny_model)
    assert one.tasks[0].folder != other.tasks[0].folder
    assert [run.key for run in runs_of(one)] == [run.key for run in runs_of(other)]
    with (tmp_path / "other" / "test.jsonl").open("a") as file:
        file.write(json.dumps({"text": "the sky is", "label": "blue"}) + "\n")
    study_tasks._files.cache_clear()
    assert not {run.key for run in runs_of(one)} & {run.key for run in runs_of(other)}
    assert str(tmp_path) not in json.dumps([heading(run) for run in runs_of(one)])


def test_runs_come_by_seed_so_that_every_beginning_is_balanced(small):
    assert [(run.seed, run.arm) for run in runs_of(small)] == [
        (0, "random"),
        (0, "star_entropy"),
        (1, "random"),
        (1, "star_entropy"),
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("n_initial = 5", "n_initial = 6"),
        ("max_steps = 4", "max_steps = 5"),
        ("learning_rate = 0.01", "learning_rate = 0.02"),
        ("n_items = 60", "n_items = 61"),
        ('pool = "skewed"', 'pool = "noisy"'),
        ("n_rounds = 1\n", "n_rounds = 1\nquantization = 'none'\n"),
        ("n_rounds = 1\n", "n_rounds = 1\nacquisition = { n_passes = 2 }\n"),
    ],
)
def test_every_setting_is_in_the_key(tmp_path, small, old, new):
    path = tmp_path / "changed.toml"
    path.write_text(FILE.replace(old, new, 1))
    changed = read_study(path)
    assert not {run.key for run in runs_of(small)} & {run.key for run in runs_of(changed)}


def test_names_and_notes_are_not_in_the_key(tmp_path, small):
    path = tmp_path / "changed.toml"
    path.write_text(FILE.replace('name = "small"', 'name = "other"\nnote = "why"', 1))
    assert [run.key for run in runs_of(small)] == [run.key for run in runs_of(read_study(path))]


# The lines


def test_an_interrupted_study_resumes(tmp_path, small):
    played = []

    def stopping(run):
        if len(played) == 3:
            raise KeyboardInterrupt
        played.append(run.key)
        return faked(run)

    with pytest.raises(KeyboardInterrupt):
        run_study(small, tmp_path, play_run=stopping)
    assert [line["key"] for line in read_lines(file_of(small, tmp_path))] == played
    added = run_study(small, tmp_path, play_run=faked)
    assert [line["key"] for line in added] == [run.key for run in runs_of(small)][3:]
    assert run_study(small, tmp_path, play_run=faked) == []


def test_a_changed_setting_is_not_mixed_with_old_lines(tmp_path, small):
    run_study(small, tmp_path, play_run=faked)
    changed = small.model_copy(
        update={"settings": small.settings.model_copy(update={"n_instances": 6})}
    )
    notes = []
    added = run_study(changed, tmp_path, play_run=faked, note=notes.append)
    assert len(added) == 4
    assert "4 lines" in notes[0]
    assert "not mixed" in notes[0]
    assert len({line["protocol"] for line in read_lines(file_of(small, tmp_path))}) == 2


def test_a_setting_that_a_later_version_adds_changes_no_key(tmp_path, small, monkeypatch):
    run_study(small, tmp_path, play_run=faked)
    before = LoRA.get_params
    monkeypatch.setattr(LoRA, "get_params", lambda self, deep=True: {**before(self), "new": 1})
    assert progress_of(small, file_of(small, tmp_path)).missing == []


def test_a_default_that_a_later_version_changes_is_not_mixed(tmp_path, small, monkeypatch):
    run_study(small, tmp_path, play_run=faked)
    before = LoRA.get_params
    monkeypatch.setattr(LoRA, "get_params", lambda self, deep=True: {**before(self), "dropout": 0})
    progress = progress_of(small, file_of(small, tmp_path))
    assert (len(progress.missing), progress.n_others) == (4, 4)


def test_a_failed_run_is_recorded_reported_and_run_again(tmp_path, small):
    def failing(run):
        if run.seed == 0:
            raise InputError("no room")
        return faked(run)

    added = run_study(small, tmp_path, play_run=failing)
    assert [bool(line.get("error")) for line in added] == [True, True, False, False]
    assert failures(added)[0] == "skewed, random, seed 0: InputError: no room"
    again = run_study(small, tmp_path, play_run=faked)
    assert [line["seed"] for line in again] == [0, 0]
    assert progress_of(small, file_of(small, tmp_path)).missing == []


def test_an_incomplete_last_line_is_set_aside_and_run_again(tmp_path, small):
    run_study(small, tmp_path, play_run=faked)
    file = file_of(small, tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-30])
    assert len(read_lines(file)) == 3, "a reader ignores it"
    notes = []
    added = run_study(small, tmp_path, play_run=faked, note=notes.append)
    assert [line["key"] for line in added] == [list(runs_of(small))[3].key]
    assert "incomplete" in notes[0]
    assert file.read_bytes() == whole
    assert file.with_name("small.jsonl.torn").read_bytes() == whole[:-30].splitlines()[-1] + b"\n"


@given(st.integers(0, 400))
def test_complete_lines_are_kept_wherever_the_file_is_cut(cut):
    whole = b"".join(json.dumps({"n": n, "text": "x" * n}).encode() + b"\n" for n in range(9))
    kept, torn = split(whole[: len(whole) - min(cut, len(whole))])
    assert kept == b"" or kept.endswith(b"\n")
    assert whole.startswith(kept + torn)
    assert b"\n" not in torn
    assert [json.loads(line)["n"] for line in kept.splitlines()] == list(range(kept.count(b"\n")))


def test_a_last_line_of_zero_bytes_is_incomplete_too(tmp_path):
    file = tmp_path / "lines.jsonl"
    append_line(file, made_line("a", "random", 0, [0.5, 0.6]))
    whole = file.read_bytes()
    file.write_bytes(whole + b"\0" * 40 + b"\n")
    repair(file, lambda _: None)
    assert file.read_bytes() == whole


def test_one_process_adds_to_a_file_at_a_time(tmp_path, small):
    tried = []

    def another(run):
        with pytest.raises(
            CampaignLockedError, match=r"small.jsonl: pid .* is adding to this study"
        ):
            run_study(small, tmp_path, play_run=faked)
        tried.append(run)
        return faked(run)

    assert len(run_study(small, tmp_path, play_run=another)) == len(tried) == 4


def test_damage_in_the_middle_is_named(tmp_path):
    file = tmp_path / "lines.jsonl"
    for seed in range(3):
        append_line(file, made_line("a", "random", seed, [0.5, 0.6]))
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([lines[0], lines[1][:20], lines[2]]) + b"\n")
    with pytest.raises(InputError, match="line 2: not JSON"):
        read_lines(file)
    file.write_bytes(b"\n".join([lines[0], b"{}", lines[2]]) + b"\n")
    with pytest.raises(InputError, match="line 2: not a run of a study"):
        read_lines(file)


def test_lines_have_no_nan_and_a_failing_disk_is_reported(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        append_line(tmp_path / "x.jsonl", {"aulc": float("nan")})
    with pytest.raises(StorageError, match="The lines before it are kept"):
        append_line(tmp_path / "nowhere" / "x.jsonl", {"aulc": 0.5})


@pytest.mark.slow
def test_processes_play_the_same_runs(tmp_path, tiny_model):
    settings = {**SETTINGS, "model": tiny_model, "n_rounds": 1}
    study = tiny_study(tmp_path / "data", tiny_model, settings=settings, seeds={"count": 1})
    one = run_study(study, tmp_path / "one")
    two = run_study(study, tmp_path / "two", processes=2)
    by_key = [{line["key"]: without_times(line) for line in lines} for lines in (one, two)]
    assert by_key[0] == by_key[1]
    assert len(by_key[0]) == 2
    assert not failures(one)


# How long it will take


def test_expected_time_comes_from_finished_runs(tmp_path, small):
    with pytest.raises(KeyboardInterrupt):
        run_study(small, tmp_path, play_run=stopping_after(2))
    found = expected(progress_of(small, file_of(small, tmp_path)), play_run=faked)
    assert found.by_task == {"skewed": (2, 40.0)}
    assert found.measured == "2 finished runs"


def stopping_after(count):
    left = [None] * count

    def stopping(run):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return faked(run)

    return stopping


def test_without_lines_one_round_is_played(tmp_path, small):
    tried = []

    def one_round(run):
        tried.append(run)
        times = {"seconds_teach": 5.0, "seconds_score": 1.0}
        return {"rounds": [times, {**times, "seconds_query": 3.0}]}

    found = expected(progress_of(small, file_of(small, tmp_path)), play_run=one_round)
    assert [(run.arm, run.settings.n_rounds) for run in tried] == [("star_entropy", 1)]
    assert found.by_task == {"skewed": (4, 4 * (6.0 + 2 * 9.0))}
    assert "one round played on skewed" in found.measured


# Whether new runs are comparable with finished ones


def test_a_run_that_is_the_same_again(tmp_path, small):
    run_study(small, tmp_path, play_run=faked)
    progress = progress_of(small, file_of(small, tmp_path))

    def slower(run):
        return {**faked(run), "seconds": 99.0, "versions": {"torch": "99"}}

    run, differences = verified(progress, slower)
    assert (run.arm, run.seed, differences) == ("star_entropy", 0, [])

    def other(run):
        line = faked(run)
        rounds = [line["rounds"][0], {**line["rounds"][1], "chosen": "x", "ece": 0.2}]
        return {**line, "aulc": 0.1, "rounds": rounds}

    assert verified(progress, other)[1] == ["aulc", "round 1: ece"]
    with pytest.raises(InputError, match="nothing to verify"):
        verified(progress_of(small, tmp_path / "nowhere.jsonl"), slower)


# The command


@pytest.fixture
def fake_runs(monkeypatch):
    monkeypatch.setitem(study_module.run_study.__kwdefaults__, "play_run", faked)
    monkeypatch.setattr(study_module.expected, "__defaults__", (faked_round,))
    monkeypatch.setattr(study_module.verified, "__defaults__", (faked,))


def faked_round(run):
    times = {"seconds_teach": 5.0, "seconds_score": 1.0, "seconds_query": 3.0}
    return {"rounds": [times, times]}


def test_from_the_file_to_the_report(tmp_path, fake_runs):
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(FILE)
    dry = call(file, "--out", out, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert dry.output.count("seed 1") == 2
    assert "4 runs to go: about 0.0 h on 1 process" in dry.output
    assert not out.exists()
    ran = call(file, "--out", out)
    assert ran.exit_code == 0, ran.output
    assert "4/4  skewed  star_entropy  seed 1  AULC 0.5550, 30 s" in ran.output
    same = call(file, "--out", out, "--verify")
    assert same.exit_code == 0, same.output
    assert "skewed, star_entropy, seed 0: played again, it is the same" in same.output
    reported = call("--report", out)
    assert reported.exit_code == 0, reported.output
    assert "study.html" in reported.output
    assert "published (STAR) - random" in (out / "study.html").read_text()


def test_the_share_of_test_items_in_the_pool_is_noted(tmp_path, fake_runs):
    rows = [{"text": f"thing {i}", "label": "ab"[i % 2]} for i in range(60)]
    for name, some in (("train", rows[:50]), ("test", rows[45:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    task = f'name = "things"\nsource = "files"\nfolder = "{tmp_path}"\n'
    file = tmp_path / "small.toml"
    file.write_text(FILE[: FILE.index('name = "skewed"')] + task)
    found = call(file, "--out", tmp_path / "out", "--dry-run")
    assert found.exit_code == 0, found.output
    assert "Note: task things: 5 of 15 test items (33.3%) are also in the pool" in found.output


def test_failed_runs_set_the_exit_code(tmp_path, fake_runs, monkeypatch):
    def failing(run):
        raise StarlearnError("[red]broken[/red]")

    monkeypatch.setitem(study_module.run_study.__kwdefaults__, "play_run", failing)
    file = tmp_path / "small.toml"
    file.write_text(FILE)
    found = call(file, "--out", tmp_path / "out")
    assert found.exit_code == 1
    assert "4 runs failed. The same command tries them again" in found.output
    assert "[red]broken[/red]" in found.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a study to run"),
        (["x.toml", "--report", "y"], "or --report FOLDER"),
        (["nowhere.toml"], "nowhere.toml: cannot be read"),
        (["x.toml", "--where", "BANKING77"], "--where takes NAME=FOLDER"),
        (["--report", "nowhere"], "no finished run to report"),
    ],
)
def test_commands_that_cannot_be_run(arguments, message):
    found = call(*arguments)
    assert found.exit_code == 2
    assert message in found.output


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_keeps_what_is_finished(tmp_path, tiny_model, processes):
    settings = {**SETTINGS, "model": tiny_model, "n_rounds": 1}
    study = tiny_study(tmp_path / "data", tiny_model, settings=settings, seeds={"count": 50})
    (tmp_path / "study.json").write_text(study.model_dump_json())
    out = tmp_path / "out"
    code = (
        "import sys, pathlib; from starlearn.console import exit_on_error\n"
        "from starlearn.evaluate.study import run_study\n"
        "from starlearn.evaluate.study_file import Study\n"
        "study = Study.model_validate_json(pathlib.Path(sys.argv[1]).read_text())\n"
        "with exit_on_error(lambda: 'kept'):\n"
        "    run_study(study, pathlib.Path(sys.argv[2]), processes=int(sys.argv[3]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "study.json"), str(out), str(processes)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    file = file_of(study, out)
    while not (file.exists() and file.read_bytes().count(b"\n") >= 2) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert "Stopped. kept" in errors, errors
    lines = read_lines(file)
    assert 2 <= len(lines) < 100
    assert not failures(lines)
    begun = [run.key for run in runs_of(study)][: len(lines) + processes]
    assert {line["key"] for line in lines} <= set(begun)


def test_keys_do_not_depend_on_the_order_of_settings():
    assert hashed({"a": 1, "b": [1, 2]}) == hashed({"b": [1, 2], "a": 1}) != hashed({"a": 1})
