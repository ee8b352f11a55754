"""Figures of each round: the learner's record, and the trackers that receive them."""

import logging
import math
from typing import Any

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
"""Figures of `rounds_` and their names for trackers. Not "train_loss": the integrations of
transformers take that for one number of a whole run."""
RESERVED = ("query", "temperature", "recorded")
"""Entries of a round's record that are added later. `predict_proba` uses the temperature."""


def note_training(learner: Any, parts: Parts, record: TrainingRecord, seconds: float) -> None:
    """Begin a round's record, and report it."""
    found = {
        "round": len(learner.rounds_),
        "n_labels": len(learner.X_training),
        "steps": record.steps,
        "train_loss": record.loss,
        "seconds": seconds,
    }
    learner.rounds_ = [*learner.rounds_, found]  # a new list: an error restores the old one
    logger.info(
        "round %(round)d: trained on %(n_labels)d labels, %(steps)d steps, loss "
        "%(train_loss).4f, %(seconds).1f s",
        found,
    )
    report(learner, parts, {name: float(found[key]) for key, name in OF_A_TRAINING.items()})


def note_query(learner: Any, parts: Parts, t: int, found: dict[str, Any]) -> None:
    """Add a query to the record of the round before it, if there is one, and report it."""
    logger.info(
        "round %d: chose %d of %d items, %.1f s",
        t,
        found["n_instances"],
        found["n_pool"],
        found["seconds"],
    )
    if not getattr(learner, "rounds_", None):
        return
    learner.rounds_[-1]["query"] = found
    known = {key: name for key, name in OF_A_QUERY.items() if key in found}
    report(learner, parts, {name: float(found[key]) for key, name in known.items()})


def record_figures(learner: Any, parts: Parts, figures: dict[str, float]) -> None:
    """Add the user's own figures to the last round's record, and report them."""
    last = learner.rounds_[-1]
    for name, value in figures.items():
        try:
            is_finite = math.isfinite(value)
        except (TypeError, OverflowError):
            is_finite = False
        if not is_finite:
            raise InputError(f"record({name}=...) takes a finite number; got {value!r:.60}.")
        if name in RESERVED or (name in last and name not in last.get("recorded", [])):
            raise InputError(
                f"The round already has a {name}, {last.get(name)!r:.60}, which was measured or "
                "set. Record your figure under another name."
            )
    last.update({name: float(value) for name, value in figures.items()})
    last["recorded"] = sorted({*last.get("recorded", []), *figures})
    report(learner, parts, {f"eval_{name}": last[name] for name in figures})


def report(learner: Any, parts: Parts, figures: dict[str, float] | None = None) -> None:
    """Send figures of the last round to the trackers; without figures, begin the run."""
    if not parts.report_to:
        return
    if not hasattr(learner, "_trackers") or learner._trackers.closed:
        learner._trackers = Trackers(parts.report_to, _settings(learner, parts))
    if figures is not None:
        learner._trackers.log(max(len(learner.rounds_) - 1, 0), figures)


def end_report(learner: Any) -> None:
    """Close the trackers, if there are any."""
    if hasattr(learner, "_trackers"):
        learner._trackers.close()
        del learner._trackers


def _settings(learner: Any, parts: Parts) -> dict[str, Any]:
    """Return a learner's settings by name, without the task: prompts and choices are texts."""
    found: dict[str, Any] = {"quantization": str(learner.quantization), "seed": learner.seed_}
    for name in DEFAULTS:
        if name != "task":
            part = getattr(parts, name).get_params(deep=False)
            for key, value in part.items():
                is_plain = isinstance(value, str | int | float | bool)
                found[f"{name}/{key}"] = value if is_plain else str(value)
    return found
