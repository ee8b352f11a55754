"""Identity of a base model: a hash of its weights, configuration, tokenizer and quantisation."""

import hashlib
import json
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from starlearn.errors import InputError

IDENTITY = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files that, with the weights, decide the answers of a base model."""
SLOW_TOKENIZER = ("vocab.json", "merges.txt")
"""Files that are read only without tokenizer.json, as is sentencepiece's *.model. The way in which
a model was downloaded decides whether they are there."""


def model_fingerprint(folder: Path, quantization: object) -> str:
    """Return the SHA-256 of a model folder's weights, configuration, tokenizer and quantisation."""
    digest = hashlib.sha256(json.dumps(quantization, default=str).encode())
    names = {*IDENTITY, *_weight_files(folder)}
    if (folder / "tokenizer.json").is_file():
        names -= set(SLOW_TOKENIZER)
    else:
        names |= {file.name for file in folder.glob("*.model")}
    for file in sorted(folder.iterdir()):
        if file.name in names:
            with file.open("rb") as handle:
                content = hashlib.file_digest(handle, "sha256").hexdigest()
            digest.update(f"{file.name}:{content}\n".encode())
    return digest.hexdigest()


def _weight_files(folder: Path) -> set[str]:
    """Return the files from which the weights are loaded; the folder may hold other ones."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return {SAFE_WEIGHTS_NAME}
    try:
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
        return set(index["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # No index, or a broken one, about which loading raises an error.
        return {file.name for file in folder.glob("*.safetensors")}


def fetch_weights(source: str, revision: str | None) -> None:
    """Download all weights of a hub id without reading them.

    A fingerprint without them would be that of another model, so they must be available.
    """
    found, wanted = None, {"revision": revision or "main"}
    optional = {**wanted, "_raise_exceptions_for_missing_entries": False}
    reason: object = "there is no *.safetensors here, and it cannot be downloaded"
    try:
        found = cached_file(source, SAFE_WEIGHTS_NAME, **optional)
        if found is None:
            found = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, **optional)
            if found is not None:
                get_checkpoint_shard_files(source, found, **wanted)
    except OSError as error:
        found, reason = None, error
    if found is None:
        raise InputError(
            f"The weights of the model {source!r:.100} are not available. Pass a complete folder, "
            "or a hub id that you have access to (hf auth login), or go online once. "
            f"The reason: {reason!s:.300}"
        )
