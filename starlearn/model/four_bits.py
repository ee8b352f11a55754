"""4-bit weights: the share of quantised weights, and a test of 4-bit products on this machine."""

import math
from typing import Any

import torch
from torch import Tensor

LOSS = 0.2
"""Largest relative error of quantisation. NF4 of normal numbers has about 0.09; far more means a
broken library."""
ROUNDING = 0.02
"""Largest relative error of a product with packed weights, in float32 or in a GPU's TF32."""


def quantized_share(model: Any) -> float:
    """Return the share of a model's weights, without embeddings and head, in 4 or 8 bits.

    transformers quantises plain linear layers only. Without a warning it skips linear layers of
    other classes (Falcon) and experts that are stored as bare parameters.
    """
    from bitsandbytes.nn import Int8Params, Params4bit

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    excluded = {id(weight) for layer in ends if layer is not None for weight in layer.parameters()}
    quantized = total = 0
    for weight in model.parameters():
        if id(weight) in excluded:
            continue
        size = weight.numel()
        if isinstance(weight, Params4bit):
            size = math.prod(weight.quant_state.shape)
        total += size
        quantized += size if isinstance(weight, Params4bit | Int8Params) else 0
    return quantized / max(total, 1)


def tried_in_four_bits() -> str | None:
    """Test a random matrix in NF4 on this machine; return the first failure, or None.

    The gradient is computed after a product in evaluation mode, as in training after scoring. In
    this order some CPUs have returned a wrong gradient without an error.
    """
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(64, 64, generator=generator).to(device)
        restored = dequantize_4bit(*quantize_4bit(weights, quant_type="nf4"))
        loss = _distance(restored, weights)
        if not loss < LOSS:
            return f"a quantised matrix is wrong by {loss:.0%}"
        rows = torch.randn(5, 64, generator=generator).to(device)
        product, gradient = _product_and_gradient(weights, rows)
        for name, got, wanted in (
            ("a product", product, rows @ restored.T),
            ("a gradient", gradient, restored.sum(dim=0).expand_as(rows)),
        ):
            error = _distance(got, wanted)
            if not error < ROUNDING:
                return f"{name} is wrong by {error:.0%}"
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).partition("\n")[0]
    return None


def _product_and_gradient(weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply rows [n, D] by packed weights [O, D]; return the product and the rows' gradient."""
    from bitsandbytes.nn import Linear4bit

    n_outputs, n_inputs = weights.shape
    layer = Linear4bit(
        n_inputs, n_outputs, bias=False, compute_dtype=torch.float32, quant_type="nf4", device="cpu"
    )
    layer.load_state_dict({"weight": weights.cpu()})
    layer = layer.to(weights.device)
    # As in every Backbone; otherwise some CPUs repack the weights and lose the gradient.
    layer.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        product = layer.eval()(rows)  # [n, O]
    inputs = rows.clone().requires_grad_(True)  # [n, D]
    layer.train()(inputs).sum().backward()
    gradient = inputs.grad  # [n, D]
    return product, torch.zeros_like(rows) if gradient is None else gradient


def _distance(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())
