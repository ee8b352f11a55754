"""The campaign's command line: wrong inputs first, then from an empty folder to a second round."""

import csv
import io
import json
import signal
import subprocess
import sys

import pytest
from campaign_cases import POOL, answer_for
from typer.testing import CliRunner

from starlearn import console
from starlearn.campaign import batch_scores
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.settings_file import new_campaign, read_settings
from starlearn.cli.app import app
from starlearn.errors import (
    CampaignCorruptError,
    CampaignLockedError,
    OutOfMemoryError,
    StorageError,
)

SETTINGS = """
pool = "pool.jsonl"
seed = 7
per_item = 1
quantization = "nf4"
[task]
prompt = "{text} Answer :"
choices = ["red", "green", "blue"]
[adapter]
r = 2
alpha = 4
dropout = 0.2
target_modules = ["q_proj"]
[acquisition]
n_passes = 2
[training]
max_steps = 2
batch_size = 4
learning_rate = 5e-3
"""
HOLD = """
import sys
from starlearn.campaign.campaign import Campaign
with Campaign.open(sys.argv[1]) as campaign, campaign.holding("teach"):
    print("held", flush=True)
    sys.stdin.readline()
"""


def call(*arguments, keys=None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=keys)


def done(*arguments, keys=None):
    result = call(*arguments, keys=keys)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments, code=2, keys=None):
    result = call(*arguments, keys=keys)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture
def files(quick, tiny_model):
    rows = "".join(json.dumps({"text": text}) + "\n" for text in POOL)
    (quick / "pool.jsonl").write_text(rows)
    (quick / "settings.toml").write_text(SETTINGS)
    return quick


@pytest.fixture
def folder(files, tiny_model):
    done("init", files / "c", "--settings", files / "settings.toml", "--model", tiny_model)
    return files / "c"


def status(folder):
    return json.loads(done("status", folder, "--json"))


def fill(path, answers=answer_for):
    """Label a CSV batch as a person with a spreadsheet would."""
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))
    for row in rows:
        row["label"] = answers(row)
    with path.open("w", newline="", encoding="utf-8") as target:
        writer = csv.DictWriter(target, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


# Wrong inputs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--choices", "a,b"], "--pool pool.jsonl"),
        (["--pool", "POOL"], "--choices yes,no"),
        (["--pool", "POOL", "--choices", "red"], "at least two choices"),
        (["--pool", "POOL", "--choices", "red,,blue"], "choices"),
        (["--pool", "POOL", "--choices", "a,b", "--max-new-tokens", 3], "not both"),
        (["--pool", "POOL", "--choices", "a,b", "--answer-pattern", "x"], "max_new_tokens"),
        (["--pool", "missing.jsonl", "--choices", "a,b"], "No such file"),
        (["--pool", "pool.txt", "--choices", "a,b"], "must end in .jsonl"),
        (["--pool", "POOL", "--choices", "a,b", "--prompt", "{question}"], "question"),
        (["--pool", "POOL", "--choices", "a,b", "--model", "/no/model"], "/no/model"),
        (["--pool", "POOL", "--choices", "a,b", "--extra-fields", "source"], "'source'"),
        (["--settings", "none.toml"], "cannot be read"),
    ],
)
def test_settings_of_a_new_campaign_that_cannot_be_used(files, tiny_model, arguments, words):
    model = [] if "--model" in arguments else ["--model", tiny_model]
    arguments = [files / "pool.jsonl" if a == "POOL" else a for a in arguments]
    assert words in refused("init", files / "c", *model, *arguments)
    assert not (files / "c").exists() or not list((files / "c").iterdir())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sed = 1", "did you mean 'seed'"),
        ('seed = "1"', "valid integer"),
        ("seed = true", "valid integer"),
        ("seed = -1", "greater than or equal to 0"),
        ("pool = 3", "valid string"),
        ("[adapter]\nrr = 2", "[adapter] rr: unknown setting"),
        ("[adapter]\nr = 0", "r"),
        ("extra_fields = [1]", "extra_fields.0"),
        ("seed = ", "is not TOML"),
    ],
)
def test_settings_that_cannot_be_used(files, tiny_model, line, words):
    path = files / "bad.toml"
    path.write_text(line)
    rest = ["--pool", files / "pool.jsonl", "--choices", "a,b", "--model", tiny_model]
    if line.startswith("pool"):
        rest = rest[2:]
    assert words in refused("init", files / "c", "--settings", path, *rest)


