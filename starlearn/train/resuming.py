"""Continuation of an interrupted training: when its steps are kept, and how it goes on."""

import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sklearn.base import clone
from transformers import TrainerCallback, TrainerState

from starlearn.errors import StorageError
from starlearn.settings import Training
from starlearn.train.checkpoints import (
    Checkpoint,
    remove_checkpoint,
    usable_checkpoint,
    write_checkpoint,
)
from starlearn.train.interrupts import HeldSignals

INTERVAL = 300.0
"""Seconds between two checkpoints of a training."""
SHARE = 20
"""A checkpoint takes at most one part in this many of the time of a training."""


class KeptSteps:
    """The finished steps of one training in a file, if there are any.

    Parameters
    ----------
    path : Path
    facts : mapping of str to str
        All that determines the training, by name. Steps of another training are never used.
    """

    def __init__(self, path: Path, facts: Mapping[str, str]) -> None:
        self.path = path
        self.facts = dict(facts)
        self.checkpoint = usable_checkpoint(path, facts)

    def with_layout(self, training: Training) -> Training:
        """Return settings with the batches of the kept steps, on which the dropout depends."""
        if self.checkpoint is None:
            return training
        found: Training = clone(training)
        found.set_params(
            batch_size=self.checkpoint.batch_size,
            gradient_accumulation=self.checkpoint.gradient_accumulation,
        )
        return found

    def remove(self) -> None:
        """Remove the kept steps: the training starts again with other batches, or has failed."""
        self.checkpoint = None
        remove_checkpoint(self.path)


class StepKeeper(TrainerCallback):
    """Callback that continues a training, and keeps its steps at intervals and at Ctrl-C.

    The state is taken and restored right before a step. All of a step's batches are read by then,
    so that the data loader's own draws from the random generators need no attention.
    """

    def __init__(self, kept: KeptSteps, training: Training, bar: Any, losses: list[float]) -> None:
        self.kept = kept
        self.training = training
        self.bar = bar
        self.losses = losses
        self.signals = HeldSignals()
        self._due = math.inf
        self._to_restore: Checkpoint | None = None

    def train(self, trainer: Any, folder: Path) -> None:
        """Run the training, or the rest of it; `folder` is a temporary one."""
        found = self.kept.checkpoint
        with self.signals:
            if found is None:
                trainer.train()
                return
            _announce(found)
            self.losses.extend(found.losses)
            if found.ended:
                found.load_adapter(trainer.model)
                return
            self._to_restore = found
            size = trainer.args.per_device_train_batch_size
            state = TrainerState(global_step=found.steps, train_batch_size=size)
            state.compute_steps(trainer.args, found.total)
            # Trainer reads the number of steps from this file, and nothing else from the folder:
            # its own files of optimiser and generators are pickles.
            state.save_to_json(str(folder / "trainer_state.json"))
            trainer.train(resume_from_checkpoint=str(folder))

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Restore weights and optimiser, which Trainer has just made."""
        self._due = time.monotonic() + INTERVAL
        if (found := self._to_restore) is not None:
            found.load_adapter(named["model"])
            found.load_optimizer(named["optimizer"], named["lr_scheduler"])
            self.bar.n = self.bar.initial = found.steps
            self.bar.refresh()

    def on_step_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Restore the random generators before the first step; keep the steps before another."""
        if self._to_restore is not None:
            self._to_restore.restore_generators()
            self._to_restore = self.kept.checkpoint = None  # frees their memory
        elif self.losses and (self.signals.pending or time.monotonic() >= self._due):
            self._keep(state, named, ended=False)
        self.signals.release()

    def on_train_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        """Keep the finished training when Ctrl-C came in its last step."""
        if self.signals.pending:
            self._keep(state, named, ended=True)
            self.signals.release()

    def _keep(self, state: Any, named: Mapping[str, Any], *, ended: bool) -> None:
        began = time.monotonic()
        checkpoint = Checkpoint.of(
            named["model"],
            named["optimizer"],
            named["lr_scheduler"],
            self.losses,
            facts=self.kept.facts,
            total=int(state.max_steps),
            ended=ended,
            batch_size=int(self.training.batch_size),
            gradient_accumulation=int(self.training.gradient_accumulation),
        )
        try:
            write_checkpoint(self.kept.path, checkpoint)
        except StorageError as error:
            warnings.warn(
                f"The first {checkpoint.steps} of {checkpoint.total} steps of the training could "
                f"not be kept. {error}",
                UserWarning,
                stacklevel=2,
            )
        ended_at = time.monotonic()
        self._due = ended_at + max(INTERVAL, SHARE * (ended_at - began))


def _announce(found: Checkpoint) -> None:
    warnings.warn(
        f"The training continues at step {found.steps} of {found.total}, because the steps before "
        "it were kept when it was interrupted.",
        UserWarning,
        stacklevel=2,
    )
