"""Fixtures of the kernel tests."""

import random
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def seed() -> int:
    """A new seed in each run, printed where a test fails."""
    value = random.SystemRandom().randrange(2**31)
    print(f"seed = {value}")
    return value


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on many threads spend their time waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
