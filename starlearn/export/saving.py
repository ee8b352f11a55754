"""A learner on disk: the adapter in peft's format, settings as JSON, labels as JSON lines."""

import json
import math
import os
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from starlearn.errors import InputError, UntrustedFileError
from starlearn.model.adapter import ADAPTER_FILES, Adapter, read_adapter, write_adapter
from starlearn.model.backbone import Backbone, quantization_from_json, quantization_to_json
from starlearn.settings import LoRA
from starlearn.storage.files import complete_folder, file_sha256
from starlearn.tasks import DEFAULTS, ChoiceTask, GenerationTask

FORMAT = 1
NOT_SAVED = ("callbacks", "report_to")
"""Parameters that are not saved: functions, and trackers that send data elsewhere."""
SETTINGS, LABELS, MANIFEST = "starlearn.json", "labelled.jsonl", "MANIFEST.json"
_CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (ChoiceTask, GenerationTask, *(default for default, _ in DEFAULTS.values()))
}


@dataclass(frozen=True)
class Saved:
    """Content of a fitted learner, without its base model."""

    parameters: dict[str, Any]
    """Parameters of the constructor, by name."""
    adapter: Adapter
    seed: int
    rounds: list[dict[str, Any]]
    classes: list[Any] | None
    """None for free-form answers."""
    items: Sequence[Any]
    """The labelled set, length N."""
    labels: Sequence[Any]


def content_of(learner: Any) -> Saved:
    """Return the content of a fitted learner."""
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
    """Write a learner to a new or empty folder, which has its name only when it is complete.

    The folder is in peft's format: ``PeftModel.from_pretrained(base, folder)`` opens it. It is
    private to its owner, because labelled items can be personal data.
    """
    with complete_folder(folder) as scratch:
        os.chmod(scratch, 0o700)
        write_files(saved, scratch, backbone.source, backbone.revision)
        for file in scratch.iterdir():
            os.chmod(file, 0o600)


def write_files(saved: Saved, scratch: Path, base: str, revision: str | None) -> None:
    """Write a learner's files to an empty folder; `base` is the path or hub id of its model.

    Files with texts are private to their owner from the start.
    """
    write_adapter(scratch, saved.adapter, base, revision)
    _write_json(scratch / SETTINGS, _settings(saved, base))
    with open(scratch / LABELS, "w", encoding="utf-8", opener=_private) as lines:
        for item, label in zip(saved.items, saved.labels, strict=True):
            row = {"item": dict(item) if isinstance(item, Mapping) else item, "label": label}
            lines.write(_line(row))
    sums = {file.name: file_sha256(file) for file in sorted(scratch.iterdir())}
    _write_json(scratch / MANIFEST, {"format": FORMAT, "base": saved.adapter.base, "files": sums})


def load(folder: str | os.PathLike[str]) -> Saved:
    """Read a learner.

    Raises
    ------
    InputError
        When the folder does not exist, or was written by a newer starlearn.
    UntrustedFileError
        When a file is missing or changed, or the adapter is not finite.
    """
    source = Path(folder)
    manifest = _manifest(source)
    try:
        settings = json.loads((source / SETTINGS).read_text(encoding="utf-8"))
        with (source / LABELS).open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        lora = LoRA(**settings["adapter"])
        lora.check()
        _check_rounds(settings["rounds"])
        return Saved(
            parameters=parameters_from_json(settings["parameters"], str(source / SETTINGS)),
            adapter=read_adapter(source, lora, manifest["base"]),
            seed=int(settings["seed"]),
            rounds=settings["rounds"],
            classes=settings["classes"],
            items=[row["item"] for row in rows],
            labels=[row["label"] for row in rows],
        )
    except UntrustedFileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UntrustedFileError(
            f"{source} is not a complete saved learner: {SETTINGS} or {LABELS} has invalid content "
            f"({error!r:.100}). Restore the folder from a backup."
        ) from error


def _check_rounds(rounds: Any) -> None:
    """Raise InputError unless a learner's records can be used: `predict_proba` divides by one."""
    if not isinstance(rounds, list) or not all(isinstance(record, dict) for record in rounds):
        raise InputError("rounds must be a list of objects")
    for record in rounds:
        value = record.get("temperature", 1.0)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise InputError(f"the temperature of a round must be a positive number, not {value!r}")


