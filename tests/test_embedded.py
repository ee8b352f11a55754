"""Tests of the built-in model and of the generator of its pools."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretrain import accuracy, encode, main
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from starlearn.embedded.grammar import (
    KNOWN_SKILLS,
    NAMES,
    NEW_SKILLS,
    NEW_WORDS,
    SKILLS,
    UNLEARNABLE_SKILLS,
    WORDS,
    Question,
)
from starlearn.embedded.location import model_folder
from starlearn.embedded.pools import POOL_KINDS, make_pool, whole_counts

TEST_SEED = 30_000  # not of the evaluation (0 .. 99), the training (10,000) or validation (20,000)

kinds = st.sampled_from(sorted(POOL_KINDS))
seeds = st.integers(min_value=TEST_SEED, max_value=2**32)
sizes = st.integers(min_value=1, max_value=60)


def facts_by_pattern(question: str, pattern: str) -> dict[str, str]:
    return dict(re.findall(pattern, question))


def order_of(question: str) -> list[str]:
    return question.split(" . ")[0].split(" then ")


def solved_story(question: str) -> str:
    """Read a story anew and write its working: the test's own solution."""
    start, *told = re.split(r" \. ", question.removesuffix(" how many ?").removesuffix(" ."))
    total, change = int(start.split()[-1]), 0
    lines = []
    for sentence in told:
        verb, *rest = sentence.split()
        change = {
            "finds": lambda: int(rest[0]),  # noqa: B023
            "loses": lambda: -int(rest[0]),  # noqa: B023
            "doubles": lambda: total,  # noqa: B023
            "undoes": lambda: -change,  # noqa: B023
        }[verb]()
        sign = "+" if change > 0 else "-"
        lines.append(f"{total} {sign} {abs(change)} = {total + change} .")
        total += change
    return f"{' '.join(lines)} answer {total}"


