"""Cases of query benchmarks: trained learners with a pool, and their tokens for the baselines."""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from baselines import Work
from measuring import common
from random_models import BY_NAME, random_model

from starlearn import ChoiceTask, GenerationTask, LoRA, STARLearner, Training
from starlearn.embedded.pools import EmbeddedPool, make_pool
from starlearn.learner.base_models import Base, base_of
from starlearn.learner.session import session_of
from starlearn.model.adapter import activate
from starlearn.progress import ItemBar
from starlearn.query.score_store import ScoreStore

TASKS = ("skewed", "homogeneous", "noisy", "steps", "banking77", "gsm8k")
N_LABELS, N_MORE, N_TEST = 120, 30, 60


@dataclass(frozen=True)
class Case:
    """A learner after two rounds of training, a pool, and the scores that the first round left."""

    name: str
    learner: STARLearner
    pool: list[Any]
    accuracy: float
    answer_tokens: float
    """Mean number of scored tokens of the model's own answers."""
    base: ScoreStore
    """The base model's scores of the first round."""

    @property
    def loaded(self) -> Base:
        """The learner's base model and its stored scores."""
        return base_of(self.learner)

    def tokens(self, members: Iterable[int] | None = None) -> tuple[Any, list[list[int]]]:
        """Return the choices and the prompts of some items of the pool, by default of all."""
        items = self.pool if members is None else [self.pool[i] for i in members]
        session = session_of(self.learner)
        return session.tree_and_prompts(session.parts.task.fill(items))

    def set_store(self, later: bool) -> None:
        """Keep what a first or a later query finds: nothing, or the base model's scores."""
        self.loaded.store = self.base.without_adapters() if later else ScoreStore()

    def n_items_kept(self) -> int:
        """Return for how many items a later query finds the base model's score."""
        self.set_store(later=True)
        before = len(self.loaded.store.without_adapters())
        self.learner.uncertainty(self.pool)
        new = len(self.loaded.store.without_adapters()) - before
        return self.n_distinct() - new

    def n_distinct(self) -> int:
        """Return how many items of the pool are different; equal ones are scored once."""
        _, prompts = self.tokens()
        return len(set(map(tuple, prompts)))


@dataclass(frozen=True)
class Data:
    """A task with its items: labelled ones first, then test items, then the pool."""

    task: Any
    items: list[Any]
    labels: list[str]
    model: Path | None = None


def task_of(data: EmbeddedPool) -> Any:
    """Return the task of a pool in the package."""
    if data.choices is None:
        return GenerationTask(data.prompt, 32, data.answer_pattern)
    return ChoiceTask(data.prompt, choices=data.choices)


def study_learner(
    data: EmbeddedPool, seed: int, *, dropout: float = 0.1, max_steps: int = 100, **training: Any
) -> STARLearner:
    """Return a learner on the model in the package with the settings of the studies."""
    return STARLearner(
        task=task_of(data),
        adapter=LoRA(r=16, alpha=32, dropout=dropout),
        training=Training(learning_rate=3e-3, max_steps=max_steps, **training),
        random_state=seed,
        verbose=False,
    )


def best_rows(scores: np.ndarray, n: int) -> set[int]:
    """Return the n rows with the largest scores."""
    return set(np.argsort(-scores, kind="stable")[:n].tolist())


def embedded_data(args: argparse.Namespace, name: str) -> Data:
    """Make one of the pools in the package, for the model in the package or a random one."""
    n_train = N_LABELS + N_MORE
    data = make_pool(name, args.items + n_train, N_TEST, random_state=args.seed)
    task = task_of(data)
    items = data.items[:n_train] + data.test_items + data.items[n_train:]
    labels = data.labels[:n_train] + data.test_labels + data.labels[n_train:]
    return Data(task, items, labels, random_model(args.shape_of) if args.shape_of else None)


def real_data(args: argparse.Namespace, name: str) -> Data:
    """Read banking77 or GSM8K, for a model in a folder."""
    if args.shape_of:
        raise ValueError(f"--shape-of goes with the embedded tasks, not with {name}")
    if args.models is None or args.data is None:
        raise FileNotFoundError("needs --models FOLDER (gutwiki-6M) and --data FOLDER")
    model = args.models / args.model if (args.models / args.model).is_dir() else args.models
    path = args.data / {"banking77": "banking77", "gsm8k": "star/GSM8K"}[name] / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    order = np.random.default_rng(args.seed).permutation(len(rows))
    chosen = [rows[i] for i in order[: N_LABELS + N_MORE + N_TEST + args.items]]
    if name == "gsm8k":
        task = GenerationTask("{question}\nAnswer:", max_new_tokens=32)
        labels = [" ".join(row["answer"].split()[:24]) for row in chosen]
        return Data(task, [row["question"] for row in chosen], labels, model)
    intents = sorted({row["label"].replace("_", " ") for row in rows})
    return Data(
        ChoiceTask("{text}\nIntent:", choices=intents),
        [row["text"] for row in chosen],
        [row["label"].replace("_", " ") for row in chosen],
        model,
    )


