"""starlearn doctor without a folder: every check, and the fix for what fails."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner, Result

from starlearn.cli import environment
from starlearn.cli.app import app
from starlearn.errors import StorageError
from starlearn.model import four_bits


def doctor(*words: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, words)], env={"COLUMNS": "200"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(folder: Path, name: str, model: str | None = None) -> environment.Check:
    (check,) = [
        c for c in environment.examine(folder, model) if c.name == name and c.group != "extras"
    ]
    return check


def test_json_has_all_checks_and_no_file_is_left(folder: Path) -> None:
    done = doctor("--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["ok"] is True
    checks = {(c["group"], c["name"]): c for c in report["checks"]}
    assert {"starlearn", "libraries", "device", "model", "storage", "extras"} == {
        group for group, _ in checks
    }
    assert checks["libraries", "torch"]["found"] == torch.__version__
    assert "work" in checks["device", "4-bit weights"]["found"]
    assert "journal delete" in checks["storage", "sqlite"]["found"]
    assert checks["model", "embedded model"]["found"] == "answers Ann"
    assert {"gpu", "ray", "web", "labelstudio"} <= {n for g, n in checks if g == "extras"}
    assert not list(folder.iterdir())


def test_the_table_is_for_people(folder: Path) -> None:
    done = doctor()
    assert done.exit_code == 0
    for name in (
        "torch",
        "4-bit weights",
        "prompt format",
        "free disk",
        "sqlite",
        "starlearn[web]",
    ):
        assert name in done.stdout
    assert done.stdout.endswith("Everything needed works.\n")


def test_broken_four_bits_are_an_error_with_a_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(four_bits, "tried_in_four_bits", lambda: "no kernel image")
    done = doctor()
    assert done.exit_code == 4
    assert "ERROR: 4-bit weights: do not work: no kernel image\n  pip install" in done.stdout
    assert "Something cannot be used" in done.stdout
    done = doctor("--json")
    assert done.exit_code == 4
    assert json.loads(done.stdout)["ok"] is False


@pytest.mark.parametrize("number", [None, "0.1"])
def test_a_library_that_is_missing_or_old_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: str | None
) -> None:
    real = environment._installed
    monkeypatch.setattr(environment, "_installed", lambda n: number if n == "peft" else real(n))
    check = found(folder, "peft")
    assert (check.state, check.fix) == ("error", "pip install 'peft>=0.19'")
    assert (number or "not installed") in check.found
    assert environment.failed([check])


@pytest.mark.parametrize("library", ["peft", "transformers"])
def test_a_library_that_cannot_be_imported_leaves_the_table(tmp_path: Path, library: str) -> None:
    program = (
        f"import sys; sys.modules[{library!r}] = None; from starlearn.cli.app import app; "
        "app(['doctor', '--json'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4, done.stderr[-2000:]
    checks = {c["name"]: c for c in json.loads(done.stdout)["checks"] if c["group"] != "extras"}
    assert checks["embedded model"]["state"] == "error"
    assert library in checks["embedded model"]["found"]
    assert checks["sqlite"]["state"] == "ok"


def test_a_missing_extra_is_shown_with_its_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = environment._installed
    monkeypatch.setattr(environment, "_installed", lambda n: None if n == "ray" else real(n))
    (check,) = [c for c in environment.examine(folder) if (c.group, c.name) == ("extras", "ray")]
    assert (check.state, check.found) == ("note", "not installed (ray)")
    assert check.fix == "pip install 'starlearn[ray]'"
    assert not environment.failed([check])


def test_a_gpu_without_triton_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="Some GPU", total_memory=80e9, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu)
    monkeypatch.setattr(environment, "_installed", lambda name: None)
    checks = {check.name: check for check in environment._device()}
    assert checks["gpu"].found.startswith("Some GPU, 80 GB, compute capability 9.0")
    assert checks["triton"].state == "warning"
    assert checks["triton"].fix == "pip install 'starlearn[gpu]'"


def test_a_folder_that_cannot_be_written_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(environment.Store, "create", full)
    check = found(folder, "sqlite")
    assert check.state == "error"
    assert "the disk is full" in check.found


def test_little_room_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e6))
    little = SimpleNamespace(available=1e6, total=2e9)
    monkeypatch.setattr(environment.psutil, "virtual_memory", lambda: little)
    checks = environment.examine(folder)
    assert {c.name for c in checks if c.state == "warning"} == {"free disk", "memory"}
    assert not environment.failed(checks)


# Four bits


class Wrong(torch.autograd.Function):
    """A product as it is, with half of its gradient."""

    @staticmethod
    def forward(ctx: object, rows: torch.Tensor) -> torch.Tensor:
        return rows.clone()

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / 2


@pytest.mark.parametrize(
    ("change", "text"),
    [(lambda out: out * 2, "a product is wrong by 100%"), (Wrong.apply, "a gradient is wrong by")],
)
def test_wrong_products_and_gradients_are_seen(monkeypatch: pytest.MonkeyPatch, change, text):  # type: ignore[no-untyped-def]
    from bitsandbytes.nn import Linear4bit

    assert four_bits.tried_in_four_bits() is None
    real = Linear4bit.forward
    monkeypatch.setattr(Linear4bit, "forward", lambda self, rows: change(real(self, rows)))
    assert text in str(four_bits.tried_in_four_bits())


# Prompts


def test_a_chat_template_is_shown_by_its_hash(tiny_model: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "chat")
    settings = tmp_path / "chat" / "tokenizer_config.json"
    hashes = []
    for template in ("a {{ messages[0].content }}", "b {{ messages[0].content }}"):
        content = json.loads(settings.read_text(encoding="utf-8"))
        settings.write_text(json.dumps({**content, "chat_template": template}), encoding="utf-8")
        checks = {c.name: c for c in environment._prompts(str(tmp_path / "chat"))}
        assert checks["chat template"].state == "ok"
        hashes.append(checks["chat template"].found)
    assert hashes[0] != hashes[1]
    assert all(text.startswith("sha256 ") for text in hashes)
    formats = {next(iter(environment._prompts(m))).found for m in (None, tiny_model)}
    assert len(formats) == 2


def test_model_with_a_campaign_folder_is_refused(folder: Path) -> None:
    done = doctor(folder, "--model", "anything")
    assert done.exit_code == 2
    assert "--model" in done.stderr


def test_a_model_that_is_not_there_is_bad_input(folder: Path) -> None:
    done = doctor("--model", folder / "nothing")
    assert done.exit_code == 2
    assert "nothing" in done.stderr
