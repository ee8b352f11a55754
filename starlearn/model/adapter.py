"""Adapter: the LoRA weights of one round, attached to the base model and detached from it."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from starlearn.errors import (
    InputError,
    ModelMismatchError,
    TrainingDivergedError,
    UntrustedFileError,
    listed,
)
from starlearn.model.backbone import Backbone
from starlearn.randomness import isolated_generators
from starlearn.settings import LoRA

WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = (WEIGHTS, "adapter_config.json")
"""Files that peft reads and writes in an adapter's folder."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Types that an adapter's weights may have in a file."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """Weights and settings of one trained adapter, independent of any model."""

    r: int
    alpha: float
    dropout: float
    target_modules: str | tuple[str, ...]
    base: str
    """Fingerprint of the base model that it was trained on."""
    state: dict[str, torch.Tensor] = field(repr=False)
    """A [r, in] and B [out, r] of each adapted layer, float32 on the CPU, by peft's names."""

    @classmethod
    def of(cls, lora: LoRA, base: str, state: dict[str, torch.Tensor]) -> "Adapter":
        """Return an adapter with these settings and weights."""
        target = lora.target_modules
        return cls(
            r=int(lora.r),
            alpha=float(lora.alpha),
            dropout=float(lora.dropout),
            target_modules=target if isinstance(target, str) else tuple(map(str, target)),
            base=base,
            state=state,
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of weights, scaling, dropout and base model, which decide the answers."""
        digest = hashlib.sha256(f"{self.base} {self.r} {self.alpha} {self.dropout}".encode())
        for name in sorted(self.state):
            digest.update(name.encode())
            digest.update(self.state[name].contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def settings(self) -> LoRA:
        """Return the settings with which the adapter was trained."""
        return LoRA(self.r, self.alpha, self.dropout, self.target_modules)


def attach_fresh(backbone: Backbone, lora: LoRA, seed: int) -> Any:
    """Attach a new adapter to the base model, with random A, zero B and nothing else trainable.

    Set and return ``backbone.peft_model``. An earlier adapter is detached first.
    """
    detach(backbone)
    try:
        with isolated_generators(seed):
            backbone.peft_model = with_lora(backbone.model, lora, backbone.source)
    except BaseException:
        # On Ctrl-C too: a second adapter must never be attached to the rest of the first.
        _strip(backbone.model)
        raise
    ends = {
        "output head": backbone.model.get_output_embeddings(),
        "token embeddings": backbone.model.get_input_embeddings(),
    }
    for name, module in ends.items():
        if isinstance(module, BaseTunerLayer):
            detach(backbone)
            raise InputError(
                f"LoRA(target_modules={lora.target_modules!r}) would adapt the {name} of "
                f"{backbone.source}, which starlearn does not train. Leave it out."
            )
    return backbone.peft_model


def with_lora(model: Any, lora: LoRA, source: str) -> Any:
    """Return peft's model with new adapter layers, drawn from torch's global generator."""
    with warnings.catch_warnings():
        # peft reads an attribute of transformers that was renamed; users cannot change that.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        # GPT-2's weights are transposed; peft detects this, warns, and handles it.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        try:
            return get_peft_model(model, lora_config(lora))
        except ValueError as error:
            raise InputError(
                f"LoRA(target_modules={lora.target_modules!r}) does not fit "
                f"{source}: {str(error).rstrip('.')}. Name linear layers of this model, such as "
                "those of its attention: LoRA(target_modules=['q_proj', 'v_proj'])."
            ) from error


def _strip(model: Any) -> None:
    """Remove the layers that peft had added to a model when it was interrupted."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    vars(model).pop("peft_config", None)


def detach(backbone: Backbone) -> None:
    """Detach the adapter; the base model is then the same as before, bit for bit."""
    if backbone.peft_model is not None:
        backbone.peft_model.unload()
        backbone.peft_model = None
    backbone.active = None


def activate(backbone: Backbone, adapter: Adapter) -> Any:
    """Load this adapter's weights into the model, unless they are loaded already."""
    check_base(backbone, adapter)
    if backbone.active is not adapter:
        attach_fresh(backbone, adapter.settings(), seed=0)
        load_state(backbone.peft_model, adapter.state)
        backbone.active = adapter
    return backbone.peft_model


def check_base(backbone: Backbone, adapter: Adapter) -> None:
    """Raise ModelMismatchError unless the adapter was trained on this base model."""
    if adapter.base != backbone.fingerprint:
        raise ModelMismatchError(
            f"The adapter was trained on another base model than {backbone.source} with "
            f"quantization={backbone.quantization!r:.60}, or on another version of its weights or "
            "tokenizer. Use the model and the quantisation of the training, or call fit again."
        )


@contextmanager
def base_only(backbone: Backbone) -> Iterator[Any]:
    """Yield the model with its adapter switched off, equal to the base model bit for bit."""
    if backbone.peft_model is None:
        yield backbone.model
        return
    with backbone.peft_model.disable_adapter():
        yield backbone.peft_model


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the adapter's weights on the CPU; they must be finite."""
    state = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in _weights(model).items()
    }
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise TrainingDivergedError(
            f"{len(broken)} of {len(state)} adapter weights are NaN or infinite after training "
            f"(first: {broken[0]}). The adapter was not kept. Lower Training(learning_rate=...)."
        )
    return state


