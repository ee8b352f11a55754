"""A study as a TOML file: tasks, arms, seeds and settings, checked before anything runs."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from starlearn.errors import InputError
from starlearn.evaluate.arms import arm_named
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.storage.toml_settings import Strict, checked_settings, make_part, read_toml

PARTS = {"adapter": LoRA, "acquisition": Acquisition, "training": Training}
FIRST_TUNING_SEED = 1000
"""Seeds from here on are for choosing settings, those below for what is reported."""
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]


class Settings(Strict):
    """What all arms of a task share."""

    model: str | None = None
    """Folder or hub id, ${NAME} filled in by --where NAME=FOLDER; None is the embedded model."""
    quantization: Literal["nf4", "fp4", "none"] = "nf4"
    n_initial: PositiveInt
    n_instances: PositiveInt
    n_rounds: PositiveInt
    sub_pool: PositiveInt | None = None
    n_probe: Annotated[int, Field(ge=8)] = 64
    """Random items of the pool whose scores are followed over the rounds."""
    adapter: dict[str, Any] = Field(default_factory=dict)
    acquisition: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_can_be_made(self) -> "Settings":
        for name, kind in PARTS.items():
            make_part(name, kind, getattr(self, name))
        return self


class Task(Strict):
    """Where items, labels and test set come from, and what this task changes in the settings."""

    name: Name
    source: Literal["embedded", "files", "benchmark"]
    pool: Literal["skewed", "homogeneous", "noisy", "steps"] | None = None
    """For "embedded": the kind."""
    dataset: Literal["gsm8k", "boolq", "openbookqa"] | None = None
    """For "benchmark": the data set."""
    folder: str | None = None
    """For "files" (needed) and "benchmark" (else the hub): holds train.jsonl and test.jsonl."""
    text_field: str = "text"
    label_field: str = "label"
    prompt: str = "{text}\nAnswer:"
    """For "files"."""
    words: bool = False
    """For "files": labels such as card_arrival are written "card arrival"."""
    max_new_tokens: PositiveInt | None = None
    """Room for a free-form answer."""
    n_items: PositiveInt | None = None
    n_test: PositiveInt | None = None
    """So many items of the pool and of the test set, drawn by the seed; None takes all."""
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _source_is_complete(self) -> "Task":
        needed = {"embedded": "pool", "files": "folder", "benchmark": "dataset"}[self.source]
        if getattr(self, needed) is None:
            raise ValueError(f'source = "{self.source}" needs {needed}')
        if self.source == "embedded" and not (self.n_items and self.n_test):
            raise ValueError('source = "embedded" needs n_items and n_test')
        return self


class Seeds(Strict):
    """first, first + 1, ..., count of them."""

    first: Annotated[int, Field(ge=0)] = 0
    count: PositiveInt


class Study(Strict):
    """A study: every arm of every task with every seed."""

    name: Name
    purpose: Literal["report", "tuning"] = "report"
    note: str = ""
    arms: Annotated[list[str], Field(min_length=1)]
    seeds: Seeds
    settings: Settings
    tasks: Annotated[list[Task], Field(min_length=1)]

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

    def settings_of(self, task: Task) -> Settings:
        """Return the shared settings with what a task changes; its tables change key by key."""
        given = self.settings.model_dump()
        for key, value in task.settings.items():
            given[key] = {**given[key], **value} if isinstance(value, dict) else value
        return Settings(**given)


def read_study(path: Path, where: Mapping[str, str] | None = None) -> Study:
    """Read a study.

    Parameters
    ----------
    path : path
        A TOML file.
    where : mapping of str to str, optional
        What ``${NAME}`` in a folder or a model stands for; the environment comes after it.

    Raises
    ------
    InputError
        Naming the file, the key, and what is wrong with it.
    """
    try:
        found = filled(read_toml(path), {**os.environ, **(where or {})})
        return checked_settings(Study, found, str(path))
    except (TypeError, InputError) as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def filled(value: Any, names: Mapping[str, str]) -> Any:
    """Fill ${NAME} in the models and folders of a study."""

    def fill(text: str) -> str:
        def known(match: re.Match[str]) -> str:
            if match[1] not in names:
                raise InputError(
                    f"${{{match[1]}}} is not known. Type --where {match[1]}=FOLDER, or set the "
                    "variable in the environment."
                )
            return names[match[1]]

        return PLACEHOLDER.sub(known, text)

    if isinstance(value, list):
        return [filled(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: fill(one)
        if key in ("model", "folder") and isinstance(one, str)
        else filled(one, names)
        for key, one in value.items()
    }
