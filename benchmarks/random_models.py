"""Models of a published shape with random weights, for measurements of time and memory."""

import atexit
import functools
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from fitting import SHAPES, Shape
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig

from starlearn.embedded.location import model_folder

TINY = Shape("tiny", 2, 64, 128, 64, 32, 256, tied=True)
"""For a try on a CPU."""
BY_NAME = {shape.name: shape for shape in (*SHAPES, TINY)}
SPREAD, FAINT = 0.02, 4e-4
"""Standard deviation of the weights, and of those that write into the residual stream: little is
added to a token's embedding, so that the model repeats it instead of wavering between all words."""
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
CONTEXT = 8192
LEFT_OPEN = ExitStack()
atexit.register(LEFT_OPEN.close)


@functools.cache
def random_model(name: str) -> Path:
    """Write the model of this shape to a folder that is there until the process ends."""
    folder = LEFT_OPEN.enter_context(tempfile.TemporaryDirectory(prefix="starlearn-"))
    return write_model(BY_NAME[name], Path(folder) / f"{name}, random")


def write_model(shape: Shape, folder: Path) -> Path:
    """Write a Llama in bfloat16, a file a layer, with the tokenizer of the model in the package.

    Its words are fewer than the shape's V; the other rows of the head are there all the same. On a
    GPU the weights are drawn there.
    """
    folder.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(model_folder(), model_max_length=CONTEXT)
    tokenizer.save_pretrained(folder)
    head_width = 128 if shape.width > 2048 else 64 if shape.width > 512 else 16
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.queries // head_width,
        num_key_value_heads=shape.keys // head_width,
        head_dim=head_width,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=shape.tied,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    places, size = {}, 0
    for number, tensors in enumerate(_parts(shape)):
        file = f"model-{number + 1:05}-of-{shape.layers + 1:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _parts(shape: Shape) -> Iterator[dict[str, Tensor]]:
    """Draw the weights of one layer after the other, and then those of embedding, norm and head."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)

    def drawn(inputs: int, outputs: int, spread: float = SPREAD) -> Tensor:
        weight = torch.empty(outputs, inputs, dtype=torch.bfloat16, device=device)
        return weight.normal_(0, spread, generator=generator).cpu()

    def norm() -> Tensor:
        return torch.ones(shape.width, dtype=torch.bfloat16)

    names = [f"self_attn.{kind}_proj" for kind in "qkvo"]
    names += [f"mlp.{kind}_proj" for kind in ("gate", "up", "down")]
    for layer in range(shape.layers):
        tensors = {
            f"{name}.weight": drawn(*size, FAINT if name in WRITERS else SPREAD)
            for name, size in zip(names, shape.matrices, strict=True)
        }
        tensors |= {"input_layernorm.weight": norm(), "post_attention_layernorm.weight": norm()}
        yield {f"model.layers.{layer}.{name}": tensor for name, tensor in tensors.items()}
    around = {
        "model.embed_tokens.weight": drawn(shape.width, shape.vocabulary),
        "model.norm.weight": norm(),
    }
    if not shape.tied:
        around["lm_head.weight"] = drawn(shape.width, shape.vocabulary)
    yield around
