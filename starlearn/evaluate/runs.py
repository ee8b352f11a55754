"""One run of a study: a task, an arm and a seed, from its settings to its record."""

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
from starlearn.evaluate.simulate import OnEvent, check_sizes, content_id, simulate
from starlearn.evaluate.statistics import aulc, spearman
from starlearn.evaluate.study_file import PARTS, Study, StudySettings, StudyTask
from starlearn.evaluate.study_tasks import TaskData, data_digest, load_task
from starlearn.learner.estimator import STARLearner
from starlearn.learner.inputs import checked_parts
from starlearn.settings import PUBLISHED_ACQUISITION
from starlearn.tasks import GenerationTask
from starlearn.version import versions

Record = dict[str, Any]

PROTOCOL = 1
"""Version of the protocol; raised when the same settings would give other numbers."""
AS_PUBLISHED: Mapping[str, Mapping[str, Any]] = {"acquisition": PUBLISHED_ACQUISITION}
"""The settings that arms change. They are fixed, so that lines stay comparable."""

TIMES = ("seconds", "cpu_seconds", "seconds_query", "seconds_teach", "seconds_score")
"""Keys whose values differ when a run is repeated."""


@dataclass(frozen=True)
class Run:
    """One line of a study."""

    study: str
    purpose: str
    task: StudyTask
    settings: StudySettings
    arm: str
    seed: int
    data: str
    """Hash of the source of the task's data."""
    model: str
    """Fingerprint of the base model."""

    def protocol(self) -> Record:
        """Return everything that determines a run except arm and seed.

        Settings at their default are left out, so that a setting added by a later version does
        not change the keys; `same_defaults` compares the defaults.
        """
        unused = {"folder", "train", "test", "settings", "name"}
        task = self.task.model_dump(exclude=unused, exclude_defaults=True)
        settings = self.settings.model_dump(exclude={"model"}, exclude_defaults=True)
        return {
            "protocol": PROTOCOL,
            "task": task,
            "settings": settings,
            "data": self.data,
            "model": self.model,
        }

    def determined_by(self) -> Record:
        """Return everything that determines the run, as read back from JSON."""
        arm = arm_named(self.arm)
        own = {
            "arm": self.arm,
            "picks": arm.pick.__name__ if arm.pick else "query",
            "changes": {name: dict(getattr(arm, name, {})) for name in PARTS},
            "seed": self.seed,
        }
        return as_json({**self.protocol(), **own})

    def parameters(self) -> Record:
        """Return all parameters of the learner's parts, with defaults, as read back from JSON."""
        arm = arm_named(self.arm)
        return as_json({n: made_part(n, self.settings, arm).get_params() for n in PARTS})

    def same_defaults(self, line: Record) -> bool:
        """Return whether a line with this key was run with the current defaults."""
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
    """Return a value as read back from JSON."""
    found: Record = json.loads(json.dumps(value))
    return found


def hashed(value: Any) -> str:
    """Return a short hash of a JSON value, independent of the order of its keys."""
    return blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def made_part(name: str, settings: StudySettings, arm: Arm) -> Any:
    """Return one part of the learner: the settings of the study, changed by the arm."""
    fixed = AS_PUBLISHED.get(name, {})
    return PARTS[name](**{**fixed, **getattr(settings, name), **getattr(arm, name, {})})


def runs_of(study: Study) -> Iterator[Run]:
    """Yield the runs by seed, then task, then arm: a study stopped after a seed is balanced."""
    prepared = []
    for task in study.tasks:
        settings = study.settings_of(task)
        data = load_task(task, study.seeds.first)
        sizes = (settings.n_initial, settings.n_instances, settings.n_rounds, settings.sub_pool)
        try:
            check_sizes(data.items, data.labels, data.test_items, data.test_labels, *sizes)
        except InputError as error:
            raise InputError(f"task {task.name}: {error}") from None
        model = model_fingerprint(settings.model, settings.quantization)
        prepared.append((task, settings, data_digest(task), model))
    for seed in range(study.seeds.first, study.seeds.first + study.seeds.count):
        for task, settings, digest, model in prepared:
            for arm in study.arms:
                yield Run(study.name, study.purpose, task, settings, arm, seed, digest, model)


@lru_cache(maxsize=8)
def model_fingerprint(model: str | None, quantization: str) -> str:
    """Return the shortened SHA-256 of a base model's files and quantisation."""
    from starlearn.model.backbone import Backbone

    return Backbone(model, quantization, verbose=False).fingerprint[:16]


def make_learner(run: Run, data: TaskData) -> STARLearner:
    """Return the learner of a run. Arms of a seed share everything that they do not change."""
    arm = arm_named(run.arm)
    return STARLearner(
        run.settings.model,
        task=data.task,
        quantization=run.settings.quantization,
        **{name: made_part(name, run.settings, arm) for name in PARTS},
        random_state=run.seed,
        verbose=False,
    )


def require_usable(run: Run) -> None:
    """Raise InputError for settings that a learner cannot use, before any model work."""
    checked_parts(make_learner(run, load_task(run.task, run.seed)))


