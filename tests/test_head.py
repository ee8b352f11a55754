"""Output heads: weights for the kernel, compared with the model's own logits."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from tiny_models import build_model
from workloads import numbers, sequences, workload

from starlearn.model.backbone import Backbone
from starlearn.model.choices import build_tree, choice_distribution
from starlearn.model.forward import row_hidden
from starlearn.model.head import LinearHead, OwnHead, head_of

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "tied": ("qwen2", {"tie_word_embeddings": True}),
    "scale (Cohere)": ("cohere", {"logit_scale": 0.25}),
    "divisor (Granite)": ("granite", {"logits_scaling": 4.0}),
    "soft cap (Gemma 2)": ("gemma2", {"final_logit_softcapping": 2.0, "head_dim": 8}),
    "bias (Phi)": ("phi", {}),
    "other names (GPT-2)": ("gpt2", GPT2),
    "another name (GPT-NeoX)": ("gpt_neox", {}),
}


def tiny(kind: str, changes: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    return model


@pytest.mark.parametrize("name", list(HEADS))
def test_a_linear_head_gives_the_models_own_logits(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(*HEADS[name])
    ids, rows = torch.randint(3, 60, (3, 9)), torch.tensor([[2, 8], [0, 5], [7, 8]])
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        head = head_of(model)
        hidden = row_hidden(model, sequences(ids, rows))[0]
        logits = model(ids).logits
    assert isinstance(head, LinearHead)
    assert not [record for record in caplog.records if "own logits" in record.message]
    expected = torch.stack([logits[i, j] for i, row in enumerate(rows) for j in row.tolist()])
    assert torch.allclose(head.logits(hidden, torch.arange(61)), expected, atol=1e-4)
    found = head.statistics(hidden, target=torch.arange(6))
    probabilities = torch.softmax(expected.double(), dim=-1).numpy()
    assert found.entropy.numpy() == pytest.approx(entropy(probabilities, axis=-1), abs=1e-5)
    chosen = np.log(probabilities[np.arange(6), np.arange(6)])
    assert found.logprob is not None
    assert found.logprob.numpy() == pytest.approx(chosen, abs=1e-4)
    assert np.ptp(expected.numpy()) > 0.1


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """A model whose head does not follow its configuration."""
    from transformers import LlamaForCausalLM

    original = LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, **named: Any) -> Any:
        output = original(self, *args, **named)
        output.logits = torch.sinh(output.logits / 3)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    return Backbone(build_model(tmp_path / "odd"), "nf4", verbose=False)


def test_any_other_head_runs_the_models_own_code_with_one_warning(
    odd: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [[5, 9, 12, 7, 22], [8, 9], [30, 31, 32, 33]]
    choices = [[5, 6], [5, 7], [8]]
    with caplog.at_level(logging.WARNING), torch.no_grad():
        assert isinstance(odd.head, OwnHead)
        work = workload(odd.model, head=odd.head)
        logs = choice_distribution(work, build_tree(choices, 2), prompts, numbers(3))[0]
        assert odd.head is odd.head
    assert sum("own logits" in record.message for record in caplog.records) == 1
    for prompt, got in zip(prompts, logs, strict=True):
        expected = []
        for choice in choices:
            with torch.no_grad():
                logits = odd.model(torch.tensor([prompt + choice])).logits[0].double()
            log = torch.log_softmax(logits, dim=-1)
            start = len(prompt) - 1
            expected.append(sum(float(log[start + i, token]) for i, token in enumerate(choice)))
        normalised = np.array(expected) - np.logaddexp.reduce(expected)
        assert got == pytest.approx(normalised, abs=1e-4)
    hidden = torch.randn(3, 200, 64)
    with torch.no_grad():
        found = odd.head.statistics(hidden)
        logits = torch.stack([odd.head.all_logits(part) for part in hidden])
    probabilities = torch.softmax(logits.double(), dim=-1).numpy()
    assert found.entropy.numpy() == pytest.approx(entropy(probabilities, axis=-1), abs=1e-5)
    assert (found.mutual_information > 0).all()


def test_a_scale_or_cap_that_is_not_read_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, setting in (("scale (Cohere)", "logit_scale"), ("soft cap (Gemma 2)", None)):
        model = tiny(*HEADS[name])
        if setting:
            # The model keeps its scale, which its configuration no longer has.
            monkeypatch.setattr(model.config, setting, None)
        else:
            monkeypatch.setattr(model.config, "final_logit_softcapping", 200.0)
            monkeypatch.setattr(type(model), "forward", _capped(type(model).forward))
        assert isinstance(head_of(model), OwnHead), name


def _capped(original: Any) -> Any:
    def forward(self: Any, *args: Any, **named: Any) -> Any:
        output = original(self, *args, **named)
        output.logits = torch.tanh(output.logits)
        return output

    return forward
