"""ReportMixin: a learner's figures, round by round, for trackers and for its card."""

import logging
import math
from typing import Any, Self

from starlearn.errors import InputError
from starlearn.learner.inputs import Parts
from starlearn.tasks import DEFAULTS
from starlearn.train.trackers import Trackers
from starlearn.train.trainer import TrainingRecord

logger = logging.getLogger(__name__)

OF_A_TRAINING = {
    "n_labels": "labels",
    "steps": "steps",
    "train_loss": "loss",
    "seconds": "training_seconds",
}
OF_A_QUERY = {
    "lambda": "base_weight",
    "mean_base": "mean_base_uncertainty",
    "mean_full": "mean_uncertainty",
    "max_full": "max_uncertainty",
    "n_instances": "asked",
    "cost": "cost",
    "seconds": "query_seconds",
}
"""Figures of `rounds_` and what trackers call them. Not "train_loss": the integrations take that
for one number of a whole run."""
OURS = ("query", "temperature", "recorded")
"""What may join a round's record later; `predict_proba` goes by the temperature."""


class ReportMixin:
    """For :class:`starlearn.learner.estimator.STARLearner` alone."""

    def record(self, **figures: float) -> Self:
        """Keep figures of your own beside the last round: for its record, the card, and trackers.

        Parameters
        ----------
        **figures : float
            By name, such as ``accuracy=learner.score(X_validation, y_validation)``.

        Returns
        -------
        self

        Raises
        ------
        InputError
            When a figure is not a finite number, or has a name that the record itself uses.
        """
        learner: Any = self
        learner._require_fit()
        last = learner.rounds_[-1]
        for name, value in figures.items():
            try:
                is_finite = math.isfinite(value)
            except (TypeError, OverflowError):
                is_finite = False
            if not is_finite:
                raise InputError(f"record({name}=...) takes a finite number; got {value!r:.60}.")
            if name in OURS or (name in last and name not in last.get("recorded", [])):
                raise InputError(
                    f"The round's {name} is what was measured or set: {last.get(name)!r:.60}. "
                    "Record your figure under another name."
                )
        last.update({name: float(value) for name, value in figures.items()})
        last["recorded"] = sorted({*last.get("recorded", []), *figures})
        self._report(learner._parts(), {f"eval_{name}": last[name] for name in figures})
        return self

    def _report(self: Any, parts: Parts, figures: dict[str, float] | None = None) -> None:
        """Tell the trackers figures of the last round; without figures, begin the run."""
        if not parts.report_to:
            return
        if not hasattr(self, "_trackers") or self._trackers.closed:
            self._trackers = Trackers(parts.report_to, _described(self, parts))
        if figures is not None:
            self._trackers.log(self._round, figures)

    def _note_training(self: Any, parts: Parts, record: TrainingRecord, seconds: float) -> None:
        """Begin a round's record."""
        found = {
            "round": len(self.rounds_),
            "n_labels": len(self.X_training),
            "steps": record.steps,
            "train_loss": record.loss,
            "seconds": seconds,
        }
        self.rounds_ = [*self.rounds_, found]  # a new list: an error puts the old one back
        logger.info(
            "round %(round)d: trained on %(n_labels)d labels, %(steps)d steps, loss "
            "%(train_loss).4f, %(seconds).1f s",
            found,
        )
        figures = {theirs: float(found[ours]) for ours, theirs in OF_A_TRAINING.items()}
        self._report(parts, figures)

    def _note_query(self: Any, parts: Parts, found: dict[str, Any]) -> None:
        """Put a query into the record of the round before it, if there is one."""
        logger.info(
            "round %d: asked for %d of %d items, %.1f s",
            self._round,
            found["n_instances"],
            found["n_pool"],
            found["seconds"],
        )
        if not getattr(self, "rounds_", None):
            return
        self.rounds_[-1]["query"] = found
        known = {ours: theirs for ours, theirs in OF_A_QUERY.items() if ours in found}
        self._report(parts, {theirs: float(found[ours]) for ours, theirs in known.items()})

    def _end_report(self: Any) -> None:
        if hasattr(self, "_trackers"):
            self._trackers.close()
            del self._trackers


def _described(learner: Any, parts: Parts) -> dict[str, Any]:
    """Return a learner's settings by name, without the task: prompts and choices are texts."""
    found: dict[str, Any] = {"quantization": str(learner.quantization), "seed": learner.seed_}
    for name in DEFAULTS:
        if name != "task":
            part = getattr(parts, name).get_params(deep=False)
            found |= {f"{name}/{key}": _plain(value) for key, value in part.items()}
    return found


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)
