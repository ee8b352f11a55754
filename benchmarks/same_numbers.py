"""Write down what the code computes today, to see later that a rewrite computes the same.

    python benchmarks/same_numbers.py --write tests/golden
    python benchmarks/same_numbers.py --check tests/golden

The embedded model in nf4 is asked for scores, picks, predictions and adapters, on one thread of a
CPU, with fixed seeds. ``--write`` puts the answers into ``FOLDER/values.json``. It also saves a
learner in ``FOLDER/learner`` and a campaign in ``FOLDER/campaign``. ``--check`` computes all of it
again, opens the learner and a copy of the campaign, and prints a line for each value. It exits
with 1 when a number is off by more than 1e-6, or anything else differs at all. Another processor
or another version of torch may change the last bits, and then picks too.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import hashlib
import json
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-6
N_FIT, N_SCORED, N_PREDICTED = 20, 10, 10
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "numpy", "scikit-learn")
COLUMNS = (
    "base",
    "full",
    "mixed",
    "entropy",
    "mutual_information",
    "n_tokens",
    "confidence",
    "answers",
)
PUBLISHED: dict[str, Any] = {"measure": "entropy", "schedule": "published"}
FEW: dict[str, dict[str, Any]] = {"default": {}, "published": PUBLISHED}
KINDS: dict[str, dict[str, Any]] = {
    **FEW,
    "entropy": {"measure": "entropy"},
    "predictive entropy": {"measure": "predictive_entropy"},
    "one pass": {"measure": "entropy", "n_passes": 1},
    "one pass, published": {**PUBLISHED, "n_passes": 1},
    "two passes": {"n_passes": 2},
    "mix": {"schedule": 0.5},
    "mix of a list": {"schedule": [0.7, 0.2]},
    "zscore": {**PUBLISHED, "normalise": "zscore"},
    "not normalised": {**PUBLISHED, "normalise": "none"},
    "sum": {**PUBLISHED, "reduce": "sum"},
    "residual": {**PUBLISHED, "reduce": "residual"},
    "mask by token": {"mask_mode": "token"},
    "dropout in the answer": {"mc_scope": "answer"},
    "dropout in the answer, by token": {"mc_scope": "answer", "mask_mode": "token"},
    "screen": {"screen": 2},
    "part of the pool": {"sub_pool": 8},
    "small batches": {"max_batch_tokens": 64, "chunk_size": 5},
}
"""Acquisition by the name of what is unusual about it."""
DRAWS: dict[str, dict[str, Any]] = {
    **FEW,
    "random": {"strategy": "random"},
    "screen": {"screen": 2},
    "part of the pool": {"sub_pool": 15},
    "not distinct": {"distinct": "none"},
    "unlike by cosine": {"distinct": 0.97},
    "kmeans++": {"diversity": "kmeans++", "candidates": 4},
    "k-centre": {"diversity": "k-centre", "candidates": 4},
}
TRAININGS: dict[str, dict[str, Any]] = {
    "default": {},
    "epochs": {"max_steps": None, "epochs": 2},
    "cosine with warmup": {"scheduler": "cosine", "warmup_steps": 3},
    "shrinkage": {"b_shrinkage": 1.0},
    "accumulation": {"batch_size": 2, "gradient_accumulation": 2},
    "checkpointing": {"gradient_checkpointing": True},
}
Values = dict[str, Any]


# What is asked


def learner_for(task: Any, adapter: Mapping[str, Any] = {}, **training: Any) -> Any:
    """Make a learner of the embedded model with few steps and a fixed seed."""
    from starlearn import LoRA, STARLearner, Training

    return STARLearner(
        task=task,
        adapter=LoRA(**{"r": 4, "alpha": 8, **adapter}),
        training=Training(**{"max_steps": 10, "batch_size": 4, "learning_rate": 1e-2, **training}),
        random_state=0,
        verbose=False,
    )


def pool_of(kind: str) -> Any:
    """Make a small pool; the first items are for the training."""
    from starlearn.embedded.pools import make_pool

    return make_pool(kind, n_items=N_FIT + 45, n_test=N_PREDICTED)


def task_of(data: Any) -> Any:
    """Make the task of a pool."""
    from starlearn import ChoiceTask, GenerationTask

    if data.choices is None:
        return GenerationTask(data.prompt, 40, data.answer_pattern)
    return ChoiceTask(data.prompt, choices=data.choices)


def cases() -> Iterator[tuple[str, Any, Any, dict[str, dict[str, Any]]]]:
    """Give every kind of task: a name, its pool, the task, and the acquisitions to score by."""
    from starlearn import ChoiceTask, GenerationTask

    skewed = pool_of("skewed")
    beginnings = [*skewed.choices, "Ann then Bob", "Ann then Cid", "who has most"]
    yield "skewed", skewed, task_of(skewed), KINDS
    yield "steps", (steps := pool_of("steps")), task_of(steps), KINDS
    yield "homogeneous", (alike := pool_of("homogeneous")), task_of(alike), KINDS
    yield "noisy", (noisy := pool_of("noisy")), task_of(noisy), FEW
    yield "beginnings", skewed, ChoiceTask("{question}", choices=beginnings), FEW
    yield "choices from labels", skewed, ChoiceTask("{question} answer", separator=" "), FEW
    yield "names in free form", skewed, GenerationTask("{question}", max_new_tokens=3), FEW


def scores(learner: Any, items: Any, unweighted: bool) -> Values:
    """Return every column of the uncertainty.

    The base model's has another name where nothing depends on it: later code may leave it out.
    """
    found = learner.uncertainty(items)
    columns = {name: getattr(found, name, None) for name in COLUMNS}
    if unweighted:
        columns["unused_base"] = columns.pop("base")
    return {name: column.tolist() for name, column in columns.items() if column is not None}


def task_values() -> Iterator[tuple[str, Any]]:
    """Give scores before and after a training, predictions, and the digest of the adapter."""
    from starlearn import Acquisition

    for name, data, task, acquisitions in cases():
        learner = learner_for(task)
        pool = data.items[N_FIT : N_FIT + N_SCORED]
        if getattr(task, "choices", True) is not None:
            for column, found in scores(learner, pool, unweighted=False).items():
                yield f"scores before training/{name}/{column}", found
        learner.fit(data.items[:N_FIT], data.labels[:N_FIT])
        yield f"adapters/{name}/digest", digest(learner)
        yield f"adapters/{name}/train_loss", learner.rounds_[-1]["train_loss"]
        for kind, settings in acquisitions.items():
            learner.set_params(acquisition=Acquisition(**settings))
            unweighted = settings.get("schedule", 0.0) == 0.0
            for column, found in scores(learner, pool, unweighted).items():
                yield f"scores/{name}/{kind}/{column}", found
        learner.set_params(acquisition=Acquisition())
        yield f"predict/{name}", learner.predict(data.test_items).tolist()
        yield f"score/{name}", learner.score(data.test_items, data.test_labels)
        if hasattr(learner, "predict_proba"):
            for k in (1, 3):
                found = learner.predict_proba(data.test_items, n_passes=k)
                yield f"predict_proba/{name}/{k} passes", found.tolist()
        if name == "skewed":
            yield "transform", learner.transform(data.test_items[:3]).tolist()
            yield from draw_values(learner, data)
            learner.calibrate(n_splits=2)
            yield "calibrate/temperature", learner.rounds_[-1]["temperature"]
            yield "calibrate/predict_proba", learner.predict_proba(data.test_items).tolist()


def draw_values(learner: Any, data: Any) -> Iterator[tuple[str, Any]]:
    """Give one query of every kind, by a trained learner, of a pool with every item twice."""
    from starlearn import Acquisition, Budget

    pool = data.items[N_FIT:] * 2
    for kind, settings in DRAWS.items():
        learner.set_params(acquisition=Acquisition(**settings))
        places, _, ranked_by = learner.query(pool, 6, return_metrics=True)
        yield f"one query/{kind}/picks", places.tolist()
        yield f"one query/{kind}/metrics", ranked_by.tolist()
    learner.set_params(acquisition=Acquisition())
    budget = Budget(200.0, cost=lambda item: float(len(item["question"])))
    yield "one query/budget/picks", learner.query(pool, 6, budget=budget)[0].tolist()


def round_values() -> Iterator[tuple[str, Any]]:
    """Give the picks of three rounds, each with its training, and the last adapter."""
    from starlearn import Acquisition

    unlike = {"distinct": 0.98, "diversity": "kmeans++", "candidates": 4}
    kinds: dict[str, dict[str, Any]] = {**FEW, "unlike": unlike, "warm start": {}}
    data = pool_of("skewed")
    for name, settings in kinds.items():
        learner = learner_for(task_of(data), warm_start=name == "warm start")
        learner.set_params(acquisition=Acquisition(**settings))
        learner.fit(data.items[:N_FIT], data.labels[:N_FIT])
        left, picked = list(range(N_FIT, len(data.items))), []
        for _ in range(3):
            places, batch = learner.query([data.items[i] for i in left], 5)
            rows = [left[place] for place in places]
            learner.teach(batch, [data.labels[row] for row in rows])
            picked.append(rows)
            left = [row for row in left if row not in rows]
        yield f"three rounds/{name}/picks", picked
        yield f"three rounds/{name}/digest", digest(learner)


def training_values() -> Iterator[tuple[str, Any]]:
    """Give the digest of an adapter for every kind of training."""
    data = pool_of("noisy")
    for name, settings in TRAININGS.items():
        learner = learner_for(task_of(data), {"target_modules": ["q_proj", "v_proj"]}, **settings)
        learner.fit(data.items[:N_FIT], data.labels[:N_FIT])
        yield f"trainings/{name}/digest", digest(learner)
    learner.teach(data.items[N_FIT : N_FIT + 4], data.labels[N_FIT : N_FIT + 4], bootstrap=True)
    yield "trainings/bootstrap/digest", digest(learner)


def digest(learner: Any) -> str:
    """Return the SHA-256 of the adapter's file: tensor by tensor, sorted by name."""
    from safetensors.numpy import load_file

    found = hashlib.sha256()
    with tempfile.TemporaryDirectory() as scratch:
        learner.save(f"{scratch}/learner")
        weights = load_file(f"{scratch}/learner/adapter_model.safetensors")
    for name in sorted(weights):
        found.update(f"{name} {weights[name].dtype} {weights[name].shape}".encode())
        found.update(weights[name].tobytes())
    return found.hexdigest()


