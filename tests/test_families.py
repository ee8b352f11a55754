"""Families of models through the whole loop, and their table in the docs."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import COLOURS, WORDS, build_model
from transformers import BitsAndBytesConfig

from starlearn.data.tokens import encode_answers, encode_prompts
from starlearn.errors import InputError
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.learner.session import session_of
from starlearn.model.adapter import activate
from starlearn.model.backbone import Backbone
from starlearn.model.dropout import evaluation_mode
from starlearn.model.head import LinearHead
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.tasks import ChoiceTask, GenerationTask, Task

TABLE = Path(__file__).parent.parent / "docs" / "families.md"
N_SPECIAL = 4
SIZES: dict[str, Any] = {
    "vocab_size": N_SPECIAL + len(dict.fromkeys(WORDS)),
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
OPT = {"ffn_dim": 64, "word_embed_proj_dim": 64}
SMALL_HEADS = {"head_dim": 16, "query_pre_attn_scalar": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "Llama": ("llama", {}, "grouped-query attention"),
    "Llama, tied (SmolLM)": ("llama", {"tie_word_embeddings": True}, "tied embeddings"),
    "Mistral": ("mistral", {"sliding_window": 8}, "sliding window"),
    "Qwen2": ("qwen2", {}, "biases on q, k and v"),
    "Qwen3": ("qwen3", {"head_dim": 16}, "norms on q and k"),
    "Gemma 2": (
        "gemma2",
        {**SMALL_HEADS, "final_logit_softcapping": 2.0, "sliding_window": 8},
        "logit soft cap, sliding window in every other layer",
    ),
    "Gemma 3 (text)": (
        "gemma3_text",
        {**SMALL_HEADS, "sliding_window": 8},
        "scaled embedding, two RoPE bases",
    ),
    "Phi-3": ("phi3", {}, "q, k and v in one matrix"),
    "GPT-2": ("gpt2", GPT2, "transposed weights, learned position embeddings"),
    "GPT-NeoX": ("gpt_neox", {}, "parallel residual"),
    "OPT": ("opt", OPT, "learned position embeddings with an offset"),
    "Cohere": ("cohere", {"logit_scale": 0.25}, "logit scale"),
    "Granite": ("granite", {"logits_scaling": 4.0}, "logit divisor"),
    "OLMo 2": ("olmo2", {}, "norm after attention and after MLP"),
    "StableLM": ("stablelm", {}, "partial rotary embedding"),
    "StarCoder 2": ("starcoder2", {}, "biases in all linear layers"),
    "Falcon": (
        "falcon",
        {"alibi": False, "new_decoder_architecture": False},
        "multi-query attention",
    ),
    "BLOOM": ("bloom", {"n_head": 4, "n_layer": 2}, "ALiBi: one choice at a time"),
}
NOT_IN_FEW_BITS = {("Falcon", "nf4")}
"""Linear layers that transformers does not quantise."""
PROMPT = "{text} Answer :"
TASKS: dict[str, Task] = {
    "choices": ChoiceTask(PROMPT, choices=[*COLOURS, "red green"]),
    "free-form": GenerationTask(PROMPT, max_new_tokens=4),
}
LABELLED = ["the sky is", "grass is", "a rose is", "the sea is very"], [*COLOURS, "red green"]
POOL = ["the moon is", "a leaf is very big", "sand is", "the night is what colour"]
passed: dict[str, set[str]] = {}
"""Columns of the table that passed in this run, by family."""


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function from a family to a folder with a random model and the word tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(build_model(tmp_path_factory.mktemp("words")))
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            kind, changes, _ = FAMILIES[name]
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(kind, **{**SIZES, **changes})
            )
            made[name] = tmp_path_factory.mktemp(kind)
            model.save_pretrained(made[name])
            tokenizer.save_pretrained(made[name])
        return made[name]

    return folder


@pytest.mark.filterwarnings("ignore:.*longer than the task's max_new_tokens")
@pytest.mark.parametrize(
    ("quantization", "kind"),
    [
        ("nf4", "choices"),
        ("none", "free-form"),
        pytest.param("nf4", "free-form", marks=pytest.mark.slow),
        pytest.param("none", "choices", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_family_learns_asks_and_answers(
    name: str, quantization: str, kind: str, folder_of: Any, tmp_path: Path
) -> None:
    learner = STARLearner(
        str(folder_of(name)),
        quantization=quantization,
        task=TASKS[kind],
        adapter=LoRA(r=2, alpha=4, dropout=0.3),
        acquisition=Acquisition(n_passes=2),
        training=Training(max_steps=1, batch_size=4, learning_rate=5e-2),
        random_state=0,
        verbose=False,
    )
    if (name, quantization) in NOT_IN_FEW_BITS:
        with pytest.raises(InputError, match=r"None of the weights.*quantization='none'"):
            learner.fit(*LABELLED)
        return
    learner.fit(*LABELLED)
    index, batch = learner.query(POOL, 2)
    learner.teach(batch, ["blue", "red green"])
    before = [learner.predict(POOL).tolist(), learner.uncertainty(POOL).full.tolist()]
    if kind == "choices":
        assert learner.predict_proba(POOL).sum(axis=1) == pytest.approx(1)
    learner.save(tmp_path / "saved")
    again = STARLearner.load(tmp_path / "saved", model=str(folder_of(name)))
    assert [again.predict(POOL).tolist(), again.uncertainty(POOL).full.tolist()] == before
    assert len(set(index.tolist())) == 2
    assert own_entropies(learner) == pytest.approx(fused_entropies(learner), abs=1e-4)
    assert isinstance(base_of(learner).backbone.head, LinearHead)
    passed.setdefault(name, set()).add(f"{quantization} {kind}")


def fused_entropies(learner: STARLearner) -> list[float]:
    """Return mean entropies of the model's own answers, as a query without dropout does."""
    learner.set_params(acquisition=Acquisition(measure="entropy", n_passes=1))
    return list(learner.uncertainty(POOL).entropy)


