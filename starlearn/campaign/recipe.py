"""A learner's settings as JSON: from known classes only, so that a file can name no code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from starlearn.errors import CampaignCorruptError, InputError, ModelMismatchError
from starlearn.inputs import DEFAULTS, checked_parts
from starlearn.learner import STARLearner
from starlearn.model.backbone import quantization_from_json, quantization_to_json
from starlearn.tasks import ChoiceTask, GenerationTask

CLASSES: dict[str, Any] = {
    kind.__name__: kind
    for kind in (ChoiceTask, GenerationTask, *(default for default, _ in DEFAULTS.values()))
}
FIXED = ("model", "task", "quantization", "random_state")
"""What a campaign was begun with, and keeps."""


def to_json(learner: STARLearner) -> str:
    """Write a learner's settings; a seed is drawn where it has none, a model's folder in full.

    Raises
    ------
    InputError
        When the learner is none, or a setting cannot be used or has no form as JSON.
    """
    if not isinstance(learner, STARLearner):
        raise InputError(
            f"learner must be a STARLearner, got {type(learner).__name__}. Write "
            'Campaign.create(folder, pool, STARLearner(task=ChoiceTask("{text}", choices=[...]))).'
        )
    checked_parts(learner)
    parameters = dict(learner.get_params(deep=False))
    for name, (default, _) in DEFAULTS.items():
        part = parameters[name] or default()
        parameters[name] = {"class": type(part).__name__, **part.get_params(deep=False)}
    model = parameters["model"]
    if model is not None:
        folder = Path(model).expanduser()
        parameters["model"] = str(folder.resolve()) if folder.is_dir() else str(model)
    if parameters["cache_dir"] is not None:
        parameters["cache_dir"] = str(Path(parameters["cache_dir"]).expanduser().absolute())
    parameters["quantization"] = quantization_to_json(parameters["quantization"])
    if not isinstance(parameters["random_state"], int):
        generator = check_random_state(parameters["random_state"])
        parameters["random_state"] = int(generator.randint(2**31 - 1))
    return json.dumps(parameters, default=_plain, ensure_ascii=False)


def parameters_of(recipe: str) -> dict[str, Any]:
    """Make the arguments of STARLearner from what `to_json` wrote."""
    parameters: dict[str, Any] = json.loads(recipe)
    for name in DEFAULTS:
        arguments = dict(parameters[name])
        kind = arguments.pop("class", None)
        if kind not in CLASSES:
            raise CampaignCorruptError(
                f"The campaign's settings name an unknown class {kind!r:.60} for {name!r}. Take "
                "the label store from a backup."
            )
        parameters[name] = CLASSES[kind](**arguments)
    parameters["quantization"] = quantization_from_json(parameters["quantization"])
    return parameters


def changed(recipe: str, changes: dict[str, Any]) -> str:
    """Return settings with changes, as in ``set_params(training__learning_rate=1e-4)``.

    Raises
    ------
    InputError
        When a setting is unknown or unusable, or is one that a campaign keeps.
    """
    for name in changes:
        if name.partition("__")[0] in FIXED:
            raise InputError(
                f"{name} is what the campaign was begun with, and labels and scores depend on it. "
                "Begin another campaign: Campaign.create(another_folder, pool, learner)."
            )
    learner = STARLearner(**parameters_of(recipe))
    try:
        learner.set_params(**changes)
    except ValueError as error:
        raise InputError(str(error)) from error
    return to_json(learner)


def with_choice(recipe: str, choice: str) -> str:
    """Return settings whose task has one more choice."""
    parameters = parameters_of(recipe)
    task = parameters["task"]
    if getattr(task, "choices", None) is None:
        raise InputError("This campaign's task has no closed set of choices: any label will do.")
    task.choices = [*task.choices, choice]
    task.check()
    return to_json(STARLearner(**parameters))


def require_base(learner: STARLearner, fingerprint: str | None) -> str:
    """Return the fingerprint of the learner's base model, which must be the one known.

    Raises
    ------
    ModelMismatchError
        When the campaign was begun on another base model.
    """
    found = learner._engine().backbone.fingerprint
    if fingerprint is not None and found != fingerprint:
        raise ModelMismatchError(
            f"The campaign was begun on a base model with fingerprint {fingerprint[:12]}, and "
            f"{learner.model} now has {found[:12]}: weights, tokenizer or quantisation changed. "
            "Give the old one: Campaign.open(folder, model=...), or begin another campaign."
        )
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | tuple):
        return list(value)
    raise InputError(f"{value!r:.60} cannot be saved as JSON. Use plain numbers, texts and lists.")
