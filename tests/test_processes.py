"""Several processes of one program score together: each has the result of one process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_scoring import TASKS

from starlearn.errors import ModelMismatchError
from starlearn.learner.estimator import STARLearner
from starlearn.settings import Acquisition

Factory = Callable[..., STARLearner]
PROGRAM = """
import json, os, sys
import torch
from accelerate import PartialState
from starlearn.learner.estimator import STARLearner

torch.set_num_threads(1)
state = PartialState(cpu=True)
results = []
for folder in json.loads(sys.argv[1]):
    learner = STARLearner.load(folder)
    learner.set_params(verbose=False)
    pool = json.loads(sys.argv[2])
    if sys.argv[3] == "disagree":
        learner.seed_ += state.process_index
    if sys.argv[3] == "order" and state.process_index:
        pool.reverse()
    try:
        scores = learner.uncertainty(pool, engine="accelerate")
        index, _, metrics = learner.query(pool, 5, return_metrics=True, engine="accelerate")
    except Exception as error:
        results.append(f"{type(error).__name__}: {error}")
        continue
    results.append([
        scores.mixed.tolist(), scores.full.tolist(), [str(a) for a in scores.answers],
        index.tolist(), metrics.tolist(),
    ])
path = os.path.join(sys.argv[4], f"{state.process_index}.json")
with open(path, "w") as out:
    json.dump([state.num_processes, results], out)
state.destroy_process_group()
"""


def launched(folders: list[Path], pool: list[str], how: str, place: Path) -> list[Any]:
    (place / "program.py").write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [json.dumps([str(f) for f in folders]), json.dumps(pool), how, str(place)]
    subprocess.run(
        [*launcher, str(place / "program.py"), *arguments],
        check=True,
        timeout=280,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""},
    )
    return [json.loads((place / f"{rank}.json").read_text()) for rank in range(2)]


def expected_of(learner: STARLearner, pool: list[str]) -> list[Any]:
    scores = learner.uncertainty(pool)
    index, _, metrics = learner.query(pool, 5, return_metrics=True)
    answers = [str(answer) for answer in scores.answers]
    numbers = [scores.mixed.tolist(), scores.full.tolist()]
    return [*numbers, answers, index.tolist(), metrics.tolist()]


@pytest.mark.slow
def test_two_processes_each_have_the_result_of_one(
    make_learner: Factory, labelled: Any, pool: list[str], tmp_path: Path
) -> None:
    cases: list[dict[str, Any]] = [
        {"acquisition": Acquisition(n_passes=2, chunk_size=5)},
        {"acquisition": Acquisition(n_passes=2, diversity="kmeans++", candidates=2, screen=2)},
        {"task": TASKS["free form"], "acquisition": Acquisition(n_passes=2, chunk_size=7)},
    ]
    pool = pool[::2]
    learners = [make_learner(**case).fit(*labelled) for case in cases]
    folders = [tmp_path / f"learner-{number}" for number in range(len(learners))]
    for learner, folder in zip(learners, folders, strict=True):
        learner.save(folder)
    expected = [expected_of(learner, pool) for learner in learners]
    assert launched(folders, pool, "agree", tmp_path) == [[2, expected], [2, expected]]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["disagree", "order"])
def test_processes_that_disagree_are_refused(
    make_learner: Factory, labelled: Any, pool: list[str], tmp_path: Path, how: str
) -> None:
    make_learner().fit(*labelled).save(tmp_path / "learner")
    for _, (message,) in launched([tmp_path / "learner"], pool[:4], how, tmp_path):
        assert message.startswith(ModelMismatchError.__name__)
        assert "would compute different numbers" in message


def test_a_program_of_one_process_is_itself(
    make_learner: Factory, labelled: Any, pool: list[str]
) -> None:
    learner = make_learner(acquisition=Acquisition(n_passes=2, chunk_size=5)).fit(*labelled)
    found = learner.query(pool, 4, return_metrics=True, engine="accelerate")
    for one, other in zip(found, learner.query(pool, 4, return_metrics=True), strict=True):
        assert list(one) == list(other)