def own_entropies(learner: STARLearner) -> list[float]:
    """Return the same from the logits of the model's own forward pass over plain text."""
    engine = base_of(learner)
    tokenizer = engine.backbone.tokenizer
    model = activate(engine.backbone, learner.adapter_)
    context = engine.backbone.context
    prompts = encode_prompts(
        tokenizer, learner.task, learner.task.fill(POOL), context=context, room=4
    )

    def log_probabilities(ids: list[int]) -> Any:
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    found = []
    with torch.no_grad(), evaluation_mode(model):
        for prompt in prompts:
            if isinstance(learner.task, GenerationTask):
                ids = list(prompt)
                while len(ids) < len(prompt) + 4 and ids[-1] != engine.backbone.eos_id:
                    ids.append(int(log_probabilities(ids)[-1].argmax()))
                logs = log_probabilities(ids)[len(prompt) - 1 : -1]
                found.append(float(-(logs.exp() * logs).sum(-1).mean()))
                continue
            sums = []
            # "red" is a prefix of "red green", so every choice has the end of sequence.
            classes = session_of(learner).classes.tolist()
            for tokens in encode_answers(tokenizer, learner.task, classes):
                answer = [*tokens, engine.backbone.eos_id]
                logs = log_probabilities(prompt + answer)
                places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
                sums.append(sum(float(logs[i, t]) for i, t in zip(places, answer, strict=True)))
            logs = np.array(sums) - np.logaddexp.reduce(sums)
            found.append(float(-(np.exp(logs) * logs).sum()))
    return found


