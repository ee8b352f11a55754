"""One run of a study: a task, an arm and a seed, from what determines it to its record."""

import json
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from starlearn.errors import InputError
from starlearn.evaluate.arms import ARMS, Arm, arm_named, item_length
from starlearn.evaluate.judging import judge
from starlearn.evaluate.run_report import aulc, versions
from starlearn.evaluate.simulate import check_sizes, content_id, simulate
from starlearn.evaluate.statistics import spearman
from starlearn.evaluate.study_file import PARTS, Settings, Study, Task
from starlearn.evaluate.study_tasks import TaskData, data_digest, load_task
from starlearn.learner.estimator import STARLearner
from starlearn.settings import PUBLISHED
from starlearn.tasks import GenerationTask

Record = dict[str, Any]

PROTOCOL = 1
"""Raised when a run of the same settings would give other figures."""
AS_PUBLISHED: Mapping[str, Mapping[str, Any]] = {"acquisition": PUBLISHED}
"""What arms are changes to, whatever the product's defaults are: so lines stay comparable."""

TIMES = ("seconds", "cpu_seconds", "seconds_query", "seconds_teach", "seconds_score")
"""What differs when a run is repeated."""


@dataclass(frozen=True)
class Run:
    """One line of a study."""

    study: str
    purpose: str
    task: Task
    settings: Settings
    arm: str
    seed: int
    data: str
    """Hash of what the task's data come from."""
    model: str
    """Fingerprint of the base model."""

    def protocol(self) -> Record:
        """Return all that determines a run but arm and seed: what two arms must share.

        What is left at its default is left out, so that a setting which a later version adds
        leaves the keys as they are; `same_defaults` watches the defaults.
        """
        asked = self.task.model_dump(exclude={"folder", "settings", "name"}, exclude_defaults=True)
        settings = self.settings.model_dump(exclude={"model"}, exclude_defaults=True)
        return {
            "protocol": PROTOCOL,
            "task": asked,
            "settings": settings,
            "data": self.data,
            "model": self.model,
        }

    def determined_by(self) -> Record:
        """Return everything that was chosen for the run, as JSON keeps it."""
        arm = arm_named(self.arm)
        own = {
            "arm": self.arm,
            "picks": arm.pick.__name__ if arm.pick else "query",
            "changes": {name: dict(getattr(arm, name, {})) for name in PARTS},
            "seed": self.seed,
        }
        return as_json({**self.protocol(), **own})

    def parameters(self) -> Record:
        """Return every parameter of the learner's parts, defaults too, as JSON keeps them."""
        arm = arm_named(self.arm)
        return as_json({n: made_part(n, self.settings, arm).get_params() for n in PARTS})

    def same_defaults(self, line: Record) -> bool:
        """Tell whether a line with this key was run with the defaults of today."""
        return all(
            line["parameters"][part].get(name, value) == value
            for part, values in self.parameters().items()
            for name, value in values.items()
        )

    @property
    def key(self) -> str:
        """A short hash of everything that determines the run."""
        return hashed(self.determined_by())


def as_json(value: Record) -> Record:
    """Return a value as it comes back from a file of JSON."""
    found: Record = json.loads(json.dumps(value))
    return found


def hashed(value: Any) -> str:
    """Return a short hash of a JSON value, whatever the order of its keys."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def made_part(name: str, settings: Settings, arm: Arm) -> Any:
    """Make one part of the learner: the study's settings, changed by the arm."""
    fixed = AS_PUBLISHED.get(name, {})
    return PARTS[name](**{**fixed, **getattr(settings, name), **getattr(arm, name, {})})


def runs_of(study: Study) -> Iterator[Run]:
    """List the runs by seed, then task, then arm, so that every beginning is a balanced study.

    Raises
    ------
    InputError
        When a data set or a model cannot be had, or a pool is too small for its rounds.
    """
    prepared = []
    for task in study.tasks:
        settings = study.settings_of(task)
        check_pool(task, settings, study.seeds.first)
        model = model_fingerprint(settings.model, settings.quantization)
        prepared.append((task, settings, data_digest(task), model))
    for seed in range(study.seeds.first, study.seeds.first + study.seeds.count):
        for task, settings, data, model in prepared:
            for arm in study.arms:
                yield Run(study.name, study.purpose, task, settings, arm, seed, data, model)


def check_pool(task: Task, settings: Settings, seed: int) -> None:
    """Raise InputError when a task's pool or sub-pool is too small for its rounds."""
    data = load_task(task, seed)
    sizes = (settings.n_initial, settings.n_instances, settings.n_rounds, settings.sub_pool)
    try:
        check_sizes(data.items, data.labels, data.test_items, data.test_labels, *sizes)
    except InputError as error:
        raise InputError(f"task {task.name}: {error}") from None


@lru_cache(maxsize=8)
def model_fingerprint(model: str | None, quantization: str) -> str:
    """Return the SHA-256 of a base model's files and quantisation, shortened."""
    from starlearn.model.backbone import Backbone

    return Backbone(model, quantization, verbose=False).fingerprint[:16]


def make_learner(run: Run, data: TaskData) -> STARLearner:
    """Make the learner of a run; arms of one seed share everything but what the arm names."""
    arm = arm_named(run.arm)
    return STARLearner(
        run.settings.model,
        task=data.task,
        quantization=run.settings.quantization,
        **{name: made_part(name, run.settings, arm) for name in PARTS},
        random_state=run.seed,
        verbose=False,
    )


