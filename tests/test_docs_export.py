"""What docs/export.md says is run by a test."""

import re
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "export.md"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's own
def test_the_python_of_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        # transformers' pipeline: what it says of lengths is not about the folder
        warnings.filterwarnings("ignore", module="transformers")
        exec(compile(code, PAGE.name, "exec"), names)  # noqa: S102 - our own page
    assert {"mine", "merged", "dry", "runs"} <= {path.name for path in tmp_path.iterdir()}
    assert list((tmp_path / "runs").rglob("events.out.tfevents.*"))
    assert names["learner"].rounds_[-1]["accuracy"] >= 0  # type: ignore[attr-defined]


def test_links_and_files_of_the_page_exist() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tests|benchmarks)/[\w/.]+)`", page):
        assert (PAGE.parent.parent / name).exists(), name
