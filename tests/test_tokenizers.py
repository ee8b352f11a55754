"""Kinds of tokenizers from a text to probabilities, against what they make of running text."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import build_llama
from tiny_tokenizers import (
    CHATML,
    LLAMA_2,
    byte_level,
    sentencepiece_like,
    unigram_with_pieces,
)

from starlearn.data import tokens
from starlearn.data.tokens import _tokenise, bos_ids, encode_answers
from starlearn.errors import InputError
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.learner.session import session_of
from starlearn.model.adapter import activate
from starlearn.model.dropout import evaluation_mode
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.tasks import ChoiceTask, GenerationTask

GPT_2 = "<|endoftext|>"
TURNS = ("<|im_start|>", "<|im_end|>")
KINDS: dict[str, Callable[[Path], Any]] = {
    "GPT-2: no pad, no bos, one special token": lambda _: byte_level(
        bos=GPT_2, eos=GPT_2, unk_token=GPT_2
    ),
    "Llama 3: bos by the post-processor": lambda _: byte_level(
        bos="<s>", eos="</s>", before=("<s>",)
    ),
    "bos and eos by the post-processor": lambda _: byte_level(
        bos="<s>", eos="</s>", before=("<s>",), behind=("</s>",)
    ),
    "pad is eos": lambda _: byte_level(eos=TURNS[1], pad=TURNS[1], extra=TURNS),
    "Llama 2: BPE, space by a normaliser": lambda f: sentencepiece_like(f, "bpe", "normalizer"),
    "BPE, legacy space": lambda f: sentencepiece_like(f, "bpe", "always"),
    "BPE, space at the beginning": lambda f: sentencepiece_like(f, "bpe", "first"),
    "unigram, space at the beginning": lambda f: sentencepiece_like(f, "unigram", "first"),
    "T5: special tokens are pieces": lambda _: unigram_with_pieces(),
}
CHATS = {
    "Qwen": lambda _: byte_level(eos=TURNS[1], pad=GPT_2, extra=TURNS, chat_template=CHATML),
    "Llama 2": lambda f: sentencepiece_like(f, "bpe", "normalizer", chat_template=LLAMA_2),
    "legacy": lambda f: sentencepiece_like(f, "bpe", "always", chat_template=LLAMA_2),
    "Mistral": lambda f: sentencepiece_like(f, "bpe", "first", chat_template=LLAMA_2),
}
PROMPT = "Question: {text}\nAnswer:"
CHOICES = ["dark blue", "dark green", "dark", "red"]
"""Two begin with the same tokens, one is the beginning of both."""
LABELLED = ["what colour is the sky?", "grass", "a rose?", "the moon"], CHOICES
WRITTEN = "is </s> or <|im_start|>user <|endoftext|> a colour?"
"""Special tokens, typed by a user."""
POOL = ["the sea?", "night  at the moon", "a small leaf", "sand\nor sun?", WRITTEN]


def encode_prompts(tokenizer: Any, task: Any, items: list[Any], **sizes: int) -> list[list[int]]:
    return tokens.encode_prompts(tokenizer, task, task.fill(items), **sizes)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give a folder with a tokenizer and a random Llama for its vocabulary."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("kind")
            tokenizer = {**KINDS, **CHATS}[name](made[name])
            if not (made[name] / "tokenizer.json").exists():
                tokenizer.save_pretrained(made[name])
            special = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos")}
            special |= {"vocab_size": len(tokenizer), "pad_token_id": None}
            build_llama(made[name], max_position_embeddings=128, **special)
        return made[name]

    return folder


def tokenizer_in(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def learner_on(folder: Path, task: Any) -> STARLearner:
    return STARLearner(
        str(folder),
        task=task,
        quantization="none",
        adapter=LoRA(r=2, alpha=4, dropout=0.3),
        acquisition=Acquisition(n_passes=2),
        training=Training(max_steps=2, batch_size=4, learning_rate=2e-2),
        random_state=0,
        verbose=False,
    )


def running(tokenizer: Any, text: str) -> list[int]:
    """What the tokenizer makes of a text in one piece, with what it puts before, not behind."""
    ids = list(tokenizer(text, split_special_tokens=True).input_ids)
    ends = tokenizer("a").input_ids[-1] == tokenizer.eos_token_id
    # Of a vocabulary that holds them as pieces, special tokens in a text count as unknown.
    first = len(bos_ids(tokenizer))
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {tokenizer.unk_token_id}
    body = [
        tokenizer.unk_token_id if i in special and tokenizer.unk_token_id is not None else i
        for i in (ids[first:-1] if ends else ids[first:])
    ]
    return [*ids[:first], *body]


def own_probabilities(
    learner: STARLearner, sequences: list[list[tuple[list[int], list[int]]]]
) -> Any:
    """From the logits of the model's own forward pass; sequences are prompts and answers, [m][C]"""
    model = activate(base_of(learner).backbone, learner.adapter_)
    rows = []
    with torch.no_grad(), evaluation_mode(model):
        for item in sequences:
            sums = []
            for prompt, answer in item:
                logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double()
                places = torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1)
                sums.append(float(logits.log_softmax(-1)[places, torch.tensor(answer)].sum()))
            rows.append(np.exp(np.array(sums) - np.logaddexp.reduce(sums)))
    return np.array(rows)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_kind_learns_asks_answers_and_comes_back(
    name: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folder_of(name)
    learner = learner_on(folder, ChoiceTask(PROMPT, choices=CHOICES)).fit(*LABELLED)
    _, batch = learner.query(POOL, 2)
    learner.teach(batch, ["red", "dark"])
    found = learner.predict_proba(POOL)
    learner.save(tmp_path / "saved")
    again = STARLearner.load(tmp_path / "saved")
    assert np.array_equal(again.predict_proba(POOL), found)
    assert again.predict(POOL).tolist() == learner.predict(POOL).tolist()

    tokenizer = tokenizer_in(folder)
    sequences = []
    for text in POOL:
        filled = PROMPT.replace("{text}", text)
        prompt = running(tokenizer, filled)
        item = []
        for choice in learner.classes_:
            whole = running(tokenizer, f"{filled} {choice}")
            # The joint is the tokenizer's own, which may be within the last token of the prompt.
            assert whole[: len(prompt)] == prompt
            item.append((prompt, [*whole[len(prompt) :], tokenizer.eos_token_id]))
        sequences.append(item)
    assert found == pytest.approx(own_probabilities(learner, sequences), abs=1e-5)


@pytest.mark.parametrize("name", [*KINDS, *CHATS])
def test_special_tokens_that_a_user_types_are_text(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    tokenizer = tokenizer_in(folder_of(name))
    task = ChoiceTask("{text}", chat=True) if name in CHATS else ChoiceTask(PROMPT)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special -= {tokenizer.unk_token_id}
    plain, typed, all_of_them = (
        [i for i in ids if i in special]
        for ids in encode_prompts(
            tokenizer,
            task,
            ["the sky", WRITTEN, "".join(tokenizer.all_special_tokens)],
            context=999,
            room=1,
        )
    )
    assert plain == typed == all_of_them
    assert len(plain) == (len(bos_ids(tokenizer)) if name in KINDS else 3 if name == "Qwen" else 1)


@pytest.mark.parametrize("name", list(KINDS))
def test_spaces_before_an_answer_are_its_own(name: str, folder_of: Callable[[str], Path]) -> None:
    """With a separator, without one, and with a space in the choice: always as in running text."""
    tokenizer = tokenizer_in(folder_of(name))
    seen = set()
    for separator, choice in ((None, "A"), ("", "A"), ("", " A"), ("\n", "A"), (" ", " A")):
        task = ChoiceTask(PROMPT, separator=separator)
        prompt = encode_prompts(tokenizer, task, ["grass"], context=99, room=1)[0]
        answer = encode_answers(tokenizer, task, [choice])[0]
        text = f"Question: grass\nAnswer:{task.joint}{choice}"
        assert prompt + answer == running(tokenizer, text)
        seen.add(tuple(answer))
    assert len(seen) == 4  # (" ", "A") and ("", " A") are one


@pytest.mark.parametrize("name", list(CHATS))
def test_a_chat_is_tokenised_as_the_tokenizer_does(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    """A sentencepiece tokenizer puts a space before a text only at the very beginning."""
    tokenizer = tokenizer_in(folder_of(name))
    texts = ["what colour is the sky?", "andante", "\nand", "1 or 2", ".", "a"]
    found = encode_prompts(tokenizer, ChoiceTask("{text}", chat=True), texts, context=99, room=1)
    for text, ids in zip(texts, found, strict=True):
        turns = [{"role": "user", "content": text}]
        own = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert tokenizer.convert_ids_to_tokens(ids) == tokenizer.convert_ids_to_tokens(own)


@pytest.mark.parametrize("name", ["Llama 2", "legacy", "Mistral"])
def test_no_token_spans_a_special_token_and_the_text_behind_it(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    """Whatever a text begins with: each token of the vocabulary once."""
    tokenizer = tokenizer_in(folder_of(name))
    words = [tokenizer.decode([i]).strip() for i in range(3, len(tokenizer))]
    words = sorted({word for word in words if word and "\ufffd" not in word})
    found = encode_prompts(tokenizer, ChoiceTask("<s>{text}:"), words, context=99, room=1)
    for word, ids in zip(words, found, strict=True):
        assert ids == tokenizer(f"<s>{word}:", add_special_tokens=False).input_ids


def test_the_character_put_before_a_text_does_not_become_part_of_it() -> None:
    """Where "a" and "nd" are one token, another character shows what "nd" is."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Metaspace
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "<unk>", "▁", "a", "n", "d", "\n", "▁a", "nd", "▁and"]
    merges = [("▁", "a"), ("n", "d"), ("▁a", "nd")]
    backend = Tokenizer(BPE(dict(zip(words, range(10), strict=True)), merges, unk_token="<unk>"))
    backend.pre_tokenizer = Metaspace(prepend_scheme="first", split=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", unk_token="<unk>"
    )
    assert tokenizer("and").tokens() == ["▁and"]
    found = encode_prompts(tokenizer, ChoiceTask("<s>{text}"), ["nd"], context=9, room=1)
    assert tokenizer.convert_ids_to_tokens(found[0]) == ["<s>", "nd"]


@pytest.mark.parametrize("name", list(CHATS))
def test_a_chat_learns_asks_and_answers(
    name: str, folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folder_of(name)
    tokenizer = tokenizer_in(folder)
    learner = learner_on(folder, ChoiceTask("{text}", choices=CHOICES, chat=True)).fit(*LABELLED)
    _, batch = learner.query(POOL, 2)
    learner.teach(batch, ["red", "dark"])
    learner.save(tmp_path / "saved")
    items = POOL[:4]
    found = learner.predict_proba(items)
    assert np.array_equal(STARLearner.load(tmp_path / "saved").predict_proba(items), found)
    sequences = []
    for text in items:
        turns = [{"role": "user", "content": text}]
        own = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(own, add_special_tokens=False).input_ids
        item = []
        for choice in learner.classes_:
            whole = tokenizer(own + choice, add_special_tokens=False).input_ids
            assert whole[: len(prompt)] == prompt
            item.append((prompt, [*whole[len(prompt) :], tokenizer.eos_token_id]))
        sequences.append(item)
    assert found == pytest.approx(own_probabilities(learner, sequences), abs=1e-5)


def test_a_system_message_only_where_the_template_has_one(
    folder_of: Callable[[str], Path],
) -> None:
    task = ChoiceTask("{text}", chat=True, system="You say colours.")
    tokenizer = tokenizer_in(folder_of("Qwen"))
    turns = [{"role": "system", "content": task.system}, {"role": "user", "content": "the sky"}]
    own = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert encode_prompts(tokenizer, task, ["the sky"], context=99, room=1) == [own]
    with pytest.raises(InputError, match="system=None"):
        encode_prompts(tokenizer_in(folder_of("Llama 2")), task, ["a"], context=99, room=1)


def test_a_prompt_that_begins_with_bos_gets_no_second_one(
    folder_of: Callable[[str], Path],
) -> None:
    for name in ("Llama 3: bos by the post-processor", "Llama 2: BPE, space by a normaliser"):
        tokenizer = tokenizer_in(folder_of(name))
        typed, own = (
            encode_prompts(tokenizer, ChoiceTask(prompt), ["sky"], context=99, room=1)[0]
            for prompt in ("<s>Question: {text}", "Question: {text}")
        )
        assert typed == own
        assert own.count(tokenizer.bos_token_id) == 1


ANSWERS = st.text(st.sampled_from("ab dark,.!?'1()äß語\n"), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip())
)


@pytest.mark.parametrize("name", [name for name in KINDS if not name.startswith("T5")])
def test_what_is_taught_reads_the_same_when_it_is_written(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    """No cleaning of spaces before punctuation, no lost bytes."""
    session = session_of(learner_on(folder_of(name), GenerationTask(PROMPT)))

    @settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
    @given(ANSWERS, st.sampled_from([None, "", "\n"]))
    def comes_back(text: str, separator: str | None) -> None:
        task = GenerationTask(PROMPT, separator=separator)
        tokens = encode_answers(session.backbone.tokenizer, task, [text])
        assert session.texts(tokens) == [text.strip()]

    comes_back()


def test_the_tokenizer_goes_into_a_merged_model_as_it_is(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """`save_pretrained` would leave out tokenizer.model and forget that the space is legacy."""
    folder = folder_of("BPE, legacy space")
    learner = learner_on(folder, ChoiceTask(PROMPT, choices=CHOICES)).fit(*LABELLED)
    learner.merge(tmp_path / "merged")
    assert (tmp_path / "merged" / "tokenizer.model").read_bytes() == (
        folder / "tokenizer.model"
    ).read_bytes()
    assert json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())["legacy"]
    text = "<s>the sky</s> is"
    assert tokenizer_in(tmp_path / "merged")(text) == tokenizer_in(folder)(text)


def test_a_call_in_another_thread_does_not_change_the_tokenizer() -> None:
    # transformers keeps split_special_tokens in the tokenizer from its call until the next one.
    inside: list[str] = []
    threads: list[threading.Thread] = []

    class Shared:
        unk_token_id, all_special_ids = 0, ()

        def __call__(self, texts: Any, **how: bool) -> Any:
            inside.append("in")
            if not threads:
                threads.append(threading.Thread(target=bos_ids, args=(self,)))
                threads[0].start()
                threads[0].join(timeout=0.2)
                assert inside == ["in"]
            return SimpleNamespace(input_ids=[[1]])

    assert _tokenise(Shared(), ["a"]) == [[1]]
    threads[0].join()
    assert len(inside) == 3
