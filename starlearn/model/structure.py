"""Parts of a causal language model: the model inside an adapter, its trunk, its window."""

from typing import Any

LEAST_ROWS = 16
"""Matrix products of fewer rows take other code paths in CPU libraries, which round differently."""


def causal_model(model: Any) -> Any:
    """Return the transformers model inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk_of(model: Any) -> Any:
    """Return the part that turns tokens into hidden states: the model without its head."""
    inner = causal_model(model)
    return getattr(inner, inner.base_model_prefix)


def attention_window(config: Any) -> float:
    """Return how many tokens every layer can attend to; infinite without a sliding window."""
    config = config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "window_size")  # the last: GPT-Neo
    return min(getattr(config, name, None) or float("inf") for name in names)