class Observed:
    """A learner that is played with `simulate` and watched; watching changes nothing it does.

    Parameters
    ----------
    learner : STARLearner
    arm : Arm
    data : TaskData
    seed, n_probe : int
        Draw the probe: pool items whose scores are followed over the rounds.
    """

    def __init__(self, learner: Any, arm: Arm, data: TaskData, seed: int, n_probe: int) -> None:
        self.learner, self.arm, self.seed = learner, arm, seed
        rng = np.random.default_rng([seed, 12])
        rows = rng.choice(len(data.items), min(n_probe, len(data.items)), replace=False)
        self.probe = [data.items[i] for i in rows]
        self.gold = {content_id(x): y for x, y in zip(data.items, data.labels, strict=True)}
        self.leaked = data.leaked
        self.scores: list[Any] = []
        """Scores of the probe by round, the base model's first."""
        self.seen: list[Record] = []
        """What was seen in each round."""
        self.bought: list[Any] = []

    @property
    def rounds_(self) -> list[Record]:
        """The learner's own record, which `simulate` reads."""
        return list(getattr(self.learner, "rounds_", []))

    def query(self, X_pool: Any, n_instances: int) -> tuple[Any, ...]:
        """Choose as the arm does."""
        if self.arm.pick is None:
            return tuple(self.learner.query(X_pool, n_instances=n_instances))
        gold = [self.gold[content_id(item)] for item in X_pool] if self.arm.leaks_labels else None
        rng = np.random.default_rng([self.seed, 13, len(self.learner.rounds_)])
        chosen, facts = self.arm.pick(self.learner, X_pool, n_instances, rng, gold)
        self.learner.rounds_[-1]["query"] = facts
        return (chosen,)

    def teach(self, X: Any, y: Any) -> None:
        """Teach, and score the probe: before the first time by the base model alone."""
        if not self.scores:
            self.scores.append(self.learner.uncertainty(self.probe).base)
        self.learner.teach(X, y)
        self.bought = list(X)

    def score(self, X: Any, y: Any) -> float:
        """Judge the answers to the test set; the facts are kept for the record."""
        found = judge(self.learner, X, y)
        uncertainty = self.learner.uncertainty(self.probe)
        self.scores.append(uncertainty.full)
        lengths = [item_length(item) for item in self.probe]
        self.seen.append(
            {
                **found.facts(),
                "train_loss": round(self.learner.rounds_[-1]["train_loss"], 6),
                "steps": self.learner.rounds_[-1]["steps"],
                "mean_item_length": round(float(np.mean(list(map(item_length, self.bought)))), 2),
                "spearman_item_length": spearman(uncertainty.mixed, lengths),
                "spearman_answer_length": spearman(uncertainty.mixed, uncertainty.n_tokens),
            }
        )
        if self.leaked:
            clean = np.array([content_id(item) not in self.leaked for item in X])
            self.seen[-1]["accuracy_without_leaks"] = float(found.correct[clean].mean())
        return float(found.correct.mean())


def play(run: Run) -> Record:
    """Play a run and return its record; the same run gives the same record but for its times."""
    import torch

    torch.set_num_threads(1)
    began, worked = time.perf_counter(), time.process_time()
    data = load_task(run.task, run.seed)
    watched = Observed(make_learner(run, data), ARMS[run.arm], data, run.seed, run.settings.n_probe)
    part = run.settings
    rounds = simulate(
        watched,
        data.items,
        data.labels,
        data.test_items,
        data.test_labels,
        n_initial=part.n_initial,
        n_instances=part.n_instances,
        n_rounds=part.n_rounds,
        random_state=run.seed,
        sub_pool=part.sub_pool,
    )
    return {
        **heading(run),
        "aulc": round(aulc(rounds), 6),
        "rounds": [
            told(record, seen, data) for record, seen in zip(rounds, watched.seen, strict=True)
        ],
        "spearman_rounds": [[spearman(a, b) for b in watched.scores] for a in watched.scores],
        "data": data.digest,
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - worked, 1),
        "device": device(),
        "versions": versions(),
    }


def heading(run: Run) -> Record:
    """Return what names a run at the beginning of its line."""
    return {
        "key": run.key,
        "study": run.study,
        "purpose": run.purpose,
        "task": run.task.name,
        "arm": run.arm,
        "seed": run.seed,
        "protocol": hashed(run.protocol()),
        "settings": run.determined_by(),
        "parameters": run.parameters(),
    }


def told(record: Record, seen: Record, data: TaskData) -> Record:
    """Return a round's record: what was seen is added, the long list of ids becomes a hash."""
    chosen = record.pop("chosen")
    if isinstance(data.task, GenerationTask):
        record["class_mix"] = {}  # free-form answers are no classes, however short
    if data.skills is not None:
        skills = {content_id(x): s for x, s in zip(data.items, data.skills, strict=True)}
        record["skill_mix"] = dict(Counter(skills[i] for i in chosen).most_common())
    return {**record, **seen, "chosen": hashed(chosen)}


def device() -> str:
    """Name what computes: the GPU where there is one, else the processor."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return f"CPU {platform.processor() or platform.machine()}"


def without_times(record: Record) -> Record:
    """Return a record without what differs when the run is repeated."""
    kept = {k: v for k, v in record.items() if k not in (*TIMES, "device", "versions")}
    rounds: Sequence[Record] = kept.get("rounds", [])
    return {**kept, "rounds": [{k: v for k, v in r.items() if k not in TIMES} for r in rounds]}
