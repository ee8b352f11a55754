"""A learner's settings as JSON, limited to known classes so that no file can run code."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sklearn.utils import check_random_state

from starlearn.campaign.items import SURROGATE
from starlearn.campaign.responses import require_no_control
from starlearn.data.tokens import unknown_tokens, warn_of_unknown_tokens
from starlearn.errors import (
    CampaignCorruptError,
    InputError,
    ModelMismatchError,
    UntrustedFileError,
    listed,
)
from starlearn.export.saving import json_value, parameters_from_json, parameters_to_json
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.learner.inputs import checked_parts
from starlearn.learner.session import session_of
from starlearn.tasks import DEFAULTS, ChoiceTask, Fields

FIXED = ("model", "task", "quantization", "random_state")
"""Settings that a campaign cannot change."""
SAMPLE = 1000
"""Items of a pool whose words are looked up when a campaign is created."""


def to_json(learner: STARLearner) -> str:
    """Return a learner's settings as JSON, with a seed and with absolute paths."""
    if not isinstance(learner, STARLearner):
        raise InputError(
            f"learner must be a STARLearner, got {type(learner).__name__}. Use "
            'Campaign.create(folder, pool, STARLearner(task=ChoiceTask("{text}", choices=[...]))).'
        )
    checked_parts(learner)
    parameters = dict(learner.get_params(deep=False))
    for name, (default, _) in DEFAULTS.items():
        parameters[name] = parameters[name] or default()
    parameters = parameters_to_json(parameters)
    model = parameters["model"]
    if model is not None:
        folder = Path(model).expanduser()
        parameters["model"] = str(folder.resolve()) if folder.is_dir() else str(model)
    parameters["cache_dir"] = None  # a campaign keeps its scores in its own folder
    if not isinstance(parameters["random_state"], int):
        generator = check_random_state(parameters["random_state"])
        parameters["random_state"] = int(generator.randint(2**31 - 1))
    return json.dumps(parameters, default=json_value, ensure_ascii=False)


def parameters_of(settings: str) -> dict[str, Any]:
    """Return the arguments of STARLearner from the output of `to_json`."""
    try:
        return parameters_from_json(json.loads(settings), "The campaign's label store")
    except UntrustedFileError as error:
        raise CampaignCorruptError(f"{error} Restore it from a backup.") from error


def changed(settings: str, changes: dict[str, Any]) -> str:
    """Return settings with changes, as in ``set_params(training__learning_rate=1e-4)``."""
    for name in changes:
        if name == "cache_dir":
            raise InputError(
                "cache_dir cannot be set: a campaign keeps its scores in its own folder, "
                "scores/cache."
            )
        if name.partition("__")[0] in FIXED:
            raise InputError(
                f"{name} cannot change: labels and scores of the campaign depend on it. Create "
                "another campaign: Campaign.create(another_folder, pool, learner)."
            )
    learner = STARLearner(**parameters_of(settings))
    try:
        learner.set_params(**changes)
    except ValueError as error:
        raise InputError(str(error)) from error
    return to_json(learner)


def with_choice(settings: str, choice: str) -> str:
    """Return settings whose task has one more choice."""
    if not isinstance(choice, str) or SURROGATE.search(choice):
        raise InputError(f"A choice is text in valid Unicode, got {choice!r:.40}.")
    require_no_control(choice)
    return _with_choices(settings, lambda choices: [*choices, choice])


def without_choice(settings: str, choice: str) -> str:
    """Return settings whose task has one choice less."""

    def remove(choices: list[str]) -> list[str]:
        if choice not in choices:
            raise InputError(f"{choice!r:.60} is not among the choices {listed(choices)}.")
        return [other for other in choices if other != choice]

    return _with_choices(settings, remove)


def _with_choices(settings: str, change: Callable[[list[str]], list[str]]) -> str:
    parameters = parameters_of(settings)
    task = parameters["task"]
    if getattr(task, "choices", None) is None:
        raise InputError(
            "This campaign's task has no closed set of choices: any label can be used."
        )
    task.choices = change(task.choices)
    task.check()
    return to_json(STARLearner(**parameters))


def require_distinct_choices(
    settings: str, model: str | None = None, pool: Sequence[Fields] = ()
) -> None:
    """Raise InputError when two choices have the same tokens, so that no model can separate them.

    `settings` is the output of `to_json`; `model` is where the base model is now, if it moved. Also
    warn when the tokenizer does not know the words of a pool.
    """
    learner = STARLearner(**parameters_of(settings))
    if model is not None:
        learner.set_params(model=model)
    session = session_of(learner)
    if isinstance(session.parts.task, ChoiceTask) and session.parts.task.choices is not None:
        session.choice_tree(session.parts.task.choices)
    tokenizer = session.backbone.tokenizer
    sample = [" ".join(fields.values()) for fields in pool[:: max(len(pool) // SAMPLE, 1)]]
    if sample:
        tokens = tokenizer(sample, add_special_tokens=False).input_ids
        warn_of_unknown_tokens(tokenizer, unknown_tokens(tokenizer, tokens))


def require_base(learner: STARLearner, fingerprint: str | None) -> str:
    """Return the fingerprint of the learner's base model after it is compared with a known one."""
    found = base_of(learner).backbone.fingerprint
    if fingerprint is not None and found != fingerprint:
        raise ModelMismatchError(
            f"The campaign began with a base model of fingerprint {fingerprint[:12]}, and "
            f"{learner.model} now has {found[:12]}: weights, tokenizer or quantisation changed. "
            "Use the old model: Campaign.open(folder, model=...), or create another campaign."
        )
    return found
