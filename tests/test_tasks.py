"""Prompts, answers and their complaints."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlearn.errors import InputError
from starlearn.tasks import ChoiceTask, GenerationTask, template_fields


def test_fields_in_order_without_repetition() -> None:
    assert template_fields("{a} {b} {{literal}} {a}") == ["a", "b"]


@pytest.mark.parametrize("template", ["{", "{0}", "{}", "{a.b}", "{a[0]}", "{a!r}", "{a:>10}"])
def test_template_that_is_no_template(template: str) -> None:
    with pytest.raises(InputError, match="prompt"):
        template_fields(template)


def test_template_without_a_field_gives_every_item_the_same_prompt() -> None:
    with pytest.raises(InputError, match="no field"):
        ChoiceTask("Answer:").check()


def test_a_string_fills_the_one_field() -> None:
    assert ChoiceTask("Q: {question}").fill(["why?"]) == [{"question": "why?"}]


def test_numbers_become_text() -> None:
    item = {"a": 3, "b": np.float64(0.5), "other": None}
    assert ChoiceTask("{a} {b}").fill([item]) == [{"a": "3", "b": "0.5"}]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        (None, "NoneType"),
        (float("nan"), "float"),
        (pd.NA, "NAType"),
        (b"bytes", "bytes"),
        (3, "int"),
        (["a"], "list"),
        ({"text": None}, "NoneType"),
        ({"text": float("nan")}, "float"),
        ({"text": True}, "bool"),
        ({"other": "x"}, "missing; the item has other"),
        ("\ud800", "lone surrogate at character 0"),
    ],
)
def test_rows_that_cannot_be_used_are_named(item: object, reason: str) -> None:
    with pytest.raises(InputError, match=rf"row 1: .*{reason}"):
        ChoiceTask("{text}").fill(["fine", item])  # type: ignore[list-item]


def test_many_bad_rows_are_counted() -> None:
    with pytest.raises(InputError, match=r"(?s)9 of 10 items.*row 0.*and 4 more"):
        ChoiceTask("{text}").fill([""] * 9 + ["fine"])


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_text_is_kept_as_it_is_or_refused(items: list[str]) -> None:
    task = ChoiceTask("{text}")
    try:
        filled = task.fill(items)
    except InputError:
        assert any(not i.strip() or any("\ud800" <= c <= "\udfff" for c in i) for i in items)
    else:
        assert [f["text"] for f in filled] == items


@pytest.mark.parametrize(
    "choices", [["yes"], ["yes", "yes"], ["yes", ""], ["yes", 1], ["yes", None]]
)
def test_choices_that_cannot_be_used(choices: list[object]) -> None:
    with pytest.raises(InputError, match="hoice"):
        ChoiceTask("{text}", choices=choices).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        (None, " 72 ", "72"),
        (r"#### (.+)", "6 * 12 = 72\n#### 72", "72"),
        (r"#### (.+)", "#### 1\n#### 1,234,567", "1234567"),
        (r"answer (\d+)", "no such thing", "no such thing"),
        (r"yes|(\d+)", "yes", "yes"),
        (r"(.+)", "1,2 and 3,4", "1,2 and 3,4"),
        (r"\d+", "3 then 14", "14"),
        (r"answer is (\d+)|#### (\d+)", "the answer is 3", "3"),
        (r"answer is (\d+)|#### (\d+)", "the answer is 3\n#### 14", "14"),
        (r"(\$)?(\d+)", "it is 14", "14"),
        (r"#### *(.*)", "#### 14\n####", "14"),
        (None, "1,2", "1,2"),
    ],
)
def test_the_last_match_is_the_answer(pattern: str | None, text: str, answer: str) -> None:
    assert GenerationTask("{text}", answer_pattern=pattern).parse(text) == answer


def test_an_answer_in_the_wrong_form_equals_no_other() -> None:
    task = GenerationTask("{text}", answer_pattern=r"#### (\d+)")
    assert task.find("so it is 7") is None
    assert task.find("#### 7") == "7"


def test_the_joint_is_a_space_but_behind_a_chat_template() -> None:
    assert ChoiceTask("{text}").joint == " "
    assert ChoiceTask("{text}", chat=True).joint == ""
    assert ChoiceTask("{text}", chat=True, separator="\n").joint == "\n"


@pytest.mark.parametrize(
    "parameters", [{"answer_pattern": "("}, {"max_new_tokens": 0}, {"max_new_tokens": True}]
)
def test_generation_settings_that_cannot_be_used(parameters: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(parameters))):
        GenerationTask("{text}", **parameters).check()  # type: ignore[arg-type]
