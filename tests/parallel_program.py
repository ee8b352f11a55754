"""What each process of a launched program does in the tests of data-parallel training.

Started by test_parallel.py: `accelerate launch ... parallel_program.py FOLDER`, where FOLDER holds
a model, and gets a file of results from each process.
"""

import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from starlearn.learner.estimator import STARLearner
from starlearn.model import processes
from starlearn.query.scoring import Scorer
from starlearn.settings import PUBLISHED_ACQUISITION, Acquisition, LoRA, Training
from starlearn.tasks import ChoiceTask
from starlearn.train import trainer

COLOURS = ["blue", "green", "red"]
ITEMS = [
    "the sky is",
    "grass is",
    "the rose is very",
    "a big sea is",
    "the small leaf is",
    "what colour is the sun",
    "night sky is",
    "a a a a a a",
    "the sun is",
]
LABELS = ["blue", "green", "red", "blue", "green", "red", "blue", "red", "red"]
POOL = [f"{a} {b} {c} is" for a in ("the", "a") for b in ("big", "small") for c in ("sky", "sea")]
SETTINGS: dict[str, dict[str, Any]] = {
    # Nine examples: the last batch of an epoch has one, and a process none of its own.
    "epochs": {"batch_size": 4, "epochs": 2, "b_weight_decay": 2.0},
    "accumulated": {"batch_size": 2, "gradient_accumulation": 2, "max_steps": 7},
    "single": {"batch_size": 1, "gradient_accumulation": 3, "epochs": 2, "b_shrinkage": 1.0},
}


def learner(folder: Path, dropout: float = 0.0, **changes: Any) -> STARLearner:
    """A learner on the model in a folder; keywords change its training."""
    training = {"batch_size": 4, "max_steps": 4, "learning_rate": 5e-3, **changes}
    return STARLearner(
        folder / "model",
        task=ChoiceTask("{text} Answer :", choices=COLOURS),
        adapter=LoRA(r=4, alpha=8, dropout=dropout),
        acquisition=Acquisition(
            **PUBLISHED_ACQUISITION, n_passes=2 if dropout else 1, chunk_size=3
        ),
        training=Training(**training),
        random_state=7,
        verbose=False,
    )


def facts(trained: STARLearner) -> dict[str, Any]:
    """What the test compares: weights, records, and a batch."""
    engine = "accelerate"
    index, _, metrics = trained.query(POOL, 3, return_metrics=True, engine=engine)
    return {
        "state": {name: tensor.tolist() for name, tensor in trained.adapter_.state.items()},
        "steps": [record["steps"] for record in trained.rounds_],
        "losses": [record["train_loss"] for record in trained.rounds_],
        "index": index.tolist(),
        "metrics": metrics.tolist(),
    }


def two_rounds(folder: Path, name: str) -> dict[str, Any]:
    """Train twice without dropout, where P processes do what one does."""
    return facts(learner(folder, **SETTINGS[name]).fit(ITEMS, LABELS).teach(POOL[:2], LABELS[:2]))


def with_dropout(folder: Path) -> dict[str, Any]:
    """Train with dropout, which each process draws for itself; with the first masks."""
    masks: list[list[float]] = []
    original = trainer._AdapterTrainer.training_step

    def step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        state = torch.get_rng_state()
        masks.append(torch.rand(4).tolist())
        torch.set_rng_state(state)
        return original(self, model, inputs, *rest)

    with patch.object(trainer._AdapterTrainer, "training_step", step):
        trained = learner(folder, dropout=0.2).fit(ITEMS, LABELS)
    return {**facts(trained), "noise": masks[0]}


