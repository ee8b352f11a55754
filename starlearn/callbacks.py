"""Callbacks: functions that are told how far a step is, transformers' own, and trackers' names."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from starlearn.errors import InputError, MissingDependencyError

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True)
class Progress:
    """How far a long step is."""

    stage: str
    """What is being done: "training", "query", "predicting", "answering", "embedding"; by workers
    "query on ray", "embedding on ray"."""
    done: int
    total: int
    """Optimiser steps of a training, items of everything else."""


def checked_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """Return callbacks as a tuple.

    Raises
    ------
    InputError
        When one is neither a function nor an instance of transformers.TrainerCallback.
    """
    if callbacks is None:
        return ()
    # No iterator: it would be empty when the learner asks for the second time.
    if not isinstance(callbacks, Iterable) or isinstance(callbacks, Iterator):
        raise InputError(
            f"callbacks must be a list, got {type(callbacks).__name__}. Write callbacks=[...]."
        )
    found = tuple(callbacks)
    for place, callback in enumerate(found):
        if isinstance(callback, type):
            raise InputError(
                f"callbacks[{place}] is the class {callback.__name__}. Give an instance of it: "
                f"callbacks=[{callback.__name__}()]."
            )
        if not callable(callback) and not _is_for_trainings(callback):
            raise InputError(
                f"callbacks[{place}] must be a function that takes a starlearn.Progress, or a "
                f"transformers.TrainerCallback; got {callback!r:.60}."
            )
    return found


def checked_trackers(report_to: Any) -> tuple[str, ...]:
    """Return the names of the trackers that figures go to.

    Raises
    ------
    InputError
        When a name is none of `TRACKERS`. "all" is none: nobody is told by surprise.
    MissingDependencyError
        When a tracker's library is not installed.
    """
    if report_to is None or report_to == "none":
        return ()
    if isinstance(report_to, str):
        report_to = (report_to,)
    if not isinstance(report_to, Iterable) or isinstance(report_to, Iterator):
        raise InputError(f"report_to must be names of trackers, got {report_to!r:.60}.")
    names = tuple(report_to)
    for name in names:
        if name not in TRACKERS:
            raise InputError(
                f"report_to may name {', '.join(map(repr, TRACKERS))}; got {name!r:.60}. "
                "report_to=() tells nobody."
            )
        library = find_spec(name)
        if library is None or library.origin is None:  # the latter: a mere folder of that name
            raise missing_tracker(name, "it is not installed")
    return names


def missing_tracker(name: str, reason: str) -> MissingDependencyError:
    """Return the error for a tracker that cannot be used."""
    return MissingDependencyError(
        f"report_to={name!r} cannot be served: {reason}. Type: pip install {name}; or leave "
        f"{name!r} out."
    )


def for_trainings(callbacks: Iterable[Any]) -> list[Any]:
    """Return those that transformers' Trainer is given."""
    return [callback for callback in callbacks if _is_for_trainings(callback)]


def tell(callbacks: Iterable[Any], stage: str, done: int, total: int) -> None:
    """Tell every function how far a step is. What one raises ends the step."""
    for callback in callbacks:
        if callable(callback):
            callback(Progress(stage, done, total))


def _is_for_trainings(callback: Any) -> bool:
    # By its face: transformers is imported in model/ and train/ only.
    return hasattr(callback, "on_train_begin")
