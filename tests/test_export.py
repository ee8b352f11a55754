"""A learner without starlearn: its folder under peft, and merged into one model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import COLOURS, build_model

from starlearn.errors import InputError, ModelMismatchError, StorageError, UntrustedFileError
from starlearn.export import merged
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.model.adapter import activate
from starlearn.model.dropout import evaluation_mode
from starlearn.tasks import ChoiceTask, GenerationTask

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 4, 20, 11, 5]])
NOTICE = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's


@pytest.fixture
def learner(make_learner: Callable[..., STARLearner], labelled: tuple[list, list]) -> STARLearner:
    return make_learner().fit(*labelled)


def own_logits(learner: STARLearner) -> torch.Tensor:
    """Of the learner's own model: quantised base and adapter."""
    model = activate(base_of(learner).backbone, learner.adapter_)
    with torch.no_grad(), evaluation_mode(model):
        return model(IDS).logits


def exact(model: Any) -> Any:
    """Keep bitsandbytes from computing in bfloat16 where the CPU can, as starlearn does."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@NOTICE
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_a_model_that_others_load_gives_the_same_logits_with_the_saved_adapter(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    tmp_path: Path,
    quantization: str,
) -> None:
    """Nothing of starlearn takes part: a user of transformers and peft alone."""
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    learner = make_learner(quantization=quantization).fit(*labelled)
    learner.save(tmp_path / "saved")
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    arguments = {"quantization_config": config} if quantization == "nf4" else {}
    base = AutoModelForCausalLM.from_pretrained(learner.model, dtype=torch.float32, **arguments)
    opened = PeftModel.from_pretrained(exact(base), tmp_path / "saved")
    expected = own_logits(learner)
    assert torch.allclose(logits(opened), expected, atol=1e-5)
    with opened.disable_adapter():
        assert (logits(opened) - expected).abs().max() > 0.01  # the adapter does something
    found = AutoPeftModelForCausalLM.from_pretrained(
        tmp_path / "saved", dtype=torch.float32, **arguments
    )
    assert torch.allclose(logits(exact(found)), expected, atol=1e-5)


@NOTICE
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}], ids=["plain", "tied"])
def test_merged_logits_are_those_of_base_and_adapter_in_full_precision(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = build_model(tmp_path / "base", **changes)
    learner = make_learner(model=str(model)).fit(*labelled)
    before = own_logits(learner)
    found = learner.merge(tmp_path / "merged", max_shard_size="60KB")
    learner.save(tmp_path / "saved")
    assert torch.equal(own_logits(learner), before)  # the learner's own model is left alone

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    plain = logits(base)
    expected = logits(PeftModel.from_pretrained(base, tmp_path / "saved"))
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert opened.dtype == torch.float32
    assert (logits(opened) - expected).abs().max() < 1e-5
    assert (plain - expected).abs().max() > 0.01

    assert len(found.files) > 1  # in shards
    assert found.n_parameters == sum(p.numel() for p in opened.parameters())
    assert found.n_bytes == sum((tmp_path / "merged" / name).stat().st_size for name in found.files)
    assert f"{found.n_parameters:,} parameters in float32" in str(found)
    assert "trained on the base model in nf4" in str(found)
    own = AutoTokenizer.from_pretrained(model)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").get_vocab() == own.get_vocab()
    texts = [f.read_text() for f in (tmp_path / "merged").iterdir() if f.suffix in (".json", ".md")]
    assert not any(str(tmp_path) in text for text in texts)


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_merged_into_dequantised_weights_the_logits_are_the_learners_own(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    tmp_path: Path,
    quantization: str,
) -> None:
    from transformers import AutoModelForCausalLM

    learner = make_learner(quantization=quantization).fit(*labelled)
    expected = own_logits(learner)
    found = learner.merge(tmp_path / "merged", dequantize=True)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logits(opened) - expected).abs().max() < 1e-5
    learner.merge(tmp_path / "original")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "original")
    assert (logits(other) - expected).abs().max() > 0.01
    assert "differ" not in str(found)


def test_merged_generation_writes_what_the_learner_answers(
    make_learner: Callable[..., STARLearner], tmp_path: Path
) -> None:
    """The base model's own settings would sample, and stop elsewhere."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model = build_model(tmp_path / "base")
    GenerationConfig(do_sample=True, temperature=3.0, eos_token_id=7).save_pretrained(model)
    learner = make_learner(
        model=str(model), quantization="none", task=GenerationTask("{text}", max_new_tokens=4)
    )
    learner.fit(["the sky", "grass is"], ["it is blue", "green"])
    learner.merge(tmp_path / "merged")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    texts = ["the sky", "grass is", "a rose", "the sea is very"]
    answers = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        answer = opened.generate(ids, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :]
        answers.append(tokenizer.decode(answer, skip_special_tokens=True).strip())
    assert answers == learner.predict(texts).tolist()
    assert opened.generation_config.max_new_tokens == 4


def test_dtype_decides_the_size(learner: STARLearner, tmp_path: Path) -> None:
    half = learner.merge(tmp_path / "half", dtype="bfloat16")
    whole = learner.merge(tmp_path / "whole")
    assert half.dtype == "bfloat16"
    assert whole.dtype == "float32"
    assert half.n_bytes < 0.6 * whole.n_bytes
    with pytest.raises(InputError, match="dtype must be one of"):
        learner.merge(tmp_path / "other", dtype="int8")
    assert not (tmp_path / "other").exists()


