"""What a causal language model is made of: the model inside an adapter, its trunk, its layers."""

from typing import Any

from torch import nn

LEAST_ROWS = 16
"""Matrix products of fewer rows take other code paths in CPU libraries and give other bits."""


def causal_model(model: Any) -> Any:
    """Return the transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk_of(model: Any) -> Any:
    """Return what turns tokens into hidden states: the model without its head."""
    inner = causal_model(model)
    return getattr(inner, inner.base_model_prefix)


def decoder_layers(model: Any) -> Any:
    """Return the list of a model's layers, bottom first, or None where they are not in one list."""
    inner = causal_model(model)
    count = inner.config.get_text_config().num_hidden_layers
    lists = (module for module in inner.modules() if isinstance(module, nn.ModuleList))
    return next((found for found in lists if len(found) == count), None)


def attention_window(config: Any) -> float:
    """Return the tokens that every layer can look back on; infinite without a sliding window."""
    config = config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "window_size")  # the last: GPT-Neo
    return min(getattr(config, name, None) or float("inf") for name in names)
