"""Trackers: metrics of each round in TensorBoard, Weights & Biases, MLflow or Trackio."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from starlearn.progress import missing_tracker


class Trackers:
    """transformers' integrations of experiment trackers, which log once per round.

    Environment variables decide where they write: TENSORBOARD_LOGGING_DIR, WANDB_PROJECT,
    WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID. `settings` are names and numbers that the
    trackers store with the run, without texts of the pool.
    """

    def __init__(self, names: Sequence[str], settings: Mapping[str, Any]) -> None:
        self._arguments = _Arguments(output_dir=".", run_name="starlearn", report_to="none")
        self._arguments.settings = dict(settings)
        self._control = TrainerControl()
        self._callbacks = []
        self.closed = False
        """Whether the run has ended."""
        for name in names:
            (integration,) = get_reporting_integration_callbacks(name)
            try:
                self._callbacks.append(integration())
            except (RuntimeError, ImportError) as error:
                raise missing_tracker(name, str(error)) from error
        for callback in self._callbacks:
            callback.on_train_begin(self._arguments, self._state(0), self._control, model=None)

    def log(self, t: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of round t (0-based); a tracker that fails causes a warning only."""
        state = self._state(t)
        for callback in self._callbacks:
            try:
                callback.on_log(self._arguments, state, self._control, logs=dict(metrics))
            except Exception as error:  # noqa: BLE001 - the libraries' own, over a network
                name = type(callback).__name__
                warnings.warn(
                    f"{name} could not log the metrics of round {t}: {error!s:.200}",
                    UserWarning,
                    stacklevel=2,
                )

    def close(self) -> None:
        """End the run."""
        self.closed = True
        for callback in self._callbacks:
            callback.on_train_end(self._arguments, self._state(0), self._control, model=None)
            # The integration of Weights & Biases leaves its run open.
            if (library := getattr(callback, "_wandb", None)) is not None:
                library.finish()

    def _state(self, t: int) -> TrainerState:
        first = self._arguments.process_index == 0
        return TrainerState(global_step=t, is_world_process_zero=first, is_local_process_zero=first)


class _Arguments(TrainingArguments):
    """Arguments that integrations store with a run: our settings instead of a hundred defaults."""

    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)