def test_settings_are_seen_from_their_file_and_the_command_line_wins(files):
    arguments = new_campaign(read_settings(files / "settings.toml"))
    learner = arguments.pop("learner")
    assert arguments == {"pool": files / "pool.jsonl", "per_item": 1}
    assert (learner.adapter.r, learner.random_state) == (2, 7)
    done(
        "init",
        files / "c",
        "--settings",
        files / "settings.toml",
        "--choices",
        "Ann, Bob",
        "--seed=3",
    )
    with Campaign.open(files / "c") as campaign:
        assert campaign.choices == ["Ann", "Bob"]
        assert campaign.task["prompt"] == "{text} Answer :"
        assert json.loads(campaign.meta["learner"])["random_state"] == 3


def test_every_command_without_a_campaign(quick):
    for command in ("query", "label", "teach", "status", "resume", "backup", "doctor"):
        assert "starlearn init" in refused(command, quick / "none")
    assert "starlearn init" in refused("export", quick / "none", "b.csv")
    assert "starlearn init" in refused("import", quick / "none", "b.csv")
    assert "Name the campaign" in refused("doctor", "--fix")


def test_commands_at_the_wrong_time(folder, files):
    assert "starlearn query" in refused("label", folder)
    assert "query" in refused("teach", folder)
    assert "starlearn query" in refused("export", folder, files / "b.csv")
    assert "There is a campaign" in refused(
        "init", folder, "--pool", files / "pool.jsonl", "--choices", "Ann,Bob"
    )
    assert "Nothing was interrupted." in done("resume", folder)
    assert refused("query", folder, "-n", 0)
    assert "at most 32" in refused("query", folder, "-n", 50, "--strict")
    done("query", folder, "-n", 3)
    assert f"starlearn label {folder}" in refused("query", folder, "-n", 4)
    assert "None of the 3 items of round 1 is labelled" in refused("teach", folder)
    assert "--relabel" in refused("import", folder, "b.csv", "--relabel", "Yes")


# From an empty folder to a second round


def test_two_rounds_with_a_csv_and_a_session(folder, files):
    found = status(folder)
    assert (found["state"], found["n_items"]) == (None, len(POOL))
    assert found["next"] == f"starlearn query {folder} -n {len(POOL)}"
    output = done("query", folder, "-n", 4)
    assert "Round 1: 4 items to label" in output
    assert f"Next: starlearn label {folder}" in output
    batch = files / "batch.csv"
    assert f"starlearn import {folder} {batch}" in done("export", folder, batch)
    rows = fill(batch)
    assert len(rows) == 4
    assert "Import them first" in refused("export", folder, batch)
    assert all(row["label"] in batch.read_text() for row in rows)
    output = done("import", folder, batch, "-a", "ann")
    assert "4 labels saved." in output
    assert f"Next: starlearn teach {folder}" in output
    assert "0 labels saved, 4 were there already" in done("import", folder, batch, "-a", "ann")
    output = done("teach", folder)
    assert "Round 1: trained on 4 labels" in output
    assert f"Next: starlearn query {folder} -n 4" in output
    done("query", folder, "-n", 2)
    with Campaign.open(folder) as campaign:
        second = [item.id for item in campaign.batch()]
    output = done("label", folder, "-a", "bob", keys="1\nblue\n\n")
    assert "2 saved. 2 of the batch's 2 items are done." in output
    done("teach", folder)
    found = status(folder)
    assert (found["round"], found["state"], found["n_labelled"]) == (2, "published", 6)
    assert [r["n_labels"] for r in found["history"]] == [4, 6]
    assert found["annotators"] == {"ann": 4, "bob": 2}
    with Campaign.open(folder) as campaign:
        labels = campaign.labels()
        assert {row["id"]: row["label"] for row in rows}.items() <= labels.items()
        assert [labels[item] for item in second] == ["red", "blue"]
    shown = done("status", folder)
    assert "6 of 32 items labelled" in shown
    assert "Annotator bob: 2 items" in shown
    assert f"Nothing is wrong with {folder}." in done("doctor", folder)


