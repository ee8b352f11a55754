"""Settings of a new campaign, from a TOML file and the command line, made into a learner."""

import inspect
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from starlearn.errors import InputError
from starlearn.learner.estimator import STARLearner
from starlearn.model.backbone import Backbone
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.tasks import ChoiceTask, GenerationTask

OPTIONS = ("resolution", "per_item", "extra_fields")
"""Settings of the campaign itself; keywords of ``Campaign.create``."""
PARTS: dict[str, Any] = {"adapter": LoRA, "acquisition": Acquisition, "training": Training}
KEYS: dict[str, type] = {
    "pool": str,
    "model": str,
    "quantization": str,
    "seed": int,
    "resolution": str,
    "per_item": int,
    "extra_fields": list,
    "task": dict,
    **dict.fromkeys(PARTS, dict),
}


@dataclass(frozen=True)
class Beginning:
    """What a campaign begins with."""

    pool: Path
    learner: STARLearner
    options: dict[str, Any]


def read_settings(path: Path) -> dict[str, Any]:
    """Read a TOML file; its paths are seen from the file's folder.

    Raises
    ------
    InputError
        When it cannot be read, is not TOML, or holds something that is no setting.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check the path.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: is not TOML in UTF-8 ({error}). Mend the file.") from error
    for name, value in found.items():
        _require_known(name, KEYS, f"{path}: setting")
        kind = KEYS[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{path}: {name} must be a TOML {_spoken(kind)}, got {value!r:.60}.")
    if "pool" in found:
        found["pool"] = str(path.parent / Path(found["pool"]).expanduser())
    if "model" in found and (path.parent / found["model"]).is_dir():
        found["model"] = str(path.parent / found["model"])
    return found


def beginning(settings: Mapping[str, Any]) -> Beginning:
    """Make pool, learner and options from settings, and look whether the model can be had.

    Parameters
    ----------
    settings : mapping
        As a TOML file holds them: pool, model, quantization, seed, resolution, per_item,
        extra_fields, and the parts task, adapter, acquisition and training.

    Raises
    ------
    InputError
        Naming what is missing, unknown or unusable. No weights are loaded.
    """
    if "pool" not in settings:
        raise InputError("Say which items to choose from: --pool pool.jsonl (or .csv).")
    seed = settings.get("seed", 0)
    if not 0 <= seed < 2**31:
        raise InputError(f"seed must be from 0 to {2**31 - 1}, got {seed}.")
    learner = STARLearner(
        settings.get("model"),
        task=_task(dict(settings.get("task", {}))),
        quantization=settings.get("quantization", "nf4"),
        random_state=seed,
        **{name: _part(name, kind, settings.get(name, {})) for name, kind in PARTS.items()},
    )
    Backbone(learner.model, learner.quantization, verbose=False)
    options = {name: settings[name] for name in OPTIONS if name in settings}
    if not all(isinstance(name, str) for name in options.get("extra_fields", [])):
        raise InputError("extra_fields must be names of fields, each in quotes.")
    return Beginning(Path(settings["pool"]), learner, options)


def _task(given: dict[str, Any]) -> ChoiceTask | GenerationTask:
    free = "max_new_tokens" in given
    if free and "choices" in given:
        raise InputError("Give choices, or max_new_tokens for answers in free form, not both.")
    if not free and "choices" not in given:
        raise InputError(
            "Say which answers there are: --choices yes,no; or, for answers in free form, "
            "--max-new-tokens 64."
        )
    if not free and "answer_pattern" in given:
        raise InputError("answer_pattern is for answers in free form; give max_new_tokens with it.")
    task: ChoiceTask | GenerationTask = _part("task", GenerationTask if free else ChoiceTask, given)
    return task


def _part(name: str, kind: Any, given: Mapping[str, Any]) -> Any:
    known = inspect.signature(kind).parameters
    for key in given:
        _require_known(key, known, f"[{name}]: setting")
    part = kind(**given)
    part.check()
    return part


def _require_known(name: str, known: Mapping[str, Any], where: str) -> None:
    if name in known:
        return
    close = get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(known)}."
    raise InputError(f"{where} {name!r:.60} is unknown. {hint}")


def _spoken(kind: type) -> str:
    return {str: "text", int: "whole number", list: "list", dict: "table"}[kind]
