"""Progress callbacks and bars, and the names of experiment trackers."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from tqdm.auto import tqdm

from starlearn.errors import InputError, MissingDependencyError

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True)
class Progress:
    """Progress of a long step, passed to callbacks."""

    stage: str
    """"training", "query", "predicting", "answering", "embedding"; with workers "query on ray" and
    "embedding on ray"."""
    done: int
    total: int
    """Number of optimiser steps in training, of items otherwise."""


def checked_callbacks(callbacks: Any) -> tuple[Any, ...]:
    """Return callbacks, functions and instances of transformers.TrainerCallback, as a tuple."""
    if callbacks is None:
        return ()
    # An iterator would be empty at the second use.
    if not isinstance(callbacks, Iterable) or isinstance(callbacks, Iterator):
        raise InputError(
            f"callbacks must be a list, got {type(callbacks).__name__}. Write callbacks=[...]."
        )
    found = tuple(callbacks)
    for place, callback in enumerate(found):
        if isinstance(callback, type):
            raise InputError(
                f"callbacks[{place}] is the class {callback.__name__}. Pass an instance: "
                f"callbacks=[{callback.__name__}()]."
            )
        if not callable(callback) and not _is_trainer_callback(callback):
            raise InputError(
                f"callbacks[{place}] must be a function that takes a starlearn.Progress, or a "
                f"transformers.TrainerCallback; got {callback!r:.60}."
            )
    return found


def checked_trackers(report_to: Any) -> tuple[str, ...]:
    """Return the names of the trackers that receive metrics.

    transformers' "all" is not allowed: data never leaves the machine by accident.
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
                f"report_to may contain {', '.join(map(repr, TRACKERS))}; got {name!r:.60}. "
                "report_to=() means no tracker."
            )
        library = find_spec(name)
        if library is None or library.origin is None:  # the latter: a folder of that name
            raise missing_tracker(name, "it is not installed")
    return names


def missing_tracker(name: str, reason: str) -> MissingDependencyError:
    """Return the error for a tracker that cannot be used."""
    return MissingDependencyError(
        f"report_to={name!r} cannot be used: {reason}. Type: pip install {name}; or remove "
        f"{name!r}."
    )


def trainer_callbacks(callbacks: Iterable[Any]) -> list[Any]:
    """Return the callbacks of transformers' Trainer."""
    return [callback for callback in callbacks if _is_trainer_callback(callback)]


def report_progress(callbacks: Iterable[Any], stage: str, done: int, total: int) -> None:
    """Call every function with the progress of a step. An error that one raises ends the step."""
    for callback in callbacks:
        if callable(callback):
            callback(Progress(stage, done, total))


def _is_trainer_callback(callback: Any) -> bool:
    # By its method: only model/ and train/ import transformers.
    return hasattr(callback, "on_train_begin")


def are_several() -> bool:
    """Whether this process is one of several that can communicate.

    Without an address, as under a plain `mpirun`, processes are independent jobs.
    """
    if "MASTER_ADDR" not in os.environ:
        return False
    from accelerate.utils import get_int_from_env

    sizes = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]
    return get_int_from_env(sizes, 1) > 1


def is_main() -> bool:
    """Whether this is the process that shows progress. No communication is started."""
    if not are_several():
        return True
    from accelerate.utils import get_int_from_env

    return get_int_from_env(["RANK", "PMI_RANK"], 0) == 0


class ItemBar:
    """A progress bar over the m items of a pool, across the stages of an item.

    With ``verbose=0`` there is no bar. Of several processes only the first shows one, and calls the
    callbacks, with or without a bar.
    """

    def __init__(self, title: str, total: int, verbose: int, callbacks: Sequence[Any] = ()) -> None:
        shown = verbose and is_main()
        self._bar: Any = tqdm(total=total, desc=title, unit="item", disable=not shown)
        self._title = title
        self._counts = False
        self.seconds: dict[str, float] = {}
        """Time per stage."""
        self._callbacks: Sequence[Any] = callbacks if is_main() else ()
        self._total, self._done = total, 0
        self._finished = 0
        self._tokens = 0
        self._began = time.perf_counter()

    def __enter__(self) -> "ItemBar":
        report_progress(self._callbacks, self._title, 0, self._total)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @contextmanager
    def stage(self, name: str, *, counts: bool) -> Iterator[None]:
        """Show a stage; `counts` is whether its items are finished afterwards."""
        self._bar.set_description(f"{self._title}: {name}", refresh=False)
        before, self._counts = self._counts, counts
        began = time.perf_counter()
        try:
            yield
        finally:
            self._counts = before
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def advance(self, items: int, tokens: int) -> None:
        """Add the model's work: items of the current stage, and padded tokens over all passes."""
        self._tokens += tokens
        rate = self._tokens / max(time.perf_counter() - self._began, 1e-9)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._move(items if self._counts else 0)

    def finish(self, items: int) -> None:
        """Add a finished chunk, including its items that needed no work."""
        self._finished += items
        self._move(self._finished - self._done)

    def _move(self, items: int) -> None:
        self._bar.update(items)  # also by 0, because the tokens per second have changed
        self._done += items
        if items:
            report_progress(self._callbacks, self._title, self._done, self._total)
