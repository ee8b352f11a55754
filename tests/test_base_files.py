"""Files of a base model's folder: what is loaded, what the fingerprint covers, what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import build_model

from starlearn.errors import InputError, UntrustedFileError
from starlearn.learner.estimator import STARLearner
from starlearn.model.adapter import attach_fresh
from starlearn.model.backbone import Backbone, full_precision
from starlearn.settings import LoRA

IDS = torch.tensor([[5, 6, 7, 8, 9]])
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path, tiny_model: str) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def add_adapter(folder: Path) -> None:
    """Save a random adapter into the folder of its base model, as PeftModel.save_pretrained."""
    backbone = Backbone(folder, "none", verbose=False)
    model: PeftModel = attach_fresh(backbone, LoRA(r=4), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.5)
    model.save_pretrained(folder)
    assert (folder / "adapter_config.json").is_file()


def logits(backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = backbone.model(IDS).logits
    return found


def shard(folder: Path, name: str, content: Path | None = None) -> None:
    """Give the folder an index that names one file, which is a copy of the weights."""
    weights = folder / "model.safetensors"
    weights = weights.rename(folder / "decoy.safetensors")
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(content or weights, folder / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), name)}
    (folder / INDEX).write_text(json.dumps(index))


# Adapters beside the weights


def test_adapter_files_in_the_folder_are_not_part_of_the_base(
    folder: Path, tiny_model: str
) -> None:
    add_adapter(folder)
    plain, beside = (Backbone(place, "none", verbose=False) for place in (tiny_model, folder))
    assert torch.equal(logits(beside), logits(plain))
    assert beside.fingerprint == plain.fingerprint
    assert not [name for name, _ in beside.model.named_modules() if "lora" in name]
    stored = full_precision(beside, "auto")
    with torch.no_grad():
        assert torch.equal(stored(IDS).logits, logits(plain))


def test_scores_kept_while_adapter_files_were_in_the_folder_are_the_bases(
    folder: Path, make_learner: Callable[..., STARLearner], pool: list[str], tmp_path: Path
) -> None:
    expected = make_learner().uncertainty(pool)
    add_adapter(folder)
    options: dict[str, Any] = {"model": folder, "cache_dir": tmp_path / "scores"}
    make_learner(**options).uncertainty(pool)
    for file in folder.glob("adapter_*"):
        file.unlink()
    again = make_learner(**options).uncertainty(pool)
    assert np.array_equal(again.base, expected.base)


@pytest.fixture
def snapshot(tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the snapshot of the hub id a/model, whose files are links into the cache's blobs."""
    cache, commit = tmp_path / "models--a--model", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny_model, cache / "blobs")
    snapshot = cache / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in (cache / "blobs").iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(tmp_path), raising=False)
    return snapshot


def test_adapter_files_in_a_snapshot_of_the_hub_are_not_part_of_the_base(
    snapshot: Path, tiny_model: str
) -> None:
    plain = Backbone(tiny_model, "none", verbose=False)
    add_adapter(snapshot)
    found = Backbone("a/model", "none", verbose=False)
    assert found.revision == snapshot.name
    assert found.fingerprint == plain.fingerprint
    assert torch.equal(logits(found), logits(plain))
    assert found.model.config.name_or_path == "a/model"


# Weight files


@pytest.mark.parametrize(
    "name", ["evil.bin", "../x.safetensors", "sub/x.safetensors", "sub\\x.safetensors", 5]
)
def test_an_index_names_only_plain_safetensors_of_the_folder(folder: Path, name: Any) -> None:
    if name == 5:
        shard(folder, "x.safetensors")
        (folder / INDEX).write_text('{"metadata": {}, "weight_map": {"lm_head.weight": 5}}')
    else:
        shard(folder, name)
    with pytest.raises(UntrustedFileError, match=r"index\.json names the file"):
        Backbone(folder, "none", verbose=False)


def test_a_snapshot_of_the_hub_has_the_same_rules(snapshot: Path) -> None:
    shard(snapshot, "../x.safetensors")
    with pytest.raises(UntrustedFileError, match=r"index\.json names the file"):
        _ = Backbone("a/model", "none", verbose=False).fingerprint


