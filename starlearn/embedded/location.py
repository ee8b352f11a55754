"""Path of the built-in model; imports nothing heavy."""

from pathlib import Path


def model_folder() -> Path:
    """Return the folder of the built-in model, for transformers' ``from_pretrained``."""
    return Path(__file__).resolve().parent / "model"
