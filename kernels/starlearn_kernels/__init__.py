"""Entropy and mutual information of a model's head without its logits."""

from starlearn_kernels.entropy import linear_entropy
from starlearn_kernels.fallback import logits_entropy
from starlearn_kernels.masks import feature_mask, lora_product, token_mask
from starlearn_kernels.segments import segment_reduce
from starlearn_kernels.stats import EntropyStats

__all__ = [
    "EntropyStats",
    "feature_mask",
    "linear_entropy",
    "logits_entropy",
    "lora_product",
    "segment_reduce",
    "token_mask",
]
