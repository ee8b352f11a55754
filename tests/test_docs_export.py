"""The code of docs/export.md and of the pages that continue it runs."""

import re
import warnings
from pathlib import Path

import pages
import pytest

DOCS = Path(__file__).parent.parent / "docs"
GUIDE = {
    name: (DOCS / f"{name}.md").read_text(encoding="utf-8")
    for name in ("export", "export/servers", "export/hub", "export/trackers")
}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's own
def test_the_python_of_the_pages_runs_and_prints_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        # transformers' pipeline: what it says of lengths is not about the folder
        warnings.filterwarnings("ignore", module="transformers")
        for page in GUIDE.values():
            pages.run_python(page, names)
    assert {"mine", "merged", "dry", "runs"} <= {path.name for path in tmp_path.iterdir()}
    assert list((tmp_path / "runs").rglob("events.out.tfevents.*"))
    assert names["learner"].rounds_[-1]["accuracy"] >= 0  # type: ignore[attr-defined]


def test_the_files_that_the_pages_name_exist() -> None:
    for page in GUIDE.values():
        for name in re.findall(r"`((?:tests|benchmarks)/[\w/.]+)`", page):
            assert (DOCS.parent / name).exists(), name