def _weights(model: Any) -> dict[str, torch.Tensor]:
    # Embeddings are never adapted. By default peft sends a request to the hub at every training, to
    # find out whether they were enlarged.
    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def load_state(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Copy weights into the model's adapter; names and shapes must match, values be finite."""
    expected = _weights(model)
    missing = sorted(set(expected) - set(state))
    surplus = sorted(set(state) - set(expected))
    if missing or surplus:
        raise ModelMismatchError(
            "The adapter does not fit this base model: "
            f"{len(missing)} weights missing ({', '.join(missing[:2])}), "
            f"{len(surplus)} unknown ({', '.join(surplus[:2])}). "
            "Load it with the base model on which it was trained."
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ModelMismatchError(
                f"The adapter's weight {name} has shape {tuple(tensor.shape)}, but this base model "
                f"needs {tuple(expected[name].shape)}. Load it with the model of its training."
            )
        if not torch.isfinite(tensor).all():
            raise ModelMismatchError(f"The adapter's weight {name} is NaN or infinite.")
    set_peft_model_state_dict(model, state)


def write_adapter(
    folder: Path, adapter: Adapter, base: str | None, revision: str | None = None
) -> None:
    """Save an adapter in the format of ``PeftModel.from_pretrained``.

    `base` is the base model for peft: a folder, or a hub id with a commit in `revision`.
    """
    save_file(adapter.state, folder / WEIGHTS)
    config = lora_config(adapter.settings())
    config.base_model_name_or_path = base
    config.revision = revision
    config.inference_mode = True
    config.save_pretrained(folder)


def read_adapter(folder: Path, lora: LoRA, base: str) -> Adapter:
    """Read and check an adapter that `write_adapter` saved; `activate` checks the base model."""
    try:
        adapter = Adapter.of(lora, base, load_file(folder / WEIGHTS))
        saved = LoraConfig.from_pretrained(folder)
    # RecursionError: thousands of nested brackets in the settings.
    except (
        SafetensorError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UntrustedFileError(
            f"The adapter in {folder} cannot be read ({error!s:.200}). Restore it from a backup."
        ) from error
    wanted = lora_config(lora)
    for name in ("r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora"):
        if getattr(saved, name) != getattr(wanted, name):
            raise UntrustedFileError(
                f"{folder / 'adapter_config.json'} has {name}={getattr(saved, name)!r:.60}, but "
                f"the learner's settings have {getattr(wanted, name)!r:.60}. One of them belongs "
                "to another adapter. Restore the folder from a backup."
            )
    errors = _errors_of(adapter)
    if errors:
        raise UntrustedFileError(
            f"{folder / WEIGHTS} is not a complete adapter of rank {adapter.r}: {listed(errors)}. "
            "Restore it from a backup."
        )
    return adapter


def _errors_of(adapter: Adapter) -> list[str]:
    """Return a text for each weight that is missing, not finite, or of another type or rank."""
    errors = [] if adapter.state else ["it has no weights"]
    for name, tensor in sorted(adapter.state.items()):
        is_a = ".lora_A." in name
        other = (
            name.replace(".lora_A.", ".lora_B.") if is_a else name.replace(".lora_B.", ".lora_A.")
        )
        if other == name or other not in adapter.state:
            errors.append(f"{name} has no counterpart")
        elif tensor.dtype not in FLOATS:
            errors.append(f"{name} is {tensor.dtype}")
        elif tensor.ndim != 2 or tensor.shape[0 if is_a else 1] != adapter.r:
            errors.append(f"{name} has shape {tuple(tensor.shape)}")
        elif not torch.isfinite(tensor).all():
            errors.append(f"{name} is NaN or infinite")
    return errors


def lora_config(lora: LoRA) -> LoraConfig:
    """Return the settings of an adapter in peft's form."""
    target = lora.target_modules
    return LoraConfig(
        r=int(lora.r),
        lora_alpha=float(lora.alpha),
        lora_dropout=float(lora.dropout),
        target_modules=target if isinstance(target, str) else list(map(str, target)),
        task_type="CAUSAL_LM",
    )
