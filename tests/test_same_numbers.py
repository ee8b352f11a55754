"""A learner and a campaign of an earlier version still open, with the same values.

`benchmarks/same_numbers.py` wrote tests/golden. It compares many more values, to the last bit.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import same_numbers

GOLDEN = Path(__file__).parent / "golden"
CLOSE = 1e-4  # processors and versions of torch differ in the last bits


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    return same_numbers.written(GOLDEN)["values"]


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    return same_numbers.copied(GOLDEN / "campaign", tmp_path / "campaign")


def compare(before: dict[str, Any], now: dict[str, Any], close: set[str], equal: set[str]) -> None:
    for key in close:
        np.testing.assert_allclose(now[key], before[key], atol=CLOSE, rtol=0, err_msg=key)
    for key in equal:
        assert now[key] == before[key], key


def test_a_saved_learner_opens_with_the_same_predictions(before):
    now = same_numbers.learner_values(GOLDEN / "learner")
    close = {f"learner/predict_proba/{k} passes" for k in (1, 3)} | {"learner/temperature"}
    equal = {"learner/classes", "learner/labelled", "learner/rounds", "learner/digest"}
    compare(before, now, close, equal)


def test_a_campaign_opens_where_it_was_left(before, campaign):
    now = same_numbers.campaign_values(campaign)
    close = {"campaign/predict_proba"}
    compare(before, now, close, {key for key in now if key not in close})


def test_a_campaign_takes_one_more_label_and_is_taught(before, campaign):
    now = same_numbers.campaign_goes_on(campaign)
    close = {"campaign goes on/predict_proba"}
    compare(before, now, close, {"campaign goes on/taught", "campaign goes on/labels"})
