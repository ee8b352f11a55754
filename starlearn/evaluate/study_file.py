"""A study as a TOML file: tasks, arms, seeds and settings, checked before anything runs."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from starlearn.errors import InputError
from starlearn.evaluate.arms import arm_named
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.storage.toml_settings import Strict, checked_settings, make_part, read_toml

PARTS = {"adapter": LoRA, "acquisition": Acquisition, "training": Training}
FIRST_TUNING_SEED = 1000
"""Seeds from this one on are for choosing settings. Seeds below it are for reported results."""
LEAST_PROBE = 8
"""Items that a correlation over the rounds needs."""
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]


class StudySettings(Strict):
    """Settings that all arms of a task share."""

    model: str | None = None
    """Folder or hub id; --where NAME=FOLDER replaces ${NAME}. None is the embedded model."""
    quantization: Literal["nf4", "fp4", "none"] = "nf4"
    n_initial: NonNegativeInt
    n_instances: PositiveInt
    n_rounds: PositiveInt
    sub_pool: PositiveInt | None = None
    n_probe: NonNegativeInt = 64
    """Random items of the pool whose scores are recorded in every round; 0 records none."""
    adapter: dict[str, Any] = Field({})
    acquisition: dict[str, Any] = Field({})
    training: dict[str, Any] = Field({})

    @model_validator(mode="after")
    def _parts_can_be_made(self) -> "StudySettings":
        for name, kind in PARTS.items():
            make_part(name, kind, getattr(self, name))
        return self


class StudyTask(Strict):
    """Source of the items, labels and test set of a task, and its changes to the settings."""

    name: Name
    source: Literal["embedded", "files", "benchmark"]
    pool: Literal["skewed", "homogeneous", "noisy", "steps"] | None = None
    """For "embedded": the kind of pool."""
    dataset: Literal["gsm8k", "boolq", "openbookqa"] | None = None
    """For "benchmark": the data set."""
    folder: str | None = None
    """The folder of the files; required by "files". Without it, "benchmark" uses the hub."""
    train: str = "train.jsonl"
    test: str = "test.jsonl"
    """For "files": paths of the pool and of the test set, relative to the folder."""
    text_field: str = "text"
    label_field: str = "label"
    prompt: str = "{text}\nAnswer:"
    """For "files"."""
    words: bool = False
    """For "files": whether a label such as card_arrival is written "card arrival"."""
    max_new_tokens: PositiveInt | None = None
    """Length limit of a free-form answer."""
    answer_pattern: str | None = None
    """For "files": regular expression of the final answer in a free-form answer."""
    chat: bool = False
    """Whether the prompt is a user's message in the model's chat template."""
    system: str | None = None
    """System message of a chat."""
    n_items: PositiveInt | None = None
    n_test: PositiveInt | None = None
    """Items of the pool and of the test set, drawn by the seed; None uses all."""
    max_chars: PositiveInt | None = None
    """Length limit of an item and its label together; longer rows are left out."""
    settings: dict[str, Any] = Field({})

    @model_validator(mode="after")
    def _source_is_complete(self) -> "StudyTask":
        needed = {"embedded": "pool", "files": "folder", "benchmark": "dataset"}[self.source]
        if getattr(self, needed) is None:
            raise ValueError(f'source = "{self.source}" needs {needed}')
        if self.source == "embedded" and not (self.n_items and self.n_test):
            raise ValueError('source = "embedded" needs n_items and n_test')
        if self.max_new_tokens and self.dataset in ("boolq", "openbookqa"):
            raise ValueError(f"max_new_tokens is for free-form answers; {self.dataset} has none")
        if self.answer_pattern and not self.max_new_tokens:
            raise ValueError("answer_pattern is for free-form answers: add max_new_tokens")
        return self


class Seeds(Strict):
    """The seeds first, first + 1, ..., first + count - 1."""

    first: Annotated[int, Field(ge=0)] = 0
    count: PositiveInt


class Study(Strict):
    """A study: every arm of every task with every seed."""

    name: Name
    purpose: Literal["report", "tuning"] = "report"
    note: str = ""
    arms: Annotated[list[str], Field(min_length=1)]
    seeds: Seeds
    settings: StudySettings
    tasks: Annotated[list[StudyTask], Field(min_length=1)]

    @field_validator("arms")
    @classmethod
    def _arms_are_known(cls, arms: list[str]) -> list[str]:
        for arm in arms:
            arm_named(arm)
        if len(set(arms)) < len(arms):
            raise ValueError("an arm is named twice")
        return arms

    @model_validator(mode="after")
    def _seeds_fit_the_purpose(self) -> "Study":
        first, last = self.seeds.first, self.seeds.first + self.seeds.count - 1
        if self.purpose == "report" and last >= FIRST_TUNING_SEED:
            raise ValueError(f"seeds from {FIRST_TUNING_SEED} on are for purpose = 'tuning'")
        if self.purpose == "tuning" and first < FIRST_TUNING_SEED:
            raise ValueError(f"purpose = 'tuning' takes seeds from {FIRST_TUNING_SEED} on")
        if len({task.name for task in self.tasks}) < len(self.tasks):
            raise ValueError("two tasks have the same name")
        for task in self.tasks:
            self.settings_of(task)
        return self

    def settings_of(self, task: StudyTask) -> StudySettings:
        """Return the shared settings with the changes of a task; tables change key by key."""
        given = self.settings.model_dump()
        for key, value in task.settings.items():
            given[key] = {**given[key], **value} if isinstance(value, dict) else value
        return StudySettings(**given)


def read_study(path: Path, where: Mapping[str, str] | None = None) -> Study:
    """Read a study from a TOML file.

    `where` has values of ``${NAME}`` in a folder or a model, before those of the environment.
    """
    try:
        found = filled(read_toml(path), {**os.environ, **(where or {})})
        study = checked_settings(Study, found, str(path))
    except (TypeError, InputError) as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    for settings in (study.settings_of(task) for task in study.tasks):
        if settings.n_initial < 1 or settings.n_probe < LEAST_PROBE:
            raise InputError(
                f"{path}: a study needs n_initial of at least 1 (got {settings.n_initial}) and "
                f"n_probe of at least {LEAST_PROBE} (got {settings.n_probe})"
            )
    return study


def filled(value: Any, names: Mapping[str, str]) -> Any:
    """Replace ${NAME} in the models and folders of a study."""

    def known(match: re.Match[str]) -> str:
        if match[1] not in names:
            raise InputError(
                f"${{{match[1]}}} is not known. Add --where {match[1]}=FOLDER, or set the "
                "environment variable."
            )
        return names[match[1]]

    if isinstance(value, list):
        return [filled(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: PLACEHOLDER.sub(known, one)
        if key in ("model", "folder") and isinstance(one, str)
        else filled(one, names)
        for key, one in value.items()
    }
