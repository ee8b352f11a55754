"""Model families that differ from Llama inside: the same numbers as plain text, or a refusal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import COLOURS, build_model
from workloads import numbers, workload

from starlearn.errors import InputError
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.model.backbone import Backbone
from starlearn.model.choices import build_tree, choice_distribution
from starlearn.model.generation import generate_answers
from starlearn.model.head import LinearHead, OwnHead, head_of
from starlearn.model.structure import goes_by_positions
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.tasks import ChoiceTask

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[dict[str, Any], bool]] = {
    "llama": ({}, True),
    "gpt2": ({}, True),
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, True),
    "phi": ({}, True),
    "gpt_bigcode": ({}, True),
    "qwen2_moe": (
        {
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        True,
    ),
    "gpt_neo": (
        {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 20},
        True,
    ),
    "bloom": ({}, False),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}, False),
    "falcon": ({"alibi": True}, False),
}
"""Settings that differ from the usual ones, and whether the family uses position ids."""


def tiny(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **FAMILIES[kind][0]})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


def by_plain_text(model: Any, prompt: list[int], choices: list[list[int]]) -> Any:
    """Return the log-probability of each choice, each read from a row of its own."""
    found = []
    for choice in choices:
        with torch.no_grad():
            log = model(torch.tensor([prompt + choice])).logits[0].double().log_softmax(-1)
        start = len(prompt) - 1
        found.append(sum(float(log[start + i, token]) for i, token in enumerate(choice)))
    return found - np.logaddexp.reduce(found)


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_choices_have_the_scores_of_plain_text_in_every_family(kind: str) -> None:
    # ALiBi and local attention count places in the row, so a tree would change their numbers.
    model = tiny(kind)
    by_positions = goes_by_positions(model)
    assert by_positions is FAMILIES[kind][1]
    choices = [[5, 6], [5, 7], [8], [9, 10, 11]]
    prompts = [[5, 9, 12, 7, 22], [8, 9], [30 + i for i in range(25)], [6]]
    work = workload(model, by_positions=by_positions)
    assert isinstance(work.head, LinearHead)
    logs = choice_distribution(work, build_tree(choices, 2), prompts, numbers(4))[0]
    for prompt, got in zip(prompts, logs, strict=True):
        assert got == pytest.approx(by_plain_text(model, prompt, choices), abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_many_choices_do_not_push_padding_out_of_the_context(kind: str) -> None:
    # 60 tokens and two of an answer fit into 64; the tree's 20 nodes share one position.
    model, choices = tiny(kind), [[token, 10] for token in range(11, 31)]
    prompts = [[5, 9] * 30, [7, 8] * 29, [6, 5, 4] * 19]
    work = workload(model)
    logs = choice_distribution(work, build_tree(choices, 2), prompts, numbers(3))
    for prompt, got in zip(prompts, logs[0], strict=True):
        assert got == pytest.approx(by_plain_text(model, prompt, choices), abs=1e-4)


def test_a_soft_cap_is_detected_although_random_logits_are_small(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    class Capped(LlamaForCausalLM):
        def forward(self, *args: Any, **named: Any) -> Any:
            output = super().forward(*args, **named)
            output.logits = 30 * torch.tanh(output.logits / 30)
            return output

    folder = build_model(tmp_path, initializer_range=0.02)
    assert isinstance(head_of(Capped.from_pretrained(folder)), OwnHead)
    assert isinstance(head_of(LlamaForCausalLM.from_pretrained(folder)), LinearHead)


def save_with_words(model: Any, folder: Path) -> Path:
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(build_model(folder / "words")).save_pretrained(folder)
    return folder


def learner(folder: Path, **acquisition: Any) -> STARLearner:
    return STARLearner(
        str(folder),
        quantization="none",
        task=ChoiceTask("{text} Answer :", choices=COLOURS),
        adapter=LoRA(r=2, dropout=0.3),
        acquisition=Acquisition(n_passes=2, **acquisition),
        training=Training(max_steps=1),
        random_state=0,
        verbose=False,
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neo", "mpt", "bloom"])
def test_padding_does_not_push_an_answer_out_of_the_context(kind: str, tmp_path: Path) -> None:
    # 40 tokens are padded to 48, and 48 + 24 exceed the model's 64.
    bone = Backbone(save_with_words(tiny(kind), tmp_path), "none", verbose=False)
    assert bone.context == 64 or kind == "bloom"
    prompts = [[5, 9] * 20, [7, 8] * 19, [6]]
    answers = generate_answers(
        workload(bone.model), prompts, max_new_tokens=24, eos_id=2, context=bone.context
    )
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + len(answer):
            with torch.no_grad():
                ids.append(int(bone.model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer == ids[len(prompt) :]
    assert max(map(len, answers)) == 24


def test_passes_that_share_the_prompt_are_refused_with_attention_by_distance(
    tmp_path: Path,
) -> None:
    fitted = learner(save_with_words(tiny("mpt"), tmp_path)).fit(["the sky is"], ["blue"])
    fitted.set_params(acquisition=Acquisition(n_passes=2, mc_scope="answer"))
    with pytest.raises(InputError, match=r"ALiBi.*mc_scope='all'"):
        fitted.query(["the sea is", "grass is"], 1)
    fitted.set_params(acquisition=Acquisition(measure="entropy", n_passes=1))
    assert len(fitted.query(["the sea is", "grass is"], 1)[0]) == 1


def test_a_mixture_of_experts_says_which_layers_to_name(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("mixtral", **SIZES, num_local_experts=4)
    folder = save_with_words(AutoModelForCausalLM.from_config(config), tmp_path)
    with pytest.raises(InputError, match=r"all-linear.*target_modules=\['q_proj', 'v_proj'\]"):
        learner(folder).fit(["the sky is"], ["blue"])
    attention = LoRA(r=2, dropout=0.3, target_modules=["q_proj", "v_proj"])
    fitted = learner(folder).set_params(adapter=attention, acquisition__measure="entropy")
    fitted.fit(["the sky is"], ["blue"])
    assert len(fitted.query(["the sea is", "grass is"], 1)[0]) == 1


@pytest.mark.parametrize("kind", ["mamba", "recurrent_gemma", "qwen3_next", "lfm2"])
def test_recurrent_models_are_refused_at_the_door(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AutoConfig

    kinds = {"layer_types": ["conv", "full_attention"]} if kind == "lfm2" else {}
    AutoConfig.for_model(kind, num_hidden_layers=2, **kinds).save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="attention layers only"):
        Backbone(tmp_path, "none", verbose=False)


@pytest.mark.filterwarnings("ignore:The adapter has learned nothing")
def test_dropout_at_the_answer_is_refused_beyond_a_sliding_window_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    mistral = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=24))
    fitted = learner(save_with_words(mistral, tmp_path), chunk_size=2).fit(["the sky is"], ["blue"])
    pool = [*(f"the {thing} is" for thing in ("sky", "sea", "sun", "leaf", "rose")), "the " * 23]
    fitted.query(pool, 1)
    fitted.set_params(acquisition__mc_scope="answer")
    fitted.query(pool[:5], 1)
    monkeypatch.setattr(type(base_of(fitted).backbone), "by_positions", None)  # no work
    with pytest.raises(
        InputError, match=r"1 of 2.*window of 24 tokens: row 5: 25 tokens.*mc_scope"
    ):
        fitted.query(pool, 1)
    with pytest.raises(InputError, match=r"(?s)1 of 6.*row 5"):
        fitted.predict_proba(pool, n_passes=3)
    monkeypatch.undo()
    assert fitted.predict_proba(pool[:5], n_passes=3).shape == (5, len(COLOURS))
    assert fitted.predict_proba(pool).shape == (6, len(COLOURS))
