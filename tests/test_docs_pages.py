"""The guide's pages: their code runs and prints what they show, and their links lead to files."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pages
import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BUILT = {"_build", "gallery", "generated"}
GUIDE = {
    file.relative_to(DOCS).with_suffix("").as_posix(): file.read_text(encoding="utf-8")
    for file in sorted(DOCS.rglob("*.md"))
    if not BUILT & set(file.relative_to(DOCS).parts)
}
TESTED_ELSEWHERE = {
    "campaign": "a transcript: tests/campaign/test_docs_campaign.py",
    "ecosystem": "tests/test_ecosystem.py",
    "export": "tests/test_docs_export.py",
}
"""Pages, or folders of pages, whose code needs more than a call."""
OWN = {name: text for name, text in GUIDE.items() if name.partition("/")[0] not in TESTED_ELSEWHERE}
SIZES = ("Width", "Height")
slow_build = pytest.mark.timeout(900)  # the build takes 20 CPU seconds, on a busy machine minutes
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(DOCS / f"{name}.md" for name in GUIDE)]


@pytest.mark.parametrize("page", [name for name in OWN if pages.blocks(OWN[name], "python")])
def test_the_python_of_a_page_runs_and_prints_what_is_shown(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pages.run_python(OWN[page], {}, lambda code: re.sub(r"max_steps=\d+", "max_steps=2", code))


@pytest.mark.parametrize("page", [name for name in OWN if pages.blocks(OWN[name], "bash")])
def test_the_commands_of_a_page_work_and_print_what_is_shown(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from starlearn.cli.app import app

    monkeypatch.chdir(tmp_path)
    for block, shown, example in pages.with_outputs(OWN[page], "bash"):
        printed = ""
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words[:3] == ["python", "-m", "starlearn"]:
                words = words[2:]
            assert words[0] == "starlearn", line
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, (line, result.output)
            printed += result.output
        if shown is not None:
            pages.compare(block, shown, example, printed)


@pytest.mark.parametrize("page", GUIDE)
def test_a_block_is_run_or_says_why_not(page: str) -> None:
    if page == "campaign":  # a transcript has its own kinds of blocks
        return
    for info, _ in pages.blocks(GUIDE[page]):
        known = {"python", "bash", "diff", "text", "text example", "{toctree}", "{eval-rst}"}
        assert info in known or re.match(r"(python|bash) no-run: .{10}", info), info


def test_an_output_is_compared_and_none_may_be_missing() -> None:
    page = "```python\nprint(7, 'a b')\n```\n"
    pages.run_python(page + "```text\n7 a b\n```\n", {})
    pages.run_python(page + "```text\n7...\n```\n", {})
    pages.run_python(page + "```text example\n12.5 a b\n```\n", {})
    for shown in ("", "```text\n8 a b\n```\n", "```text example\n8 a c\n```\n"):
        with pytest.raises(AssertionError, match="prints"):
            pages.run_python(page + shown, {})
    with pytest.raises(AssertionError, match="shows"):
        pages.run_python("```python\nx = 1\n```\n```text\n1\n```\n", {})


def test_pages_that_are_tested_elsewhere_exist() -> None:
    assert set(TESTED_ELSEWHERE) <= set(GUIDE)


def test_the_page_of_commands_lists_every_command() -> None:
    from typer.main import get_command

    from starlearn.cli.app import app

    existing = set(get_command(app).commands)  # type: ignore[attr-defined]
    listed = set(re.findall(r"`(?:starlearn )?([a-z-]+)`", GUIDE["commands"]))
    assert existing <= listed, existing - listed


def test_every_public_name_is_in_the_reference() -> None:
    import starlearn

    reference = "".join(text for name, text in GUIDE.items() if name.startswith("api/"))
    entry = r"^(?:   |\.\. autodata:: starlearn\.settings\.)([A-Za-z_.]+)$"
    listed = re.findall(entry, reference, re.MULTILINE)
    assert set(starlearn.__all__) - {"__version__"} <= set(listed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link, _, heading in re.findall(r"\]\((?!https?://)([^)#]*)(#([^)]+))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            assert heading in anchors, (link, heading)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_prose_is_wrapped(page: Path) -> None:
    """Tables and blocks of code are left out."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    long = [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")]
    assert not [line for line in long if not line.startswith("![")]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the pages; the gallery's examples do not run here, and nothing is downloaded."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("examples", "starlearn", "kernels"):
        (folder / name).symlink_to(ROOT / name)
    # The build writes files next to the pages, so it works on a copy.
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns(*BUILT))
    options = ["-q", "-W", "--keep-going", "-n", "-b", "html", "-D", "plot_gallery=0"]
    command = [sys.executable, "-m", "sphinx", *options, "docs", "html"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@slow_build
def test_the_pages_build_without_a_warning_and_list_the_methods(html: Path) -> None:
    built = (html / "generated").glob("starlearn.STARLearner.*.html")
    methods = {page.name.split(".")[2] for page in built}
    assert {"fit", "teach", "query", "uncertainty", "predict_proba", "score", "save"} <= methods
    assert not methods & {"set_score_request", "set_output"}


@slow_build
@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_is_long_or_wider_than_the_screen(html: Path, chromium: Any, width: int) -> None:
    screen = chromium.new_page(viewport={"width": width, "height": 900}, offline=True)
    names = [f"{name}.html" for name in GUIDE]
    names += [file.relative_to(html).as_posix() for file in html.glob("generated/*.html")]
    for name in names:
        screen.goto((html / name).as_uri())
        wide, high = (screen.evaluate(f"document.documentElement.scroll{n}") for n in SIZES)
        assert wide == width, name  # wide tables and code scroll in their own box
        # The transcript of a campaign is longer, and so may any page be on a phone.
        assert high <= 4000 or width < 1280 or name == "campaign.html", (name, high)
    screen.close()


@slow_build
def test_the_contents_have_four_groups(html: Path) -> None:
    front = (html / "index.html").read_text(encoding="utf-8")
    captions = re.findall(r'class="caption-text">([^<]+)<', front)
    assert list(dict.fromkeys(captions)) == ["Learn", "Use", "Models", "Reference"]
