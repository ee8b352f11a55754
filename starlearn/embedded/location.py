"""Path of the built-in model; imports nothing heavy."""

from pathlib import Path


def model_folder() -> Path:
    """Return the folder of the built-in model.

    Returns
    -------
    pathlib.Path
        The folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``, for
        ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained``.
    """
    return Path(__file__).resolve().parent / "model"
