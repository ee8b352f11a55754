"""Merging: an adapter added to the full-precision weights of its base model."""

from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import GenerationConfig
from transformers.pytorch_utils import Conv1D

from starlearn.errors import InputError
from starlearn.model.adapter import Adapter, check_base, load_state, with_lora
from starlearn.model.backbone import Backbone, full_precision, weights_bar
from starlearn.model.identity import IDENTITY
from starlearn.randomness import isolated_generators

DTYPES = ("auto", "float32", "bfloat16", "float16")
TOKENIZER_FILES = (*(name for name in IDENTITY if name != "config.json"), "vocab.txt")


def merged_model(backbone: Backbone, adapter: Adapter, dtype: str, dequantize: bool) -> Any:
    """Return the base model with W0 + (alpha / r) B A in place of each adapted W0.

    The base model is loaded again, on the CPU and not in 4 bits, because rounding the sum to 4 bits
    would give another model. With `dequantize` W0 is the dequantised 4-bit weight instead of the
    original. The dtype "auto" is that of the stored base model.
    """
    check_base(backbone, adapter)
    with isolated_generators(0):
        base = full_precision(backbone, dtype)
        if dequantize:
            _copy_dequantized(base, backbone.model)
        model = with_lora(base, adapter.settings(), backbone.source)
    load_state(model, adapter.state)
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise InputError(
            f"The merged weights are not finite as {dtype}. Use dtype='float32'."
        ) from error


@torch.no_grad()
def _copy_dequantized(model: Any, quantized: Any) -> None:
    """Copy the values of a 4-bit model's weights into a model of another dtype."""
    for name, module in quantized.named_modules():
        # With an adapter attached, peft's layer contains the 4-bit layer.
        name = name.removesuffix(".base_layer")
        if isinstance(module, Linear8bitLt):
            raise InputError(
                "dequantize=True needs 4-bit weights, but this base model is in 8 bits. Use "
                "dequantize=False, which merges into the original weights."
            )
        if isinstance(module, Linear4bit):
            weight = module.weight
            values = dequantize_4bit(weight.data, weight.quant_state)
            target = model.get_submodule(name)
            # GPT-2 stores its weights transposed; bitsandbytes does not.
            target.weight.copy_(values.T if isinstance(target, Conv1D) else values)


def greedy(backbone: Backbone, max_new_tokens: int | None) -> GenerationConfig:
    """Return settings with which `generate` gives the answers of the learner's `predict`."""
    bos = backbone.tokenizer.bos_token_id
    return GenerationConfig(
        bos_token_id=bos,
        eos_token_id=backbone.eos_id,
        pad_token_id=backbone.pad_id,
        do_sample=False,
        **({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}),
    )


def write_model(
    model: Any, backbone: Backbone, folder: Path, generation: GenerationConfig, max_shard_size: str
) -> None:
    """Save a model with its tokenizer and generation settings in the format of transformers."""
    model.generation_config = generation
    with weights_bar(shown=False):
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_tokenizer(backbone, folder)


def write_tokenizer(backbone: Backbone, folder: Path) -> None:
    """Copy the tokenizer's files, with the sentencepiece file that `save_pretrained` would omit."""
    for file in backbone.folder.iterdir():
        if file.name in TOKENIZER_FILES or file.suffix == ".model":
            (folder / file.name).write_bytes(file.read_bytes())


def size_of(model: Any) -> tuple[int, int, str]:
    """Return the number of parameters, of bytes, and the main dtype; tied weights count once."""
    parameters = list(model.parameters())
    by_type: dict[torch.dtype, int] = {}
    for parameter in parameters:
        by_type[parameter.dtype] = by_type.get(parameter.dtype, 0) + parameter.numel()
    most = max(by_type, key=lambda dtype: by_type[dtype])
    n_bytes = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return sum(by_type.values()), n_bytes, str(most).removeprefix("torch.")
