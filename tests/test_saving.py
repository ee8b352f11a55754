"""A learner on disk: opened by peft as it is, refused when it is not what was saved."""

import hashlib
import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build_model

from starlearn.errors import InputError, ModelMismatchError, UntrustedFileError
from starlearn.export import saving
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.settings import LoRA
from starlearn.tasks import ChoiceTask, GenerationTask


@pytest.fixture
def saved(
    make_learner: Callable[..., STARLearner], labelled: tuple[list, list], tmp_path: Path
) -> tuple[STARLearner, Path]:
    learner = make_learner().fit(*labelled)
    learner.teach([{"text": "night sky"}], ["blue"])
    learner.save(tmp_path / "saved")
    return learner, tmp_path / "saved"


def test_round_trip(saved: tuple[STARLearner, Path], pool: list[str]) -> None:
    learner, folder = saved
    again = STARLearner.load(folder)
    assert repr(again) == repr(learner)
    assert np.array_equal(again.predict_proba(pool), learner.predict_proba(pool))
    assert again.query(pool, 4)[0].tolist() == learner.query(pool, 4)[0].tolist()
    assert again.X_training.tolist() == learner.X_training.tolist()
    assert again.y_training.tolist() == learner.y_training.tolist()
    assert again.classes_.tolist() == learner.classes_.tolist()
    again.teach(["grass is"], ["green"])
    learner.teach(["grass is"], ["green"])
    for name, tensor in learner.adapter_.state.items():
        assert torch.equal(tensor, again.adapter_.state[name])


def test_free_form_learners_and_random_generators_are_saved(
    make_learner: Callable[..., STARLearner], tmp_path: Path
) -> None:
    from transformers import BitsAndBytesConfig

    learner = make_learner(
        task=GenerationTask("{text}", 3, answer_pattern=r"is (\w+)"),
        random_state=np.random.RandomState(0),
        quantization=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    )
    learner.fit(["the sky"], ["it is blue"]).save(tmp_path / "saved")
    again = STARLearner.load(tmp_path / "saved")
    assert again.task.answer_pattern == r"is (\w+)"
    assert again.quantization.bnb_4bit_quant_type == "nf4"
    assert again.predict(["the sky"]).tolist() == learner.predict(["the sky"]).tolist()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's own
@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_nobody_else_can_read_a_saved_learner(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    tmp_path: Path,
    umask: int,
) -> None:
    learner = make_learner().fit(*labelled)
    saved, page = tmp_path / "saved", tmp_path / "page"
    saved.mkdir()  # an empty folder that exists keeps no wider mode
    before = os.umask(umask)
    try:
        learner.save(saved)
        learner.write_hub_folder(page, include=["labelled"])
    finally:
        os.umask(before)
    assert saved.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in saved.iterdir()} == {0o600}
    for name in (saving.LABELS, saving.SETTINGS):
        assert (page / name).stat().st_mode & 0o777 == 0o600


def test_peft_opens_the_folder_as_it_is(saved: tuple[STARLearner, Path], pool: list[str]) -> None:
    from peft import PeftModel

    learner, folder = saved
    ids = torch.tensor([[5, 6, 7, 8]])
    own = base_of(learner).backbone
    with torch.no_grad():
        learner.predict_proba(pool)  # activates the adapter
        expected = own.peft_model(ids).logits
        own.peft_model.unload()
        opened = PeftModel.from_pretrained(own.model, folder).eval()
        assert torch.equal(opened(ids).logits, expected)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 1}'])
def test_a_damaged_manifest_is_refused(saved: tuple[STARLearner, Path], content: str) -> None:
    (saved[1] / "MANIFEST.json").write_text(content)
    with pytest.raises(UntrustedFileError, match="MANIFEST"):
        STARLearner.load(saved[1])


