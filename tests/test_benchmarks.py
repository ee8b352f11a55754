"""GSM8K, BoolQ, OpenBookQA: one form from files and from the hub, answers parsed, leaks found."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from starlearn.errors import InputError
from starlearn.evaluate.benchmarks import SOURCES, Benchmark, content_key, load_benchmark

SHARED = Path(__file__).parents[2] / "shared" / "data" / "star"
needs_data = pytest.mark.skipif(
    not SHARED.is_dir(),
    reason="needs the files beside the checkout; users get the sets with datasets.load_dataset",
)

FOG = "There is fog around:\nAnswerA a marsh\nAnswerB a tundra\nAnswerC plains\nAnswerD a desert"
FOG_AGAIN = (
    "There is fog around\nAnswerA: a desert\nAnswerB: a marsh\nAnswerC: plains\nAnswerD: a tundra"
)
ICE = "Ice is\nAnswerA: cold\nAnswerB: hot\nAnswerC: dry\nAnswerD: loud"
ASK = (
    "Please answer the following question with true or false, question: {}?"
    "\n\nAnswer format: true/false"
)
CLIPS = "Natalia sold 48/2 = <<48/2=24>>24 clips, 1,072 in all.\n#### {}"

FILES = {
    "gsm8k": (
        "GSM8K",
        [("How many clips?", CLIPS.format("1,072")), ("How  many robes?", CLIPS.format("-3"))],
        [("How many ducks?", CLIPS.format("2,125,000"))],
    ),
    "boolq": (
        "BoolQ",
        [(ASK.format("is ice cold"), "the correct answer is true")],
        [
            (ASK.format("is fire cold"), "the correct answer is false"),
            (ASK.format("is ice, cold"), "the correct answer is true"),
        ],
    ),
    "openbookqa": (
        "OBQA",
        [(FOG + "\nThe correct answer is ", "A")],
        [
            (ICE + "\nThe correct answer is ", "A"),
            (FOG_AGAIN + "\nThe correct answer is ", "B"),
        ],
    ),
}


def write_files(folder: Path, name: str) -> Path:
    home, train, test = FILES[name]
    (folder / home).mkdir()
    for split, rows in (("train", train), ("test", test)):
        lines = [json.dumps({"question": q, "answer": a}) for q, a in rows]
        (folder / home / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def assert_same(a: Benchmark, b: Benchmark) -> None:
    """Compare two benchmarks; tasks are scikit-learn estimators and have no equality."""
    assert replace(a, task=None) == replace(b, task=None)
    assert a.task.get_params() == b.task.get_params()


def test_gsm8k(tmp_path):
    found = load_benchmark("gsm8k", write_files(tmp_path, "gsm8k"))
    assert found.train_items[0] == {"question": "How many clips?"}
    assert found.train_labels[0] == CLIPS.format("1072"), "annotations stay, the final comma goes"
    assert [found.task.parse(y) for y in found.train_labels] == ["1072", "-3"]
    assert found.task.parse("#### 72, as was to be shown.") == "72"
    assert found.task.parse("#### 1,234,567.5") == "1234567.5"
    assert found.task.parse("so 5 * 2\n#### 2,125,000\n") == found.task.parse(found.test_labels[0])


def test_boolq(tmp_path):
    found = load_benchmark("boolq", write_files(tmp_path, "boolq"))
    assert found.train_labels + found.test_labels == ["true", "false", "true"]
    assert set(found.task.choices) == {"true", "false"}
    assert found.leaked_test_rows == [1], "the same question up to punctuation"


def test_openbookqa_has_one_form_and_shows_its_leak(tmp_path):
    found = load_benchmark("openbookqa", write_files(tmp_path, "openbookqa"))
    lines = found.train_items[0]["question"].splitlines()
    assert lines[1:] == [
        "AnswerA: a marsh",
        "AnswerB: a tundra",
        "AnswerC: plains",
        "AnswerD: a desert",
        "The correct answer is",
    ]
    assert found.test_labels == ["A", "B"]
    assert found.leaked_test_rows == [1], "options in another order are the same question"
    assert len(found.test_items) == 2, "leaked rows are kept"


def test_other_options_are_another_question():
    assert content_key(FOG) == content_key(FOG_AGAIN)
    assert content_key(FOG) != content_key(FOG.replace("a desert", "a lake"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 5-3?", "What is 5+3?"),
        ("What is 5-3?", "What is 5*3?"),
        ("What is 5-3?", "What is 5 3?"),
        ("What is x-y?", "What is x*y?"),
        ("What is (a)-(b)?", "What is (a)*(b)?"),
        ("Is -3 odd?", "Is 3 odd?"),
        ("Is 5.3 large?", "Is 53 large?"),
        ("Is 5.3 large?", "Is 5:3 large?"),
        ("Is $5 a lot?", "Is 5% a lot?"),
        ("Is 3 < 4?", "Is 3 > 4?"),
        ("\U0001f642", "\U0001f641"),
        ("\u092a\u093f\u0924\u093e", "\u092a\u0940\u0924\u093e"),  # Hindi: vowel signs
        ("!", "?"),
    ],
)
def test_signs_that_change_the_meaning_make_another_question(one, other):
    assert content_key(one) != content_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 5-3?", "what is 5 \u2212 3"),
        ("What is 5*3?", "What is 5 * 3"),
        ("A well-known, 5-year-old man", "a well known 5 year old man"),
        ("He left \u2014 why", "He left: why?"),
        ("**Is ice cold**", "Is _ice_ cold"),
        ("caf\u00e9", "Cafe\u0301"),
    ],
)
def test_punctuation_case_and_spaces_make_no_other_question(one, other):
    assert content_key(one) == content_key(other)


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("29.00", "29"),
        ("$29", "29"),
        ("+3", "3"),
        ("**29**", "29"),
        ("-3", "-3"),
        ("29,000", "29000"),
        ("1,00,000", "100000"),
        ("29%", "29"),
        ("29.", "29"),
        ("29.50", "29.5"),
        ("29.05", "29.05"),
        (r"$\boxed{29}$", "29"),
        (r"\$29", "29"),
        ("$-5", "-5"),
        ("1/2", None),
        ("12 / 20", None),
        ("\u22123", None),
        ("-$5", None),
        ("twenty", None),
    ],
)
def test_numbers_of_gsm8k_as_its_graders_read_them(written, number):
    task = SOURCES["gsm8k"].task
    assert task.find(f"so it is\n#### {written}") == number


@pytest.mark.parametrize("name", FILES)
def test_own_folder_or_the_one_above(tmp_path, name):
    folder = write_files(tmp_path, name)
    assert_same(load_benchmark(name, folder), load_benchmark(name, str(folder / FILES[name][0])))


HUB = {
    "gsm8k": (
        ("openai/gsm8k", "main"),
        {"train": FILES["gsm8k"][1], "test": FILES["gsm8k"][2]},
        lambda question, answer: {"question": question, "answer": answer},
    ),
    "boolq": (
        ("google/boolq",),
        {
            "train": [("is ice cold", True)],
            "validation": [("is fire cold", False), ("is ice, cold", True)],
        },
        lambda question, answer: {"question": question, "answer": answer, "passage": "..."},
    ),
    "openbookqa": (
        ("allenai/openbookqa", "main"),
        {"train": [(FOG, "A")], "test": [(ICE, "A"), (FOG_AGAIN, "B")]},
        lambda question, answer: {
            "id": "7-980",
            "question_stem": question.splitlines()[0],
            "choices": {
                "text": [line.split(" ", 1)[1] for line in question.splitlines()[1:]],
                "label": ["A", "B", "C", "D"],
            },
            "answerKey": answer,
        },
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_hub_and_files_give_the_same(tmp_path, monkeypatch, name):
    address, splits, columns = HUB[name]

    def load_dataset(*arguments, split):
        assert arguments == address
        return datasets.Dataset.from_list([columns(*row) for row in splits[split]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    from_files, from_hub = load_benchmark(name, write_files(tmp_path, name)), load_benchmark(name)
    assert_same(from_hub, from_files)


def test_offline_error_names_the_option(monkeypatch):
    def load_dataset(*arguments, split):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"openai/gsm8k.*Couldn't reach the Hub.*--data FOLDER"):
        load_benchmark("gsm8k")


@pytest.mark.parametrize(
    ("name", "question", "answer", "words"),
    [
        ("gsm8k", "How many?", "no number", 'line 1: the answer does not end in "#### number"'),
        ("gsm8k", "", "#### 1", "line 1: question is empty"),
        ("boolq", ASK, "maybe", "must end in one of true, false, got 'maybe'"),
        ("openbookqa", ICE, "E", "must end in one of A, B, C, D, got 'E'"),
        ("openbookqa", "Ice is what?", "A", "fewer than four lines"),
    ],
)
def test_bad_rows(tmp_path, name, question, answer, words):
    row = json.dumps({"question": question, "answer": answer})
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(row)
    with pytest.raises(InputError) as caught:
        load_benchmark(name, tmp_path)
    assert words in str(caught.value)


def test_unknown_name_and_missing_files(tmp_path):
    with pytest.raises(InputError, match="gsm8k, boolq, openbookqa"):
        load_benchmark("mmlu", tmp_path)
    with pytest.raises(InputError, match=r"no train\.jsonl and test\.jsonl"):
        load_benchmark("gsm8k", tmp_path)


@needs_data
@pytest.mark.parametrize(
    ("name", "sizes", "leaked"),
    [
        ("gsm8k", (7473, 1319), []),
        ("boolq", (9427, 3270), [493]),
        (
            "openbookqa",
            (4957, 500),
            [3, 7, 21, 183, 208, 239, 242, 268, 328, 377, 381, 443, 448, 454],
        ),
    ],
)
def test_the_real_files(name, sizes, leaked):
    found = load_benchmark(name, SHARED)
    assert (len(found.train_items), len(found.test_items)) == sizes
    assert found.leaked_test_rows == leaked
    if name == "gsm8k":
        answers = map(found.task.parse, found.train_labels + found.test_labels)
        assert all(answer.lstrip("-").isdigit() for answer in answers)
    else:
        shares = Counter(found.test_labels)
        assert set(shares) == set(found.task.choices)
