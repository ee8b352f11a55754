"""Callbacks: functions that are told how far a long step is, and transformers' own."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from starlearn.errors import InputError


@dataclass(frozen=True)
class Progress:
    """How far a long step is."""

    stage: str
    """What is being done: "training", "query", "predicting", "answering", "embedding"."""
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
    if not isinstance(callbacks, Iterable):
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
