"""Scores in bfloat16: how far the cut into batches may move them (docs/performance.md)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build_model
from workloads import numbers, workload

from starlearn.model.answers import answer_statistics
from starlearn.model.choices import build_tree, choice_distribution

TOLERANCE = 0.05
"""Nats of an entropy. Rounding is 2^-8 of a number; logits of 8 move by 0.03."""
PROMPTS = [[5, 9, 12, 7, 22], [8, 9], [30, 31, 32, 33, 34, 35, 36], [6], [9, 9, 5]] * 4
ANSWERS = [[7, 8, 2], [9], [5, 5, 5, 5, 2], [6, 2], [7]] * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import LlamaForCausalLM

    folder: Path = build_model(tmp_path_factory.mktemp("half"), initializer_range=0.1)
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def entropies(model: Any, tokens: int, order: Any) -> np.ndarray:
    work = workload(model, tokens=tokens)
    prompts, answers = [PROMPTS[i] for i in order], [ANSWERS[i] for i in order]
    logs = choice_distribution(work, build_tree([[5, 6], [5, 7], [8]], 2), prompts, numbers(20))[0]
    choices = -(np.exp(logs) * logs).sum(axis=1)
    free = answer_statistics(work, prompts, answers, numbers(20)).entropy[0]
    free = free / [len(answer) for answer in answers]
    return np.stack([choices, free], axis=1)[np.argsort(order)]


@pytest.mark.parametrize("tokens", [1, 24, 100])
def test_scores_in_bfloat16_move_by_less_than_the_tolerance(model: Any, tokens: int) -> None:
    whole = entropies(model, 4096, np.arange(20))
    again = entropies(model, tokens, np.random.default_rng(0).permutation(20))
    assert whole.std(axis=0).min() > TOLERANCE
    assert np.abs(again - whole).max() < TOLERANCE
