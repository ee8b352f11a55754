"""What tests share: one thread, and tiny models built on the spot, never downloaded."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TEXT = """red green blue True False yes no maybe 1 4 is the sky grass sun moon colour of what very
big small sea sand leaf rose night day Question : Answer . ? a b c d e f g h i j k l m n o p"""
WORDS = TEXT.split()
COLOURS = ["red", "green", "blue"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def build_model(folder: Path, **changes: Any) -> Path:
    """Write a random Llama of 2 layers with a word tokenizer; `changes` go to its config."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *dict.fromkeys(WORDS)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    settings: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        # Larger than usual, so that random weights give answers that differ.
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def make_learner(tiny_model: str) -> Callable[..., Any]:
    """Give a factory of learners on the tiny model; keywords change its parameters."""
    from starlearn.learner import STARLearner
    from starlearn.settings import Acquisition, LoRA, Training
    from starlearn.tasks import ChoiceTask

    def factory(**changes: Any) -> STARLearner:
        parameters: dict[str, Any] = {
            "task": ChoiceTask("{text} Answer :", choices=COLOURS),
            "adapter": LoRA(r=4, alpha=8, dropout=0.2),
            "acquisition": Acquisition(n_passes=3),
            "training": Training(max_steps=4, batch_size=4, learning_rate=5e-3),
            "random_state": 7,
            "verbose": False,
        }
        return STARLearner(tiny_model, **{**parameters, **changes})

    return factory


@pytest.fixture
def labelled() -> tuple[list[str], list[str]]:
    items = [
        "the sky is",
        "grass is",
        "the rose is very",
        "a big sea is",
        "the small leaf is",
        "what colour is the sun",
        "night sky is",
        "a a a a a a",
    ]
    return items, ["blue", "green", "red", "blue", "green", "red", "blue", "red"]


@pytest.fixture
def pool() -> list[str]:
    return [
        f"{article} {size} {thing} {when} is"
        for article in ("the", "a")
        for size in ("big", "small", "very small")
        for thing in ("sky", "sea", "leaf", "rose")
        for when in ("day", "night of the moon")
    ]