def told(call: Callable[[], Any]) -> str:
    """The error of a call."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - which one, is the question
        return f"{type(error).__name__}: {error}"
    return "no error"


@contextmanager
def breaking(index: int, error: Callable[[int], Exception | None]) -> Any:
    """Let one process fail before a training step, as `error` of its number of items says."""
    original = trainer._AdapterTrainer.training_step
    this = processes.processes().index

    def step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        found = error(len(inputs["input_ids"])) if this == index else None
        if found is not None and self.state.global_step >= 1:
            raise found
        return original(self, model, inputs, *rest)

    with patch.object(trainer._AdapterTrainer, "training_step", step):
        yield


def failures(folder: Path) -> dict[str, Any]:
    """One process fails in several ways; the other does not wait, and can train afterwards."""
    this = processes.processes().index
    found = {}
    broken = learner(folder)
    with breaking(1, lambda n: ValueError("a broken cable")):
        found["training"] = told(lambda: broken.fit(ITEMS, LABELS))
    found["left"] = str(hasattr(broken, "adapter_"))
    with breaking(0, lambda n: None if this else ValueError("the first one too")):
        found["the first"] = told(lambda: broken.fit(ITEMS, LABELS))
    labels = LABELS if this == 0 else LABELS[::-1]
    found["data"] = told(lambda: broken.fit(ITEMS, labels))
    unseeded = learner(folder).set_params(random_state=None)
    found["seed"] = told(lambda: unseeded.fit(ITEMS, LABELS))
    steep = learner(folder, learning_rate=1e30, b_weight_decay=0.0)
    found["diverged"] = told(lambda: steep.fit(ITEMS, LABELS))
    broken.fit(ITEMS, LABELS)

    def failing(*_: Any) -> None:
        raise OSError("a disk that fails")

    with patch.object(Scorer, "score", failing) if this else nullcontext():
        found["scoring"] = told(lambda: broken.uncertainty(POOL, engine="accelerate"))
    place = folder / "saved"
    with patch("starlearn.export.saving.save", failing):
        found["saving"] = told(lambda: broken.save(place))
    broken.save(place)
    found["saved"] = str(sorted(p.name for p in folder.iterdir() if p.name.startswith("saved")))
    found["saved again"] = told(lambda: broken.save(place))
    again = STARLearner.load(place).adapter_.digest
    found["digest"] = str(again == broken.adapter_.digest)
    return found


def out_of_memory(folder: Path) -> dict[str, Any]:
    """The memory of one process ends at more than one item: all begin anew with smaller parts."""

    def error(n: int) -> Exception | None:
        return torch.OutOfMemoryError("CUDA out of memory") if n > 1 else None

    with breaking(1, error), warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        trained = learner(folder).fit(ITEMS, LABELS)
    return {**facts(trained), "warnings": [str(w.message) for w in given if "Memory" in str(w)]}


def progress(folder: Path) -> str:
    """What the bars of a training and a query say."""
    shown = io.StringIO()
    with redirect_stderr(shown):
        trained = learner(folder).set_params(verbose=True).fit(ITEMS, LABELS)
        trained.query(POOL, 2, engine="accelerate")
    return shown.getvalue()


def kept(folder: Path) -> None:
    """Score with a cache that all processes share."""
    trained = learner(folder, dropout=0.2).set_params(cache_dir=folder / "cache")
    trained.fit(ITEMS, LABELS).query(POOL, 2, engine="accelerate")


def die(folder: Path) -> None:
    """One process is killed in the middle of a training."""

    def error(_: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with breaking(1, error):
        learner(folder).fit(ITEMS, LABELS)


def everything(folder: Path) -> dict[str, Any]:
    """All but dying."""
    kept(folder)
    return {
        **{name: two_rounds(folder, name) for name in SETTINGS},
        "dropout": with_dropout(folder),
        "failures": failures(folder),
        "memory": out_of_memory(folder),
        "progress": progress(folder),
    }


def main() -> None:
    """Run as one of several processes."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    these = processes.processes()
    if sys.argv[2] == "die":
        die(folder)
    results = {**everything(folder), "count": these.count}
    (folder / f"{these.index}.json").write_text(json.dumps(results))
    these.state.destroy_process_group()


if __name__ == "__main__":
    main()
