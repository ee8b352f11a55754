"""Checkpoint of an unfinished training: one file, from which the training continues."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from starlearn.errors import StorageError, UntrustedFileError
from starlearn.model.adapter import adapter_state, load_state
from starlearn.randomness import generator_states, restore_generators
from starlearn.storage.files import replacing, require_regular, require_space, sync

CONTENT, SUM = "training", "sha256"
"""Keys of the file's metadata: all fields but the tensors as JSON, and the checksum of both."""
ADAPTER, OPTIMIZER, LOSSES = "adapter.", "optimizer.", "losses"
"""Names of tensors, the first two as prefixes."""


@dataclass(frozen=True)
class Checkpoint:
    """State of a training after some of its steps."""

    facts: dict[str, str]
    """All that determines the training, by name."""
    steps: int
    """Number of finished optimiser steps."""
    total: int
    """Number of all steps."""
    ended: bool
    """Whether the training was complete."""
    batch_size: int
    gradient_accumulation: int
    """Both can differ from the settings, because memory ran out."""
    scheduler: dict[str, Any]
    generators: dict[str, Any]
    """States of the random generators of Python, NumPy and torch."""
    tensors: dict[str, Tensor] = field(repr=False)
    """Adapter, moments of the optimiser, and the loss of each step, on the CPU."""

    @classmethod
    def of(
        cls, model: Any, optimizer: Any, scheduler: Any, losses: list[float], **values: Any
    ) -> Self:
        """Return the state between two steps of a training."""
        tensors = {ADAPTER + name: tensor for name, tensor in adapter_state(model).items()}
        for index, moments in optimizer.state_dict()["state"].items():
            for name, tensor in moments.items():
                tensors[f"{OPTIMIZER}{index}.{name}"] = tensor.detach().cpu().contiguous()
        tensors[LOSSES] = torch.tensor(losses, dtype=torch.float64)
        return cls(
            steps=len(losses),
            scheduler=scheduler.state_dict(),
            generators=generator_states(),
            tensors=tensors,
            **values,
        )

    @property
    def losses(self) -> list[float]:
        """Loss of each finished step."""
        return [float(value) for value in self.tensors[LOSSES]]

    def load_adapter(self, model: Any) -> None:
        """Copy the weights into the model's adapter."""
        load_state(model, self._part(ADAPTER))

    def load_optimizer(self, optimizer: Any, scheduler: Any) -> None:
        """Set the optimiser's moments, and the schedule with its learning rate."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self._part(OPTIMIZER).items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        scheduler.load_state_dict(self.scheduler)
        for group, rate in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def restore_generators(self) -> None:
        """Set the random generators to their states before the next step."""
        restore_generators(self.generators)

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint durably: after a kill, the file is the old or the new one.

    Raises
    ------
    StorageError
        When the disk is full or fails, or would leave no room to publish the adapter.
    """
    # An adapter is a third of the file, and its publication needs room for three.
    size = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    require_space(path.parent, 2 * size, "A checkpoint of the training")
    content = json.dumps({k: v for k, v in vars(checkpoint).items() if k != "tensors"})
    metadata = {CONTENT: content, SUM: _checksum(content, checkpoint.tensors)}
    with replacing(path) as scratch:
        scratch.unlink(missing_ok=True)
        # Made before it is written, so that nobody else can read it for a moment.
        os.close(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600))
        try:
            save_file(checkpoint.tensors, scratch, metadata)
        except SafetensorError as error:
            raise StorageError(f"{path} could not be written ({error}).") from error
        os.chmod(scratch, 0o600)
        sync(scratch)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint in a file, and None without a file.

    Raises
    ------
    UntrustedFileError
        When the file is not exactly what was written.
    """
    if not path.exists() and not path.is_symlink():
        return None
    require_regular(path)
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata()
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        if _checksum(metadata[CONTENT], tensors) != metadata[SUM]:
            raise ValueError("its checksum differs")
        return Checkpoint(**json.loads(metadata[CONTENT]), tensors=tensors)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UntrustedFileError(f"{path} is damaged ({error!r:.80}).") from error


def kept_steps(path: Path) -> tuple[int, int] | None:
    """Return the number of kept steps in a file, and of all steps; None where there are none."""
    try:
        require_regular(path)
        with safe_open(path, framework="np") as handle:
            content = json.loads(handle.metadata()[CONTENT])
        return int(content["steps"]), int(content["total"])
    except (OSError, UntrustedFileError, SafetensorError, ValueError, KeyError, TypeError):
        return None


def usable_checkpoint(path: Path, facts: Mapping[str, str]) -> Checkpoint | None:
    """Return the checkpoint of the training with these facts.

    One of another training, or a damaged one, is removed with a warning.
    """
    try:
        found = read_checkpoint(path)
        if found is None:
            return None
        changed = [name for name, value in facts.items() if found.facts.get(name) != value]
        if not changed:
            return found
        reason = f"these have changed since: {', '.join(changed)}"
    except UntrustedFileError as error:
        reason = str(error).rstrip(".")
    remove_checkpoint(path)
    warnings.warn(
        f"The kept steps of an interrupted training cannot be used, because {reason}. They were "
        "removed, and the training starts at step 0.",
        UserWarning,
        stacklevel=2,
    )
    return None


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, and the rest of one whose writing was killed."""
    for file in (path, path.with_name(f".{path.name}.new")):
        file.unlink(missing_ok=True)


def _checksum(content: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