# A learner and a campaign in folders


@contextmanager
def without_paths() -> Iterator[None]:
    """Keep this machine's paths out of what is saved.

    peft's settings of an adapter name the folder of the base model. Nothing reads that again here.
    """
    from peft import LoraConfig

    original = LoraConfig.save_pretrained

    def saved(config: Any, *arguments: Any, **options: Any) -> Any:
        config.base_model_name_or_path = "starlearn/embedded/model"
        return original(config, *arguments, **options)

    LoraConfig.save_pretrained = saved
    try:
        yield
    finally:
        LoraConfig.save_pretrained = original


def write_learner(folder: Path) -> None:
    """Save a trained learner that has a temperature."""
    data = pool_of("skewed")
    learner = learner_for(task_of(data))
    learner.fit(data.items[:N_FIT], data.labels[:N_FIT]).calibrate(n_splits=2)
    learner.save(folder)


def write_campaign(folder: Path) -> None:
    """Make a campaign with a finished round, and leave it in the middle of the second batch."""
    from starlearn import Campaign

    data = pool_of("skewed")
    learner = learner_for(task_of(data), {"target_modules": ["q_proj", "v_proj"]})
    known = known_labels()
    with Campaign.create(folder, data.items[:30], learner) as campaign:
        batch = campaign.query(6)
        campaign.label(batch[0], "Ann", "ann")
        campaign.undo("ann")
        for item in batch[:4]:
            campaign.label(item, known[item.fields["question"]], "ann", ms=1500)
        campaign.skip(batch[4], "bob")
        campaign.flag(batch[5], "ann", note="is it clear?")
        campaign.teach()
        for item in campaign.query(5)[:2]:
            campaign.label(item, known[item.fields["question"]], "bob")
    (folder / ".lock").unlink()  # names the machine and the process


