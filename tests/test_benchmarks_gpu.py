"""The benchmarks for a GPU go through on a CPU too, on a tiny model, without figures of memory."""

import csv
from pathlib import Path

import bench_gpu_memory
import bench_query
import pytest
import random_models
from fitting import Shape
from transformers import AutoModelForCausalLM

OPTIONS = """
--tasks skewed --shape-of tiny --items 30 --steps 2 --learning-rate 1e-4 --settings default
--rounds first --checked-items 2 --naive-items 1 --strong-items 4 --repeats 1
"""


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("tied", [True, False])
def test_a_random_model_has_the_parameters_of_its_shape(tmp_path: Path, tied: bool) -> None:
    shape = Shape("small", 2, 64, 128, 64, 32, 256, tied=tied)
    folder = random_models.write_model(shape, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert model.num_parameters() == shape.parameters
    assert model.config.tie_word_embeddings == tied


def test_every_part_is_measured_and_a_cpu_leaves_memory_blank(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    assert bench_gpu_memory.main(["--steps", "1", "--tokens", "4096", "--out", str(out)]) == 0
    rows = rows_of(out)
    whats = ["weights", "training", "training", "query, choices", "query, free-form"]
    assert [row["what"] for row in rows] == whats
    assert [row["checkpointing"] for row in rows] == ["", "False", "True", "", ""]
    assert all(float(row["computed_gb"]) > 1 for row in rows[1:])
    assert not any(row["measured_allocated_gb"] or row["ratio"] for row in rows)


def test_a_part_that_fails_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(bench_gpu_memory.Subject, "train", fail)
    out = tmp_path / "rows.csv"
    assert bench_gpu_memory.main(["--tokens", "4096", "--out", str(out)]) == 1
    assert [row["what"] for row in rows_of(out)] == ["weights"]


def test_a_query_of_a_published_shape(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    assert bench_query.main([*OPTIONS.split(), "--out", str(out)]) == 0
    rows = rows_of(out)
    assert [row["contender"] for row in rows] == ["default", "naive", "strong"]
    assert {row["model"] for row in rows} == {"tiny, random"}
