"""Folders of earlier code still open: a saved learner and a campaign say what they said then.

`benchmarks/same_numbers.py` wrote tests/golden, and compares far more, to the last bit.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from benchmark_modules import imported_benchmark

GOLDEN = Path(__file__).parent / "golden"
CLOSE = 1e-4  # processors and versions of torch differ in the last bits


@pytest.fixture(scope="module")
def numbers() -> Iterator[ModuleType]:
    with imported_benchmark("same_numbers") as module:
        yield module


@pytest.fixture(scope="module")
def before(numbers: ModuleType) -> dict[str, Any]:
    return numbers.written(GOLDEN)["values"]


@pytest.fixture
def campaign(numbers: ModuleType, tmp_path: Path) -> Path:
    return numbers.copied(GOLDEN / "campaign", tmp_path / "campaign")


def compare(before: dict[str, Any], now: dict[str, Any], close: set[str], equal: set[str]) -> None:
    for key in close:
        np.testing.assert_allclose(now[key], before[key], atol=CLOSE, rtol=0, err_msg=key)
    for key in equal:
        assert now[key] == before[key], key


def test_a_saved_learner_opens_and_says_what_it_said(numbers, before):
    now = numbers.learner_values(GOLDEN / "learner")
    close = {f"learner/predict_proba/{k} passes" for k in (1, 3)} | {"learner/temperature"}
    equal = {"learner/classes", "learner/labelled", "learner/rounds", "learner/digest"}
    compare(before, now, close, equal)


def test_a_campaign_opens_where_it_was_left(numbers, before, campaign):
    now = numbers.campaign_values(campaign)
    close = {"campaign/predict_proba"}
    compare(before, now, close, {key for key in now if key not in close})


def test_a_campaign_takes_one_more_label_and_is_taught(numbers, before, campaign):
    now = numbers.campaign_goes_on(campaign)
    close = {"campaign goes on/predict_proba"}
    compare(before, now, close, {"campaign goes on/taught", "campaign goes on/labels"})