def test_jsonl_of_one_annotator_and_other_spellings(folder, files):
    done("query", folder, "-n", 2)
    done("label", folder, "-a", "ann", keys="1\nq\n")
    batch = files / "batch.jsonl"
    done("export", folder, batch, "--annotator", "ann")
    rows = [json.loads(line) for line in batch.read_text().splitlines()]
    assert [row["label"] for row in rows] == ["red", None]
    rows[1]["label"] = "Grün"
    batch.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="latin-1")
    assert "'Grün'" in refused("import", folder, batch, "-a", "ann")
    output = done("import", folder, batch, "-a", "ann", "--relabel", "Grün=green")
    assert "1 labels saved, 1 were there already" in output


def test_an_answer_that_is_new_is_added_by_a_command(folder, files):
    done("query", folder, "-n", 2)
    batch = files / "batch.csv"
    done("export", folder, batch)
    fill(batch, lambda row: "a night")
    assert f"starlearn add-choice {folder} CHOICE" in refused("import", folder, batch)
    assert "now 4 choices" in done("add-choice", folder, "a night")
    assert refused("add-choice", folder, "a night")
    assert "2 labels saved" in done("import", folder, batch)
    done("teach", folder)
    with Campaign.open(folder) as campaign:
        assert "a night" in campaign.learner().classes_


def test_teach_does_not_end_a_round_that_nobody_has_labelled(folder):
    done("query", folder, "-n", 2)
    done("label", folder, keys="1\n1\n\n")
    done("teach", folder)
    done("query", folder, "-n", 2)
    assert f"starlearn label {folder}" in refused("teach", folder)
    assert status(folder)["state"] == "issued"
    done("label", folder, keys="1\n")
    output = done("teach", folder, "--partial")
    assert "1 of 2 items left the batch with too few responses" in output


def test_a_smaller_last_batch_is_a_note(folder):
    result = call("query", folder, "-n", 40)
    assert result.exit_code == 0
    assert result.stderr.startswith("Note: n_instances=40 is more than the 32 items")
    assert "UserWarning" not in result.output


def test_a_folder_with_a_space_can_be_typed_again(files, tiny_model):
    place = files / "two words"
    output = done("init", place, "--settings", files / "settings.toml", "--model", tiny_model)
    assert f"Next: starlearn query '{place}'" in output
    done("query", place, "-n", 2)
    output = done("export", place, files / "a b.csv")
    assert f"Next: starlearn import '{place}' '{files / 'a b.csv'}'" in output


# Care


def test_a_backup_brings_lost_labels_back(folder, files):
    done("query", folder, "-n", 2)
    done("label", folder, keys="1\nq\n")
    copy = files / "copy.db"
    assert str(copy) in done("backup", folder, copy)
    assert "already" in refused("backup", folder, copy)
    done("backup", folder)
    (folder / "labels.db").write_bytes(b"no database" * 1000)
    assert "--restore" in refused("status", folder, code=4)
    assert "is not a file" in refused("doctor", folder, "--restore", "--from", files / "x.db")
    assert "needs --restore" in refused("doctor", folder, "--from", copy)
    assert str(folder / "backups") in done("doctor", folder, "--restore")
    assert status(folder)["n_labelled"] == 1
    done("doctor", folder, "--restore", "--from", copy)
    assert status(folder)["n_labelled"] == 1