def solve(skill: str, question: str) -> str:
    """Derive the answer from the words of the question alone."""
    asked = question.split()[-2]
    if skill in ("most", "fewest", "amount", "owner", "dearest", "cheapest", "costing"):
        facts = question.rsplit(" . ", 1)[0]
        found = facts_by_pattern(facts, r"(\w+(?: \w+)?) (?:has|costs) (\d+)")
        amounts = {name: int(number) for name, number in found.items()}
        ranked = sorted(amounts, key=amounts.__getitem__)
        by_number = {number: name for name, number in amounts.items()}
        if skill == "amount":
            return str(amounts[asked])
        if skill in ("owner", "costing"):
            return by_number[int(asked)]
        return ranked[-1] if skill in ("most", "dearest") else ranked[0]
    if skill in ("first", "after", "second_last", "follower", "middle"):
        people = order_of(question)
        return {
            "first": lambda: people[0],
            "after": lambda: people[people.index(asked) + 1],
            "second_last": lambda: people[-2],
            "follower": lambda: people[people.index(question.split()[-4]) + 1],
            "middle": lambda: people[(len(people) - 1) // 2],
        }[skill]()
    if skill in ("where", "inside"):
        cities = facts_by_pattern(question, r"(\w+) is in (\w+) \.")
        if skill == "where":
            return cities[asked]
        return next(name for name, city in cities.items() if city == asked)
    if skill == "copy":
        return question.removeprefix("say ").removesuffix(" :")
    return solved_story(question)


@pytest.mark.parametrize("skill", [*KNOWN_SKILLS, *NEW_SKILLS])
def test_answers_are_right(skill: str) -> None:
    rng = np.random.default_rng(TEST_SEED)
    for _ in range(200):
        item = SKILLS[skill](rng)
        assert item.skill == skill
        assert item.answer == solve(skill, item.text), item


@pytest.mark.parametrize("skill", list(SKILLS))
def test_only_known_words_and_short(skill: str) -> None:
    rng = np.random.default_rng(TEST_SEED)
    for _ in range(100):
        item = SKILLS[skill](rng)
        words = f"{item.text} {item.answer}".split()
        assert set(words) <= set(WORDS)
        assert len(words) <= 60
        assert not item.text.endswith(" ")


def test_new_words_stand_in_no_known_question() -> None:
    new = set(NEW_WORDS)
    rng = np.random.default_rng(TEST_SEED)
    for name, skill in KNOWN_SKILLS.items():
        if name != "copy":
            for _ in range(100):
                item = skill(rng)
                assert not new & set(f"{item.text} {item.answer}".split())


@settings(max_examples=25, deadline=None)
@given(kind=kinds, n_items=sizes, n_test=sizes, seed=seeds)
def test_pool_properties(kind: str, n_items: int, n_test: int, seed: int) -> None:
    pool = make_pool(kind, n_items, n_test, random_state=seed)
    again = make_pool(kind, n_items, n_test, random_state=seed)
    assert pool == again
    questions = [item["question"] for item in pool.items]
    test_questions = [item["question"] for item in pool.test_items]
    assert len(questions) == len(pool.labels) == len(pool.skills) == n_items
    assert len(test_questions) == len(pool.test_labels) == len(pool.test_skills) == n_test
    assert len({*questions, *test_questions}) == n_items + n_test
    assert all(set(item) == {"question"} for item in (*pool.items, *pool.test_items))
    assert not set(pool.test_skills) & set(UNLEARNABLE_SKILLS)
    skills = (*pool.skills, *pool.test_skills)
    labels = (*pool.labels, *pool.test_labels)
    for skill, question, label in zip(skills, (*questions, *test_questions), labels, strict=True):
        assert skill in UNLEARNABLE_SKILLS or label == solve(skill, question)
        assert pool.choices is None or label in pool.choices
        if pool.answer_pattern is not None:
            (final,) = re.findall(pool.answer_pattern, label)
            assert final == label.split()[-1]


@settings(max_examples=10, deadline=None)
@given(kind=kinds, seed=seeds)
def test_seeds_differ_and_the_test_set_ignores_the_pool_size(kind: str, seed: int) -> None:
    small = make_pool(kind, 20, 30, random_state=seed)
    large = make_pool(kind, 50, 30, random_state=seed)
    other = make_pool(kind, 20, 30, random_state=seed + 1)
    assert small.test_items == large.test_items
    assert small.items != other.items
    assert small.test_items != other.test_items


def test_proportions() -> None:
    pool = make_pool("skewed", 500, 100, random_state=TEST_SEED)
    easy = [skill for skill in POOL_KINDS["skewed"].shares if skill in KNOWN_SKILLS]
    hard = [skill for skill in POOL_KINDS["skewed"].shares if skill in NEW_SKILLS]
    assert len(easy) == 1
    assert pool.skills.count(easy[0]) >= 0.7 * 500
    assert all(0 < pool.skills.count(skill) <= 0.1 * 500 for skill in hard)
    n_each = 100 / len(POOL_KINDS["skewed"].shares)
    assert all(abs(pool.test_skills.count(skill) - n_each) < 1 for skill in (*easy, *hard))

    noisy = make_pool("noisy", 1000, 100, random_state=TEST_SEED)
    assert 100 <= sum(skill in UNLEARNABLE_SKILLS for skill in noisy.skills) <= 200
    assert len(set(make_pool("homogeneous", 50, 10, random_state=TEST_SEED).skills)) == 1


def test_unlearnable_answers_are_spread_over_all_names() -> None:
    rng = np.random.default_rng(TEST_SEED)
    answers = [SKILLS["happy"](rng).answer for _ in range(1200)]
    assert set(answers) == set(NAMES)
    assert all(60 <= answers.count(name) <= 140 for name in NAMES)


def test_steps_have_answers_of_different_lengths() -> None:
    pool = make_pool("steps", 400, 50, random_state=TEST_SEED)
    assert {label.count("=") for label in pool.labels} == {1, 2, 3, 4}
    assert pool.choices is None


def test_one_pool_has_choices_of_more_than_one_token() -> None:
    choices = make_pool("homogeneous", 10, 10, random_state=TEST_SEED).choices
    assert choices is not None
    assert all(len(choice.split()) == 2 for choice in choices)
    assert len(set(choices)) == len(choices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "skewd"}, r"kind must be one of 'skewed', .*; got 'skewd'"),
        ({"n_items": 0}, "n_items must be a whole number of at least 1; got 0"),
        ({"n_test": 2.5}, "n_test must be a whole number of at least 1; got 2.5"),
        ({"n_items": True}, "n_items must be a whole number"),
        ({"n_items": 20_000}, "at most 20000; got 20200"),
        ({"random_state": -1}, "random_state must be a whole number of at least 0; got -1"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_pool(**arguments)  # type: ignore[arg-type]


@given(
    parts=st.lists(st.floats(min_value=0.01, max_value=1.0), min_size=1, max_size=6),
    total=st.integers(min_value=1, max_value=2000),
)
def test_whole_counts(parts: list[float], total: int) -> None:
    shares = {str(place): part for place, part in enumerate(parts)}
    counts = whole_counts(shares, total)
    assert sum(counts.values()) == total
    for name, part in shares.items():
        assert abs(counts[name] - total * part / sum(parts)) < 1 + 1e-6


def test_making_pools_needs_no_torch() -> None:
    code = (
        "import sys, starlearn.embedded.pools as p, starlearn.embedded.location as l;"
        "p.make_pool(n_items=5, n_test=5, random_state=30000); l.model_folder();"
        "sys.exit(any(n in sys.modules for n in ('torch', 'transformers', 'tokenizers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def shipped() -> tuple[LlamaForCausalLM, AutoTokenizer]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(model_folder())
    return model, tokenizer


def test_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in model_folder().rglob("*")) <= 8_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in model_folder().iterdir()
    }


