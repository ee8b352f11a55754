"""Small studies on the tiny model for the tests of arms, runs and reports."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from starlearn.evaluate.statistics import aulc
from starlearn.evaluate.study_file import Study

if TYPE_CHECKING:
    from starlearn.evaluate.runs import Run

SETTINGS = {
    "quantization": "none",
    "n_initial": 4,
    "n_instances": 3,
    "n_rounds": 2,
    "sub_pool": 20,
    "n_probe": 8,
    "adapter": {"r": 4, "alpha": 8, "dropout": 0.2},
    "training": {"max_steps": 3, "batch_size": 4, "learning_rate": 5e-3},
}


def write_data(folder: Path) -> Path:
    """Write a pool of 48 items and a test set of 9, in words of the tiny model."""
    from tiny_models import COLOURS  # it imports torch, which the tests of reports do without

    rows = [
        {"text": f"{a} {size} {thing} {when} is", "label": COLOURS[(i + len(size)) % 3]}
        for a in ("the", "a")
        for size in ("big", "small", "very small", "very big")
        for i, thing in enumerate(("sky", "sea", "leaf", "rose"))
        for when in ("day", "night of the moon")
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in (("train", rows[:48]), ("test", rows[48:57])):
        lines = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def tiny_study(folder: Path, model: str, **changes) -> Study:
    """Return a study on the tiny model; `changes` go to the study, `free=True` to its task."""
    free = changes.pop("free", False)
    task = {"name": "colours", "source": "files", "prompt": "{text} Answer :"}
    task |= {"folder": str(write_data(folder)), **({"max_new_tokens": 3} if free else {})}
    given = {
        "name": "tiny",
        "arms": ["random", "star_entropy"],
        "seeds": {"count": 2},
        "settings": {"model": model, **SETTINGS},
        "tasks": [task],
    }
    return Study(**{**given, **changes})


def first_run(study: Study, arm: str | None = None) -> "Run":
    """Return the first run of a study, or of one of its arms."""
    from starlearn.evaluate.runs import runs_of

    return next(run for run in runs_of(study) if arm in (None, run.arm))


def made_line(task: str, arm: str, seed: int, accuracy: list[float], **changes) -> dict:
    """Return the line of a finished run with these accuracies by round."""
    n_labels = [10 * (i + 1) for i in range(len(accuracy))]
    bins = {"count": [0.0] * 14 + [4.0], "confidence": [0.0] * 14 + [3.8]}
    rounds = [
        {
            "round": number,
            "n_labels": n,
            "accuracy": value,
            "test_nll": 1 - value,
            "ece": 0.1,
            "confidence_on_errors": 0.9 if value < 1 else None,
            "reliability": {**bins, "correct": [0.0] * 14 + [round(4 * value)]},
            "mean_item_length": 20.0 + number,
            "spearman_item_length": 0.2,
            "spearman_answer_length": None,
            "skill_mix": {"easy": 7, "hard": 3 + number},
            "class_mix": {"x": 10 + number},
        }
        for number, (n, value) in enumerate(zip(n_labels, accuracy, strict=True))
    ]
    size = len(accuracy) + 1
    return {
        "key": f"{task}-{arm}-{seed}",
        "study": "made",
        "purpose": "report",
        "task": task,
        "arm": arm,
        "seed": seed,
        "protocol": f"p-{task}",
        "settings": {"changes": {"acquisition": {}, "training": {}}},
        "parameters": {},
        "aulc": aulc(rounds),
        "rounds": rounds,
        "spearman_rounds": [[1.0 if i == j else 0.5 for i in range(size)] for j in range(size)],
        "seconds": 30.0,
        "device": "CPU",
        "versions": {"starlearn": "0"},
        **changes,
    }