def known_labels() -> dict[str, str]:
    """Return the right answer of each question of the campaign's pool."""
    data = pool_of("skewed")
    return {item["question"]: label for item, label in zip(data.items, data.labels, strict=True)}


def learner_values(folder: Path) -> Values:
    """Return what a saved learner says when it is loaded."""
    from starlearn import STARLearner

    data = pool_of("skewed")
    learner = STARLearner.load(folder)
    places, _ = learner.query(data.items[N_FIT:], 5)
    return {
        "learner/predict_proba/1 passes": learner.predict_proba(data.test_items).tolist(),
        "learner/predict_proba/3 passes": learner.predict_proba(
            data.test_items, n_passes=3
        ).tolist(),
        "learner/classes": learner.classes_.tolist(),
        "learner/labelled": [learner.X_training.tolist(), learner.y_training.tolist()],
        "learner/rounds": len(learner.rounds_),
        "learner/temperature": learner.rounds_[-1]["temperature"],
        "learner/picks": places.tolist(),
        "learner/digest": digest(learner),
    }


def copied(folder: Path, target: Path) -> Path:
    """Copy a campaign, and keep others from reading it as before: git keeps no such modes."""
    shutil.copytree(folder, target)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    return target


def campaign_values(folder: Path) -> Values:
    """Return what stands in a campaign's folder, which may be changed by it: give a copy."""
    from starlearn import Campaign

    data = pool_of("skewed")
    with Campaign.open(folder) as campaign:
        return {
            "campaign/status": _status(campaign),
            "campaign/labels": campaign.labels(),
            "campaign/rounds": len(campaign.history()),
            "campaign/history": [asdict(record) for record in campaign.history()],
            "campaign/first batch": [asdict(item) for item in campaign.batch(1)],
            "campaign/open batch": [asdict(item) for item in campaign.batch()],
            "campaign/open items": [item.id for item in campaign.open_items("ann")],
            "campaign/doctor": [str(finding) for finding in campaign.doctor()],
            "campaign/digest": digest(campaign.learner()),
            "campaign/predict_proba": campaign.learner().predict_proba(data.test_items).tolist(),
        }


