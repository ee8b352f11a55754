"""starlearn doctor without a folder: checks of libraries, device, model, storage and extras."""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from packaging.requirements import Requirement

from starlearn.campaign.store import SQLITE_VERSION, Store
from starlearn.console import make_console, plain
from starlearn.errors import StarlearnError
from starlearn.storage.files import REMOTE, file_system_of
from starlearn.version import __version__

LOW_DISK, LOW_MEMORY = 2e9, 2e9
"""Bytes of disk that the adapter of an 8B model and its optimiser need while they are saved, and
bytes of memory that torch and transformers need before any model."""
NOT_FOR_USERS = ("dev", "docs")
QUESTION = "Ann has 7 coins . Bob has 3 coins . who has more coins ?"
MARKS = {"ok": "ok", "note": "note", "warning": "WARNING", "error": "ERROR"}


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    group: str
    name: str
    state: str
    """ok; note: information; warning: a possible problem; error: something cannot be used."""
    found: str
    fix: str = ""
    """How to fix it; empty where nothing needs fixing."""


def examine(folder: Path, model: str | None = None) -> list[Check]:
    """Run all checks in this order. Nothing is downloaded, and no file is left on the disk.

    The disk and SQLite of `folder`, a folder for campaigns, are checked. `model` is the folder or
    hub id of the base model whose prompts are shown; its weights are not loaded. None is the
    embedded model.
    """
    return [
        *_libraries(),
        *_importable("device", "gpu", _device()),
        *_importable("device", "4-bit weights", _four_bits()),
        *_importable("model", "prompt format", _prompts(model)),
        *_importable("model", "embedded model", _embedded()),
        *_storage(folder),
        *_extras(),
    ]


