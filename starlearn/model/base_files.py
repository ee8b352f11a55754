"""Files of a base model's folder: which ones are loaded, and checks before anything reads them.

The folder comes from somebody else. Its JSON files can name other files, also outside the folder,
and code. Only what the fingerprint covers may be loaded.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from starlearn.errors import InputError, UntrustedFileError, listed

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CODE = "_implementation"
"""End of the names of settings, such as attn_implementation, whose value may be code on the hub."""
FLOATS = {"F64", "F32", "F16", "BF16"}
"""Types of weights that are not quantised, by their names in safetensors."""


def check_folder(folder: Path) -> None:
    """Raise an error unless a folder holds a model whose files can be loaded safely."""
    if not folder.is_dir():
        raise InputError(f"There is no model folder {folder}. Pass a folder or a hub id.")
    names = {file.name for file in folder.iterdir()}
    if CONFIG not in names:
        raise InputError(
            f"The folder {folder} has no config.json, so it is not a model. It contains: "
            f"{', '.join(sorted(names)[:8]) or 'nothing'}."
        )
    check_config(folder)
    tokenizer_versions(folder)
    if any(name.endswith(".safetensors") for name in names):
        weight_files(folder)
        return
    if any(name.endswith(PICKLES) for name in names):
        raise UntrustedFileError(
            f"The weights in {folder} are pickle files, which can run code when loaded. "
            "Convert them: model.save_pretrained(folder, safe_serialization=True)."
        )
    raise InputError(
        f"The model folder {folder} has no weights (*.safetensors). Was the download complete?"
    )


def check_config(folder: Path) -> None:
    """Raise UntrustedFileError when a model's configuration names code or other files."""
    file = folder / CONFIG
    config = read_json(file)
    if config.get("auto_map"):
        raise UntrustedFileError(
            f"{file} has auto_map: the model needs its own code, which starlearn does not run. Use "
            "a model that transformers supports itself."
        )
    if config.get("configuration_files"):
        raise UntrustedFileError(
            f"{file} names other configuration files (configuration_files). Remove this line, or "
            "rename the file that you need to config.json."
        )
    for place, value in _entries(config):
        name = place[-1]
        if name == "transformers_weights" and len(place) > 1 and value is not None:
            raise UntrustedFileError(
                f"{file} names a weight file in a nested part ({'.'.join(place)}). Remove the line."
            )
        # With the library `kernels` installed, transformers downloads "org/name" and runs it.
        chosen = next((key for key in place if key.removesuffix("_internal").endswith(CODE)), "")
        if chosen and isinstance(value, str) and "/" in value:
            raise UntrustedFileError(
                f"{file} has {chosen}={value!r:.60}, which names code on the hub. starlearn does "
                f"not run it. Remove {chosen}."
            )


def weight_files(folder: Path) -> list[Path]:
    """Return the files from which transformers loads the weights; the folder may hold other ones.

    Raises
    ------
    UntrustedFileError
        When one of them is not a plain ``*.safetensors`` file of this folder.
    InputError
        When one of them is missing, or the index cannot be read.
    """
    # transformers prefers files with such names, whatever the index holds.
    if any(folder.glob("shard-*-model-*-of-*.safetensors")):
        raise InputError(
            f"{folder} holds a distributed checkpoint (shard-*.safetensors), which starlearn does "
            "not load. Load it with transformers and save it: model.save_pretrained(new_folder)."
        )
    first = named_weights(folder)
    if first is None:
        plain = (folder / SAFE_WEIGHTS_NAME).is_file()
        first = SAFE_WEIGHTS_NAME if plain else SAFE_WEIGHTS_INDEX_NAME
    if not first.endswith(".index.json"):
        return [_own_file(folder, first)]
    if not (folder / first).is_file():
        raise InputError(
            f"{folder} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}. Was the "
            "download complete?"
        )
    return [_own_file(folder, name) for name in shard_names(folder / first)]


def named_weights(folder: Path) -> str | None:
    """Return the weight file or index that the configuration names; None for the usual one."""
    name = read_json(folder / CONFIG).get("transformers_weights")
    if name is None:
        return None
    if not (isinstance(name, str) and name.endswith((".safetensors", ".safetensors.index.json"))):
        raise _not_plain(folder / CONFIG, name)
    return plain_name(folder / CONFIG, name)


def shard_names(index: Path) -> list[str]:
    """Return the names of the weight files in an index; all of them are plain."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{index} has no weight_map. Was the download complete?")
    names = list(dict.fromkeys(str(name) for name in shards.values()))
    for name in names:
        if not name.endswith(".safetensors"):
            raise _not_plain(index, name)
        plain_name(index, name)
    return sorted(names)


def tokenizer_versions(folder: Path) -> list[str]:
    """Return the files, one per version of transformers, that may replace tokenizer.json."""
    file = folder / TOKENIZER_CONFIG
    if not file.is_file():
        return []
    return [plain_name(file, name) for name in read_json(file).get("fast_tokenizer_files") or ()]


def plain_name(source: Path, name: Any) -> str:
    """Return the name of a file that `source` refers to; raise an error for a path."""
    if not isinstance(name, str) or not name or name.startswith(".") or set(name) & set("/\\:\0"):
        raise _not_plain(source, name)
    return name


def check_types(files: list[Path], *, quantised: bool) -> None:
    """Raise InputError when weights are of a type that would lose their meaning in floats.

    transformers casts float8 and boolean weights without a word, and without the scales that
    belong to them. Buffers, such as GPT-2's masks, may be of any type.
    """
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                types = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{file} cannot be read ({error!s:.200}). Pass a complete folder: was the download "
                "complete?"
            ) from error
        unusual = [
            f"{name} is {kind}"
            for name, kind in types.items()
            if kind not in FLOATS and (name.endswith(".weight") or kind[:2] in ("F8", "F4", "F6"))
        ]
        if unusual and not quantised:
            raise InputError(
                f"{file} holds weights that are neither floats nor described by a "
                f"quantization_config: {listed(unusual)}. Use the original model."
            )


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a model."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    # RecursionError: thousands of nested brackets.
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file} cannot be read as JSON ({type(error).__name__}: {error!s:.100}). Download the "
            "model again."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a JSON object. Download the model again.")
    return content


def _entries(config: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each value of a configuration that is not an object or list, with its place."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), config)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [((*place, name), part) for name, part in value.items()]
        elif isinstance(value, list):
            waiting += [(place, part) for part in value]
        elif place:
            yield place, value


def _own_file(folder: Path, name: str) -> Path:
    """Return a file of the folder; a link may lead within it, or into a cache of the hub."""
    file = folder / name
    if not file.is_file():
        raise InputError(f"{file} is missing. Pass a complete folder: was the download complete?")
    target = file.resolve()
    blobs = target.parent
    cached = blobs.name == "blobs" and blobs.parent.name.startswith("models--")
    if not cached and not target.is_relative_to(folder.resolve()):
        raise UntrustedFileError(
            f"{file} is a link to {target}, outside the model's folder. Replace the link by the "
            "file itself (cp -L)."
        )
    return file


def _not_plain(source: Path, name: Any) -> UntrustedFileError:
    return UntrustedFileError(
        f"{source} names the file {name!r:.80}. Only files directly in the model's folder are "
        "loaded, and weights only from *.safetensors: others could run code or change unnoticed."
    )
