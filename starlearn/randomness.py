"""Seeds, and isolation of libraries that draw from the global random generators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from starlearn.errors import InputError


@contextmanager
def isolated_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch, and restore them afterwards."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - this state is restored
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def generator_states() -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and torch, ready for JSON."""
    found = np.random.get_state(legacy=False)  # noqa: NPY002
    found["state"]["key"] = found["state"]["key"].tolist()
    states = {"python": random.getstate(), "numpy": found, "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {
        name: state.numpy().tobytes().hex() if isinstance(state, torch.Tensor) else state
        for name, state in states.items()
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Undo `generator_states`, also after JSON."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(states["numpy"])  # noqa: NPY002

    def from_hex(text: str) -> torch.Tensor:
        return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

    torch.set_rng_state(from_hex(states["cpu"]))
    if "cuda" in states:
        torch.cuda.set_rng_state(from_hex(states["cuda"]))


def drawn_seed(random_state: Any) -> int:
    """Draw a seed from a random state as in scikit-learn."""
    try:
        return int(check_random_state(random_state).randint(2**31 - 1))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"random_state must be a whole number of at least 0, a numpy RandomState or None; "
            f"got {random_state!r:.60}."
        ) from error


def derived_seed(seed: int, *purpose: object) -> int:
    """Return a seed for one purpose, independent of the seeds for other purposes.

    Examples
    --------
    >>> derived_seed(0, "masks", 1) == derived_seed(0, "masks", 1)
    True
    >>> derived_seed(0, "masks", 1) == derived_seed(0, "masks", 2)
    False
    """
    digest = blake2b(repr((seed, *purpose)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
