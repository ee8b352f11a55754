"""A learner as one model folder: the adapter merged into the base model in full precision."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from starlearn.errors import InputError, StorageError
from starlearn.export.card import base_of, model_card
from starlearn.export.saving import Saved
from starlearn.model.backbone import Backbone
from starlearn.model.merging import DTYPES, greedy, merged_model, size_of, write_model
from starlearn.storage.files import complete_folder

SPARE = 50_000_000
"""Bytes needed besides the weights, such as for tokenizer and configuration."""


@dataclass(frozen=True)
class Merged:
    """Summary of a merged model; ``print`` shows it."""

    folder: Path
    n_parameters: int
    n_bytes: int
    """Of all weight files."""
    dtype: str
    files: tuple[str, ...]
    """The weight files."""
    quantization: str
    """Quantisation of the base model in training."""
    dequantize: bool
    """Whether the adapter was merged into dequantised weights."""

    def __str__(self) -> str:
        files = "1 file" if len(self.files) == 1 else f"{len(self.files)} files"
        text = (
            f"{self.folder}: {self.n_parameters:,} parameters in {self.dtype}, "
            f"{self.n_bytes / 1e6:,.1f} MB in {files}."
        )
        if self.quantization != "none" and not self.dequantize:
            text += (
                f" The adapter was trained on the base model in {self.quantization}, but merged "
                "into the original weights, so some answers differ from the learner's. Measure "
                "the accuracy, or merge with dequantize=True."
            )
        return text


def merge(
    saved: Saved,
    backbone: Backbone,
    to: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    dequantize: bool = False,
    max_shard_size: str = "5GB",
) -> Merged:
    """Write a folder that ``AutoModelForCausalLM.from_pretrained`` opens without peft.

    Parameters
    ----------
    saved : Saved
    backbone : Backbone
    to : path
        A new or empty folder. It is unchanged unless the whole model is written.
    dtype : {"auto", "float32", "bfloat16", "float16"}
        Type of the weights; "auto" is that of the stored base model.
    dequantize : bool
        Whether to merge into the base model's dequantised 4-bit weights, on which the adapter was
        trained, instead of the original ones. The answers are then those of the learner.
    max_shard_size : str
        Size of the largest weight file, such as "5GB".

    Returns
    -------
    Merged

    Raises
    ------
    InputError
        When the folder is not empty, `dtype` or `max_shard_size` is invalid, or the stored base
        model is itself quantised.
    ModelMismatchError
        When the adapter was trained on another base model.
    StorageError
        When the disk has too little space; nothing is then written.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(map(repr, DTYPES))}; got {dtype!r:.40}.")
    if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]B", str(max_shard_size)):
        raise InputError(
            f"max_shard_size must be like '5GB' or '500MB'; got {max_shard_size!r:.40}."
        )
    with complete_folder(to) as scratch:
        model = merged_model(backbone, saved.adapter, dtype, dequantize)
        n_parameters, n_bytes, stored = size_of(model)
        free = shutil.disk_usage(scratch).free
        if free < n_bytes + SPARE:
            raise StorageError(
                f"The merged model takes {n_bytes / 1e6:,.1f} MB as {stored}, and {Path(to)} has "
                f"{free / 1e6:,.1f} MB free. Nothing was written. Choose another disk, or "
                "dtype='bfloat16'."
            )
        longest = getattr(saved.parameters["task"], "max_new_tokens", None)
        try:
            write_model(model, backbone, scratch, greedy(backbone, longest), max_shard_size)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"The merged model could not be written ({error}). The folder is unchanged."
            ) from error
        card = model_card(saved, **base_of(backbone), merged=True)
        (scratch / "README.md").write_text(card, encoding="utf-8")
        files = sorted(file.name for file in scratch.glob("*.safetensors"))
        written = sum((scratch / name).stat().st_size for name in files)
    named = isinstance(backbone.quantization, str)
    quantization = backbone.quantization if named else "a custom format"
    return Merged(Path(to), n_parameters, written, stored, tuple(files), quantization, dequantize)
