"""Checks of parameters, items and labels, before any model is loaded."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeVar, cast

from numpy.typing import NDArray
from sklearn.utils._param_validation import InvalidParameterError, validate_parameter_constraints
from sklearn.utils.metaestimators import available_if

from starlearn.data.containers import as_items, as_labels
from starlearn.data.pool import FilledPool, Pool, Rows, as_rows
from starlearn.errors import InputError, listed
from starlearn.learner.locking import one_at_a_time
from starlearn.model.backbone import check_quantization
from starlearn.progress import checked_callbacks, checked_trackers
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.tasks import DEFAULTS, ChoiceTask, Fields, GenerationTask, Item, Task

CHUNK = 2048
"""Rows of a pool on disk that are read at a time."""

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Parts:
    """The settings of a learner, all of them checked, with defaults in place of None."""

    task: ChoiceTask | GenerationTask
    adapter: LoRA
    acquisition: Acquisition
    training: Training
    callbacks: tuple[Any, ...] = ()
    report_to: tuple[str, ...] = ()


def has_choices(learner: Any) -> bool:
    """Whether the answers come from a closed set."""
    return not isinstance(learner.task, GenerationTask)


def only_with_choices(method: Method) -> Method:
    """Return a method that exists only where the answers come from a closed set."""
    found = available_if(has_choices)(one_at_a_time(method))
    return cast("Method", found)  # scikit-learn's loses the type


def checked_parts(learner: Any) -> Parts:
    """Return the learner's settings, checked, with defaults filled in."""
    check_quantization(learner.quantization)
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
    found["acquisition"] = found["acquisition"].resolved()
    parts = Parts(
        **found,
        callbacks=checked_callbacks(learner.callbacks),
        report_to=checked_trackers(learner.report_to),
    )
    check_passes(parts, parts.acquisition.n_passes, "Acquisition(n_passes={})")
    return parts


def check_passes(parts: Parts, n_passes: Any, expression: str) -> None:
    """Check that K is a whole number of at least 1, and 1 where the adapter has no dropout.

    `expression` is the user's code, for the error, with {} in place of the number.
    """
    expression = expression.format(n_passes)
    if isinstance(n_passes, bool) or not isinstance(n_passes, Integral) or int(n_passes) < 1:
        raise InputError(f"{expression}: n_passes must be a whole number, at least 1.")
    if int(n_passes) > 1 and parts.adapter.dropout == 0:
        raise InputError(
            f"{expression} needs dropout on the adapter. With LoRA(dropout=0) all passes would be "
            "the same. Set LoRA(dropout=0.1), or n_passes=1 and measure='entropy'."
        )


def checked_items(X: Any, task: Task, name: str = "X") -> list[Fields]:
    """Return unlabelled items, at least one, as the fields of their prompts."""
    items = as_items(X, name)
    if not items:
        raise InputError(f"{name} is empty: give at least one item.")
    return task.fill(items)


def checked_pool(
    X: Any, task: Task, name: str, *, read: bool = False
) -> tuple[Rows, Sequence[Fields] | FilledPool]:
    """Return a pool of m rows and the fields of their prompts.

    Rows on disk are read when they are used. With `read` they are also read once here, so that an
    unusable row is found before anything is started.
    """
    rows = as_rows(X, name)
    if not len(rows):
        raise InputError(f"{name} is empty: give at least one item.")
    if not isinstance(rows, Pool):
        return rows, task.fill(rows)
    filled = FilledPool(rows, task)
    if read:
        for start in range(0, len(rows), CHUNK):
            filled[start : start + CHUNK]
    return rows, filled


def checked_labels(X: Any, y: Any, task: Task) -> tuple[list[Item], list[Fields], NDArray[Any]]:
    """Return labelled items, the fields of their prompts, and N labels that the task allows."""
    items = as_items(X)
    labels = as_labels(y, len(items))
    fields = checked_items(items, task)
    check_labels(labels, task)
    if isinstance(task, GenerationTask):
        check_final_answers(labels.tolist(), task)
    return items, fields, labels


def check_final_answers(labels: Sequence[str], task: GenerationTask, where: str = "") -> None:
    """Warn of labels without a final answer; raise InputError where no label has one.

    `where` is the beginning of the message, such as the name of the labels' file.
    """
    without = [f"row {row}: {v!r:.60}" for row, v in enumerate(labels) if task.find(v) is None]
    if not without:
        return
    complaint = (
        f"{where}The task's answer_pattern {task.answer_pattern!r} finds no answer in "
        f"{len(without)} of {len(labels)} labels, so every answer to these items counts as wrong: "
        f"{listed(without)}. Give whole answers as labels, in the form that the pattern finds, or "
        "change answer_pattern."
    )
    if len(without) == len(labels):
        raise InputError(complaint)
    warnings.warn(complaint, UserWarning, stacklevel=5)


def check_labels(labels: NDArray[Any], task: Task) -> None:
    """Check that the task allows all of the labels."""
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
                "numbers the labels itself, 0 need not be the task's first choice. Give its "
                "ensembles a fitted learner: FrozenEstimator(learner). In place of "
                "cross_val_predict(method='predict_proba'), loop over the folds. "
                "OneVsRestClassifier is not needed: the learner handles all classes."
            )
        if unknown:
            raise InputError(
                f"{len(unknown)} of {len(labels)} labels are not among the task's choices "
                f"{list(task.choices)[:8]!r}: {listed(unknown)}. Correct them, or add them to "
                "ChoiceTask(choices=[...])."
            )


def check_label_type(labels: NDArray[Any], classes: NDArray[Any]) -> None:
    """Check that labels to score against are of the type of the classes; else none is equal."""
    kinds = [type(values.tolist()[0]) for values in (labels, classes)]
    if kinds[0] is not kinds[1]:
        raise InputError(
            f"The learner's classes are {kinds[1].__name__}, the labels to score against "
            f"are {kinds[0].__name__} ({labels[0]!r:.40}). Give labels of the type that fit "
            "received."
        )
