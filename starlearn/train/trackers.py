"""Trackers: figures of a round in TensorBoard, Weights & Biases, MLflow or Trackio."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from starlearn.progress import missing_tracker


class Trackers:
    """transformers' integrations, told one thing a round.

    Where they write is theirs to know, by their own variables of the environment:
    TENSORBOARD_LOGGING_DIR, WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID.

    Parameters
    ----------
    names : sequence of {"tensorboard", "wandb", "mlflow", "trackio"}
    settings : mapping
        What the trackers keep beside the run: names and numbers, no texts of a pool.

    Raises
    ------
    MissingDependencyError
        When a tracker's library is missing, or switched off.
    """

    def __init__(self, names: Sequence[str], settings: Mapping[str, Any]) -> None:
        self._arguments = _Arguments(output_dir=".", run_name="starlearn", report_to="none")
        self._arguments.settings = dict(settings)
        self._control = TrainerControl()
        self._callbacks = []
        self.closed = False
        """Whether the run has ended, as after a `fit` that ended it and failed."""
        for name in names:
            (integration,) = get_reporting_integration_callbacks(name)
            try:
                self._callbacks.append(integration())
            except (RuntimeError, ImportError) as error:
                raise missing_tracker(name, str(error)) from error
        for callback in self._callbacks:
            callback.on_train_begin(self._arguments, self._state(0), self._control, model=None)

    def log(self, t: int, figures: Mapping[str, float]) -> None:
        """Tell all trackers the figures of round t (0-based).

        A tracker that fails now is warned of, and costs no training.
        """
        state = self._state(t)
        for callback in self._callbacks:
            try:
                callback.on_log(self._arguments, state, self._control, logs=dict(figures))
            except Exception as error:  # noqa: BLE001 - the libraries' own, over a network
                name = type(callback).__name__
                warnings.warn(
                    f"{name} did not take the figures of round {t}: {error!s:.200}",
                    UserWarning,
                    stacklevel=2,
                )

    def close(self) -> None:
        """End the run; the next one is another."""
        self.closed = True
        for callback in self._callbacks:
            callback.on_train_end(self._arguments, self._state(0), self._control, model=None)
            # The integration leaves its run open, for more of the same training.
            if (library := getattr(callback, "_wandb", None)) is not None:
                library.finish()

    def _state(self, t: int) -> TrainerState:
        first = self._arguments.process_index == 0
        return TrainerState(global_step=t, is_world_process_zero=first, is_local_process_zero=first)


class _Arguments(TrainingArguments):
    """What an integration writes down about a run: our settings in place of a hundred defaults."""

    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)
