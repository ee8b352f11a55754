"""docs/campaign.md is a transcript: every command is typed, and prints what the page shows."""

import re
import shutil
from pathlib import Path

import pytest
from pages import matches
from transcript import (
    HOME,
    Command,
    commands_of,
    done_in,
    files_of,
    run,
    run_in_browser,
    section,
)

PAGE = (Path(__file__).parents[2] / "docs" / "campaign.md").read_text(encoding="utf-8")
SHARED = Path(__file__).parents[3] / "shared"
FIRST = (
    "In ten minutes, with nothing to download",
    "When something goes wrong",
    "Two annotators",
)
BROWSER = ("In the browser", "In Label Studio")
OWN = ("77 kinds of question", "Answers in free form")
VERBS = {"init", "query", "label", "export", "import", "teach"} | {
    "status",
    "report",
    "resume",
    "backup",
    "doctor",
}
SERVED = pytest.mark.allow_hosts(["127.0.0.1"])
NEEDED = ("data/banking77", "data/star/GSM8K", "models/gutwiki-6M")

needs_shared = pytest.mark.skipif(
    not all((SHARED / name).is_dir() for name in NEEDED),
    reason="needs the data and the model beside the checkout; users get them from the hub",
)
HUB = """
import json

def load_dataset(name, *_, split):
    folder = {"mteb/banking77": "banking77", "openai/gsm8k": "star/GSM8K"}[name]
    with open(f"SHARED/data/{folder}/{split}.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if name == "mteb/banking77":
        return [{"text": row["text"], "label": 0, "label_text": row["label"]} for row in rows]
    return rows
"""
"""In place of `datasets`: rows in the form in which the hub gives them."""


@pytest.fixture
def folder(quick, monkeypatch):
    """Return the folder in which commands run, with the files of the page."""
    home = quick.resolve() / "ann"
    (home / ".hub").mkdir(parents=True)
    (home / ".hub" / "datasets.py").write_text(HUB.replace("SHARED", str(SHARED)))
    for name, body in files_of(PAGE).items():
        (home / name).write_text(body, encoding="utf-8")
    monkeypatch.chdir(home)
    monkeypatch.setenv("MODEL", str(SHARED / "models" / "gutwiki-6M"))
    return home


def typed(title, folder, changes=(), chromium=None):
    """Type the commands of a section; each must print what is shown."""
    for command in commands_of(section(PAGE, title)):
        done = done_in(command)
        if done and changes:
            continue
        for old, new in changes:
            command.line = command.line.replace(old, new)
        printed = run_in_browser(command, folder, chromium) if done else run(command, folder)
        if not changes:
            wanted = [line for line in command.shown if line not in done]
            shown = "\n".join(wanted)
            assert matches(wanted, printed), f"$ {command.line}\n{shown}\n--- is\n{printed}"
        yield command, printed


def test_with_the_model_in_the_package(folder):
    done = [command.line for title in FIRST for command, _ in typed(title, folder)]
    verbs = {re.search(r"starlearn (\w+)", line)[1] for line in done if "starlearn" in line}
    assert verbs == VERBS
    assert "95 % interval" in (folder / "first" / "report.html").read_text()
    assert "Cohen's kappa" in (folder / "pair.html").read_text().replace("&#39;", "'")


@SERVED
def test_in_the_browser_and_by_files_of_label_studio(folder, chromium):
    run(Command("python make_pool.py"), folder)
    done = [command for title in BROWSER for command, _ in typed(title, folder, chromium=chromium)]
    assert sum(len(done_in(command)) for command in done) > 4


@SERVED
@needs_shared
@pytest.mark.parametrize("title", OWN)
def test_with_a_model_and_data_of_ones_own(folder, title, chromium):
    lines = [command.line for command, _ in typed(title, folder, chromium=chromium)]
    assert sum("starlearn query" in line for line in lines) == 2
    assert any("--web" in line for line in lines)


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("title", "name", "changes"),
    [
        (
            OWN[0],
            "bank",
            [("get_banking77.py 40 20", "get_banking77.py 400 150"), ("-n 8", "-n 77")],
        ),
        (OWN[1], "sums", [("get_gsm8k.py 16", "get_gsm8k.py 120"), ("-n 4", "-n 30")]),
    ],
)
def test_with_more_items(folder, title, name, changes):
    from starlearn.campaign.campaign import Campaign

    for command, printed in typed(title, folder, changes):
        assert "[exit code" not in printed, f"$ {command.line}\n{printed}"
    with Campaign.open(folder / name) as campaign:
        status = campaign.status()
        assert (status.round, status.state) == (2, "issued")
        assert status.n_labelled == int(changes[1][1].removeprefix("-n "))


# The rules of the page


def test_every_command_is_in_a_section_that_is_typed():
    titles = FIRST + BROWSER + OWN
    typed_ones = [c.line for title in titles for c in commands_of(section(PAGE, title))]
    assert typed_ones == [c.line for c in commands_of(PAGE)]
    assert len(typed_ones) > 50
    assert set(files_of(PAGE)) >= {"make_pool.py", "first.toml", "fill.py", "get_gsm8k.py"}
    assert PAGE.count("\n$ ") == len(typed_ones)


def test_blocks_are_read_as_the_page_describes():
    page = (
        "```python\n# a.py\nprint(1)\n```\n```python\nprint(2)\n```\n"
        "```console\n$ one \\\n    two\nshown\n\n$ three\n```\n"
    )
    assert files_of(page) == {"a.py": "# a.py\nprint(1)\n"}
    assert commands_of(page) == [Command("one     two", ["shown", ""]), Command("three")]


def test_outputs_are_compared_as_the_page_describes(tmp_path):
    assert matches(["a ... c"], "a b\nb c\n")
    assert matches([], "\n")
    assert not matches(["a"], "a\nb\n")
    assert not matches([], "b\n")
    assert not matches(["a ... c"], "a b\n")
    assert not matches(["1.5"], "1x5\n")
    printed = run(Command("pwd; printf ' 5%%|#| 1/2 [00:01, 2.0it/s]\n' >&2; exit 3"), tmp_path)
    assert printed == f"{HOME}\n[exit code 3]\n"
    assert "[exit code 2]" in run(Command("starlearn status none"), tmp_path)
    shutil.rmtree(tmp_path / ".bin")