def test_the_docs_list_what_passed() -> None:
    """Runs last; STARLEARN_WRITE_DOCS=1 writes the table."""
    n_refused = len(NOT_IN_FEW_BITS) * len(TASKS)
    if sum(map(len, passed.values())) < 4 * len(FAMILIES) - n_refused:
        pytest.skip("the table needs the run of all families, the slow ones too")
    columns = [f"{quantization} {kind}" for quantization in ("nf4", "none") for kind in TASKS]
    lines = [
        "| family | in transformers | what is special | nf4, choices | nf4, free-form | "
        "unquantised, choices | unquantised, free-form |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (kind, _, special) in FAMILIES.items():
        marks = ["yes" if column in passed[name] else "no" for column in columns]
        lines.append(f"| {name} | `{kind}` | {special} | {' | '.join(marks)} |")
    table = "\n".join(lines)
    if os.environ.get("STARLEARN_WRITE_DOCS"):
        before, _, rest = TABLE.read_text(encoding="utf-8").partition("<!-- table -->\n")
        _, _, after = rest.partition("\n<!-- end -->")
        text = f"{before}<!-- table -->\n{table}\n<!-- end -->{after}"
        TABLE.write_text(text, encoding="utf-8")
    assert table in TABLE.read_text(encoding="utf-8")


def test_a_mixture_of_experts_causes_a_warning(tmp_path: Path) -> None:
    """Its experts are bare parameters, which are not quantised."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    config = AutoConfig.for_model("qwen3_moe", **{**SIZES, **experts, "head_dim": 16})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(build_model(tmp_path / "words")).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"Only \d+% of the weights.*mixtures of experts"):
        _ = Backbone(tmp_path, "nf4", verbose=False).model
    _ = Backbone(tmp_path, "none", verbose=False).model


def test_transposed_weights_are_merged_correctly(folder_of: Any, tmp_path: Path) -> None:
    """Dequantised weights of GPT-2 are the transpose of its own."""
    from transformers import AutoModelForCausalLM

    learner = STARLearner(
        str(folder_of("GPT-2")),
        task=TASKS["choices"],
        adapter=LoRA(r=2, alpha=4, dropout=0.3),
        training=Training(max_steps=4, batch_size=4, learning_rate=5e-2),
        random_state=0,
        verbose=False,
    ).fit(*LABELLED)
    ids = torch.tensor([[5, 9, 12, 7]])
    model = activate(base_of(learner).backbone, learner.adapter_)
    with torch.no_grad(), evaluation_mode(model):
        expected = model(ids).logits
    learner.merge(tmp_path / "merged", dequantize=True)
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    assert (found - expected).abs().max() < 1e-4


def test_weights_in_8_bits_are_not_dequantised(folder_of: Any, tmp_path: Path) -> None:
    learner = STARLearner(
        str(folder_of("Llama")),
        quantization=BitsAndBytesConfig(load_in_8bit=True),
        task=TASKS["choices"],
        adapter=LoRA(r=2),
        training=Training(max_steps=1, batch_size=4),
        random_state=0,
        verbose=False,
    ).fit(*LABELLED)
    with pytest.raises(InputError, match=r"in 8 bits.*dequantize=False"):
        learner.merge(tmp_path / "merged", dequantize=True)
    assert not (tmp_path / "merged").exists()


def test_answers_do_not_depend_on_the_pad_token(tmp_path: Path) -> None:
    """Items of different lengths share batches, and padding is masked."""
    from transformers import AutoTokenizer

    found = []
    for name in ("with", "without"):
        folder = build_model(tmp_path / name, pad_token_id=None if name == "without" else 0)
        if name == "without":
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer.pad_token = None
            tokenizer.save_pretrained(folder)
            assert AutoTokenizer.from_pretrained(folder).pad_token is None
        for task in TASKS.values():
            learner = STARLearner(
                str(folder),
                task=task,
                adapter=LoRA(r=2, dropout=0.3),
                training=Training(max_steps=2, batch_size=4),
                random_state=0,
                verbose=False,
            ).fit(*LABELLED)
            found.append([*learner.uncertainty(POOL).mixed, *learner.predict(POOL)])
    assert found[:2] == found[2:]
