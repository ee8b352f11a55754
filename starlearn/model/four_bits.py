"""4-bit weights: how many of a model's are, and whether they work on this machine at all."""

import math
from typing import Any

import torch
from torch import Tensor

LOSS = 0.2
"""NF4 of normal numbers is off by about 0.09 of their norm; far more means a broken library."""
ROUNDING = 0.02
"""Relative error of a product by the packed weights, in float32 or in a GPU's TF32."""


def share_in_few_bits(model: Any) -> float:
    """Return the share of a model's weights, embeddings and head aside, that are in 4 or 8 bits.

    transformers puts plain linear layers there, and no others: a class of their own (Falcon's), or
    experts that are kept as bare parameters, stay as they are without a word.
    """
    from bitsandbytes.nn import Int8Params, Params4bit

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    aside = {id(weight) for layer in ends if layer is not None for weight in layer.parameters()}
    few = total = 0
    for weight in model.parameters():
        if id(weight) in aside:
            continue
        size = weight.numel()
        if isinstance(weight, Params4bit):
            size = math.prod(weight.quant_state.shape)
        total += size
        few += size if isinstance(weight, Params4bit | Int8Params) else 0
    return few / max(total, 1)


def tried_in_four_bits() -> str | None:
    """Pack a random matrix in NF4, read it back, multiply by it, and differentiate the product.

    Returns
    -------
    str or None
        None when that works, else what went wrong.

    Notes
    -----
    The gradient is taken after a product in evaluation mode, for that is the order of scoring and
    training, and the one in which some CPUs have returned a wrong gradient without an error.
    """
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(64, 64, generator=generator).to(device)
        back = dequantize_4bit(*quantize_4bit(weights, quant_type="nf4"))
        loss = _distance(back, weights)
        if not loss < LOSS:
            return f"a matrix came back wrong by {loss:.0%}"
        rows = torch.randn(5, 64, generator=generator).to(device)
        product, gradient = _used(weights, rows)
        for name, got, wanted in (
            ("a product", product, rows @ back.T),
            ("a gradient", gradient, back.sum(dim=0).expand_as(rows)),
        ):
            error = _distance(got, wanted)
            if not error < ROUNDING:
                return f"{name} is wrong by {error:.0%}"
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).partition("\n")[0]
    return None


def _used(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply rows [n, D] by packed weights [O, D]; the product [n, O] and its gradient [n, D]."""
    from bitsandbytes.nn import Linear4bit

    outputs, inputs = weights.shape
    layer = Linear4bit(
        inputs, outputs, bias=False, compute_dtype=torch.float32, quant_type="nf4", device="cpu"
    )
    layer.load_state_dict({"weight": weights.cpu()})
    layer = layer.to(weights.device)
    # As in every model here: without it, some CPUs repack the weights and lose the gradient.
    layer.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        product = layer.eval()(rows)
    asked = rows.clone().requires_grad_(True)
    layer.train()(asked).sum().backward()
    gradient = asked.grad
    return product, torch.zeros_like(rows) if gradient is None else gradient


def _distance(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())
