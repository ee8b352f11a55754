"""What starlearn stands on: libraries, device, 4-bit weights, prompts, storage and extras."""

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import numpy as np
import psutil
from packaging.requirements import Requirement

from starlearn.campaign.store import SQLITE_VERSION, Store
from starlearn.errors import StarlearnError
from starlearn.storage.files import REMOTE, file_system_of
from starlearn.version import __version__

LOW_DISK, LOW_MEMORY = 2e9, 2e9
"""Bytes: an adapter of an 8-billion model with its optimiser takes as much in passing; and what
torch and transformers take before any model."""
NOT_FOR_USERS = ("dev", "docs")
ASKED = "Ann has 7 coins . Bob has 3 coins . who has more coins ?"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    group: str
    name: str
    state: str
    """ok; note: good to know; warning: something may go wrong; error: something cannot be used."""
    found: str
    fix: str = ""
    """What to type or do about it; empty where nothing is to be done."""


def examine(folder: Path, model: str | None = None) -> list[Check]:
    """Look at everything, in this order; nothing is downloaded, nothing stays on the disk.

    Parameters
    ----------
    folder : Path
        Where campaigns are to lie: disk and SQLite are tried there.
    model : str, optional
        Folder or hub id of the base model whose prompts are told; None is the model in the
        package. Its weights are not loaded.

    Returns
    -------
    list of Check

    Raises
    ------
    InputError
        When there is no such model.
    """
    return [
        *_libraries(),
        *_tried("device", "gpu", _device()),
        *_tried("device", "4-bit weights", _four_bits()),
        *_tried("model", "prompt format", _prompts(model)),
        *_tried("model", "embedded model", _embedded()),
        *_storage(folder),
        *_extras(),
    ]


def _tried(group: str, name: str, looks: Iterator[Check]) -> Iterator[Check]:
    """Go on where a library cannot be imported: that is what somebody wants to be told."""
    try:
        yield from looks
    except ImportError as error:
        told = f"cannot be tried: {str(error).partition(chr(10))[0]:.200}"
        yield Check(group, name, "error", told, "Install the libraries that are missing or old.")


def as_json(checks: Sequence[Check]) -> dict[str, object]:
    """Return what is printed with --json."""
    return {"ok": not failed(checks), "checks": [vars(check) for check in checks]}


def failed(checks: Sequence[Check]) -> bool:
    """Tell whether something that starlearn needs cannot be used."""
    return any(check.state == "error" for check in checks)


def _requirements() -> list[Requirement]:
    try:
        found = [Requirement(text) for text in requires("starlearn") or []]
    except PackageNotFoundError:  # run from a checkout that was never installed
        return []
    return [r for r in found if r.marker is None or "extra" in str(r.marker) or r.marker.evaluate()]


def _extras_of(requirement: Requirement) -> list[str]:
    """Name the extras that ask for a requirement on this platform."""
    if requirement.marker is None or "extra" not in str(requirement.marker):
        return []
    offered = metadata("starlearn").get_all("Provides-Extra") or []
    return [name for name in offered if requirement.marker.evaluate({"extra": name})]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _libraries() -> Iterator[Check]:
    yield Check("starlearn", "starlearn", "ok", __version__)
    yield Check("starlearn", "python", "ok", f"{platform.python_version()}, {platform.platform()}")
    needed = [r for r in _requirements() if "extra" not in str(r.marker or "")]
    if not needed:
        yield Check(
            "starlearn", "libraries", "warning", "starlearn is not installed", "pip install -e ."
        )
    for requirement in needed:
        found = _installed(requirement.name)
        ask = f"{requirement.name}{requirement.specifier}"
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            told = f"{found or 'not installed'}; {ask} is needed"
            yield Check("libraries", requirement.name, "error", told, f"pip install '{ask}'")
        else:
            yield Check("libraries", requirement.name, "ok", found)


def _device() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        yield Check("device", "gpu", "note", "none; models run on the CPU, slowly")
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        told = (
            f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, compute capability "
            f"{gpu.major}.{gpu.minor}, CUDA {torch.version.cuda}"
        )
        yield Check("device", "gpu", "ok", told)
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    told = f"{cores} cores, torch threads: {threads}"
    yield Check("device", "cpu", "ok", told)
    memory = psutil.virtual_memory()
    told = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB are free"
    low = memory.available < LOW_MEMORY
    fix = "End other programs, or take a machine with more memory." if low else ""
    yield Check("device", "memory", "warning" if low else "ok", told, fix)
    yield _triton(torch.cuda.is_available())


def _triton(gpu: bool) -> Check:
    found = _installed("triton")
    if found is not None:
        return Check("device", "triton", "ok", found if gpu else f"{found}; used on a GPU only")
    if not gpu:
        return Check("device", "triton", "note", "not installed; it serves on a GPU only")
    told = "not installed; entropies are computed by torch instead of the fused kernel"
    return Check("device", "triton", "warning", told, "pip install 'starlearn[gpu]'")


