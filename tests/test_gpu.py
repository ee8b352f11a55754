"""The loop on a real GPU (make test-gpu) against a CPU; skipped where there is no GPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from starlearn.embedded.pools import make_pool
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.model.memory import TokenBudget
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.tasks import ChoiceTask, GenerationTask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
TOLERANCE = 0.2
"""Nats by which an answer's mean entropy may move: docs/performance/half_precision.md."""


def make_learner(data: Any) -> STARLearner:
    task: Any = ChoiceTask(data.prompt, choices=data.choices)
    if data.choices is None:
        task = GenerationTask(data.prompt, 32, data.answer_pattern)
    return STARLearner(
        task=task,
        adapter=LoRA(r=16, alpha=32),
        acquisition=Acquisition(measure="entropy", n_passes=3),
        training=Training(max_steps=60, learning_rate=3e-3),
        random_state=0,
        verbose=False,
    )


@pytest.mark.parametrize("kind", ["skewed", "steps"])
def test_query_teach_query_in_four_bits(kind: Any) -> None:
    data = make_pool(kind, 240, 60, random_state=0)
    learner = make_learner(data).fit(data.items[:40], data.labels[:40])
    assert base_of(learner).backbone.head.device.type == "cuda"
    before = learner.score(data.test_items, data.test_labels)
    pool = data.items[40:]
    index, batch = learner.query(pool, 20)
    learner.teach(batch, [data.labels[40 + i] for i in index])
    found = learner.uncertainty(pool)
    assert all(np.isfinite(values).all() for values in (found.base, found.full, found.mixed))
    assert learner.score(data.test_items, data.test_labels) > before - 0.2
    assert np.isfinite(learner.rounds_[-1]["train_loss"])


ON_A_CPU = """
import sys
import numpy as np
from starlearn.embedded.pools import make_pool
from starlearn.learner.estimator import STARLearner
learner = STARLearner.load(sys.argv[1])
assert base_of(learner).backbone.device.type == "cpu"
found = learner.uncertainty(make_pool("skewed", 240, 60, random_state=0).items[40:])
np.savez(sys.argv[2], base=found.base, full=found.full)
"""


def test_scores_are_those_of_a_cpu_within_half_precision(tmp_path: Path) -> None:
    data = make_pool("skewed", 240, 60, random_state=0)
    learner = make_learner(data).fit(data.items[:40], data.labels[:40])
    learner.save(tmp_path / "learner")
    found = learner.uncertainty(data.items[40:])
    subprocess.run(
        [sys.executable, "-c", ON_A_CPU, str(tmp_path / "learner"), str(tmp_path / "cpu.npz")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        check=True,
    )
    expected = np.load(tmp_path / "cpu.npz")
    for name in ("base", "full"):
        mine, theirs = getattr(found, name), expected[name]
        assert np.abs(mine - theirs).max() < TOLERANCE, name
        assert spearmanr(mine, theirs).statistic > 0.95, name


def test_a_batch_that_does_not_fit_is_split() -> None:
    data = make_pool("skewed", 4_040, 60, random_state=0)
    learner = make_learner(data).fit(data.items[:40], data.labels[:40])
    learner.set_params(acquisition__chunk_size=4_000)
    backbone = base_of(learner).backbone
    backbone.budget = TokenBudget(10**7)  # all of them, in all passes, at once
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    taken = torch.empty(max(free - 300_000_000, 1), dtype=torch.uint8, device="cuda")
    found = learner.uncertainty(data.items[40:])
    del taken
    assert backbone.budget.tokens < 10**7
    assert np.isfinite(found.full).all()