def campaign_goes_on(folder: Path) -> Values:
    """Give a campaign one more label, teach it and ask for a batch; return what came of it."""
    from starlearn import Campaign

    data = pool_of("skewed")
    with Campaign.open(folder) as campaign:
        item = campaign.open_items("ann")[0]
        campaign.label(item, known_labels()[item.fields["question"]], "ann")
        campaign.teach(partial=True)
        return {
            "campaign goes on/taught": _status(campaign),
            "campaign goes on/labels": campaign.labels(),
            "campaign goes on/digest": digest(campaign.learner()),
            "campaign goes on/predict_proba": campaign.learner()
            .predict_proba(data.test_items)
            .tolist(),
            "campaign goes on/picks": [item.id for item in campaign.query(4)],
        }


def _status(campaign: Any) -> Values:
    status = asdict(campaign.status())
    folder = status.pop("folder")
    return {**status, "next": status["next"].replace(folder, "FOLDER")}


# Written, and compared


def folder_values(folder: Path) -> Values:
    """Open the saved learner and a copy of the campaign."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = copied(folder / "campaign", Path(scratch) / "campaign")
        found = learner_values(folder / "learner")
        found |= campaign_values(copy)
        return found | campaign_goes_on(copy)


def computed(folder: Path) -> Values:
    """Compute everything, in the form in which it is read from a file."""
    found = {**dict(task_values()), **dict(round_values()), **dict(training_values())}
    found |= folder_values(folder)
    return json.loads(json.dumps(found))


def written(folder: Path) -> dict[str, Any]:
    """Read what was written: the machine and the values."""
    return json.loads((folder / "values.json").read_text(encoding="utf-8"))


def machine() -> dict[str, str]:
    """Return what may change the last bits: versions and processor."""
    cpu = platform.processor()
    if (information := Path("/proc/cpuinfo")).is_file():
        lines = information.read_text(encoding="utf-8").splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        cpu = (named or [cpu])[0]
    versions = {name: version(name) for name in PACKAGES}
    return {"cpu": cpu, "python": platform.python_version(), **versions}


def difference(before: Any, now: Any) -> float:
    """Return the largest difference of two numbers or arrays; infinite for all that is no float."""
    if before == now:
        return 0.0
    try:
        one, other = np.asarray(before), np.asarray(now)
    except ValueError:  # rows of several lengths
        return np.inf
    if one.shape != other.shape or one.dtype.kind != "f" or other.dtype.kind != "f":
        return np.inf
    if (np.isnan(one) != np.isnan(other)).any():
        return np.inf
    return float(np.nan_to_num(np.abs(one - other), nan=0.0, posinf=np.inf).max(initial=0.0))


def write(folder: Path) -> None:
    """Write a learner, a campaign and all values to a folder, in place of earlier ones."""
    for name in ("learner", "campaign"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with without_paths():
        write_learner(folder / "learner")
        write_campaign(folder / "campaign")
    values = computed(folder)
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    text = f'{{"machine": {json.dumps(machine())},\n"values": {{\n' + ",\n".join(lines) + "\n}}\n"
    (folder / "values.json").write_text(text, encoding="utf-8")
    print(f"{len(values)} values are in {folder / 'values.json'}.")


def check(folder: Path, without_base: bool) -> bool:
    """Compute everything again, and print what became of each value; True when all is well."""
    before, now = written(folder), computed(folder)
    for name, value in machine().items():
        if before["machine"].get(name) != value:
            print(f"note: {name} was {before['machine'].get(name)}, and is {value}")
    differing = wrong = 0
    for key in [*before["values"], *(key for key in now if key not in before["values"])]:
        if without_base and key.endswith("/unused_base"):
            continue
        if key not in now or key not in before["values"]:
            print(f"{key}: {'new' if key in now else 'missing'}")
            off = np.inf
        else:
            off = difference(before["values"][key], now[key])
            found = "differs" if off == np.inf else f"largest difference {off:.3g}"
            print(f"{key}: {found if off else 'same'}")
        differing += off > 0
        wrong += off > TOLERANCE
    print(f"{len(before['values'])} values, {differing} not the same, {wrong} wrong")
    return wrong == 0


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", metavar="FOLDER", type=Path)
    mode.add_argument("--check", metavar="FOLDER", type=Path)
    parser.add_argument(
        "--without-base",
        action="store_true",
        help="pass over the base model's scores where the ranking does not use them",
    )
    given = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(1)
    began, well = time.perf_counter(), True
    if given.write is not None:
        write(given.write)
    else:
        well = check(given.check, given.without_base)
    print(f"{time.perf_counter() - began:.0f} s")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