def test_settings_of_numpy_are_saved(
    make_learner: Callable[..., STARLearner], labelled: tuple[list, list], tmp_path: Path
) -> None:
    lora = LoRA(r=np.int64(4), alpha=np.float32(8))  # type: ignore[arg-type]
    make_learner(adapter=lora).fit(*labelled).save(tmp_path / "saved")
    assert STARLearner.load(tmp_path / "saved").adapter.r == 4
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "adapter_config.json", "starlearn.json", "labelled.jsonl"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_files_that_are_not_what_was_saved(
    saved: tuple[STARLearner, Path], name: str, damage: str
) -> None:
    file = saved[1] / name
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    with pytest.raises(UntrustedFileError, match=name):
        STARLearner.load(saved[1])


def test_another_base_model_is_refused(saved: tuple[STARLearner, Path], tmp_path: Path) -> None:
    other = build_model(tmp_path / "other", rms_norm_eps=1e-4)
    with pytest.raises(ModelMismatchError, match="another base model"):
        STARLearner.load(saved[1], model=other)


def test_folders_are_never_overwritten(saved: tuple[STARLearner, Path]) -> None:
    learner, folder = saved
    with pytest.raises(InputError, match="exists already"):
        learner.save(folder)
    with pytest.raises(InputError, match="is not a saved learner"):
        STARLearner.load(folder.parent)


def test_folder_of_a_newer_version_is_refused(saved: tuple[STARLearner, Path]) -> None:
    manifest = saved[1] / "MANIFEST.json"
    content: dict[str, Any] = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(InputError, match="newer starlearn"):
        STARLearner.load(saved[1])


def test_a_parameter_that_is_not_known_yet_is_named(saved: tuple[STARLearner, Path]) -> None:
    settings, manifest = saved[1] / "starlearn.json", saved[1] / "MANIFEST.json"
    content: dict[str, Any] = json.loads(settings.read_text())
    content["parameters"]["colour"] = "blue"
    settings.write_text(json.dumps(content))
    sums: dict[str, Any] = json.loads(manifest.read_text())
    sums["files"][settings.name] = hashlib.sha256(settings.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(sums))
    with pytest.raises(InputError, match="does not know: colour"):
        STARLearner.load(saved[1])


