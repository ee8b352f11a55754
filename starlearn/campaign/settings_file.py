"""Settings of a new campaign: from a TOML file and the command line to a learner."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from starlearn.errors import InputError
from starlearn.learner.estimator import STARLearner
from starlearn.model.backbone import Backbone
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.storage.toml_settings import Strict, checked_settings, make_part, read_toml
from starlearn.tasks import ChoiceTask, GenerationTask

OPTIONS = {"resolution", "per_item", "extra_fields"}
"""Settings of the campaign itself."""
PARTS: dict[str, Any] = {"adapter": LoRA, "acquisition": Acquisition, "training": Training}


class CampaignSettings(Strict):
    """The settings of a new campaign."""

    pool: str | None = None
    model: str | None = None
    quantization: str = "nf4"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    resolution: Literal["majority", "latest", "unanimous"] = "majority"
    per_item: PositiveInt = 1
    extra_fields: list[str] = Field(default_factory=list)
    task: dict[str, Any] = Field(default_factory=dict)
    adapter: dict[str, Any] = Field(default_factory=dict)
    acquisition: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)


def read_settings(path: Path) -> dict[str, Any]:
    """Read and check a TOML file. Relative paths in it are relative to its folder."""
    found = read_toml(path)
    checked_settings(CampaignSettings, found, str(path))
    if "pool" in found:
        found["pool"] = str(path.parent / Path(found["pool"]).expanduser())
    if "model" in found and (path.parent / found["model"]).is_dir():
        found["model"] = str(path.parent / found["model"])
    return found


def new_campaign(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``Campaign.create`` from settings; loads no weights."""
    settings = checked_settings(CampaignSettings, values, "The settings")
    if settings.pool is None:
        raise InputError(
            "A pool is needed: --pool pool.jsonl (or .csv, .parquet, or a Dataset's folder)."
        )
    learner = STARLearner(
        settings.model,
        task=_task(settings.task),
        quantization=settings.quantization,
        random_state=settings.seed,
        **{name: make_part(name, kind, getattr(settings, name)) for name, kind in PARTS.items()},
    )
    Backbone(learner.model, learner.quantization, verbose=False)
    options = settings.model_dump(include=OPTIONS, exclude_unset=True)
    return {"pool": Path(settings.pool), "learner": learner, **options}


def _task(values: dict[str, Any]) -> ChoiceTask | GenerationTask:
    free_form = "max_new_tokens" in values
    if free_form and "choices" in values:
        raise InputError("Use either choices, or max_new_tokens for free-form answers, not both.")
    if not free_form and "choices" not in values:
        raise InputError(
            "The answers are needed: --choices yes,no; or, for free-form answers, "
            "--max-new-tokens 64."
        )
    if not free_form and "answer_pattern" in values:
        raise InputError("answer_pattern is for free-form answers: add max_new_tokens.")
    task: ChoiceTask | GenerationTask = make_part(
        "task", GenerationTask if free_form else ChoiceTask, values
    )
    return task