def _four_bits() -> Iterator[Check]:
    from starlearn.model.four_bits import tried_in_four_bits

    error = tried_in_four_bits()
    if error is None:
        told = "work: stored, read back, multiplied and differentiated"
        yield Check("device", "4-bit weights", "ok", told)
    else:
        fix = "pip install --force-reinstall bitsandbytes; until then: quantization='none'"
        yield Check("device", "4-bit weights", "error", f"do not work: {error}", fix)


def _prompts(model: str | None) -> Iterator[Check]:
    """Tell what decides a prompt's tokens, so that two machines can be compared by eye."""
    from starlearn.data.tokens import encode_prompts
    from starlearn.model.backbone import Backbone
    from starlearn.tasks import ChoiceTask

    backbone = Backbone(model, verbose=False)
    task = ChoiceTask("{text}")
    tokens = encode_prompts(
        backbone.tokenizer, task, task.fill([ASKED]), context=backbone.context, room=0
    )
    told = f"{_digest(repr(tokens))}, of the tokens of a fixed prompt"
    yield Check("model", "prompt format", "ok", told)
    template = getattr(backbone.tokenizer, "chat_template", None)
    name = "the model in the package" if model is None else model
    if template:
        told = f"{_digest(str(template))}, {len(str(template))} characters"
        yield Check("model", "chat template", "ok", told)
    else:
        told = f"{name} has none: ChoiceTask(chat=True) would be refused"
        yield Check("model", "chat template", "note", told)


def _digest(text: str) -> str:
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _embedded() -> Iterator[Check]:
    """Let the model in the package answer one question: all libraries together."""
    from starlearn.learner.estimator import STARLearner
    from starlearn.tasks import ChoiceTask

    learner = STARLearner(
        task=ChoiceTask("{text}", choices=["Ann", "Bob"]), random_state=0, verbose=False
    )
    try:
        found = learner.uncertainty([ASKED])
    except (StarlearnError, OSError, RuntimeError) as error:
        told = f"does not answer: {str(error).partition(chr(10))[0]:.200}"
        yield Check(
            "model", "embedded model", "error", told, "pip install --force-reinstall starlearn"
        )
        return
    finite = bool(np.isfinite(found.full).all())
    told = f"answers {found.answers[0]}" if finite else "gives an entropy that is not finite"
    yield Check("model", "embedded model", "ok" if finite else "error", told)


def _storage(folder: Path) -> Iterator[Check]:
    free = shutil.disk_usage(folder).free
    low = free < LOW_DISK
    told = f"{free / 1e9:.1f} GB at {folder}"
    fix = "Free some space before a training or a download." if low else ""
    yield Check("storage", "free disk", "warning" if low else "ok", told, fix)
    kind = file_system_of(folder)
    if kind in REMOTE:
        fix = "Keep campaigns on a local disk, and their backups here."
        yield Check("storage", "file system", "warning", f"{kind} is remote", fix)
    elif kind:
        yield Check("storage", "file system", "ok", kind)
    yield _sqlite(folder)


def _sqlite(folder: Path) -> Check:
    """Make a label store there, read it again, and look at its journal."""
    try:
        with tempfile.TemporaryDirectory(prefix=".starlearn-", dir=folder) as place:
            path = Path(place) / "labels.db"
            Store.create(path).close()
            store = Store.open(path)
            (mode,) = store.execute("PRAGMA journal_mode")[0]
            store.close()
    except (StarlearnError, OSError) as error:
        told = f"{SQLITE_VERSION}; labels cannot be stored in {folder}: {error}"
        return Check("storage", "sqlite", "error", told, "Work in a folder that you can write to.")
    told = f"{SQLITE_VERSION}; labels are stored with journal {mode}, a WAL file is refused"
    return Check("storage", "sqlite", "ok", told)


def _extras() -> Iterator[Check]:
    """Tell which extras are there whole, and how to get the others."""
    asked: dict[str, list[Requirement]] = {}
    for requirement in _requirements():
        for name in _extras_of(requirement):
            asked.setdefault(name, []).append(requirement)
    for name, requirements in asked.items():
        if name in NOT_FOR_USERS:
            continue
        found = {r.name: _installed(r.name) for r in requirements if r.name != "starlearn"}
        missing = [package for package, number in found.items() if number is None]
        if missing:
            told = f"absent ({', '.join(missing)})"
            yield Check("extras", name, "note", told, f"pip install 'starlearn[{name}]'")
        else:
            there = ", ".join(f"{package} {number}" for package, number in found.items())
            yield Check("extras", name, "ok", there)
