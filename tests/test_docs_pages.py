"""The guide's pages: their Python runs from top to bottom, their commands are typed, links hold."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TYPED_ELSEWHERE = {
    "campaign": "a transcript of its own: tests/campaign/test_docs_campaign.py",
    "distributed": "needs a cluster: make test-ray",
    "evidence": "figures of studies, no code",
    "families": "written by tests/test_families.py",
    "performance": "figures of benchmarks, no code",
}
OWN = [
    "install",
    "quickstart",
    "method",
    "tasks",
    "querying",
    "training",
    "evaluation",
    "memory",
    "commands",
    "api",
    "index",
]
NOT_RUN = "# not run: "


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """List the commands of a page's blocks, but those of a block that says why it is not run."""
    found = []
    for block in blocks(page, "bash"):
        if not block.startswith(NOT_RUN):
            found += block.replace("\\\n", " ").splitlines()
    return found


@pytest.mark.parametrize("page", [page for page in OWN if blocks(page, "python")])
def test_the_python_of_a_page_runs_from_top_to_bottom(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.sub(r"max_steps=\d+", "max_steps=2", "\n".join(blocks(page, "python")))
    exec(compile(code, f"{page}.md", "exec"), {})  # noqa: S102 - our own pages
    assert len(capsys.readouterr().out.splitlines()) >= code.count("print(") - 1


@pytest.mark.parametrize("page", [page for page in OWN if commands(page)])
def test_the_commands_of_a_page_work(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from starlearn.cli.app import app

    monkeypatch.chdir(tmp_path)
    for line in commands(page):
        words = shlex.split(line)
        if words[:3] == ["python", "-m", "starlearn"]:
            words = words[2:]
        assert words[0] == "starlearn", line
        result = CliRunner().invoke(app.app, words[1:])
        assert result.exit_code == 0, (line, result.output)


def test_a_block_that_is_not_run_says_why() -> None:
    for page in OWN:
        for block in blocks(page, "bash"):
            first = block.partition("\n")[0]
            assert not first.startswith("# not run") or len(first) > len(NOT_RUN) + 10, page
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        languages = set(re.findall(r"^```(\S+)$", text, flags=re.MULTILINE))
        assert languages <= {"python", "bash", "{toctree}", "{eval-rst}"}, page


def test_commands_name_what_there_is() -> None:
    from typer.main import get_command

    from starlearn.cli.app import app

    there = set(get_command(app).commands)  # type: ignore[attr-defined]
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(?:starlearn )?([a-z-]+)`", page))
    assert there <= told, there - told


def test_every_public_name_is_in_the_reference() -> None:
    import starlearn

    listed = re.findall(r"^   ([A-Za-z_.]+)$", (DOCS / "api.md").read_text("utf-8"), re.MULTILINE)
    assert set(starlearn.__all__) <= set(listed)


def test_links_between_pages_and_into_the_repository_hold() -> None:
    for page in OWN:
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
            assert (DOCS / link).exists(), (page, link)


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    """All but the gallery's runs, which make docs adds; nothing is fetched."""
    for name in ("docs", "examples", "starlearn", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name)
    # A copy, so that what the build writes beside the pages stays out of the checkout.
    (tmp_path / "docs").unlink()
    (tmp_path / "docs").mkdir()
    for file in DOCS.rglob("*"):
        if file.is_file() and not {"_build", "generated", "gallery"} & set(file.parts):
            copy = tmp_path / "docs" / file.relative_to(DOCS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    options = ["-q", "-W", "--keep-going", "-n", "-b", "html", "-D", "plot_gallery=0"]
    command = [sys.executable, "-m", "sphinx", *options, "docs", "html"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "generated" / "starlearn.STARLearner.html").read_text("utf-8")
    methods = set(re.findall(r'id="starlearn\.STARLearner\.(\w+)"', page))
    assert {"fit", "teach", "query", "uncertainty", "predict_proba", "score", "save"} <= methods
    assert not methods & {"set_score_request", "set_output"}
