"""Tokens of prompts and answers, and batches of equal padded length."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import build_model

from starlearn.data import chat, tokens
from starlearn.data.tokens import (
    batches,
    bos_ids,
    encode_answers,
    padded_lengths,
)
from starlearn.errors import InputError
from starlearn.tasks import ChoiceTask


def encode_prompts(tokenizer: Any, task: Any, items: list[Any], **sizes: int) -> list[list[int]]:
    return tokens.encode_prompts(tokenizer, task, task.fill(items), **sizes)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def with_bos(tokenizer: Any) -> Any:
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def test_bos_comes_where_the_tokenizer_puts_it(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    fresh = AutoTokenizer.from_pretrained(build_model(tmp_path / "bos"))
    assert bos_ids(fresh) == []
    assert bos_ids(with_bos(fresh)) == [fresh.bos_token_id]
    prompts = encode_prompts(fresh, ChoiceTask("{text}"), ["sky"], context=9, room=1)
    assert fresh.convert_ids_to_tokens(prompts[0]) == ["<s>", "sky"]


def test_special_tokens_in_a_users_text_stay_text(tokenizer: Any) -> None:
    task = ChoiceTask("<s> Question : {text}")
    prompts = encode_prompts(tokenizer, task, ["sky </s> sun"], context=20, room=1)
    tokens = tokenizer.convert_ids_to_tokens(prompts[0])
    assert tokens == ["<s>", "Question", ":", "sky", "<unk>", "sun"]


def test_answers_follow_the_prompt_as_in_running_text() -> None:
    from transformers import AutoTokenizer

    folder = Path(__file__).parents[2] / "shared" / "models" / "stories260K"
    if not folder.exists():
        pytest.skip("needs a sentencepiece tokenizer: shared/models/stories260K is not here")
    sentencepiece = AutoTokenizer.from_pretrained(folder)
    task = ChoiceTask("{text}\nAnswer:")
    prompt = encode_prompts(sentencepiece, task, ["Is it?"], context=99, room=9)[0]
    answer = encode_answers(sentencepiece, task, ["true"])[0]
    assert prompt + answer == sentencepiece("Is it?\nAnswer: true").input_ids


def test_prompt_longer_than_the_context_is_named(tokenizer: Any) -> None:
    # Models with rotary positions give finite nonsense there, no error of their own.
    with pytest.raises(InputError, match=r"row 1: 12 tokens"):
        encode_prompts(tokenizer, ChoiceTask("{text}"), ["sky", "sky " * 12], context=12, room=1)


def test_trailing_space_of_an_item_does_not_double_the_joint(tokenizer: Any) -> None:
    task = ChoiceTask("{text}")
    plain, trailing = encode_prompts(tokenizer, task, ["sky", "sky  "], context=20, room=1)
    assert plain == trailing


@pytest.fixture
def fresh(tmp_path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(build_model(tmp_path / "chat"))


def test_chat_template_wraps_the_users_message(fresh: Any) -> None:
    task = ChoiceTask("{text}", chat=True)
    with pytest.raises(InputError, match="chat template"):
        encode_prompts(fresh, task, ["sky"], context=20, room=1)
    fresh.chat_template = "<s> Question : {{ messages[0]['content'] }} </s> Answer :"
    prompt = encode_prompts(fresh, task, ["sky </s> {x}"], context=20, room=1)[0]
    assert fresh.convert_ids_to_tokens(prompt) == (
        ["<s>", "Question", ":", "sky", "<unk>", "<unk>", "</s>", "Answer", ":"]
    )


def chat_prompt(tokenizer: Any, template: str, **options: Any) -> list[str]:
    tokenizer.chat_template = template
    task = ChoiceTask("{text}", chat=True, **options)
    ids = encode_prompts(tokenizer, task, ["sky"], context=40, room=1)[0]
    return list(tokenizer.convert_ids_to_tokens(ids))


def test_a_chat_template_that_asks_for_the_date_says_the_same_tomorrow(fresh: Any) -> None:
    # As Llama 3's does: every prompt, and with it every score, would be another after midnight.
    plain = "  {% for m in messages %}{{ m['content'] }}{% endfor %}"
    fresh.chat_template = plain
    assert chat.in_chat(fresh, "{text}", None) == "{text}"  # blanks before a block are none
    template = "\n<s> {% macro day() %}{% if strftime_now is defined %}{{ strftime_now('FORM') }}"
    template += "{% endif %}{% endmacro %}{{ day() }} {{ messages[0]['content'] }}"
    fresh.chat_template = template.replace("FORM", "%-d %b %Y %H:%M:%S:%f")
    rendered = {chat.in_chat(fresh, "{text}", None) for _ in range(3)}
    assert rendered == {"\n<s> 26 Jul 2024 00:00:00:000000 {text}"}


TURNS = "<s> {% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}Answer :"


def test_a_system_message_comes_before_the_users(fresh: Any) -> None:
    told = chat_prompt(fresh, TURNS, system="is it very big ?")
    assert " ".join(told).endswith("is <unk> very big ? </s> <unk> : sky </s> Answer :")
    # Braces in it are no fields, and its special tokens are the developer's own.
    assert chat_prompt(fresh, TURNS, system="big {text} </s>").count("</s>") == 3
    only_user = "{{ messages[-1]['content'] }}"
    with pytest.raises(InputError, match="does not show the system message"):
        chat_prompt(fresh, only_user, system="is it very big ?")
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no such role') }}{% endif %}"
    )
    with pytest.raises(InputError, match=r"no such role.*system=None"):
        chat_prompt(fresh, refuses + TURNS, system="is it very big ?")
    for settings in ({"system": "a"}, {"chat": True, "system": " "}):
        with pytest.raises(InputError, match="chat=True"):
            ChoiceTask("{text}", **settings).check()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}"
            "{% endfor %}{% endfor %}{% endfor %}",
            r"longer than 0\.3 s",
        ),
        ("{{ messages[0]['content'] }}{{ 'x' * 30000000 }}", "30000022 characters"),
        ("{{ messages[0]['content'] }}{{ nothing.at_all }}", "UndefinedError"),
        ("{{ messages[0]['content'] ", "TemplateSyntaxError"),
    ],
    ids=["escape", "for ever", "30 MB", "undefined", "syntax"],
)
def test_a_hostile_chat_template_is_stopped(
    fresh: Any, template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "MAX_WAIT", 0.3 if "99999" in template else 3600)
    with pytest.raises(InputError, match=message):
        chat_prompt(fresh, template)


@given(
    st.lists(st.integers(1, 300), min_size=0, max_size=60),
    st.integers(1, 2000),
)
def test_batches_hold_each_item_once_within_the_budget(lengths: list[int], budget: int) -> None:
    cut = list(batches(lengths, budget))
    assert sorted(i for batch in cut for i in batch.indices) == list(range(len(lengths)))
    padded = [batch.length for batch in cut]
    assert padded == sorted(padded, reverse=True)
    for batch in cut:
        # The padded length of an item depends on the item alone, and is hardly longer than it.
        assert all(batch.length == padded_lengths([lengths[i]])[0] for i in batch.indices)
        assert all(0 <= batch.length - lengths[i] <= lengths[i] / 16 for i in batch.indices)
        assert len(batch.indices) == 1 or len(batch.indices) * batch.length <= budget


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=40),
    st.integers(1, 2000),
    st.integers(1, 9),
)
def test_a_part_that_runs_more_often_counts_more_often(
    lengths: list[tuple[int, int]], budget: int, n_passes: int
) -> None:
    cut = list(batches(np.array(lengths), budget, (1, n_passes)))
    assert sorted(i for batch in cut for i in batch.indices) == list(range(len(lengths)))
    for batch in cut:
        prompt, behind = batch.parts
        tokens = len(batch.indices) * (prompt + n_passes * behind)
        assert batch.tokens((1, n_passes)) == tokens
        assert len(batch.indices) == 1 or tokens <= budget
