"""Fixtures of the kernel tests."""

import random
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def seed() -> int:
    """A new seed in each run, printed when a test fails."""
    value = random.SystemRandom().randrange(2**31)
    print(f"seed = {value}")
    return value


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, because small tensors on many threads mostly wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