def test_model_and_tokenizer(shipped: tuple[LlamaForCausalLM, AutoTokenizer]) -> None:
    model, tokenizer = shipped
    assert 1_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 4_000_000
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.in_features % 64 == 0 == module.out_features % 64
    special = [
        tokenizer.pad_token_id,
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.unk_token_id,
    ]
    assert None not in special
    assert len(set(special)) == 4
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.bos_token_id == tokenizer.bos_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_no_unknown_words_and_text_survives(
    shipped: tuple[LlamaForCausalLM, AutoTokenizer],
) -> None:
    _, tokenizer = shipped
    rng = np.random.default_rng(TEST_SEED)
    for skill in SKILLS.values():
        for _ in range(30):
            item = skill(rng)
            text = f"{item.text} {item.answer}"
            tokens = tokenizer(text)["input_ids"]
            assert tokens[0] == tokenizer.bos_token_id
            assert tokenizer.unk_token_id not in tokens
            assert len(tokens) == 1 + len(text.split())
            assert tokenizer.decode(tokens, skip_special_tokens=True) == text
            whole, weights = encode(tokenizer, [item])
            assert whole == [*tokens, tokenizer.eos_token_id]
            assert weights.count(1.0) == 1 + len(item.answer.split())


def test_base_has_the_known_skills_and_lacks_the_new_ones(
    shipped: tuple[LlamaForCausalLM, AutoTokenizer],
) -> None:
    model, tokenizer = shipped
    shares = {}
    for name, skill in SKILLS.items():
        rng = np.random.default_rng(TEST_SEED)
        items: list[Question] = [skill(rng) for _ in range(100)]
        shares[name] = accuracy(model, tokenizer, items)
    for name in KNOWN_SKILLS:
        least = 0.6 if name == "copy" else 0.8  # up to 16 random words, all of them right
        assert shares[name] >= least, (name, shares[name])
    for name in (*NEW_SKILLS, *UNLEARNABLE_SKILLS):  # `middle` is the highest, see the README
        assert shares[name] <= 0.6, (name, shares[name])
    assert np.mean([shares[name] for name in NEW_SKILLS]) <= 0.3


def test_generation_stops_after_the_answer(
    shipped: tuple[LlamaForCausalLM, AutoTokenizer],
) -> None:
    model, tokenizer = shipped
    question = "Ann has 3 . finds 4 . loses 2 . how many ?"
    prompt = tokenizer(question, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0]
    assert output[-1] == tokenizer.eos_token_id
    answer = tokenizer.decode(output[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer == "3 + 4 = 7 . 7 - 2 = 5 . answer 5"


def test_script_runs_end_to_end(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--steps", "3", "--batch-size", "4", "--validation", "2"])
    log = json.loads((tmp_path / "pretraining.json").read_text(encoding="utf-8"))
    assert log["steps"] == 3
    assert set(log["accuracy"]) == {*KNOWN_SKILLS, *NEW_SKILLS}
    assert np.isfinite([line["loss"] for line in log["losses"]]).all()
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.vocab_size >= len(tokenizer)
