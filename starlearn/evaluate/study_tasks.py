"""The tasks of a study: pool, labels, test set and prompt for one seed, the same for all arms."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from starlearn.errors import InputError, listed
from starlearn.evaluate.simulate import content_id
from starlearn.evaluate.study_file import Task
from starlearn.tasks import ChoiceTask, GenerationTask

EMBEDDED_TOKENS = 32
"""Room for the longest working of the pool "steps"."""


@dataclass(frozen=True)
class TaskData:
    """What one seed is played on; m items in the pool, q in the test set."""

    items: list[Any]
    labels: list[str]
    test_items: list[Any]
    test_labels: list[str]
    task: ChoiceTask | GenerationTask
    skills: list[str] | None = None
    """What each item of the pool asks for, where that is known: for the analysis alone."""
    leaked: frozenset[str] = frozenset()
    """Content ids of the test items that also stand in the pool."""

    @property
    def digest(self) -> str:
        """A short hash of everything but the skills."""
        names = ("prompt", "choices", "max_new_tokens", "answer_pattern")
        asked = [getattr(self.task, name, None) for name in names]
        content = [self.items, self.labels, self.test_items, self.test_labels, asked]
        return blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def load_task(task: Task, seed: int) -> TaskData:
    """Make or read a task's data, and draw from it what the seed says.

    Raises
    ------
    InputError
        When a folder or a data set cannot be used.
    """
    if task.source == "embedded":
        return _embedded(task, seed)
    data = _stored(task)
    items, labels = _drawn(data.items, data.labels, task.n_items, [seed, 10])
    test_items, test_labels = _drawn(data.test_items, data.test_labels, task.n_test, [seed, 11])
    return TaskData(items, labels, test_items, test_labels, data.task, leaked=data.leaked)


def data_digest(task: Task) -> str:
    """Return a hash of what a task's data come from, the same for all seeds."""
    return load_task(task, 0).digest if task.source == "embedded" else _stored(task).digest


def _embedded(task: Task, seed: int) -> TaskData:
    from starlearn.embedded.pools import make_pool

    sizes = (int(task.n_items or 0), int(task.n_test or 0))
    made = make_pool(str(task.pool), *sizes, random_state=seed)
    answers: ChoiceTask | GenerationTask = ChoiceTask(made.prompt, made.choices)
    if made.choices is None:
        room = task.max_new_tokens or EMBEDDED_TOKENS
        answers = GenerationTask(made.prompt, room, made.answer_pattern)
    return TaskData(
        made.items, made.labels, made.test_items, made.test_labels, answers, made.skills
    )


@lru_cache(maxsize=8)
def _read(source: str, name: str, folder: str | None, text: str, label: str) -> Any:
    from starlearn.data.readers import load_labelled
    from starlearn.evaluate.benchmarks import load_benchmark

    if source == "benchmark":
        return load_benchmark(name, folder)
    return [load_labelled(f"{folder}/{part}.jsonl", text, label) for part in ("train", "test")]


def _stored(task: Task) -> TaskData:
    found = _read(task.source, task.dataset or "", task.folder, task.text_field, task.label_field)
    if task.source == "benchmark":
        answers = found.task
        if task.max_new_tokens is not None and isinstance(answers, GenerationTask):
            answers = GenerationTask(answers.prompt, task.max_new_tokens, answers.answer_pattern)
        return TaskData(
            found.train_items,
            found.train_labels,
            found.test_items,
            found.test_labels,
            answers,
            leaked=frozenset(content_id(found.test_items[i]) for i in found.leaked_test_rows),
        )
    (items, labels), (test_items, test_labels) = found
    if task.max_new_tokens is not None:
        free = GenerationTask(task.prompt, task.max_new_tokens)
        return TaskData(items, labels, test_items, test_labels, free)
    labels, test_labels = (_spelled(some, task.words) for some in (labels, test_labels))
    unknown = sorted(set(test_labels) - set(labels))
    if unknown:
        raise InputError(
            f"{task.folder}: labels of test.jsonl that train.jsonl lacks: {listed(unknown)}; "
            "remove these rows"
        )
    choices = ChoiceTask(task.prompt, choices=sorted(set(labels)))
    return TaskData(items, labels, test_items, test_labels, choices)


def _spelled(labels: Sequence[str], words: bool) -> list[str]:
    return [label.replace("_", " ") if words else label for label in labels]


def _drawn(
    items: list[Any], labels: list[str], n: int | None, seed: list[int]
) -> tuple[list[Any], list[str]]:
    """Draw n rows in the order of the file; all of them where n is None or no less than all."""
    rows: Sequence[int] = range(len(items))
    if n is not None and n < len(items):
        rows = np.sort(np.random.default_rng(seed).choice(len(items), n, replace=False)).tolist()
    return [items[i] for i in rows], [labels[i] for i in rows]
