"""Every gallery example and the notebook run from top to bottom, with fewer training steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GALLERY = sorted((ROOT / "examples" / "gallery").glob("plot_*.py"))
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
SMALLER = {"STEPS": 2, "N_ROUNDS": 2, "N_TEST": 20, "N_HELD": 40, "MANY": 4}
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
for cell in notebook.cells:
    cell.source = cell.source.replace("max_steps=80", "max_steps=2")
NotebookClient(notebook, timeout=250, kernel_name="python3").execute()
print([cell.execution_count for cell in notebook.cells if cell.cell_type == "code"])
print(any("image/png" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", [])))
"""


def shrunk(code: str) -> str:
    """Return the example with small values for the constants at its top."""
    match = re.search(r"^([A-Z_]+(?:, [A-Z_]+)*) = (\d+(?:, \d+)*)$", code, flags=re.MULTILINE)
    assert match, "an example defines its sizes in one line of constants"
    names, values = match[1].split(", "), match[2].split(", ")
    small = [str(SMALLER.get(name, value)) for name, value in zip(names, values, strict=True)]
    assert "STEPS" in names
    return code.replace(match[0], f"{', '.join(names)} = {', '.join(small)}")


@pytest.mark.parametrize("file", GALLERY, ids=lambda f: f.stem)
def test_an_example_of_the_gallery_runs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.close("all")
    exec(compile(shrunk(file.read_text("utf-8")), file.name, "exec"), {})  # noqa: S102 - our own
    assert plt.get_fignums(), "an example must show a figure"
    plt.close("all")
    assert capsys.readouterr().out.strip(), "an example must print its numbers"


@pytest.mark.parametrize("file", GALLERY, ids=lambda f: f.stem)
def test_an_example_has_a_question_as_title_and_states_its_limits(file: Path) -> None:
    code = file.read_text(encoding="utf-8")
    title = code.splitlines()[1]
    assert title.endswith("?"), title
    assert "does not show**" in code.replace("\n# ", " ")


def test_the_gallery_has_at_least_six_examples() -> None:
    assert len(GALLERY) >= 6


def test_the_notebook_runs_and_holds_no_output(tmp_path: Path) -> None:
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert any("max_steps=80" in cell.source for cell in code)
    # A kernel uses the loopback interface, which tests may not, so it runs in another process.
    folders = {"IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"}
    environment = {**os.environ, **{name: str(tmp_path / name) for name in folders}}
    environment.pop("MPLBACKEND", None)  # without a display backend, no figure is shown
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(NOTEBOOK)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts, figure = done.stdout.splitlines()[-2:]
    assert counts == str(list(range(1, len(code) + 1)))
    assert figure == "True"
