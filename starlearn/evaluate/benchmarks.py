"""GSM8K, BoolQ and OpenBookQA, from a folder or from the hub: items, labels and task."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sklearn.base import clone

from starlearn.data.readers import converted, text_of
from starlearn.data.sources import read_rows
from starlearn.data.text_files import Row
from starlearn.errors import InputError
from starlearn.tasks import ChoiceTask, GenerationTask

Item = dict[str, str]

OPTIONS = re.compile(r"^Answer([A-Z]):? ", re.MULTILINE)
FINAL_NUMBER = re.compile(r"(####\s*)(-?\d[\d,]*(?:\.\d+)?)\s*$")
GSM8K_ANSWER = (
    r"####(?:[\s*_$£€]|\\[$(]|\\boxed\{)*\+?"
    r"(?!-?[\d,.]+\s*/\s*\d)(-?\d+(?:,\d+)*(?:\.\d*[1-9])?)"
)
"""Number after "####", as the graders of OpenAI and of lm-evaluation-harness ("strict") read it.

Both read "29%" as 29, and lm-evaluation-harness also "29." as 29. Both find no answer in "-$5", and
in "-3" with a Unicode minus. The pattern differs from them in two points:

- It accepts a currency sign, a plus, bold type and \\boxed{} before the number, and leaves out
  zeros at the end of decimals ("29.00"), as Qwen2.5-Math's grader does.
- It finds no answer in "1/2". OpenAI's grader reads 1, and the "flexible" one of
  lm-evaluation-harness reads 2.