def test_a_folder_with_something_in_it_is_refused(learner: STARLearner, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    learner.merge(tmp_path / "empty")
    before = {file.name: file.read_bytes() for file in (tmp_path / "empty").iterdir()}
    for call in (learner.merge, learner.save, learner.write_hub_folder):
        with pytest.raises(InputError, match="exists already"):
            call(tmp_path / "empty")
        for name in ("", ".", ".."):
            with pytest.raises(InputError, match="cannot be the name of a new folder"):
                call(name)
    assert {file.name: file.read_bytes() for file in (tmp_path / "empty").iterdir()} == before


@pytest.mark.parametrize("size", ["lots", "5", "-1GB", None])
def test_an_invalid_size_is_refused(learner: STARLearner, tmp_path: Path, size: Any) -> None:
    with pytest.raises(InputError, match=r"max_shard_size.*'5GB'"):
        learner.merge(tmp_path / "merged", max_shard_size=size)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_merge_leaves_nothing_half(
    learner: STARLearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type
) -> None:
    from starlearn.model import merging

    def stop(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(merging, "write_tokenizer", stop)  # the weights are written by then
        with pytest.raises(StorageError if error is OSError else error):
            learner.merge(tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []
    assert learner.merge(tmp_path / "merged").files == ("model.safetensors",)
    assert [file.name for file in tmp_path.iterdir()] == ["merged"]


def test_a_full_disk_is_seen_before_anything_is_written(
    learner: STARLearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(merged.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"takes 0\.\d MB as float32"):
        learner.merge(tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_stored_in_four_bits_cannot_be_merged_into(
    learner: STARLearner, tmp_path: Path
) -> None:
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    base_of(learner).backbone.config.quantization_config = stored
    with pytest.raises(InputError, match="stored quantised"):
        learner.merge(tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_another_base_is_not_merged(learner: STARLearner, tmp_path: Path) -> None:
    learner.set_params(model=str(build_model(tmp_path / "other", rms_norm_eps=1e-4)))
    for call in (learner.merge, learner.save, learner.write_hub_folder):
        with pytest.raises(ModelMismatchError):
            call(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def resealed(folder: Path) -> None:
    """Write the manifest anew, as someone would who changed a file on purpose."""
    from starlearn.export.saving import MANIFEST
    from starlearn.storage.files import file_sha256

    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"] = {name: file_sha256(folder / name) for name in manifest["files"]}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("nan", "NaN or infinite"),
        ("missing", "no counterpart"),
        ("empty", "no weights"),
        ("rank", "has shape"),
        ("garbage", "cannot be read"),
    ],
)
def test_weights_that_are_no_whole_adapter_are_refused_at_once(
    learner: STARLearner, tmp_path: Path, damage: str, message: str
) -> None:
    """Even when the sums are right: peft itself opens all of these but the last."""
    learner.save(tmp_path / "saved")
    file = tmp_path / "saved" / "adapter_model.safetensors"
    state = load_file(file)
    first = next(name for name in sorted(state) if ".lora_A." in name)
    if damage == "nan":
        state[first][0, 0] = np.nan
    elif damage == "missing":
        del state[first]
    elif damage == "rank":
        state[first] = state[first][:2].clone()
    save_file({} if damage == "empty" else state, file)
    if damage == "garbage":
        file.write_bytes(b"\x00" * 100)
    resealed(tmp_path / "saved")
    with pytest.raises(UntrustedFileError, match=message):
        STARLearner.load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("adapter_config.json", "lora_alpha", 99, "lora_alpha=99"),
        ("adapter_config.json", "use_dora", True, "use_dora=True"),
        ("starlearn.json", "rounds", None, "has invalid content"),
        ("starlearn.json", "adapter", {"rank": 4}, "has invalid content"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(
    learner: STARLearner, tmp_path: Path, name: str, key: str, value: Any, message: str
) -> None:
    learner.save(tmp_path / "saved")
    file = tmp_path / "saved" / name
    content = json.loads(file.read_text())
    content.pop(key)
    if value is not None:
        content[key] = value
    file.write_text(json.dumps(content))
    resealed(tmp_path / "saved")
    with pytest.raises(UntrustedFileError, match=message):
        STARLearner.load(tmp_path / "saved")


def test_a_hub_id_is_merged_and_named_with_its_commit(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the cache of the hub's library, laid out by hand: no network."""
    from huggingface_hub import constants
    from transformers.utils import hub

    commit = "c" * 40
    repository = tmp_path / "cache" / "models--them--base"
    build_model(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    task = ChoiceTask("{text} Answer :", choices=COLOURS)
    learner = make_learner(model="them/base", task=task).fit(*labelled)
    learner.merge(tmp_path / "merged")
    learner.write_hub_folder(tmp_path / "dry")
    config = json.loads((tmp_path / "dry" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("them/base", commit)
    for folder in ("merged", "dry"):
        card = (tmp_path / folder / "README.md").read_text()
        assert "base_model: them/base\n" in card
        assert f"(revision `{commit}`)" in card
    assert (tmp_path / "merged" / "model.safetensors").exists()
