"""What starlearn stands on: versions of libraries, the GPU, 4-bit weights, SQLite, free disk."""

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import starlearn
from starlearn.campaign.store import SQLITE_VERSION

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "scikit-learn",
    "modAL-python",
    "triton",
)


def machine(folder: Path) -> dict[str, str]:
    """Return each fact by its name; free disk is that of the folder."""
    facts = {"starlearn": starlearn.__version__, "python": platform.python_version()}
    facts |= {name: _version(name) for name in LIBRARIES}
    facts["sqlite"] = SQLITE_VERSION
    facts["gpu"] = _gpu()
    facts["4-bit weights"] = _four_bits()
    facts["free disk"] = f"{shutil.disk_usage(folder).free / 1e9:.1f} GB at {folder}"
    return facts


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none; models run on the CPU, slowly"
    shown = []
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        shown.append(f"{found.name}, {found.total_memory / 1e9:.0f} GB")
    return "; ".join(shown)


def _four_bits() -> str:
    """Multiply by a small layer in 4 bits, on the device that models would run on."""
    from starlearn.model.four_bits import tried_in_four_bits

    error = tried_in_four_bits()
    return "work" if error is None else f"do not work: {error}"