class Observed:
    """A learner for `simulate` that records metrics; recording does not change its results.

    The scores of the probe, `n_probe` random items of the pool, are recorded in every round.
    """

    def __init__(self, learner: Any, arm: Arm, data: TaskData, seed: int, n_probe: int) -> None:
        self.learner, self.arm, self.seed = learner, arm, seed
        rng = np.random.default_rng([seed, 12])
        rows = rng.choice(len(data.items), min(n_probe, len(data.items)), replace=False)
        self.probe = [data.items[i] for i in rows]
        self.gold = {content_id(x): y for x, y in zip(data.items, data.labels, strict=True)}
        self.leaked = data.leaked
        self.scores: list[Any] = []
        """Scores of the probe by round, the base model first."""
        self.metrics: list[Record] = []
        """Metrics of each round."""
        self.batch: list[Any] = []

    @property
    def rounds_(self) -> list[Record]:
        """The learner's own records, which `simulate` reads."""
        return list(getattr(self.learner, "rounds_", []))

    def query(self, X_pool: Any, n_instances: int) -> tuple[Any, ...]:
        """Select as the arm does."""
        if self.arm.pick is None:
            return tuple(self.learner.query(X_pool, n_instances=n_instances))
        gold = [self.gold[content_id(item)] for item in X_pool] if self.arm.leaks_labels else None
        rng = np.random.default_rng([self.seed, 13, len(self.learner.rounds_)])
        chosen, facts = self.arm.pick(self.learner, X_pool, n_instances, rng, gold)
        self.learner.rounds_[-1]["query"] = facts
        return (chosen,)

    def teach(self, X: Any, y: Any) -> None:
        """Teach. Before the first training, score the probe with the base model."""
        if self.probe and not self.scores:
            self.scores.append(self.learner.uncertainty(self.probe).base)
        self.learner.teach(X, y)
        self.batch = list(X)

    def score(self, X: Any, y: Any) -> float:
        """Return the accuracy on the test set, and record the metrics of the round."""
        found = judge(self.learner, X, y)
        metrics = {
            **found.facts(),
            "train_loss": round(self.learner.rounds_[-1]["train_loss"], 6),
            "steps": self.learner.rounds_[-1]["steps"],
            "mean_item_length": round(float(np.mean(list(map(item_length, self.batch)))), 2),
        }
        if self.probe:
            scores = self.learner.uncertainty(self.probe)
            self.scores.append(scores.full)
            lengths = list(map(item_length, self.probe))
            metrics["spearman_item_length"] = spearman(scores.mixed, lengths)
            metrics["spearman_answer_length"] = spearman(scores.mixed, scores.n_tokens)
        clean = np.array([content_id(item) not in self.leaked for item in X])
        if self.leaked and clean.any():
            metrics["accuracy_without_leaks"] = float(found.correct[clean].mean())
        self.metrics.append(metrics)
        return float(found.correct.mean())


def play(run: Run, on_event: OnEvent | None = None, *, threads: int | None = 1) -> Record:
    """Play a run and return its record. A repeated run differs only in its times.

    `on_event` is called as by `simulate`; a round's record also has the metrics of `Observed`.
    `threads` is the number of CPU threads of torch; None leaves it as it is.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    wall_start, cpu_start = time.perf_counter(), time.process_time()
    data = load_task(run.task, run.seed)
    part = run.settings
    learner = Observed(make_learner(run, data), ARMS[run.arm], data, run.seed, part.n_probe)

    def with_metrics(kind: str, payload: Record) -> None:
        if on_event is not None:
            on_event(kind, {**payload, **learner.metrics[-1]} if kind == "round" else payload)

    rounds = simulate(
        learner,
        data.items,
        data.labels,
        data.test_items,
        data.test_labels,
        n_initial=part.n_initial,
        n_instances=part.n_instances,
        n_rounds=part.n_rounds,
        random_state=run.seed,
        sub_pool=part.sub_pool,
        on_event=with_metrics,
    )
    return {
        **heading(run),
        "aulc": round(aulc(rounds), 6),
        "rounds": [
            round_record(record, metrics, data)
            for record, metrics in zip(rounds, learner.metrics, strict=True)
        ],
        "spearman_rounds": [[spearman(a, b) for b in learner.scores] for a in learner.scores],
        "data": data.digest,
        "seconds": round(time.perf_counter() - wall_start, 1),
        "cpu_seconds": round(time.process_time() - cpu_start, 1),
        "device": device(),
        "versions": versions(),
    }


def heading(run: Run) -> Record:
    """Return the beginning of a run's line, which identifies the run."""
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


def round_record(record: Record, metrics: Record, data: TaskData) -> Record:
    """Return a round's record with its metrics, and with a hash for the long list of ids."""
    chosen = record.pop("chosen")
    if isinstance(data.task, GenerationTask):
        record["class_mix"] = {}  # free-form answers are not classes, even short ones
    if data.skills is not None:
        skills = {content_id(x): s for x, s in zip(data.items, data.skills, strict=True)}
        record["skill_mix"] = dict(Counter(skills[i] for i in chosen).most_common())
    return {**record, **metrics, "chosen": hashed(chosen)}


def device() -> str:
    """Return the name of the GPU where there is one, else of the processor."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return f"CPU {platform.processor() or platform.machine()}"


def without_times(record: Record) -> Record:
    """Return a record without the values that differ when the run is repeated."""
    kept = {k: v for k, v in record.items() if k not in (*TIMES, "device", "versions")}
    rounds: Sequence[Record] = kept.get("rounds", [])
    return {**kept, "rounds": [{k: v for k, v in r.items() if k not in TIMES} for r in rounds]}