def _importable(group: str, name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """Yield checks; a library that cannot be imported is an error instead of an exception."""
    try:
        yield from checks
    except ImportError as error:
        text = f"cannot be checked: {str(error).partition(chr(10))[0]:.200}"
        yield Check(group, name, "error", text, "Install the libraries that are missing or old.")


def failed(checks: Sequence[Check]) -> bool:
    """Return whether something that starlearn needs cannot be used."""
    return any(check.state == "error" for check in checks)


def _requirements() -> list[Requirement]:
    try:
        found = [Requirement(text) for text in requires("starlearn") or []]
    except PackageNotFoundError:  # a checkout that is not installed
        return []
    return [r for r in found if r.marker is None or "extra" in str(r.marker) or r.marker.evaluate()]


def _extras_of(requirement: Requirement) -> list[str]:
    """Return the extras that need a requirement on this platform."""
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
        needed_version = f"{requirement.name}{requirement.specifier}"
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            text = f"{found or 'not installed'}; {needed_version} is needed"
            fix = f"pip install '{needed_version}'"
            yield Check("libraries", requirement.name, "error", text, fix)
        else:
            yield Check("libraries", requirement.name, "ok", found)


def _device() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        yield Check("device", "gpu", "note", "none; models run on the CPU, slowly")
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        text = (
            f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, compute capability "
            f"{gpu.major}.{gpu.minor}, CUDA {torch.version.cuda}"
        )
        yield Check("device", "gpu", "ok", text)
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    text = f"{cores} cores, torch threads: {threads}"
    yield Check("device", "cpu", "ok", text)
    memory = psutil.virtual_memory()
    text = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB are free"
    low = memory.available < LOW_MEMORY
    fix = "Close other programs, or use a machine with more memory." if low else ""
    yield Check("device", "memory", "warning" if low else "ok", text, fix)
    yield _triton(torch.cuda.is_available())


def _triton(gpu: bool) -> Check:
    found = _installed("triton")
    if found is not None:
        return Check("device", "triton", "ok", found if gpu else f"{found}; used on a GPU only")
    if not gpu:
        return Check("device", "triton", "note", "not installed; it is used on a GPU only")
    text = "not installed; entropies are computed by torch instead of the fused kernel"
    return Check("device", "triton", "warning", text, "pip install 'starlearn[gpu]'")


def _four_bits() -> Iterator[Check]:
    from starlearn.model.four_bits import tried_in_four_bits

    error = tried_in_four_bits()
    if error is None:
        text = "work: stored, read, multiplied and differentiated"
        yield Check("device", "4-bit weights", "ok", text)
    else:
        fix = "pip install --force-reinstall bitsandbytes; until then: quantization='none'"
        yield Check("device", "4-bit weights", "error", f"do not work: {error}", fix)


def _prompts(model: str | None) -> Iterator[Check]:
    """Check what decides the tokens of a prompt; hashes make two machines easy to compare."""
    from starlearn.data.tokens import encode_prompts
    from starlearn.model.backbone import Backbone
    from starlearn.tasks import ChoiceTask

    backbone = Backbone(model, verbose=False)
    task = ChoiceTask("{text}")
    tokens = encode_prompts(
        backbone.tokenizer, task, task.fill([QUESTION]), context=backbone.context, room=0
    )
    text = f"{_digest(repr(tokens))} of the tokens of a fixed prompt"
    yield Check("model", "prompt format", "ok", text)
    template = getattr(backbone.tokenizer, "chat_template", None)
    name = "the embedded model" if model is None else model
    if template:
        text = f"{_digest(str(template))}, {len(str(template))} characters"
        yield Check("model", "chat template", "ok", text)
    else:
        text = f"{name} has none, so ChoiceTask(chat=True) cannot be used"
        yield Check("model", "chat template", "note", text)


def _digest(text: str) -> str:
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _embedded() -> Iterator[Check]:
    """Check that the embedded model answers one question, with all libraries together."""
    from starlearn.learner.estimator import STARLearner
    from starlearn.tasks import ChoiceTask

    learner = STARLearner(
        task=ChoiceTask("{text}", choices=["Ann", "Bob"]), random_state=0, verbose=False
    )
    try:
        found = learner.uncertainty([QUESTION])
    except (StarlearnError, OSError, RuntimeError) as error:
        text = f"does not answer: {str(error).partition(chr(10))[0]:.200}"
        yield Check(
            "model", "embedded model", "error", text, "pip install --force-reinstall starlearn"
        )
        return
    finite = bool(np.isfinite(found.full).all())
    text = f"answers {found.answers[0]}" if finite else "the entropy is not finite"
    yield Check("model", "embedded model", "ok" if finite else "error", text)


def _storage(folder: Path) -> Iterator[Check]:
    free = shutil.disk_usage(folder).free
    low = free < LOW_DISK
    text = f"{free / 1e9:.1f} GB at {folder}"
    fix = "Free some space before training or downloading." if low else ""
    yield Check("storage", "free disk", "warning" if low else "ok", text, fix)
    kind = file_system_of(folder)
    if kind in REMOTE:
        fix = "Keep campaigns on a local disk, and only backups here."
        yield Check("storage", "file system", "warning", f"{kind} is remote", fix)
    elif kind:
        yield Check("storage", "file system", "ok", kind)
    yield _sqlite(folder)


def _sqlite(folder: Path) -> Check:
    """Check that a label store can be made and read there, and its journal mode."""
    try:
        with tempfile.TemporaryDirectory(prefix=".starlearn-", dir=folder) as scratch:
            path = Path(scratch) / "labels.db"
            Store.create(path).close()
            store = Store.open(path)
            (mode,) = store.execute("PRAGMA journal_mode")[0]
            store.close()
    except (StarlearnError, OSError) as error:
        text = f"{SQLITE_VERSION}; labels cannot be stored in {folder}: {error}"
        return Check("storage", "sqlite", "error", text, "Use a folder that you can write to.")
    text = f"{SQLITE_VERSION}; labels are stored with journal {mode}; a WAL file is refused"
    return Check("storage", "sqlite", "ok", text)


def _extras() -> Iterator[Check]:
    """Check which extras are complete, and how to install the others."""
    extras: dict[str, list[Requirement]] = {}
    for requirement in _requirements():
        for name in _extras_of(requirement):
            extras.setdefault(name, []).append(requirement)
    for name, requirements in extras.items():
        if name in NOT_FOR_USERS:
            continue
        found = {r.name: _installed(r.name) for r in requirements if r.name != "starlearn"}
        missing = [package for package, number in found.items() if number is None]
        if missing:
            text = f"not installed ({', '.join(missing)})"
            yield Check("extras", name, "note", text, f"pip install 'starlearn[{name}]'")
        else:
            installed = ", ".join(f"{package} {number}" for package, number in found.items())
            yield Check("extras", name, "ok", installed)


def show_environment(folder: Path, model: str | None, json_output: bool) -> bool:
    """Print all checks as a table or as JSON; return False when something cannot be used."""
    checks = examine(folder, model)
    if json_output:
        # Other programs read this. A console would break its lines.
        content = {"ok": not failed(checks), "checks": [vars(check) for check in checks]}
        print(json.dumps(content, indent=2))
        return not failed(checks)
    console = make_console()
    console.print(_table(checks))
    for check in checks:
        if check.fix and check.state in ("error", "warning"):
            console.print(plain(f"{MARKS[check.state]}: {check.name}: {check.found}"))
            console.print(plain(f"  {check.fix}"))
    bad = failed(checks)
    console.print("Something cannot be used, see above." if bad else "Everything needed works.")
    return not bad


def _table(checks: Sequence[Check]) -> Any:
    from rich.table import Table

    table = Table(title="starlearn doctor")
    for name in ("", "check", "found", "to add it"):
        table.add_column(name, overflow="fold")
    group = ""
    for check in checks:
        if group and check.group != group:
            table.add_section()
        group = check.group
        table.add_row(
            MARKS[check.state],
            plain(f"starlearn[{check.name}]" if check.group == "extras" else check.name),
            plain(check.found),
            plain(check.fix) if check.state == "note" else "",
        )
    return table
