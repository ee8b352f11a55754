"""A learner on disk: peft's own adapter folder, settings as JSON, labels as JSON lines."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from starlearn.errors import InputError, ModelMismatchError, UntrustedFileError
from starlearn.inputs import DEFAULTS, checked_parts
from starlearn.model.adapter import ADAPTER_FILES, read_adapter, write_adapter
from starlearn.model.backbone import Backbone, quantization_from_json, quantization_to_json
from starlearn.settings import LoRA
from starlearn.tasks import ChoiceTask, GenerationTask

if TYPE_CHECKING:
    from starlearn.learner import STARLearner

FORMAT = 1
SETTINGS, LABELS, MANIFEST = "starlearn.json", "labelled.jsonl", "MANIFEST.json"
_TASKS = {"ChoiceTask": ChoiceTask, "GenerationTask": GenerationTask}


def save(learner: "STARLearner", folder: str | os.PathLike[str], backbone: Backbone) -> None:
    """Write a fitted learner to a folder that must not exist yet.

    The folder is peft's own format, so ``PeftModel.from_pretrained(base, folder)`` opens it.
    It appears under its name only when it is complete.

    Raises
    ------
    InputError
        When the folder exists already, or a setting has no form as JSON.
    """
    target = Path(folder)
    if target.exists():
        raise InputError(
            f"The folder {target} exists already. Choose a new one: nothing was written."
        )
    scratch = target.with_name(f".{target.name}.incomplete")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write_adapter(scratch, learner.adapter_, backbone.source)
    _write_json(scratch / SETTINGS, _settings(learner, backbone))
    with (scratch / LABELS).open("w", encoding="utf-8") as lines:
        for item, label in zip(learner.X_training, learner.y_training, strict=True):
            row = {"item": dict(item) if isinstance(item, Mapping) else item, "label": label}
            lines.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")
    sums = {file.name: _sha256(file) for file in sorted(scratch.iterdir())}
    _write_json(scratch / MANIFEST, {"format": FORMAT, "base": backbone.fingerprint, "files": sums})
    os.replace(scratch, target)


def load(
    learner_class: "type[STARLearner]",
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str] | None,
) -> "tuple[STARLearner, str]":
    """Read a learner, and the fingerprint of the base model that it was trained on.

    Raises
    ------
    InputError
        When the folder is not there or was written by a newer starlearn.
    UntrustedFileError
        When a file is missing, or not the one that was saved.
    """
    source = Path(folder)
    manifest = _manifest(source)
    settings = json.loads((source / SETTINGS).read_text(encoding="utf-8"))
    parameters = {name: _part(name, value) for name, value in settings["parameters"].items()}
    if model is not None:
        parameters["model"] = model
    learner = learner_class(**parameters)
    checked_parts(learner)
    learner.adapter_ = read_adapter(source, LoRA(**settings["adapter_"]))
    learner.seed_ = settings["seed_"]
    learner.rounds_ = settings["rounds_"]
    if settings["classes_"] is not None:
        learner.classes_ = _labels(settings["classes_"])
    with (source / LABELS).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    learner._remember([row["item"] for row in rows], _labels([row["label"] for row in rows]))
    return learner, manifest["base"]


def check_base(backbone: Backbone, fingerprint: str) -> None:
    """Raise ModelMismatchError unless the base model is the one with this fingerprint."""
    if backbone.fingerprint != fingerprint:
        raise ModelMismatchError(
            f"The adapter was trained on another base model than {backbone.source} (or on "
            "another version, quantisation or tokenizer of it). Give the right one: "
            "STARLearner.load(folder, model=...)."
        )


def _settings(learner: "STARLearner", backbone: Backbone) -> dict[str, Any]:
    parameters = learner.get_params(deep=False)
    for name in DEFAULTS:
        part = parameters[name]
        if part is not None:
            parameters[name] = {"class": type(part).__name__, **part.get_params(deep=False)}
    if learner.model is not None:
        parameters["model"] = backbone.source
    parameters["quantization"] = quantization_to_json(learner.quantization)
    if not isinstance(learner.random_state, int):
        parameters["random_state"] = learner.seed_  # a generator's state does not travel
    return {
        "parameters": parameters,
        "adapter_": learner.adapter_.settings().get_params(deep=False),
        "seed_": learner.seed_,
        "rounds_": learner.rounds_,
        "classes_": learner.classes_.tolist() if hasattr(learner, "classes_") else None,
    }


def _part(name: str, value: Any) -> Any:
    if name == "quantization":
        return quantization_from_json(value)
    if name not in DEFAULTS or value is None:
        return value
    arguments = dict(value)
    kind = arguments.pop("class")
    known = {**_TASKS, **{default.__name__: default for default, _ in DEFAULTS.values()}}
    if kind not in known:
        raise UntrustedFileError(f"{SETTINGS} names an unknown class {kind!r} for {name!r}.")
    return known[kind](**arguments)


def _manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise InputError(f"There is no saved learner in {folder} ({MANIFEST} is missing).")
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format"] > FORMAT:
        raise InputError(
            f"{folder} was saved by a newer starlearn (format {manifest['format']}, this one "
            f"reads up to {FORMAT}). Upgrade: pip install -U starlearn."
        )
    for name in (*ADAPTER_FILES, SETTINGS, LABELS):
        file = folder / name
        if not file.is_file() or manifest["files"].get(name) != _sha256(file):
            raise UntrustedFileError(
                f"{file} is missing or is not the file that was saved (SHA-256 differs from "
                f"{MANIFEST}). Take the folder from a backup."
            )
    return manifest


def _labels(values: list[Any]) -> Any:
    if values and isinstance(values[0], str):
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    return np.array(values)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | tuple):
        return list(value)
    raise InputError(f"{value!r:.60} cannot be saved as JSON. Use plain numbers, texts and lists.")


def _write_json(file: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, default=_plain)
    file.write_text(text + "\n", encoding="utf-8")


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