def test_an_index_of_plain_files_is_loaded_and_identified_by_them(
    folder: Path, tiny_model: str
) -> None:
    shard(folder, "model-00001-of-00001.safetensors")
    sharded = Backbone(folder, "none", verbose=False)
    plain = Backbone(tiny_model, "none", verbose=False)
    assert torch.equal(logits(sharded), logits(plain))
    (folder / "decoy.safetensors").write_bytes(b"never read")
    assert Backbone(folder, "none", verbose=False).fingerprint == sharded.fingerprint
    weights = load_file(folder / "model-00001-of-00001.safetensors")
    weights["lm_head.weight"][0] += 1
    save_file(weights, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    assert Backbone(folder, "none", verbose=False).fingerprint != sharded.fingerprint
    (folder / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(InputError, match=r"00001-of-00001\.safetensors is missing"):
        Backbone(folder, "none", verbose=False)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{}", '{"weight_map": []}', "\xff"])
def test_a_broken_index_is_refused(folder: Path, content: str) -> None:
    shard(folder, "x.safetensors")
    (folder / INDEX).write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=INDEX):
        Backbone(folder, "none", verbose=False)


def test_a_link_may_lead_into_the_folder_but_not_out_of_it(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    inside = weights.rename(folder / "other.safetensors")
    weights.symlink_to(inside)
    _ = Backbone(folder, "none", verbose=False).model
    weights.unlink()
    weights.symlink_to(inside.rename(tmp_path / "outside.safetensors"))
    with pytest.raises(UntrustedFileError, match="is a link to"):
        Backbone(folder, "none", verbose=False)


def test_shards_that_transformers_prefers_to_the_index_are_refused(folder: Path) -> None:
    shutil.copy(
        folder / "model.safetensors", folder / "shard-00000-model-00001-of-00001.safetensors"
    )
    with pytest.raises(InputError, match="distributed checkpoint"):
        Backbone(folder, "none", verbose=False)


def test_a_weight_file_that_the_configuration_names_is_the_one_that_counts(
    folder: Path, tiny_model: str
) -> None:
    other = build_model(folder.parent / "other", rms_norm_eps=1e-4)
    shutil.copy(folder / "model.safetensors", folder / "mine.safetensors")
    weights = load_file(other / "model.safetensors")
    save_file({n: t + 1 for n, t in weights.items()}, folder / "model.safetensors")
    change_json(folder / "config.json", transformers_weights="mine.safetensors")
    found = Backbone(folder, "none", verbose=False)
    assert torch.equal(logits(found), logits(Backbone(tiny_model, "none", verbose=False)))
    (folder / "model.safetensors").unlink()
    assert Backbone(folder, "none", verbose=False).fingerprint == found.fingerprint


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.bool, torch.int8])
def test_weights_that_are_no_floats_are_refused(folder: Path, kind: torch.dtype) -> None:
    # transformers would cast them, without the scales that give them a meaning.
    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor.to(kind) for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="neither floats nor described"):
        _ = Backbone(folder, "none", verbose=False).model


# Configuration and tokenizer


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_implementation": "org/kernel"},
        {"_attn_implementation": "org/kernel@v1:flash"},
        {"_attn_implementation_internal": "org/kernel"},
        {"attn_implementation": {"": "org/kernel"}},
        {"text_config": {"attn_implementation": "org/kernel"}},
        {"experts_implementation": "org/kernel"},
        {"transformers_weights": "adapter_model.bin"},
        {"transformers_weights": "sub/x.safetensors"},
        {"text_config": {"transformers_weights": "other.safetensors"}},
        {"configuration_files": ["config.4.0.0.json"]},
    ],
    ids=str,
)
def test_a_configuration_that_names_code_or_other_files_is_refused(
    folder: Path, changes: dict[str, Any]
) -> None:
    change_json(folder / "config.json", **changes)
    with pytest.raises(UntrustedFileError, match=r"config\.json"):
        Backbone(folder, "none", verbose=False)


def test_usual_attention_settings_are_allowed(folder: Path) -> None:
    change_json(
        folder / "config.json", _attn_implementation_autoset=True, attn_implementation="eager"
    )
    _ = Backbone(folder, "none", verbose=False).model


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{"])
def test_broken_json_is_named_with_the_model(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=str(folder)):
        Backbone(folder, "none", verbose=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "a"},
        {"vocab_size": -1},
        {"rope_scaling": {"type": "x"}},
        {"quantization_config": 5},
        {"attn_implementation": 5},
        {"attn_implementation": "flash_attention_2"},
    ],
    ids=str,
)
def test_settings_that_transformers_cannot_use_are_named_with_the_model(
    folder: Path, changes: dict[str, Any]
) -> None:
    change_json(folder / "config.json", **changes)
    with pytest.raises(InputError, match=str(folder)):
        _ = Backbone(folder, "none", verbose=False).model


def test_a_tokenizer_file_per_version_is_part_of_the_fingerprint(folder: Path) -> None:
    before = Backbone(folder).fingerprint
    shutil.copy(folder / "tokenizer.json", folder / "tokenizer.4.0.json")
    change_json(folder / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.json"])
    named = Backbone(folder).fingerprint
    (folder / "tokenizer.4.0.json").write_text((folder / "tokenizer.json").read_text() + " ")
    assert len({before, named, Backbone(folder).fingerprint}) == 3
    change_json(folder / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.json"])
    with pytest.raises(UntrustedFileError, match=r"tokenizer_config\.json names the file"):
        Backbone(folder)


def test_a_further_chat_template_is_part_of_the_fingerprint(folder: Path) -> None:
    before = Backbone(folder).fingerprint
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text("{{ 'replaced' }}")
    found = Backbone(folder)
    assert found.tokenizer.get_chat_template() == "{{ 'replaced' }}"
    assert found.fingerprint != before