def test_a_link_to_an_empty_folder_is_not_written_to(
    saved: tuple[STARLearner, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(InputError, match="exists already"):
        saved[0].save(tmp_path / "link")


def test_what_the_prompt_does_not_use_is_saved_as_text(
    make_learner: Callable[..., STARLearner], tmp_path: Path, pool: list[str]
) -> None:
    when = datetime(2026, 1, 2, 3)
    items = [
        {"text": text, "when": when, "junk": "\ud800", "né": "é", "n": np.int64(i)}
        for i, text in enumerate(pool[:2])
    ]
    items.append({"text": pool[2], "odd": {(1, 2): 3}, "n": 1})
    learner = make_learner().fit(items, ["red", "blue", "green"])
    learner.save(tmp_path / "learner")
    again = STARLearner.load(tmp_path / "learner")
    expected = {**items[0], "when": "2026-01-02 03:00:00", "n": 0}
    assert again.X_training[0] == expected
    assert again.X_training[2] == {"text": pool[2], "odd": "{(1, 2): 3}", "n": 1}
    assert again.teach(pool[3:4], ["red"]).predict(pool[:2]).shape == (2,)


def test_a_task_of_ones_own_class_is_refused_when_it_is_saved_not_when_it_is_loaded(
    make_learner: Callable[..., STARLearner], tmp_path: Path, pool: list[str]
) -> None:
    class Mine(ChoiceTask):
        pass

    learner = make_learner(task=Mine("{text}", choices=["red", "blue"]))
    learner.fit(pool[:2], ["red", "blue"])
    with pytest.raises(InputError, match=r"task=Mine.*pickle the learner"):
        learner.save(tmp_path / "learner")
    assert not (tmp_path / "learner").exists()


def test_a_seed_of_numpy_is_the_seed_again(
    make_learner: Callable[..., STARLearner], tmp_path: Path, pool: list[str]
) -> None:
    learner = make_learner(random_state=np.int64(3)).fit(pool[:2], ["red", "blue"])
    learner.save(tmp_path / "learner")
    assert STARLearner.load(tmp_path / "learner").random_state == 3


def test_a_model_in_a_relative_folder_is_found_from_elsewhere(
    make_learner: Callable[..., STARLearner],
    tiny_model: str,
    tmp_path: Path,
    pool: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(Path(tiny_model).parent)
    learner = make_learner(model=Path(tiny_model).name).fit(pool[:2], ["red", "blue"])
    learner.save(tmp_path / "learner")
    monkeypatch.chdir(tmp_path)
    assert STARLearner.load(tmp_path / "learner").predict(pool[:1]).shape == (1,)


# Folders from somebody else, whose manifest fits their files


def reseal(folder: Path) -> None:
    manifest = folder / "MANIFEST.json"
    content: dict[str, Any] = json.loads(manifest.read_text())
    for name in content["files"]:
        content["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    manifest.write_text(json.dumps(content))


def with_settings(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content: dict[str, Any] = json.loads((folder / "starlearn.json").read_text())
    change(content)
    (folder / "starlearn.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["rounds"][-1].update(temperature=float("nan")),
        lambda content: content["rounds"][-1].update(temperature=0),
        lambda content: content["rounds"][-1].update(temperature=float("inf")),
        lambda content: content["rounds"][-1].update(temperature=True),
        lambda content: content["rounds"][-1].update(temperature="1"),
        lambda content: content.update(rounds={"temperature": 1}),
        lambda content: content.update(rounds=[[]]),
        lambda content: content.update(seed="a"),
        lambda content: content["adapter"].update(target_modules="(.*)*(.*)*(.*)*x"),
        lambda content: content["adapter"].update(r=-1),
        lambda content: content["adapter"].update(alpha=float("nan")),
        lambda content: content["parameters"].update(quantization={"bnb_4bit_quant_type": []}),
        lambda content: content["parameters"].update(
            quantization={"bnb_4bit_compute_dtype": "no_such_type"}
        ),
        lambda content: content["parameters"]["task"].update({"class": []}),
        lambda content: content.update(parameters=[]),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    saved: tuple[STARLearner, Path], change: Callable[[dict[str, Any]], Any]
) -> None:
    with_settings(saved[1], change)
    reseal(saved[1])
    with pytest.raises(UntrustedFileError, match="saved"):
        STARLearner.load(saved[1])


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '"', "\xff"])
@pytest.mark.parametrize(
    "name", ["starlearn.json", "labelled.jsonl", "adapter_config.json", "MANIFEST.json"]
)
def test_broken_json_is_refused(saved: tuple[STARLearner, Path], name: str, content: str) -> None:
    (saved[1] / name).write_text(content + "\n", encoding="latin-1")
    if name != "MANIFEST.json":
        reseal(saved[1])
    with pytest.raises(UntrustedFileError, match="saved"):
        STARLearner.load(saved[1])


@pytest.mark.parametrize(
    "entry", [{"format": "1"}, {"format": None}, {"base": ["a"]}, {"files": []}, {"files": "a"}]
)
def test_a_manifest_with_values_of_other_types_is_refused(
    saved: tuple[STARLearner, Path], entry: dict[str, Any]
) -> None:
    manifest = saved[1] / "MANIFEST.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | entry))
    with pytest.raises(UntrustedFileError, match="MANIFEST"):
        STARLearner.load(saved[1])


@pytest.mark.parametrize("kind", [torch.bool, torch.float8_e4m3fn, torch.int32, torch.float64])
def test_an_adapter_of_other_types_is_refused(
    saved: tuple[STARLearner, Path], kind: torch.dtype
) -> None:
    weights = saved[1] / "adapter_model.safetensors"
    save_file({name: tensor.to(kind) for name, tensor in load_file(weights).items()}, weights)
    reseal(saved[1])
    with pytest.raises(UntrustedFileError, match=str(kind)):
        STARLearner.load(saved[1])
