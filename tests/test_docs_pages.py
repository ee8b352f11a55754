"""The guide's pages: their Python and their commands run, and their links lead to files."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TESTED_ELSEWHERE = {
    "campaign": "a transcript: tests/campaign/test_docs_campaign.py",
    "distributed": "needs a cluster: make test-ray",
    "ecosystem": "tests/test_ecosystem.py",
    "evidence": "results of studies, no code",
    "export": "tests/test_docs_export.py",
    "families": "written by tests/test_families.py",
    "performance": "results of benchmarks, no code",
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
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks with exactly this info string; ``bash no-run: reason`` is another one."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """Return the commands of a page's blocks that run."""
    found = []
    for block in blocks(page, "bash"):
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
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, (line, result.output)


def test_a_block_that_does_not_run_has_a_reason() -> None:
    for page in OWN:
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        for info in re.findall(r"^```(\S.*)$", text, flags=re.MULTILINE):
            runs = info in {"python", "bash", "{toctree}", "{eval-rst}"}
            assert runs or re.match(r"(python|bash) no-run: .{10}", info), (page, info)


def test_the_page_of_commands_lists_every_command() -> None:
    from typer.main import get_command

    from starlearn.cli.app import app

    existing = set(get_command(app).commands)  # type: ignore[attr-defined]
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(?:starlearn )?([a-z-]+)`", page))
    assert existing <= listed, existing - listed


def test_every_public_name_is_in_the_reference() -> None:
    import starlearn

    page = (DOCS / "api.md").read_text("utf-8")
    entry = r"^(?:   |\.\. autodata:: starlearn\.settings\.)([A-Za-z_.]+)$"
    listed = re.findall(entry, page, re.MULTILINE)
    assert set(starlearn.__all__) - {"__version__"} <= set(listed)


def test_every_page_is_tested_here_or_elsewhere() -> None:
    assert sorted([*OWN, *TESTED_ELSEWHERE]) == sorted(page.stem for page in DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link, _, heading in re.findall(r"\]\((?!https?://)([^)#]*)(#([^)]+))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            assert heading in anchors, (link, heading)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_wrapped(page: Path) -> None:
    """Tables and blocks of code are left out."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    long = [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")]
    assert not [line for line in long if not line.startswith("![")]


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    """The gallery's examples do not run here, and nothing is downloaded."""
    for name in ("docs", "examples", "starlearn", "kernels"):
        (tmp_path / name).symlink_to(ROOT / name)
    # The build writes files next to the pages, so it works on a copy.
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
