"""Adapter: the LoRA weights of one round, and how they get onto the base model and off it."""

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
"""What peft reads and writes in an adapter's folder."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """Weights of one trained adapter, apart from any model."""

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
        """Put the settings of an adapter beside its weights."""
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
        """SHA-256 of weights, scaling, dropout and base model: what decides its answers."""
        digest = hashlib.sha256(f"{self.base} {self.r} {self.alpha} {self.dropout}".encode())
        for name in sorted(self.state):
            digest.update(name.encode())
            digest.update(self.state[name].contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def settings(self) -> LoRA:
        """Return the settings it was made with."""
        return LoRA(self.r, self.alpha, self.dropout, self.target_modules)


def attach_fresh(backbone: Backbone, lora: LoRA, seed: int) -> Any:
    """Put a new adapter on the base model: A random, B zero, nothing else trainable.

    Returns
    -------
    peft.PeftModel
        Also kept as ``backbone.peft_model``; an earlier adapter is taken off first.
    """
    detach(backbone)
    try:
        with isolated_generators(seed):
            backbone.peft_model = with_lora(backbone.model, lora, backbone.source)
    except BaseException:
        # Ctrl-C too: a second adapter must never be put on what is left of the first.
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
                f"{backbone.source}, which starlearn takes from the base model. Leave it out."
            )
    return backbone.peft_model


def with_lora(model: Any, lora: LoRA, source: str) -> Any:
    """Return peft's model with new adapter layers, drawn by torch's global generator."""
    with warnings.catch_warnings():
        # peft asks transformers for an attribute that was renamed; nothing a user could change
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        # GPT-2's weights are transposed: peft sees that, tells it, and goes by it.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")
        try:
            return get_peft_model(model, lora_config(lora))
        except ValueError as error:
            raise InputError(
                f"LoRA(target_modules={lora.target_modules!r}) does not fit "
                f"{source}: {str(error).rstrip('.')}. Name linear layers that it has, "
                "such as those of its attention: LoRA(target_modules=['q_proj', 'v_proj'])."
            ) from error


def _strip(model: Any) -> None:
    """Take off what peft had put on a model when it was interrupted."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    vars(model).pop("peft_config", None)


def detach(backbone: Backbone) -> None:
    """Take the adapter off; the base model is then what it was, bit for bit."""
    if backbone.peft_model is not None:
        backbone.peft_model.unload()
        backbone.peft_model = None
    backbone.active = None


def activate(backbone: Backbone, adapter: Adapter) -> Any:
    """Make the model hold this adapter's weights; does nothing when it already does.

    Raises
    ------
    ModelMismatchError
        When the adapter was trained on another base model.
    """
    check_base(backbone, adapter)
    if backbone.active is not adapter:
        attach_fresh(backbone, adapter.settings(), seed=0)
        load_state(backbone.peft_model, adapter.state)
        backbone.active = adapter
    return backbone.peft_model


def check_base(backbone: Backbone, adapter: Adapter) -> None:
    """Raise ModelMismatchError unless the adapter was trained on this very base model."""
    if adapter.base != backbone.fingerprint:
        raise ModelMismatchError(
            f"The adapter was trained on another base model than {backbone.source} with "
            f"quantization={backbone.quantization!r:.60}, or on another version of its weights or "
            "tokenizer. Give the model and the quantisation of the training, or call fit again."
        )


