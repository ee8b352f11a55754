"""Tiny models with a word tokenizer, written to a folder and never downloaded."""

from pathlib import Path
from typing import Any

TEXT = """red green blue True False yes no maybe 1 4 is the sky grass sun moon colour of what very
big small sea sand leaf rose night day Question : Answer . ? a b c d e f g h i j k l m n o p"""
WORDS = TEXT.split()
COLOURS = ["red", "green", "blue"]


def build_model(folder: Path, **changes: Any) -> Path:
    """Write a random Llama of 2 layers with a word tokenizer; `changes` go to its config."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

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
    return build_llama(folder, **{"vocab_size": len(vocabulary), **changes})


def build_llama(folder: Path, **changes: Any) -> Path:
    """Write a random Llama without tokenizer; `changes` go to its config, `vocab_size` included."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
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
