"""The 4-bit model, its adapter and its dropout, on tiny models built in the tests."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build_model
from workloads import sequences

from starlearn.errors import InputError, ModelMismatchError, UntrustedFileError
from starlearn.model.adapter import (
    Adapter,
    activate,
    adapter_state,
    attach_fresh,
    base_only,
    detach,
    load_state,
)
from starlearn.model.backbone import Backbone
from starlearn.model.dropout import MaskedA, MonteCarlo, evaluation_mode, mc_dropout
from starlearn.model.forward import row_hidden
from starlearn.model.head import head_of
from starlearn.settings import LoRA

PROMPTS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [6, 9, 12, 5, 8, 7, 11, 10]])


@pytest.fixture
def backbone(tiny_model: str) -> Backbone:
    return Backbone(tiny_model, "nf4", verbose=False)


def with_random_b(model: Any) -> Any:
    """Give B random values; in a new adapter it is zero and has no effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=generator)
    return model


def linear4bit(model: torch.nn.Module) -> list[Any]:
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


# Quantisation


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_linear_weights_are_packed_into_four_bits(tiny_model: str, quantization: str) -> None:
    backbone = Backbone(tiny_model, quantization, verbose=False)
    layers = linear4bit(backbone.model)
    assert len(layers) == 2 * 7
    for layer in layers:
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() == layer.in_features * layer.out_features // 2
        assert layer.weight.quant_type == quantization
        assert layer.weight.quant_state.nested  # double quantisation
    assert head_of(backbone.model).weight.dtype == torch.float32


def test_the_adapter_alone_trains(backbone: Backbone) -> None:
    model = attach_fresh(backbone, LoRA(r=4), seed=0)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 7 * 2
    assert all("lora_A" in name or "lora_B" in name for name in trainable)


def test_unquantised_and_own_configuration(tiny_model: str) -> None:
    from transformers import BitsAndBytesConfig

    assert not linear4bit(Backbone(tiny_model, "none", verbose=False).model)
    own = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    layer = linear4bit(Backbone(tiny_model, own, verbose=False).model)[0]
    assert not layer.weight.quant_state.nested
    with pytest.raises(InputError, match="'nf4', 'fp4', 'none'"):
        Backbone(tiny_model, "int3")


def test_gradients_after_an_evaluation_pass_are_those_of_the_dequantised_weights(
    backbone: Backbone, tiny_model: str
) -> None:
    """bitsandbytes repacks weights in eval mode on some CPUs; only the gradients show it."""
    from bitsandbytes.functional import dequantize_4bit

    reference = Backbone(tiny_model, "none", verbose=False)
    for name, module in reference.model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            packed = backbone.model.get_submodule(name).weight
            module.weight.data = dequantize_4bit(packed.data, packed.quant_state).float()
    gradients = []
    for bone in (backbone, reference):
        model = with_random_b(attach_fresh(bone, LoRA(r=4, dropout=0.0), seed=0))
        with evaluation_mode(model), torch.no_grad():
            model(PROMPTS)
        model.train()
        model(input_ids=PROMPTS, labels=PROMPTS).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        expected = gradients[1][name]
        assert torch.linalg.norm(expected) > 0
        assert torch.linalg.norm(gradient - expected) <= 1e-4 * torch.linalg.norm(expected), name


def test_importing_the_model_layer_warns_of_nothing() -> None:
    code = "import starlearn.model, logging; print(logging.getLogger('bitsandbytes').level)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert run.stdout.strip() == "0"


# Errors before anything is loaded


