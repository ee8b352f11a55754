"""The tasks of a study: pool, labels, test set and prompt for one seed, the same for all arms."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone

from starlearn.data.readers import load_labelled
from starlearn.errors import InputError, listed
from starlearn.evaluate.arms import item_length
from starlearn.evaluate.benchmarks import leaked_rows, load_benchmark
from starlearn.evaluate.simulate import content_id
from starlearn.evaluate.study_file import StudyTask
from starlearn.learner.inputs import check_final_answers
from starlearn.tasks import ChoiceTask, GenerationTask

EMBEDDED_TOKENS = 32
"""Length limit of an answer in the pool "steps", whose longest answer fits."""


@dataclass(frozen=True)
class TaskData:
    """The data of a task for one seed: m items in the pool, q in the test set."""

    items: list[Any]
    labels: list[str]
    test_items: list[Any]
    test_labels: list[str]
    task: ChoiceTask | GenerationTask
    skills: list[str] | None = None
    """The skill that each item of the pool needs, where it is known. Only analyses read it."""
    leaked: frozenset[str] = frozenset()
    """Content ids of the test items that are also in the pool."""

    @property
    def leaks(self) -> str:
        """Number and share of the test items that are also in the pool; empty where none is."""
        n, q = sum(content_id(x) in self.leaked for x in self.test_items), len(self.test_items)
        return f"{n} of {q} test items ({n / q:.1%}) are also in the pool" if n else ""

    @property
    def digest(self) -> str:
        """A short hash of everything but the skills."""
        names = ("prompt", "choices", "max_new_tokens", "answer_pattern")
        answers = [getattr(self.task, name, None) for name in names]
        content = [self.items, self.labels, self.test_items, self.test_labels, answers]
        return blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def load_task(task: StudyTask, seed: int) -> TaskData:
    """Make or read the data of a task, and draw the part that the seed decides."""
    if task.source == "embedded":
        return _embedded(task, seed)
    data = _stored(task)
    items, labels = _drawn(data.items, data.labels, task.n_items, task.max_chars, [seed, 10])
    test_items, test_labels = _drawn(
        data.test_items, data.test_labels, task.n_test, task.max_chars, [seed, 11]
    )
    answers = clone(data.task).set_params(chat=task.chat, system=task.system)
    answers.check()
    return TaskData(items, labels, test_items, test_labels, answers, leaked=data.leaked)


def data_digest(task: StudyTask) -> str:
    """Return a hash of the source of a task's data, the same for all seeds."""
    return load_task(task, 0).digest if task.source == "embedded" else _stored(task).digest


def _embedded(task: StudyTask, seed: int) -> TaskData:
    from starlearn.embedded.pools import make_pool

    sizes = (int(task.n_items or 0), int(task.n_test or 0))
    made = make_pool(str(task.pool), *sizes, random_state=seed)
    answers: ChoiceTask | GenerationTask = ChoiceTask(made.prompt, made.choices)
    if made.choices is None:
        limit = task.max_new_tokens or EMBEDDED_TOKENS
        answers = GenerationTask(made.prompt, limit, made.answer_pattern)
    return TaskData(
        made.items, made.labels, made.test_items, made.test_labels, answers, made.skills
    )


_benchmark = lru_cache(maxsize=8)(load_benchmark)


@lru_cache(maxsize=8)
def _files(train: Path, test: Path, text_field: str, label_field: str) -> tuple[Any, ...]:
    """Return items and labels of both files, and the content ids of the leaked test items."""
    pool, tested = (load_labelled(file, text_field, label_field) for file in (train, test))
    leaked = frozenset(content_id(tested[0][row]) for row in leaked_rows(pool[0], tested[0]))
    return (*pool, *tested, leaked)


def _stored(task: StudyTask) -> TaskData:
    if task.source == "benchmark":
        found = _benchmark(str(task.dataset), task.folder)
        answers: Any = found.task
        if task.max_new_tokens is not None:
            answers = GenerationTask(answers.prompt, task.max_new_tokens, answers.answer_pattern)
        leaked = frozenset(content_id(found.test_items[i]) for i in found.leaked_test_rows)
        _check_held_out(leaked, found.test_items, task)
        return TaskData(
            found.train_items,
            found.train_labels,
            found.test_items,
            found.test_labels,
            answers,
            leaked=leaked,
        )
    files = [Path(str(task.folder)) / name for name in (task.train, task.test)]
    items, labels, test_items, test_labels, leaked = _files(
        *files, task.text_field, task.label_field
    )
    if task.max_new_tokens is not None:
        answers = GenerationTask(task.prompt, task.max_new_tokens, task.answer_pattern)
        answers.check()
        for file, some in zip(files, (labels, test_labels), strict=True):
            check_final_answers(some, answers, f"{file}: ")
    else:
        if task.words:
            labels, test_labels = (
                [label.replace("_", " ") for label in some] for some in (labels, test_labels)
            )
        answers = ChoiceTask(task.prompt, choices=_choices(labels, test_labels, *files))
        answers.check()
    _check_held_out(leaked, test_items, task)
    return TaskData(items, labels, test_items, test_labels, answers, leaked=leaked)


def _check_held_out(leaked: frozenset[str], test_items: Sequence[Any], task: StudyTask) -> None:
    """Raise InputError where the test set has no item of its own, as when both are one file."""
    if all(content_id(item) in leaked for item in test_items):
        raise InputError(
            f"{task.test}: every test item is also in the pool ({task.train}). Accuracy on items "
            "that the model was trained on does not show what it has learned. Give a test set of "
            "other items."
        )


def _choices(
    labels: Sequence[str], test_labels: Sequence[str], train: Path, test: Path
) -> list[str]:
    """Return the labels of the pool; raise InputError where the files disagree about classes."""
    choices = sorted(set(labels))
    spellings: dict[str, list[str]] = {}
    for label in choices:
        spellings.setdefault(label.casefold(), []).append(label)
    variants = [" and ".join(map(repr, same)) for same in spellings.values() if len(same) > 1]
    if variants:
        raise InputError(
            f"{train}: labels that differ only in case: {listed(variants)}. Use one spelling."
        )
    unknown = [repr(label) for label in sorted(set(test_labels) - set(choices))]
    if unknown:
        raise InputError(
            f"{test}: labels that {train.name} lacks: {listed(unknown)}. Remove these rows, or "
            "set max_new_tokens for free-form answers."
        )
    return choices


def _drawn(
    items: list[Any], labels: list[str], n: int | None, max_chars: int | None, seed: list[int]
) -> tuple[list[Any], list[str]]:
    """Draw n of the rows that are short enough, in the order of the file; None draws all."""
    rows = [
        row
        for row, (item, label) in enumerate(zip(items, labels, strict=True))
        if max_chars is None or item_length(item) + len(label) <= max_chars
    ]
    if not rows:
        raise InputError(f"no row has at most {max_chars} characters. Raise max_chars.")
    if n is not None and n < len(rows):
        drawn = np.sort(np.random.default_rng(seed).choice(len(rows), n, replace=False))
        rows = [rows[i] for i in drawn]
    return [items[i] for i in rows], [labels[i] for i in rows]
