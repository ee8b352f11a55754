"""Whether 4-bit weights work on this machine: a small matrix there and back."""

import torch

LOSS = 0.2
"""NF4 of normal numbers is off by about 0.09 of their norm; far more means a broken library."""


def tried_in_four_bits() -> str | None:
    """Store a random matrix in NF4 and read it back; None when that works, else what went wrong."""
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(64, 64, generator=generator).to(device)
        back = dequantize_4bit(*quantize_4bit(weights, quant_type="nf4"))
        loss = float((back - weights).norm() / weights.norm())
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).partition("\n")[0]
    return None if loss < LOSS else f"a matrix came back wrong by {loss:.0%}"