def test_folders_that_are_no_model(tmp_path: Path, tiny_model: str) -> None:
    with pytest.raises(InputError, match="no model folder"):
        Backbone(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json"):
        Backbone(tmp_path)
    (tmp_path / "config.json").write_text((Path(tiny_model) / "config.json").read_text())
    with pytest.raises(InputError, match="no weights"):
        Backbone(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"canary")
    with pytest.raises(UntrustedFileError, match="pickle"):
        Backbone(tmp_path)


@pytest.mark.parametrize("source", [5, "", " ", ["a"], torch.nn.Linear(1, 1)])
def test_sources_that_are_no_name(source: Any) -> None:
    with pytest.raises(InputError, match="model must be a folder, a hub id"):
        Backbone(source)


def test_weights_that_were_cut_are_refused(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="complete folder"):
        _ = Backbone(folder, "none", verbose=False).model


def test_hub_models_are_identified_by_their_files(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "models--a--model"
    shutil.copytree(tiny_model, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(tmp_path), raising=False)
    from_hub = Backbone("a/model", verbose=False)
    (cache / "snapshots" / "abc" / "notes.json").write_text("{}")
    assert from_hub.fingerprint == Backbone(tiny_model, verbose=False).fingerprint
    assert "model" not in vars(from_hub), "the weights were read"


def test_a_hub_model_without_its_weights_is_not_identified(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that went offline after `init`, which reads only the configuration."""
    cache = tmp_path / "models--a--model"
    shutil.copytree(tiny_model, cache / "snapshots" / "abc")
    (cache / "snapshots" / "abc" / "model.safetensors").unlink()
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(tmp_path), raising=False)
    backbone = Backbone("a/model", verbose=False)
    with pytest.raises(InputError, match=r"weights of the model 'a/model' are not available"):
        _ = backbone.fingerprint
    shutil.copy(Path(tiny_model) / "model.safetensors", cache / "snapshots" / "abc")
    assert backbone.fingerprint == Backbone(tiny_model, verbose=False).fingerprint


def test_a_hub_id_that_is_not_available_is_named() -> None:
    with pytest.raises(InputError, match="nobody/no-such-model"):
        Backbone("nobody/no-such-model")


def test_model_that_brings_code_is_refused(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "code")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("open('canary', 'w').write('run')")
    with pytest.raises((UntrustedFileError, InputError)):
        Backbone(folder)
    assert not (Path.cwd() / "canary").exists()


def test_fingerprint_depends_on_weights_and_quantisation(tmp_path: Path, tiny_model: str) -> None:
    other = build_model(tmp_path / "other", rms_norm_eps=1e-4)
    prints = {
        Backbone(tiny_model, "nf4").fingerprint,
        Backbone(tiny_model, "fp4").fingerprint,
        Backbone(other, "nf4").fingerprint,
    }
    assert len(prints) == 3
    assert Backbone(tiny_model, "nf4").fingerprint in prints


def test_weights_that_are_not_loaded_do_not_change_the_fingerprint(
    tmp_path: Path, tiny_model: str
) -> None:
    """As in a snapshot of the hub that also has consolidated.safetensors."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = Backbone(folder).fingerprint
    (folder / "consolidated.safetensors").write_bytes(b"something else")
    assert Backbone(folder).fingerprint == before
    weights = folder / "model.safetensors"
    weights.rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = Backbone(folder).fingerprint
    (folder / "consolidated.safetensors").unlink()
    assert Backbone(folder).fingerprint == sharded != before
    (folder / "vocab.json").write_text("{}")  # not read if there is a tokenizer.json
    (folder / "tokenizer.model").write_bytes(b"pieces")
    assert Backbone(folder).fingerprint == sharded


# Attaching and detaching adapters


def test_base_only_is_the_base_model_bit_for_bit(backbone: Backbone) -> None:
    with torch.no_grad():
        before = backbone.model(PROMPTS).logits
        model = with_random_b(attach_fresh(backbone, LoRA(r=4), seed=0)).eval()
        assert not torch.equal(model(PROMPTS).logits, before)
        with base_only(backbone) as base:
            assert torch.equal(base(PROMPTS).logits, before)
        detach(backbone)
        assert torch.equal(backbone.model(PROMPTS).logits, before)


def test_activating_an_adapter_restores_its_numbers(backbone: Backbone) -> None:
    model = with_random_b(attach_fresh(backbone, LoRA(r=4), seed=0)).eval()
    with torch.no_grad():
        before = model(PROMPTS).logits
    adapter = Adapter.of(LoRA(r=4), backbone.fingerprint, adapter_state(model))
    attach_fresh(backbone, LoRA(r=8), seed=5)
    again = activate(backbone, adapter).eval()
    with torch.no_grad():
        assert torch.equal(again(PROMPTS).logits, before)
    assert activate(backbone, adapter) is again


def test_an_adapter_on_another_base_is_refused(backbone: Backbone, tiny_model: str) -> None:
    # peft loads it: the shapes are the same.
    state = adapter_state(attach_fresh(backbone, LoRA(r=4), seed=0))
    adapter = Adapter.of(LoRA(r=4), backbone.fingerprint, state)
    with pytest.raises(ModelMismatchError, match="another base model"):
        activate(Backbone(tiny_model, "none", verbose=False), adapter)


def test_adapters_that_do_not_fit_are_refused(backbone: Backbone) -> None:
    # peft loads each of these, with at most a warning.
    model = attach_fresh(backbone, LoRA(r=4), seed=0)
    state = adapter_state(model)
    name = next(iter(state))
    for broken, reason in [
        ({k: v for k, v in state.items() if k != name}, "1 weights missing"),
        ({**state, "extra": state[name]}, "1 unknown"),
        ({**state, name: state[name][:, :-1]}, "shape"),
        ({**state, name: torch.full_like(state[name], float("nan"))}, "NaN"),
    ]:
        with pytest.raises(ModelMismatchError, match=reason):
            load_state(model, broken)


def test_target_modules_that_do_not_exist(backbone: Backbone) -> None:
    with pytest.raises(InputError, match="target_modules"):
        attach_fresh(backbone, LoRA(target_modules=["no_such_layer"]), seed=0)


def test_fresh_adapters_depend_on_the_seed_alone(backbone: Backbone) -> None:
    first = adapter_state(attach_fresh(backbone, LoRA(r=4), seed=3))
    torch.manual_seed(99)
    state_of_the_world = torch.random.get_rng_state()
    second = adapter_state(attach_fresh(backbone, LoRA(r=4), seed=3))
    third = adapter_state(attach_fresh(backbone, LoRA(r=4), seed=4))
    assert torch.equal(torch.random.get_rng_state(), state_of_the_world)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


# Dropout


def modes(model: torch.nn.Module) -> list[tuple[str, bool]]:
    return [(type(module).__name__, module.training) for module in model.modules()]


def stacked(model: Any, dropout: MonteCarlo | None = None) -> torch.Tensor:
    with torch.no_grad():
        return row_hidden(model, sequences(PROMPTS, torch.tensor([[7], [7]])), dropout)


def test_passes_differ_from_each_other_and_come_back(backbone: Backbone) -> None:
    model = with_random_b(attach_fresh(backbone, LoRA(r=4, dropout=0.2), seed=0))
    with evaluation_mode(model):
        plain = stacked(model)[0]
        with mc_dropout(model, 4, seed=1) as dropout:
            passes = stacked(model, dropout)
        with mc_dropout(model, 4, seed=1) as same:
            again = stacked(model, same)
        with mc_dropout(model, 4, seed=2) as other:
            others = stacked(model, other)
    assert dropout.n_modules == 2 * 7
    assert torch.equal(passes, again)
    for first in range(4):
        assert not torch.allclose(passes[first], plain)
        assert not torch.allclose(passes[first], others[first])
        for second in range(first):
            assert not torch.allclose(passes[first], passes[second])


def test_dropout_does_not_depend_on_the_batch(backbone: Backbone) -> None:
    model = with_random_b(attach_fresh(backbone, LoRA(r=4, dropout=0.2), seed=0))
    with torch.no_grad(), evaluation_mode(model), mc_dropout(model, 3, seed=1) as dropout:
        both = stacked(model, dropout)
        one = sequences(PROMPTS[1:], torch.tensor([[7]]))
        alone = row_hidden(model, one, dropout)
    assert torch.equal(both[:, 1:], alone)


def test_one_mask_for_all_tokens_is_a_mask_on_a() -> None:
    masks = torch.tensor([[0.0, 2.0, 2.0], [2.0, 0.0, 2.0]])
    x, linear = torch.randn(2 * 3, 5, 3), torch.nn.Linear(3, 4, bias=False)
    weight = linear.weight
    masked = MaskedA(linear, masks, MonteCarlo(2))(x)
    assert torch.allclose(masked[:3], (x[:3] * masks[0]) @ weight.T, atol=1e-6)
    virtual = torch.cat([x[:3] @ (weight * masks[0]).T, x[3:] @ (weight * masks[1]).T])
    assert torch.allclose(masked, virtual, atol=1e-6)


@pytest.mark.parametrize("mode", [True, False])
def test_every_module_keeps_its_mode_also_after_an_exception(
    backbone: Backbone, mode: bool
) -> None:
    model = attach_fresh(backbone, LoRA(r=4, dropout=0.2), seed=0)
    model.train(mode)
    next(iter(model.modules())).training = not mode  # a mixture must come back as a mixture
    before = modes(model)

    def interrupted() -> None:
        with evaluation_mode(model), mc_dropout(model, 2, seed=0):
            assert not model.training
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert modes(model) == before
    with evaluation_mode(model), mc_dropout(model, 2, seed=0):
        pass
    assert modes(model) == before


def test_dropout_zero_has_no_passes(backbone: Backbone) -> None:
    model = attach_fresh(backbone, LoRA(r=4, dropout=0.0), seed=0)
    with pytest.raises(InputError, match="dropout"), mc_dropout(model, 3, seed=0):
        pass


# Hidden states and head


@pytest.mark.parametrize("tied", [True, False])
def test_head_and_hidden_states_give_the_models_own_logits(tmp_path: Path, tied: bool) -> None:
    folder = build_model(tmp_path / "tied", tie_word_embeddings=tied)
    model = Backbone(folder, "nf4", verbose=False).model
    rows = torch.tensor([[0, 3], [5, 7]])
    with torch.no_grad():
        hidden = row_hidden(model, sequences(PROMPTS, rows))
        logits = model(PROMPTS).logits
    head = head_of(model)
    expected = torch.stack([logits[0, 0], logits[0, 3], logits[1, 5], logits[1, 7]])
    got = head.logits(hidden[0], torch.arange(head.weight.shape[0]))
    assert torch.allclose(got, expected, atol=1e-5)
    assert np.ptp(expected.numpy()) > 0.1


@pytest.mark.parametrize("after", [0, 3, None])
def test_an_interrupted_adapter_leaves_nothing_on_the_model(
    backbone: Backbone, after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft would add the next adapter to the rest of the first, with only a warning."""
    from peft.tuners.lora import LoraModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    with torch.no_grad():
        plain = backbone.model(PROMPTS).logits
    replace, calls = LoraModel._create_and_replace, itertools.count()

    def replaced(*arguments: Any, **named: Any) -> None:
        if next(calls) == after:
            raise KeyboardInterrupt
        replace(*arguments, **named)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LoraModel, "_create_and_replace", replaced)
        if after is None:  # interrupted after all layers were replaced
            patch.setattr(LoraModel, "_cast_adapter_dtype", interrupted)
        with pytest.raises(KeyboardInterrupt):
            attach_fresh(backbone, LoRA(r=2), seed=0)
    assert next(calls) == (14 if after is None else after + 1)
    assert not [m for m in backbone.model.modules() if isinstance(m, BaseTunerLayer)]
    with torch.no_grad():
        assert torch.equal(backbone.model(PROMPTS).logits, plain)
    attach_fresh(backbone, LoRA(r=2), seed=0)  # a second adapter on the first would warn
    detach(backbone)