"""
BETWEEN_OPERANDS = r"(?:(?<=[\d)])|(?<=\b\w))\s*[{}]\s*(?=[\d(]|\w\b)"
"""Operands are numbers, single letters and parentheses."""
MINUS = re.compile(BETWEEN_OPERANDS.format("-") + r"|(?<!\w)-(?=\d)")
TIMES = re.compile(BETWEEN_OPERANDS.format("*·"))
POINT = re.compile(r"(?<=\d)\.(?=\d)")
RATIO = re.compile(r"(?<=\d):(?=\d)")
SIGNS = ((MINUS, "\u2212"), (TIMES, "\u00d7"), (POINT, "\u22c5"), (RATIO, "\u2236"))
"""Punctuation between numbers that is a sign of arithmetic, and the symbol for it."""
DASHES = str.maketrans("\u2010\u2011\u2012\u2013\u2014", "-----")
NOT_A_WORD = re.compile(r"[^\w\s]|_")
HINT = "Is this the right data set?"


@dataclass(frozen=True)
class Benchmark:
    """One of the paper's data sets, in the same form from a folder and from the hub.

    Each item has one field, ``question``: the whole question in the prompt form of the paper.
    Labels of GSM8K are worked solutions, which end in "#### number" without thousands commas and
    keep calculator annotations such as ``<<48/2=24>>``. Those of BoolQ are "true" and "false",
    those of OpenBookQA "A" to "D".
    """

    train_items: list[Item]
    train_labels: list[str]
    test_items: list[Item]
    test_labels: list[str]
    task: ChoiceTask | GenerationTask
    leaked_test_rows: list[int]
    """Test rows whose question is also in train, up to punctuation, case and the order of the
    options. They are kept: report the accuracy with and without them."""


@dataclass(frozen=True)
class Source:
    """Origin of a benchmark, and the conversion of its rows to items and labels."""

    folder: str
    hub: tuple[str, ...]
    test_split: str
    from_hub: Callable[[Row], tuple[str, str]]
    from_file: Callable[[Row], tuple[str, str]]
    task: ChoiceTask | GenerationTask


def load_benchmark(name: str, folder: str | Path | None = None) -> Benchmark:
    """Load "gsm8k", "boolq" or "openbookqa" from a folder, or from the hub without one.

    The folder has ``train.jsonl`` and ``test.jsonl`` of rows ``{"question", "answer"}``, or it is
    the parent of such a folder named ``GSM8K``, ``BoolQ`` or ``OBQA``.
    """
    if name not in SOURCES:
        raise InputError(f"unknown benchmark {name!r}; choose one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    if folder is None:
        train, test = (from_hub(name, source, split) for split in ("train", source.test_split))
    else:
        folder = folder_of(source.folder, Path(folder))
        files = (folder / "train.jsonl", folder / "test.jsonl")
        train, test = (converted(read_rows(file), source.from_file, file, HINT) for file in files)
    return Benchmark(
        [{"question": text} for text, _ in train],
        [label for _, label in train],
        [{"question": text} for text, _ in test],
        [label for _, label in test],
        clone(source.task),
        leaked_rows([text for text, _ in train], [text for text, _ in test]),
    )


def folder_of(name: str, folder: Path) -> Path:
    """Return the folder with train.jsonl and test.jsonl: `folder`, or its folder of this name."""
    for found in (folder / name, folder):
        if (found / "train.jsonl").is_file() and (found / "test.jsonl").is_file():
            return found
    raise InputError(
        f"no train.jsonl and test.jsonl in {folder} or in {folder / name}; give the folder with "
        f"these files, or leave it out to load the data set from the hub"
    )


def from_hub(name: str, source: Source, split: str) -> list[tuple[str, str]]:
    """Load one split of a benchmark from the hub as pairs of question and label."""
    import datasets

    try:
        rows = datasets.load_dataset(*source.hub, split=split)
    except (OSError, ValueError) as error:  # no network, no such set, offline mode
        raise InputError(
            f"could not load {source.hub[0]} ({split}) from the hub: {error}. Without a network, "
            f"give the files: --data FOLDER (load_benchmark({name!r}, folder=...)), a folder "
            f"with {source.folder}/train.jsonl and {source.folder}/test.jsonl"
        ) from error
    numbered = ((f"row {number}", row) for number, row in enumerate(rows))
    return converted(numbered, source.from_hub, f"{source.hub[0]} ({split})", HINT)


def leaked_rows(train: Sequence[str], test: Sequence[str]) -> list[int]:
    """Return the rows of a test set whose texts are also in train, as `content_key` compares."""
    seen = set(map(content_key, train))
    return [row for row, text in enumerate(test) if content_key(text) in seen]


def content_key(question: str) -> tuple[str, ...]:
    """Return the words and signs of a question, with its lines (and so its options) sorted.

    Signs that change the meaning are kept: those of arithmetic, currencies, per cent, and symbols.
    """
    text = unicodedata.normalize("NFC", OPTIONS.sub("", question)).casefold().translate(DASHES)
    for pattern, sign in SIGNS:
        text = pattern.sub(sign, text)
    text = NOT_A_WORD.sub(_sign, text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return tuple(sorted(line for line in lines if line)) or (question,)


def _sign(match: re.Match[str]) -> str:
    """Return a symbol as a word of its own, and a space for punctuation."""
    kind = unicodedata.category(match[0])[0]
    if kind == "M":  # a vowel sign, as in Hindi: a part of its word
        return match[0]
    return f" {match[0]} " if kind == "S" or match[0] in "/%" else " "


def gsm8k_row(row: Row) -> tuple[str, str]:
    """Return a question and its solution, whose final number has no thousands commas."""
    solution, count = FINAL_NUMBER.subn(
        lambda found: found[1] + found[2].replace(",", ""), text_of(row, "answer")
    )
    if count == 0:
        raise ValueError('the answer does not end in "#### number"')
    return text_of(row, "question"), solution


def boolq_row(row: Row) -> tuple[str, str]:
    """Return a rendered question, and true or false from "the correct answer is true"."""
    return text_of(row, "question"), last_word(row, ("true", "false"))


def boolq_hub_row(row: Row) -> tuple[str, str]:
    """Return a rendered question of google/boolq (closed book, without its passage)."""
    if not isinstance(row["answer"], bool):
        raise ValueError(f"the answer must be true or false, got {row['answer']!r}")
    question = text_of(row, "question").removesuffix("?")
    rendered = f"Please answer the following question with true or false, question: {question}?"
    return f"{rendered}\n\nAnswer format: true/false", str(row["answer"]).lower()


def openbookqa_row(row: Row) -> tuple[str, str]:
    """Return a rendered question with options "AnswerA: text", and the letter of the answer."""
    question = OPTIONS.sub(r"Answer\1: ", text_of(row, "question").rstrip())
    if len(OPTIONS.findall(question)) < 4:
        raise ValueError("fewer than four lines begin with AnswerA to AnswerD")
    return question, last_word(row, ("A", "B", "C", "D"))


def openbookqa_hub_row(row: Row) -> tuple[str, str]:
    """Return a rendered question of allenai/openbookqa with its four options."""
    letters, options = row["choices"]["label"], row["choices"]["text"]
    lines = [f"Answer{letter}: {option}" for letter, option in zip(letters, options, strict=True)]
    question = "\n".join([text_of(row, "question_stem"), *lines, "The correct answer is"])
    return openbookqa_row({"question": question, "answer": row["answerKey"]})


def last_word(row: Row, allowed: tuple[str, ...]) -> str:
    """Return the last word of the answer, which must be an allowed one."""
    word = text_of(row, "answer").split()[-1].rstrip(".")
    if word not in allowed:
        raise ValueError(f"the answer must end in one of {', '.join(allowed)}, got {word!r}")
    return word


SOURCES = {
    "gsm8k": Source(
        "GSM8K",
        ("openai/gsm8k", "main"),
        "test",
        gsm8k_row,
        gsm8k_row,
        GenerationTask(
            "{question}\nAnswer:",
            max_new_tokens=256,
            answer_pattern=GSM8K_ANSWER,
        ),
    ),
    "boolq": Source(
        "BoolQ",
        ("google/boolq",),
        "validation",
        boolq_hub_row,
        boolq_row,
        ChoiceTask("{question}\n\nthe correct answer is", choices=["false", "true"]),
    ),
    "openbookqa": Source(
        "OBQA",
        ("allenai/openbookqa", "main"),
        "test",
        openbookqa_hub_row,
        openbookqa_row,
        ChoiceTask("{question}", choices=["A", "B", "C", "D"]),
    ),
}
