"""The door: parameters, items and labels are checked here, before any model is loaded."""

import os
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from numpy.typing import NDArray
from sklearn.utils._param_validation import InvalidParameterError, validate_parameter_constraints

from starlearn.data.containers import as_items, as_labels
from starlearn.data.pool import Rows, as_rows
from starlearn.errors import InputError, listed
from starlearn.progress import checked_callbacks, checked_trackers
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.tasks import DEFAULTS, ChoiceTask, GenerationTask, Item, Task

PIECE = 2048
"""Rows of a pool on disk that are checked at a time."""


@dataclass(frozen=True)
class Parts:
    """The settings of a learner, none of them None, all of them checked."""

    task: ChoiceTask | GenerationTask
    adapter: LoRA
    acquisition: Acquisition
    training: Training
    callbacks: tuple[Any, ...] = ()
    report_to: tuple[str, ...] = ()


def has_choices(learner: Any) -> bool:
    """Tell a learner with a closed set of answers."""
    return not isinstance(learner.task, GenerationTask)


def checked_parts(learner: Any) -> Parts:
    """Return the learner's settings with defaults filled in.

    Raises
    ------
    InputError
        Naming the parameter, what is allowed and what came.
    """
    try:
        validate_parameter_constraints(
            {"cache_dir": [str, os.PathLike, None], "verbose": ["verbose"]},
            {"cache_dir": learner.cache_dir, "verbose": learner.verbose},
            caller_name="STARLearner",
        )
    except InvalidParameterError as error:
        raise InputError(str(error)) from None
    found: dict[str, Any] = {}
    for name, (default, kind) in DEFAULTS.items():
        part = getattr(learner, name)
        part = default() if part is None else part
        if not isinstance(part, kind) or type(part) is Task:
            raise InputError(
                f"STARLearner({name}=...) must be a {kind.__name__}, got {part!r:.60}. "
                f"Write {name}={default.__name__}(...)."
            )
        part.check()
        found[name] = part
    parts = Parts(
        **found,
        callbacks=checked_callbacks(learner.callbacks),
        report_to=checked_trackers(learner.report_to),
    )
    check_passes(parts, parts.acquisition.n_passes, "Acquisition(n_passes={})")
    return parts


def check_passes(parts: Parts, n_passes: Any, said: str) -> None:
    """Raise InputError unless K is a whole number from 1, and more than 1 only with dropout.

    Parameters
    ----------
    parts : Parts
    n_passes : int
        K.
    said : str
        What the user wrote, with {} for the number.
    """
    said = said.format(n_passes)
    if isinstance(n_passes, bool) or not isinstance(n_passes, Integral) or int(n_passes) < 1:
        raise InputError(f"{said}: n_passes must be a whole number, at least 1.")
    if int(n_passes) > 1 and parts.adapter.dropout == 0:
        raise InputError(
            f"{said} needs dropout on the adapter, and LoRA(dropout=0) has none: all passes would "
            "be the same. Set LoRA(dropout=0.1), or n_passes=1 and measure='entropy'."
        )


def checked_pool(X: Any, task: Task, name: str = "X") -> list[Item]:
    """Return unlabelled items as a list, each known to fill the prompt.

    Raises
    ------
    InputError
        Naming the rows that cannot be used, or when there are none at all.
    """
    items = as_items(X, name)
    if not items:
        raise InputError(f"{name} is empty: give at least one item.")
    task.fill(items)
    return items


def checked_rows(X: Any, task: Task, name: str) -> Rows:
    """Return an unlabelled pool that may lie on disk, each item known to fill the prompt.

    Raises
    ------
    InputError
        Naming the rows that cannot be used, or when there are none at all.
    """
    rows = as_rows(X, name)
    if not len(rows):
        raise InputError(f"{name} is empty: give at least one item.")
    for start in range(0, len(rows), PIECE):
        piece = rows[start : start + PIECE]
        task.fill(piece, range(start, start + len(piece)))
    return rows


def checked_labels(X: Any, y: Any, task: Task) -> tuple[list[Item], NDArray[Any]]:
    """Return labelled items as a list and an array of N labels that the task knows.

    Raises
    ------
    InputError
        Naming the rows whose item or label cannot be used, or when lengths differ.
    """
    items = as_items(X)
    labels = as_labels(y, len(items))
    items = checked_pool(items, task)
    if isinstance(task, GenerationTask):
        if not all(isinstance(label, str) for label in labels):
            raise InputError(
                "A GenerationTask learns answers as text; got labels of type "
                f"{type(labels[0]).__name__}. Convert them: [str(label) for label in y]."
            )
    elif isinstance(task, ChoiceTask) and task.choices is not None:
        known = set(task.choices)
        unknown = [f"row {i}: {v!r:.40}" for i, v in enumerate(labels.tolist()) if v not in known]
        if unknown and not isinstance(labels[0], str):
            raise InputError(
                f"The task's choices are texts, the labels are {type(labels.tolist()[0]).__name__}"
                f" ({unknown[0]}). Convert them: [str(label) for label in y]. Where scikit-learn "
                "numbers the labels itself, as its ensembles do, give it a fitted learner: "
                "FrozenEstimator(learner)."
            )
        if unknown:
            raise InputError(
                f"{len(unknown)} of {len(labels)} labels are not among the task's choices "
                f"{list(task.choices)[:8]!r}: {listed(unknown)}. Correct them, or add them to "
                "ChoiceTask(choices=[...])."
            )
    return items, labels


def check_label_type(labels: NDArray[Any], classes: NDArray[Any]) -> None:
    """Refuse labels to score against that are of another type than the classes: none is equal.

    Raises
    ------
    InputError
        When they are.
    """
    if not isinstance(labels[0], type(classes[0])):
        raise InputError(
            f"The learner's classes are {type(classes[0]).__name__}, the labels to score against "
            f"are {type(labels[0]).__name__} ({labels[0]!r:.40}). Give labels of the type that fit "
            "was given."
        )