def add_case_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say with which model, data and seed a case is made."""
    parser.add_argument("--quantization", default="nf4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, help="folder of models, or of one model")
    parser.add_argument("--model", default="gutwiki-6M", help="name below --models")
    parser.add_argument("--data", type=Path, help="folder with banking77/ and star/GSM8K/")
    parser.add_argument(
        "--shape-of", choices=list(BY_NAME), help="random weights in a model of this shape"
    )
    parser.add_argument("--learning-rate", type=float, default=3e-3)


def make_case(args: argparse.Namespace, name: str) -> Case:
    """Train a learner a little, twice, and keep the base model's scores of the first query."""
    data = (real_data if name in ("banking77", "gsm8k") else embedded_data)(args, name)
    learner = STARLearner(
        data.model,
        task=data.task,
        quantization=args.quantization,
        adapter=LoRA(r=16, alpha=32),
        training=Training(learning_rate=args.learning_rate, max_steps=args.steps),
        random_state=args.seed,
        verbose=False,
    )
    end, start = N_LABELS + N_MORE, N_LABELS + N_MORE + N_TEST
    pool = data.items[start:]
    learner.fit(data.items[:N_LABELS], data.labels[:N_LABELS])
    learner.uncertainty(pool)
    base = base_of(learner).store.without_adapters()
    learner.teach(data.items[N_LABELS:end], data.labels[N_LABELS:end])
    accuracy = learner.score(data.items[end:start], data.labels[end:start])
    n_tokens = learner.uncertainty(pool).n_tokens
    return Case(name, learner, pool, float(accuracy), float(n_tokens.mean()), base)


def work_of(case: Case, n_passes: int, members: Iterable[int]) -> Work:
    """Hand the baselines the learner's own model and tokens."""
    learner, backbone = case.learner, case.loaded.backbone
    tree, prompts = case.tokens(members)
    choices = None
    if tree is not None:
        choices = [tree.tokens_of(row).tolist() for row in range(len(tree.paths))]
    return Work(
        model=activate(backbone, learner.adapter_),
        prompts=prompts,
        choices=choices,
        n_passes=n_passes,
        max_new_tokens=getattr(learner.task, "max_new_tokens", 0),
        eos_id=backbone.eos_id,
        pad_id=backbone.pad_id,
    )


def own_answers(case: Case, members: Iterable[int]) -> list[list[int]]:
    """Return the tokens that the learner writes as answers, and keep them for its next scores."""
    _, prompts = case.tokens(members)
    scorer = session_of(case.learner).scorer(None)
    with scorer.ready(), ItemBar("answering", len(prompts), verbose=False) as bar:
        return list(scorer.write(prompts, bar))


def spread_over_lengths(case: Case, n_items: int) -> list[int]:
    """Choose items whose lengths are spread over those of the pool."""
    _, prompts = case.tokens()
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    places = (np.arange(n_items) + 0.5) * len(order) / n_items
    return [int(order[int(place)]) for place in places]


def about(case: Case) -> dict[str, Any]:
    """Return what all rows of a case share."""
    learner, backbone = case.learner, case.loaded.backbone
    tree, prompts = case.tokens()
    row = common(backbone.device.type) | {
        "model": Path(backbone.source).name if learner.model is not None else "embedded",
        "parameters": n_parameters(backbone.model),
        "quantization": str(backbone.quantization),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "task": case.name,
        "accuracy": f"{case.accuracy:.3f}",
        "items": len(case.pool),
        "distinct_items": case.n_distinct(),
        "tokens_mean": f"{np.mean([len(prompt) for prompt in prompts]):.1f}",
    }
    return row | {
        "choices": "" if tree is None else len(tree.paths),
        "answer_tokens_mean": f"{case.answer_tokens:.1f}",
    }


def n_parameters(model: Any) -> int:
    """Count the base model's weights: four bits each in some layers, and no adapter's."""
    adapter = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    return int(model.num_parameters()) - adapter
