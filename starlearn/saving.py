"""A learner on disk: peft's own adapter folder, settings as JSON, labels as JSON lines."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from starlearn.errors import InputError, UntrustedFileError
from starlearn.inputs import DEFAULTS
from starlearn.model.adapter import ADAPTER_FILES, Adapter, read_adapter, write_adapter
from starlearn.model.backbone import Backbone, quantization_from_json, quantization_to_json
from starlearn.settings import LoRA
from starlearn.tasks import ChoiceTask, GenerationTask

FORMAT = 1
SETTINGS, LABELS, MANIFEST = "starlearn.json", "labelled.jsonl", "MANIFEST.json"
_TASKS = {"ChoiceTask": ChoiceTask, "GenerationTask": GenerationTask}


@dataclass(frozen=True)
class Saved:
    """What a fitted learner consists of, apart from its base model."""

    parameters: dict[str, Any]
    """The constructor's, by name."""
    adapter: Adapter
    seed: int
    rounds: list[dict[str, Any]]
    classes: list[Any] | None
    """None where answers are free-form."""
    items: Sequence[Any]
    """The labelled set, length N."""
    labels: Sequence[Any]


def content_of(learner: Any) -> Saved:
    """Return what a fitted learner consists of."""
    return Saved(
        parameters=learner.get_params(deep=False),
        adapter=learner.adapter_,
        seed=learner.seed_,
        rounds=learner.rounds_,
        classes=learner.classes_.tolist() if hasattr(learner, "classes_") else None,
        items=learner.X_training.tolist(),
        labels=learner.y_training.tolist(),
    )


def save(saved: Saved, folder: str | os.PathLike[str], backbone: Backbone) -> None:
    """Write a learner to a folder that must not exist yet.

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
    try:
        _write(saved, scratch, backbone)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(saved: Saved, scratch: Path, backbone: Backbone) -> None:
    write_adapter(scratch, saved.adapter, backbone.source)
    _write_json(scratch / SETTINGS, _settings(saved, backbone))
    with (scratch / LABELS).open("w", encoding="utf-8") as lines:
        for item, label in zip(saved.items, saved.labels, strict=True):
            row = {"item": dict(item) if isinstance(item, Mapping) else item, "label": label}
            lines.write(json.dumps(row, ensure_ascii=False, default=_plain) + "\n")
    sums = {file.name: _sha256(file) for file in sorted(scratch.iterdir())}
    _write_json(scratch / MANIFEST, {"format": FORMAT, "base": saved.adapter.base, "files": sums})


def load(folder: str | os.PathLike[str]) -> Saved:
    """Read a learner.

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
    with (source / LABELS).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return Saved(
        parameters={name: _part(name, value) for name, value in settings["parameters"].items()},
        adapter=read_adapter(source, LoRA(**settings["adapter"]), manifest["base"]),
        seed=settings["seed"],
        rounds=settings["rounds"],
        classes=settings["classes"],
        items=[row["item"] for row in rows],
        labels=[row["label"] for row in rows],
    )


def _settings(saved: Saved, backbone: Backbone) -> dict[str, Any]:
    parameters = dict(saved.parameters)
    for name in DEFAULTS:
        part = parameters[name]
        if part is not None:
            parameters[name] = {"class": type(part).__name__, **part.get_params(deep=False)}
    if parameters["model"] is not None:
        parameters["model"] = backbone.source
    parameters["cache_dir"] = None  # a folder of this machine
    parameters["quantization"] = quantization_to_json(parameters["quantization"])
    if not isinstance(parameters["random_state"], int):
        parameters["random_state"] = saved.seed  # a generator's state does not travel
    return {
        "parameters": parameters,
        "adapter": saved.adapter.settings().get_params(deep=False),
        "seed": saved.seed,
        "rounds": saved.rounds,
        "classes": saved.classes,
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
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        written, _, _ = manifest["format"], manifest["base"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise UntrustedFileError(
            f"{folder / MANIFEST} is damaged ({error!r:.80}). Take the folder from a backup."
        ) from error
    if written > FORMAT:
        raise InputError(
            f"{folder} was saved by a newer starlearn (format {written}, this one "
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