def test_doctor_reports_damage_and_removes_leftovers(folder):
    orphan = folder / "adapters" / ".tmp-left"
    orphan.mkdir(parents=True, mode=0o700)
    (folder / "adapters").chmod(0o700)
    assert f"starlearn doctor {folder} --fix" in done("doctor", folder)
    assert "was removed" in done("doctor", folder, "--fix")
    assert not orphan.exists()
    (folder / "pool.parquet").write_bytes(b"")
    assert "ERROR:" in call("doctor", folder).stdout
    assert call("doctor", folder).exit_code == 4


# Exit codes


def test_a_campaign_in_use_is_exit_code_3(folder):
    done("query", folder, "-n", 2)
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        assert call("label", folder, keys="1\n").stdout == ""  # refused before any item is shown
        output = refused("label", folder, code=3, keys="1\n")
        assert f"held by pid {other.pid}" in output
        assert "(teach)" in output
        refused("query", folder, "-n", 2, code=3)
        assert f"In use by pid {other.pid}" in done("status", folder)
        other.stdin.close()
    assert status(folder)["done"] == 0
    done("label", folder, keys="1\n")
    assert status(folder)["done"] == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CampaignLockedError("held"), 3),
        (CampaignCorruptError("damaged"), 4),
        (StorageError("disk full"), 4),
        (OutOfMemoryError(1, 2, 1), 5),
    ],
)
def test_errors_have_their_exit_codes(folder, monkeypatch, error, code):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Campaign, "query", fail)
    assert refused("query", folder, code=code) == f"Error: {error}\n"


def test_ctrl_c_is_exit_code_130_and_names_the_next_command(folder, monkeypatch):

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(batch_scores, "_write_scores", stop)
    output = refused("query", folder, "-n", 3, code=130)
    assert f"Continue: starlearn resume {folder}" in output
    monkeypatch.undo()
    assert "Round 1: 3 items to label" in done("resume", folder)
    monkeypatch.setattr(Campaign, "record", stop)
    output = refused("label", folder, code=130, keys="1\n")
    assert f"Continue: starlearn label {folder}" in output


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_stop_a_command_in_a_process_of_its_own(folder, sent):
    done("query", folder, "-n", 2)
    command = [
        sys.executable,
        "-c",
        "from starlearn.cli.app import app; app()",
        "label",
        str(folder),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdin.write("1\n")
        process.stdin.flush()
        read = ""
        while "(saved)" not in read:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            read += line
        process.send_signal(sent)
        error = process.stderr.read()
        assert process.wait() == (-9 if sent == signal.SIGKILL else 130)
    assert sent == signal.SIGKILL or f"Continue: starlearn label {folder}" in error
    assert "Traceback" not in error
    assert status(folder)["done"] == 1


def test_a_lost_accelerator_is_5_and_asks_for_a_new_process(folder, monkeypatch):
    import torch

    def fail(*_, **__):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nmore")

    monkeypatch.setattr(Campaign, "teach", fail)
    output = refused("teach", folder, code=5)
    assert "device-side assert triggered" in output
    assert "Restart the process" in output
    assert "more" not in output

    def other(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Campaign, "teach", other)
    assert call("teach", folder).exit_code == 1


def test_no_token_is_printed_or_kept(folder, monkeypatch):
    token = "hf_" + "aB3" * 11
    monkeypatch.setenv("HF_TOKEN", token)

    def fail(*_, **__):
        raise StorageError(f"https://user:{token}@hub refused")

    done("query", folder, "-n", 2)
    monkeypatch.setattr(Campaign, "query", fail)
    assert "user:hf_***@hub" in refused("query", folder, code=4)
    kept = [path for path in folder.rglob("*") if path.is_file()]
    assert len(kept) > 2
    assert not any(token.encode() in path.read_bytes() for path in kept)


def test_a_signal_handler_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with console.exit_on_error(str):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_folder_that_cannot_be_written_can_be_read(folder, monkeypatch):
    import os

    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and allowed(path, mode))
    assert "chmod" in refused("query", folder, "-n", 2, code=4)
    assert "0 of 32 items labelled" in done("status", folder)
