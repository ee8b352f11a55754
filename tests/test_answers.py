"""Closed choices and free-form answers against plain code on the model's own logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy as scipy_entropy
from tiny_models import build_model
from workloads import numbers, workload

from starlearn.errors import InputError
from starlearn.model.adapter import attach_fresh
from starlearn.model.backbone import Backbone
from starlearn.model.choices import build_tree, choice_distribution
from starlearn.model.dropout import MonteCarlo, evaluation_mode, mc_dropout
from starlearn.model.free_form import answer_scores
from starlearn.model.generation import generate_answers
from starlearn.query.score_table import choice_scores
from starlearn.settings import LoRA

EOS = 2
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [6] * 11, [30]]


@pytest.fixture(scope="module")
def model(tiny_model: str) -> Any:
    backbone = Backbone(tiny_model, "nf4", verbose=False)
    model = attach_fresh(backbone, LoRA(r=4, dropout=0.3), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


def log_probability(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Sum of log-probabilities, one whole sequence at a time."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].double()
    logs = torch.log_softmax(logits, dim=-1)
    start = len(prompt) - 1
    return float(sum(logs[start + i, token] for i, token in enumerate(answer)))


def distribution(
    model: Any,
    choices: list[list[int]],
    dropout: MonteCarlo | None = None,
    *,
    tokens: int = 4096,
    prompts: list[list[int]] = PROMPTS,
) -> Any:
    work = workload(model, tokens=tokens, dropout=dropout)
    return choice_distribution(work, build_tree(choices, EOS), prompts, numbers(len(prompts)))


@pytest.mark.parametrize(
    "choices",
    [
        [[5], [6], [7]],
        [[5, 6], [5, 7], [8]],
        [[5, 6, 7, 8], [5, 6, 9], [5, 10], [11, 6]],
        [[5], [5, 6]],
        [[5], [5, 6], [5, 6, 7], [8]],
    ],
    ids=["one token", "shared beginning", "deep", "prefix", "chain of prefixes"],
)
def test_choices_are_scored_exactly(model: Any, choices: list[list[int]]) -> None:
    logs = distribution(model, choices)[0]
    ends = [EOS] if any(a == b[: len(a)] for a in choices for b in choices if a != b) else []
    for prompt, got in zip(PROMPTS, logs, strict=True):
        expected = np.array([log_probability(model, prompt, c + ends) for c in choices])
        expected -= np.logaddexp.reduce(expected)
        assert got == pytest.approx(expected, abs=1e-4)


def test_sliding_windows_hold_for_choices_too(tmp_path: Path) -> None:
    # A tree's own mask would let every layer look back over its window.
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=60,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=6,
        initializer_range=0.3,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(build_model(tmp_path / "words")).save_pretrained(tmp_path)
    mistral = Backbone(tmp_path, "none", verbose=False).model
    choices = [[5, 6], [5, 7], [8, 9]]
    logs = distribution(mistral, choices)[0]
    for prompt, got in zip(PROMPTS, logs, strict=True):
        expected = np.array([log_probability(mistral, prompt, c) for c in choices])
        assert got == pytest.approx(expected - np.logaddexp.reduce(expected), abs=1e-4)
        alone = distribution(mistral, choices, prompts=[prompt])
        assert np.array_equal(alone[0, 0], got)


def test_1_and_14_are_different_answers(model: Any) -> None:
    # Without the end of sequence "1" would contain the probability of "14".
    tree = build_tree([[20], [20, 21]], EOS)
    assert tree.n_tokens.tolist() == [2, 3]
    assert EOS in tree.edge_tokens


def test_choices_with_the_same_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="same tokens"):
        build_tree([[5], [6], [5]], EOS)


@given(
    st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=4), min_size=2, max_size=8).filter(
        lambda sequences: len({tuple(s) for s in sequences}) == len(sequences)
    )
)
def test_trees_hold_every_choice(choices: list[list[int]]) -> None:
    tree = build_tree(choices, EOS)
    for row, choice in enumerate(choices):
        assert tree.tokens_of(row).tolist() in (choice, [*choice, EOS])
    assert (tree.sees.sum(axis=1) == tree.depths).all()
    assert len({p.tobytes() for p in tree.paths}) == len(choices)


@pytest.mark.parametrize("budget", [1, 40, 200, 10_000])
def test_distributions_do_not_depend_on_the_batch(model: Any, budget: int) -> None:
    choices = [[5, 6], [5, 7], [8]]
    with mc_dropout(model, 3, seed=4) as passes:
        whole = distribution(model, choices, passes)
        cut = distribution(model, choices, passes, tokens=budget)
    assert np.array_equal(whole, cut)
    assert not np.allclose(whole[0], whole[1])


def test_choice_scores_against_scipy() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(5), size=(3, 7))  # [K, m, C]
    answers = probabilities.mean(axis=0).argmax(axis=-1)
    entropy, log, information, answer = choice_scores(np.log(probabilities)).T
    entropies = scipy_entropy(probabilities, axis=-1)
    assert entropy == pytest.approx(entropies.mean(axis=0))
    total = scipy_entropy(probabilities.mean(axis=0), axis=-1)
    assert information == pytest.approx(total - entropies.mean(axis=0))
    assert answer.tolist() == answers.tolist()
    chosen = np.take_along_axis(probabilities, answers[None, :, None], axis=-1)[..., 0]
    assert log == pytest.approx(-np.log(chosen).mean(axis=0))
    other = choice_scores(np.log(probabilities), np.zeros(7, dtype=np.int64))
    assert other[:, 1] == pytest.approx(-np.log(probabilities[..., 0]).mean(axis=0))


def generate(model: Any, prompts: list[list[int]], budget: int = 4096) -> list[list[int]]:
    return generate_answers(
        workload(model, tokens=budget), prompts, max_new_tokens=6, eos_id=EOS, context=64
    )


def greedy(model: Any, prompt: list[int]) -> list[int]:
    answer: list[int] = []
    while len(answer) < 6 and EOS not in answer:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, -1]
        answer.append(int(logits.argmax()))
    return answer


def test_answers_are_the_greedy_ones(model: Any) -> None:
    with evaluation_mode(model):
        assert generate(model, PROMPTS) == [greedy(model, prompt) for prompt in PROMPTS]


def test_a_models_own_generation_settings_do_not_bend_answers(tmp_path: Path) -> None:
    folder = build_model(tmp_path / "bent")
    settings = {"repetition_penalty": 9.0, "min_new_tokens": 6, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    bent = Backbone(folder, "nf4", verbose=False).model
    with evaluation_mode(bent):
        assert generate(bent, PROMPTS) == [greedy(bent, prompt) for prompt in PROMPTS]


def test_the_token_budget_holds_while_answers_are_written(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    inner = type(model.get_base_model())
    original = inner.forward

    def spy(self: Any, input_ids: torch.Tensor, **named: Any) -> Any:
        if input_ids.shape[1] > 1:
            rows = len({tuple(row) for row in input_ids.tolist()})  # rows of padding are copies
            sizes.append(rows * (input_ids.shape[1] + 6))
        return original(self, input_ids=input_ids, **named)

    monkeypatch.setattr(inner, "forward", spy)
    prompts = [[5 + i % 40, 6, 7 + i // 40] for i in range(100)] + [[5] * 50]
    with evaluation_mode(model):
        generate(model, prompts, budget=300)
    assert max(sizes) <= 300
    assert len(sizes) < 20


@pytest.mark.parametrize("budget", [1, 60, 100])
def test_answers_do_not_depend_on_the_batch(model: Any, budget: int) -> None:
    prompts = [[5 + (i * j) % 40 for j in range(1, 3 + i % 7)] for i in range(12)]
    with evaluation_mode(model):
        assert generate(model, prompts, budget) == generate(model, prompts)


def test_answer_scores_against_whole_sequences(model: Any) -> None:
    answers = [[7, 8, EOS], [9], [5, 5, 5, 5, EOS], [6, EOS]]
    entropy, log, information = answer_scores(workload(model), PROMPTS, answers, numbers(4)).T
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0].double()
        rows = torch.softmax(logits, dim=-1)[len(prompt) - 1 : -1]
        assert entropy[row] == pytest.approx(scipy_entropy(rows, axis=-1).sum(), abs=1e-4)
        expected = -log_probability(model, prompt, answer)
        assert log[row] == pytest.approx(expected, abs=1e-4)
    assert np.abs(information).max() <= 1e-6


@pytest.mark.parametrize("budget", [1, 50])
def test_answer_scores_do_not_depend_on_the_batch(model: Any, budget: int) -> None:
    answers = [[7, 8, EOS], [9], [5, 5, 5, 5, EOS], [6, EOS]]
    with mc_dropout(model, 3, seed=4) as passes:
        whole, cut = (
            answer_scores(workload(model, tokens=b, dropout=passes), PROMPTS, answers, numbers(4))
            for b in (4096, budget)
        )
    assert np.array_equal(whole, cut)
    assert (whole[:, 2] > 1e-6).all()  # mutual information
