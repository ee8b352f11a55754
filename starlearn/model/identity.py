"""Identity of a base model: a hash of its weights, configuration, tokenizer and quantisation."""

import hashlib
import json
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from starlearn.errors import InputError
from starlearn.model.base_files import (
    named_weights,
    shard_names,
    tokenizer_versions,
    weight_files,
)

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
SLOW_TOKENIZER = ("vocab.json", "merges.txt", "vocab.txt", "tekken.json")
"""Files that are read only without tokenizer.json, as is sentencepiece's *.model. The way in which
a model was downloaded decides whether they are there."""
MORE_TEMPLATES = "additional_chat_templates/*.jinja"
"""Further chat templates; one named `default` replaces the usual one."""


def model_fingerprint(folder: Path, quantization: object) -> str:
    """Return the SHA-256 of a model folder's weights, configuration, tokenizer and quantisation.

    Raises UntrustedFileError when a file of the folder leads to one that is not covered.
    """
    digest = hashlib.sha256(json.dumps(quantization, default=str).encode())
    files = {*weight_files(folder), *folder.glob(MORE_TEMPLATES)}
    files |= {folder / name for name in (*IDENTITY, *tokenizer_versions(folder))}
    slow = {folder / name for name in SLOW_TOKENIZER}
    if (folder / "tokenizer.json").is_file():
        files -= slow
    else:
        files |= slow | set(folder.glob("*.model"))
    for file in sorted(files):
        if file.is_file():
            with file.open("rb") as handle:
                content = hashlib.file_digest(handle, "sha256").hexdigest()
            digest.update(f"{file.relative_to(folder).as_posix()}:{content}\n".encode())
    return digest.hexdigest()


def fetch_weights(source: str, revision: str | None) -> None:
    """Download all weights of a hub id without reading them.

    A fingerprint without them would be that of another model, so they must be available.
    """
    found, wanted = None, {"revision": revision or "main"}
    config = Path(cached_file(source, "config.json", **wanted))
    optional = {**wanted, "_raise_exceptions_for_missing_entries": False}
    reason: object = "there is no *.safetensors here, and it cannot be downloaded"
    try:
        found = cached_file(source, named_weights(config.parent) or SAFE_WEIGHTS_NAME, **optional)
        if found is None:
            found = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, **optional)
        if found is not None and found.endswith(".index.json"):
            shard_names(Path(found))  # raises an error before a file with another name is fetched
            get_checkpoint_shard_files(source, found, **wanted)
    except OSError as error:
        found, reason = None, error
    if found is None:
        raise InputError(
            f"The weights of the model {source!r:.100} are not available. Pass a complete folder, "
            "or a hub id that you have access to (hf auth login), or go online once. "
            f"The reason: {reason!s:.300}"
        )