@contextmanager
def base_only(backbone: Backbone) -> Iterator[Any]:
    """Give the same model with the adapter off: the base model's own numbers, bit for bit."""
    if backbone.peft_model is None:
        yield backbone.model
        return
    with backbone.peft_model.disable_adapter():
        yield backbone.peft_model


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the adapter's weights on the CPU.

    Raises
    ------
    TrainingDivergedError
        When a weight is NaN or infinite.
    """
    state = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in _weights(model).items()
    }
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise TrainingDivergedError(
            f"{len(broken)} of {len(state)} adapter weights are NaN or infinite after training "
            f"(first: {broken[0]}). Nothing was published. Lower Training(learning_rate=...)."
        )
    return state


def _weights(model: Any) -> dict[str, torch.Tensor]:
    # Embeddings are never adapted. Left to itself, peft asks the hub whether they were enlarged:
    # a request over the network at every training.
    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


def load_state(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Copy weights into the model's adapter, strictly: same names, same shapes, finite."""
    expected = _weights(model)
    missing = sorted(set(expected) - set(state))
    surplus = sorted(set(state) - set(expected))
    if missing or surplus:
        raise ModelMismatchError(
            "The adapter does not fit this base model: "
            f"{len(missing)} weights missing ({', '.join(missing[:2])}), "
            f"{len(surplus)} unknown ({', '.join(surplus[:2])}). "
            "Load it with the base model it was trained on."
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ModelMismatchError(
                f"The adapter's weight {name} has shape {tuple(tensor.shape)}, this base model "
                f"needs {tuple(expected[name].shape)}. Load it with the model it was trained on."
            )
        if not torch.isfinite(tensor).all():
            raise ModelMismatchError(f"The adapter's weight {name} is NaN or infinite.")
    set_peft_model_state_dict(model, state)


def write_adapter(
    folder: Path, adapter: Adapter, base: str | None, revision: str | None = None
) -> None:
    """Write an adapter the way peft does, so that ``PeftModel.from_pretrained`` opens it.

    Parameters
    ----------
    base, revision : str or None
        Where peft finds the base model: a folder, or a hub id and a commit.
    """
    save_file(adapter.state, folder / WEIGHTS)
    config = lora_config(adapter.settings())
    config.base_model_name_or_path = base
    config.revision = revision
    config.inference_mode = True
    config.save_pretrained(folder)


def read_adapter(folder: Path, lora: LoRA, base: str) -> Adapter:
    """Read the weights that `write_adapter` wrote.

    Whether they fit the base model is seen when they are activated.

    Raises
    ------
    UntrustedFileError
        When the file is no whole adapter of this rank, a weight is NaN or infinite, or peft's
        configuration says something else than `lora`.
    """
    try:
        adapter = Adapter.of(lora, base, load_file(folder / WEIGHTS))
        said = LoraConfig.from_pretrained(folder)
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise UntrustedFileError(
            f"The adapter in {folder} cannot be read ({error!s:.200}). Take it from a backup."
        ) from error
    wanted = lora_config(lora)
    for name in ("r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora"):
        if getattr(said, name) != getattr(wanted, name):
            raise UntrustedFileError(
                f"{folder / 'adapter_config.json'} says {name}={getattr(said, name)!r:.60}, the "
                f"learner's settings say {getattr(wanted, name)!r:.60}: one of them is not of this "
                "adapter. Take the folder from a backup."
            )
    complaints = _faults_of(adapter)
    if complaints:
        raise UntrustedFileError(
            f"{folder / WEIGHTS} is not a whole adapter of rank {adapter.r}: {listed(complaints)}. "
            "Take it from a backup."
        )
    return adapter


def _faults_of(adapter: Adapter) -> list[str]:
    """Say which weights are missing, not finite, or of another rank."""
    complaints = [] if adapter.state else ["it holds no weights"]
    for name, tensor in sorted(adapter.state.items()):
        is_a = ".lora_A." in name
        other = (
            name.replace(".lora_A.", ".lora_B.") if is_a else name.replace(".lora_B.", ".lora_A.")
        )
        if other == name or other not in adapter.state:
            complaints.append(f"{name} has no counterpart")
        elif tensor.ndim != 2 or tensor.shape[0 if is_a else 1] != adapter.r:
            complaints.append(f"{name} has shape {tuple(tensor.shape)}")
        elif not torch.isfinite(tensor).all():
            complaints.append(f"{name} is NaN or infinite")
    return complaints


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
