"""Scores in bfloat16: how much the batches may change them (docs/performance/half_precision.md)."""

from pathlib import Path
from typing import Any

import bench_half_precision as bench
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from test_scoring import TASKS, forget, interrupted
from tiny_models import build_model

from starlearn.embedded.pools import make_pool
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.model.backbone import Backbone
from starlearn.settings import PUBLISHED_ACQUISITION, Acquisition, LoRA, Training
from starlearn.tasks import ChoiceTask, GenerationTask

TOLERANCE, ON_AVERAGE = 0.2, 0.01
"""Largest change of an item's entropy, and of the mean of a pool, in nats. Rounding is 2^-8."""

slowly = settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def _in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "dtype", torch.bfloat16)


@pytest.fixture(scope="module")
def sharp_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with large differences of logits, in which rounding is visible."""
    return str(build_model(tmp_path_factory.mktemp("half"), initializer_range=0.1))


@pytest.fixture
def pool(pool: list[str]) -> list[str]:
    """A third of the shared pool, with some prompts of each length."""
    return pool[::3]


@pytest.fixture(params=list(TASKS))
def learner(request: pytest.FixtureRequest, sharp_model: str, labelled: Any) -> STARLearner:
    items, labels = labelled
    if request.param == "several tokens":
        labels = ["blue" if label == "blue" else f"very {label}" for label in labels]
    made = STARLearner(
        sharp_model,
        task=clone(TASKS[request.param]),
        adapter=LoRA(r=4, alpha=8, dropout=0.2),
        training=Training(max_steps=4, batch_size=4, learning_rate=5e-3),
        acquisition=Acquisition(n_passes=3),
        random_state=7,
        verbose=False,
    )
    return made.fit(items, labels)


def changes_of(found: Any, expected: Any, order: np.ndarray) -> np.ndarray:
    """Return how much base and full scores change for items with the same answer, [2, m]."""
    same = found.answers == expected.answers[order]
    assert same.mean() > 0.9
    return np.stack(
        [
            np.abs(getattr(found, name) - getattr(expected, name)[order])[same]
            for name in ("base", "full")
        ]
    )


def assert_close(found: Any, expected: Any, order: np.ndarray) -> None:
    changes = changes_of(found, expected, order)
    assert changes.max() < TOLERANCE
    assert changes.mean() < ON_AVERAGE


@slowly
@given(data=st.data())
def test_scores_in_bfloat16_change_by_less_than_the_tolerance(
    learner: STARLearner, pool: list[str], data: st.DataObject
) -> None:
    assert base_of(learner).backbone.model.dtype == torch.bfloat16
    mode = data.draw(st.sampled_from(["shared", "token"]))
    learner.set_params(acquisition=Acquisition(**PUBLISHED_ACQUISITION, n_passes=3, mask_mode=mode))
    forget(learner)
    expected = learner.uncertainty(pool)
    assert expected.full.std() > 2 * ON_AVERAGE
    order = np.array(data.draw(st.permutations(range(len(pool)))))
    tokens = data.draw(st.sampled_from([1, 17, 64, 333, None]))
    chunk = data.draw(st.sampled_from([3, 5, 16, 100]))
    learner.set_params(acquisition__max_batch_tokens=tokens, acquisition__chunk_size=chunk)
    forget(learner)
    shuffled = [pool[i] for i in order]
    stopped_after = data.draw(st.integers(0, (len(pool) - 1) // chunk))
    with interrupted(stopped_after), pytest.raises(KeyboardInterrupt):
        learner.uncertainty(shuffled)
    assert_close(learner.uncertainty(shuffled), expected, order)


@pytest.mark.filterwarnings("ignore:.* longer than the task's max_new_tokens:UserWarning")
@pytest.mark.parametrize("name", ["skewed", "steps"])
def test_the_embedded_model_keeps_the_tolerance_with_every_number_rounded_anew(name: str) -> None:
    """A CPU may give the same bits for any shape of batch; a GPU need not."""
    data = make_pool(name, 70, 10, random_state=1000)
    task: Any = ChoiceTask(data.prompt, choices=data.choices)
    if data.choices is None:
        task = GenerationTask(data.prompt, 12, data.answer_pattern)
    learner = STARLearner(
        task=task,
        adapter=LoRA(r=16, alpha=32),
        training=Training(learning_rate=3e-3, max_steps=15),
        random_state=0,
        verbose=False,
    ).fit(data.items[:30], data.labels[:30])
    pool, order = data.items[30:], np.random.default_rng(0).permutation(40)
    expected = learner.uncertainty(pool)
    model = base_of(learner).backbone.model
    for rounding in (False, True):
        learner.set_params(acquisition__max_batch_tokens=300, acquisition__chunk_size=9)
        forget(learner)
        if rounding:
            with bench.extra_rounding(model, seed=0):
                found = learner.uncertainty([pool[i] for i in order])
            assert changes_of(found, expected, order).max() > 1e-4, "rounding must have an effect"
        else:
            found = learner.uncertainty([pool[i] for i in order])
        assert_close(found, expected, order)


def test_a_run_writes_its_rows(tmp_path: Path) -> None:
    out = tmp_path / "half_precision.csv"
    arguments = ["--tasks", "skewed", "--items", "20", "--steps", "1", "--passes", "2"]
    bench.main([*arguments, "--out", str(out)])
    plain, rounded, *default = out.read_text(encoding="utf-8").splitlines()[1:]
    assert ",bfloat16,skewed," in plain
    assert ",2,entropy,anew," in rounded
    assert [",2,mutual_information," in line for line in default] == [True, True]
