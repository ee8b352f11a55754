"""Path of the built-in model, and what it cannot do; imports nothing heavy."""

from pathlib import Path

N_WORDS = 85
"""Words in the vocabulary of the built-in model."""


def model_folder() -> Path:
    """Return the folder of the built-in model, for transformers' ``from_pretrained``."""
    return Path(__file__).resolve().parent / "model"


def built_in_hint(source: object) -> str:
    """Return what to do about text that the built-in model does not know; "" for another model."""
    if str(source) != str(model_folder()):
        return ""
    return (
        f"The built-in model is a toy that knows {N_WORDS} words. Name a model for your own texts: "
        "STARLearner(model=...), or --model in a terminal."
    )
