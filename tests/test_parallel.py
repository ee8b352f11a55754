"""Several processes of one program train together the adapter that one process trains."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pages
import parallel_program as program
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import build_model

from starlearn.learner.estimator import STARLearner
from starlearn.model import processes
from starlearn.model.processes import ProcessGroup, SynchronizedBlock
from starlearn.settings import Training
from starlearn.train.batches import ALL_TOKENS, IGNORED, Collator, Example, layout, share

# Examples of a step, and their shares


@given(
    batch_size=st.integers(1, 12),
    accumulation=st.integers(1, 6),
    n_processes=st.integers(1, 9),
    n_examples=st.integers(1, 60),
)
def test_every_step_sees_the_examples_of_one_process_each_once(
    batch_size: int, accumulation: int, n_processes: int, n_examples: int
) -> None:
    training = Training(batch_size=batch_size, gradient_accumulation=accumulation)

    def steps(n: int) -> list[list[int]]:
        """Return the examples of each step of an epoch, from the shares of all processes."""
        at_once, often = layout(training, n)
        assert -(-at_once // n) <= batch_size
        order = [Example([row], [row]) for row in range(n_examples)]
        batches = [order[i : i + at_once] for i in range(0, n_examples, at_once)]
        found = []
        for first in range(0, len(batches), often):
            parts = [
                share(batch, ProcessGroup(n, index))
                for batch in batches[first : first + often]
                for index in range(n)
            ]
            assert all(parts), "a process without a part would have no gradient"
            found.append(sorted(e.prompt[0] for part in parts for e in part if e.counts))
        return found

    assert steps(n_processes) == steps(1)


examples = st.lists(
    st.builds(
        Example,
        st.lists(st.integers(3, 9), max_size=4),
        st.lists(st.integers(3, 9), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=7,
)


@given(examples, st.integers(1, 5))
def test_parts_of_a_batch_have_its_tokens_and_their_number(
    batch: Sequence[Example], n: int
) -> None:
    parts = [Collator(0, ProcessGroup(n, index))(batch) for index in range(n)]
    # transformers counts labels from the second position on, because the first is not predicted
    counted = sum(int((part["labels"][:, 1:] != IGNORED).sum()) for part in parts)
    assert {part[ALL_TOKENS] for part in parts} == {counted}


def test_no_process_computes_more_than_the_batch_size_at_a_time() -> None:
    assert layout(Training(batch_size=8), 2) == (8, 1)
    assert layout(Training(batch_size=1, gradient_accumulation=8), 2) == (2, 4)
    assert layout(Training(batch_size=4, gradient_accumulation=2), 3) == (8, 1)
    assert layout(Training(batch_size=5, gradient_accumulation=1), 2) == (5, 1)


# Process groups


def test_a_program_of_one_process_does_not_communicate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PartialState", None)
    monkeypatch.setattr(processes, "gather", None)
    one = processes.processes()
    assert one == ProcessGroup(1, 0)
    assert one.main
    assert one.together(lambda: 5) == [5]
    with SynchronizedBlock(one) as block:
        assert block.sum(2.5) == 2.5
    with pytest.raises(ValueError, match="mine"), SynchronizedBlock(one):
        raise ValueError("mine")


@pytest.mark.parametrize(
    ("local", "count", "taken"), [("1", 4, [1]), ("0", 4, []), ("3", 2, []), (None, 4, [])]
)
def test_each_process_takes_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, local: str | None, count: int, taken: list[int]
) -> None:
    found: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local is not None:
        monkeypatch.setenv("LOCAL_RANK", local)
    processes.take_own_gpu()
    assert found == taken


# Two real processes


def launch(
    script: str, *arguments: str, timeout: int, **how: Any
) -> "subprocess.CompletedProcess[str]":
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    options += ["--mixed_precision", "bf16"]  # as in a user's own configuration
    options += ["--dynamo_backend", "no", "--main_process_port", "0"]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options,
         script, *arguments],
        check=False, **how, timeout=timeout, capture_output=True, text=True,
        # --cpu would start one process for any number
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("parallel")
    (place / "model").mkdir()
    build_model(place / "model")
    return place


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """The results of each of two processes."""
    done = launch(program.__file__, str(folder), "everything", timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [json.loads((folder / f"{index}.json").read_text()) for index in range(2)]
    assert [result["count"] for result in results] == [2, 2]
    return results


def close(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(
        float(np.abs(np.array(value) - np.array(other["state"][name])).max())
        for name, value in one["state"].items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", list(program.SETTINGS))
def test_two_processes_train_the_adapter_of_one(
    found: list[dict[str, Any]], folder: Path, name: str
) -> None:
    here = program.two_rounds(folder, name)
    first, second = (result[name] for result in found)
    assert first == second, "all processes hold the same adapter, to the last bit"
    assert first["steps"] == here["steps"]
    assert first["losses"] == pytest.approx(here["losses"], rel=1e-5)
    assert close(first, here) < 1e-4  # weights are of the size of 0.1
    assert first["index"] == here["index"]
    assert first["metrics"] == pytest.approx(here["metrics"], abs=1e-4)


@pytest.mark.slow
def test_dropout_differs_between_processes_and_the_adapter_does_not(
    found: list[dict[str, Any]], folder: Path
) -> None:
    first, second = (dict(result["dropout"]) for result in found)
    here = program.with_dropout(folder)
    assert first.pop("noise") == here["noise"] != second.pop("noise")
    assert first == second
    assert first["steps"] == here["steps"]
    assert first["losses"] == pytest.approx(here["losses"], rel=0.2)


@pytest.mark.slow
def test_no_process_waits_for_one_that_failed(found: list[dict[str, Any]]) -> None:
    first, second = (result["failures"] for result in found)
    assert second["training"] == "ValueError: a broken cable"
    message = "WorkerError: Process 1 of 2 failed, so the others stop too: ValueError: a broken"
    assert first["training"].startswith(message)
    assert first["left"] == second["left"] == "False"
    assert first["the first"] == "ValueError: the first one too"
    assert "Process 0 of 2 failed" in second["the first"]
    for name in ("data", "seed"):
        assert first[name] == second[name]
        assert first[name].startswith("ModelMismatchError: The 2 processes would compute")
        assert "random_state=" in first[name]
    assert first["diverged"] == second["diverged"]
    assert first["diverged"].startswith("TrainingDivergedError")
    assert second["scoring"] == "OSError: a disk that fails"
    assert first["scoring"].startswith("WorkerError: Process 1 of 2 failed")
    assert first["saving"] == "OSError: a disk that fails"
    assert "Process 0 of 2 failed" in second["saving"]


@pytest.mark.slow
def test_the_first_process_writes_and_all_wait_for_it(found: list[dict[str, Any]]) -> None:
    first, second = (result["failures"] for result in found)
    assert first["saved"] == second["saved"] == "['saved']"
    assert first["digest"] == second["digest"] == "True"
    assert first["saved again"].startswith("InputError")
    assert "Process 0 of 2 failed" in second["saved again"]


@pytest.mark.slow
def test_running_out_of_memory_in_one_process_makes_the_parts_of_all_smaller(
    found: list[dict[str, Any]], folder: Path
) -> None:
    first, second = (result["memory"] for result in found)
    assert first == second
    assert len(first["warnings"]) == 1
    assert "batch_size=1, gradient_accumulation=4" in first["warnings"][0]
    here = program.facts(program.learner(folder).fit(program.ITEMS, program.LABELS))
    assert close(first, here) < 1e-4


@pytest.mark.slow
def test_one_process_shows_progress(found: list[dict[str, Any]]) -> None:
    first, second = (result["progress"] for result in found)
    assert "training" in first
    assert "query" in first
    assert second == ""


@pytest.mark.slow
def test_scores_of_any_process_are_kept_for_all(
    found: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlearn.query.scoring import Scorer

    monkeypatch.setattr(Scorer, "_base_work", None)  # no base scores are computed again
    learner = program.learner(folder, dropout=0.2).set_params(cache_dir=folder / "cache")
    learner.fit(program.ITEMS, program.LABELS).query(program.POOL, 2)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_program(folder: Path) -> None:
    done = launch(program.__file__, str(folder), "die", timeout=200)  # far below TIMEOUT
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr


@pytest.mark.slow
def test_the_example_in_the_docs_runs_in_two_processes_as_in_one(tmp_path: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "distributed" / "accelerate.md"
    found = [code for _, code in pages.blocks(page.read_text(encoding="utf-8"))]
    (tmp_path / "train.py").write_text(next(code for code in found if "# train.py" in code))
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
    subprocess.run([sys.executable, tmp_path / "train.py"], cwd=places[0], check=True, timeout=200)
    done = launch(str(tmp_path / "train.py"), timeout=200, cwd=places[1])
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (STARLearner.load(place / "round-1") for place in places)
    assert [record["steps"] for record in two.rounds_] == [6, 6]
    assert [record["steps"] for record in one.rounds_] == [6, 6]
    assert len(two.X_training) == len(one.X_training) == 13
