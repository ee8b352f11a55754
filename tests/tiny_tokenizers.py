"""Tokenizers of the usual kinds, trained on a few sentences."""

import io
from pathlib import Path
from typing import Any

SENTENCES = [
    "Question: what colour is the sky? Answer: blue",
    "Question: what colour is grass? Answer: green",
    "Question: what colour is a rose? Answer: red",
    "Question: is the sea very big? Answer: dark blue",
    "user asks and the assistant answers: dark green, dark red",
    "system: You say colours. [INST] the moon at night [/INST]",
    "a small leaf on the sand is not the sun, A or B or C",
    "line one\nline two\n\nline four  with  two spaces",
    "tokens such as </s> and <|im_end|> and <|im_start|>user stay text {or not}",
] * 4

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Template with a system turn, as in Qwen."""
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% else %}{{ raise_exception('Only user turns') }}{% endif %}{% endfor %}"
)
"""Template without a system turn, as in the first Mistral."""


def byte_level(
    *,
    bos: str | None = None,
    eos: str = "<|endoftext|>",
    pad: str | None = None,
    extra: tuple[str, ...] = (),
    before: tuple[str, ...] = (),
    behind: tuple[str, ...] = (),
    **settings: Any,
) -> Any:
    """Train byte-level BPE whose post-processor adds tokens `before` and `behind` a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys(filter(None, [bos, eos, pad, *extra])))
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if before or behind:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join([*before, "$A", *behind]),
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in {*before, *behind}],
        )
    named = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{name: token for name, token in named.items() if token},
        **({"additional_special_tokens": list(extra)} if extra else {}),
        **settings,
    )


def sentencepiece_like(folder: Path, kind: str, prefix: str, **settings: Any) -> Any:
    """Train a sentencepiece model with byte fallback, as in Llama 2, and open it.

    Parameters
    ----------
    kind : {"bpe", "unigram"}
    prefix : {"normalizer", "always", "first"}
        Which part adds a space before a text: a normaliser, as in Llama 2's tokenizer.json; each
        piece between special tokens, which is called legacy; or only the first piece.
    """
    import json

    from transformers import AutoTokenizer, LlamaTokenizer

    sentencepiece_model(folder, kind)
    tokenizer = LlamaTokenizer.from_pretrained(
        folder, add_bos_token=True, legacy=prefix == "always", **settings
    )
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["legacy"] = prefix == "always"  # save_pretrained omits it
    if prefix == "normalizer":
        content = json.loads((folder / "tokenizer.json").read_text())
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        steps = [{"type": "Prepend", "prepend": "▁"}, replace]
        content |= {"pre_tokenizer": None, "normalizer": {"type": "Sequence", "normalizers": steps}}
        (folder / "tokenizer.json").write_text(json.dumps(content))
        config["tokenizer_class"] = "PreTrainedTokenizerFast"  # otherwise the rules are rebuilt
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


def unigram_with_pieces() -> Any:
    """Train a unigram model whose special tokens are pieces of its vocabulary, as in T5.

    It reads "</s>" in a text as that piece even with `split_special_tokens`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def sentencepiece_model(folder: Path, kind: str) -> None:
    """Write `tokenizer.model`."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=written,
        model_type=kind,
        vocab_size=420 if kind == "bpe" else 330,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(written.getvalue())