def parameters_to_json(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a learner's parameters for JSON; a part becomes its class name and settings."""
    found = {name: value for name, value in parameters.items() if name not in NOT_SAVED}
    for name in DEFAULTS:
        part = found[name]
        if part is not None:
            if _CLASSES.get(type(part).__name__) is not type(part):
                raise InputError(
                    f"{name}={type(part).__name__}(...) cannot be saved: only starlearn's own "
                    "classes can, because loading others would run code. Use one of these, or "
                    "pickle the learner."
                )
            settings = part.get_params(deep=False)
            if code := [key for key, value in settings.items() if callable(value)]:
                raise InputError(
                    f"{name}.{code[0]} is a function, which cannot be saved: loading would run "
                    f"code. Save with set_params({name}__{code[0]}=None), or pickle the learner."
                )
            found[name] = {"class": type(part).__name__, **settings}
    found["quantization"] = quantization_to_json(found["quantization"])
    if isinstance(found["random_state"], Integral):  # NumPy integers become int
        found["random_state"] = int(found["random_state"])
    return found


def parameters_from_json(parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the parameters of `parameters_to_json`; `where` is their file, for error messages.

    A part of a class that is not starlearn's is refused, because it could run code.
    """
    found = dict(parameters)
    if unexpected := [name for name in NOT_SAVED if name in found]:
        raise UntrustedFileError(f"{where} sets {unexpected[0]}, which starlearn never saves.")
    for name in DEFAULTS:
        if found[name] is None:
            continue
        arguments = dict(found[name])
        kind = arguments.pop("class", None)
        if kind not in _CLASSES:
            raise UntrustedFileError(f"{where} names an unknown class {kind!r:.60} for {name!r}.")
        if arguments.get("strategy") == "star":  # the names of an earlier version
            arguments["strategy"] = "uncertainty"
        if arguments.pop("mc_layers", None) is not None:
            warnings.warn(
                f"{where} has the removed option mc_layers. Dropout now acts in all layers.",
                UserWarning,
                stacklevel=3,
            )
        if arguments.get("choices") is not None:
            # An earlier version could save one choice in two Unicode forms.
            composed = (unicodedata.normalize("NFC", str(c)) for c in arguments["choices"])
            arguments["choices"] = list(dict.fromkeys(composed))
        found[name] = _CLASSES[kind](**arguments)
    found["quantization"] = quantization_from_json(found["quantization"])
    return found


def _line(row: Mapping[str, Any]) -> str:
    """Return a labelled item as a line of JSON; values without a JSON form become text."""
    try:
        line = json.dumps(row, ensure_ascii=False, default=_json_or_text)
        line.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate
        line = json.dumps(row, default=_json_or_text)
    except (TypeError, ValueError):  # keys that are not text, or a list that contains itself
        fields = {
            str(name): value if isinstance(value, str | int | float | None) else str(value)
            for name, value in row["item"].items()
        }
        line = json.dumps({**row, "item": fields})
    return line + "\n"


def _json_or_text(value: Any) -> Any:
    try:
        return json_value(value)
    except InputError:
        return str(value)


def json_value(value: Any) -> Any:
    """Return a NumPy value or a tuple in a form that `json` can write, or raise InputError."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | tuple):
        return list(value)
    raise InputError(f"{value!r:.60} cannot be saved as JSON. Use plain numbers, texts and lists.")


def _settings(saved: Saved, base: str) -> dict[str, Any]:
    parameters = parameters_to_json(saved.parameters)
    if parameters["model"] is not None:
        parameters["model"] = base
    parameters["cache_dir"] = None  # a path of this machine
    if not isinstance(parameters["random_state"], int):
        parameters["random_state"] = saved.seed  # the state of a generator is not saved
    return {
        "parameters": parameters,
        "adapter": saved.adapter.settings().get_params(deep=False),
        "seed": saved.seed,
        "rounds": saved.rounds,
        "classes": saved.classes,
    }


def _manifest(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} is not a saved learner: {MANIFEST} is missing. Check the path.")
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        written, base, files = manifest["format"], manifest["base"], manifest["files"]
        types = [(written, int), (base, str), (files, dict)]
        if not all(isinstance(value, kind) for value, kind in types):
            raise InputError("a value of another type")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UntrustedFileError(
            f"{folder / MANIFEST} is damaged ({error!r:.80}). Restore the folder from a backup."
        ) from error
    if written > FORMAT:
        raise InputError(
            f"{folder} was saved by a newer starlearn (format {written}, this one "
            f"reads up to {FORMAT}). Upgrade: pip install -U starlearn."
        )
    for name in (*ADAPTER_FILES, SETTINGS, LABELS):
        file = folder / name
        if not file.is_file() or files.get(name) != file_sha256(file):
            raise UntrustedFileError(
                f"{file} is missing or was changed (its SHA-256 differs from {MANIFEST}). Restore "
                "the folder from a backup."
            )
    return manifest


def _write_json(file: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, default=json_value)
    with open(file, "w", encoding="utf-8", opener=_private) as handle:
        handle.write(text + "\n")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)
