"""Pools on disk: the same rows, the same choice, and clear errors for unreadable files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from starlearn import Pool
from starlearn.data.pool import as_rows, rows_of
from starlearn.errors import InputError
from starlearn.learner.estimator import STARLearner
from starlearn.settings import Acquisition

Factory = Callable[..., STARLearner]


def write_lines(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def records(pool: list[str]) -> list[dict[str, Any]]:
    return [{"text": text, "id": number} for number, text in enumerate(pool)]


@pytest.fixture(params=["jsonl", "parquet", "two files", "dataset"])
def stored(request: pytest.FixtureRequest, records: list, tmp_path: Path) -> Pool:
    cache = tmp_path / "cache"
    if request.param == "dataset":
        return Pool(Dataset.from_list(records).with_format("numpy"))
    if request.param == "parquet":
        pd.DataFrame(records).to_parquet(tmp_path / "pool.parquet")
        return Pool(tmp_path / "pool.parquet", cache_dir=cache)
    if request.param == "jsonl":
        return Pool(str(write_lines(tmp_path / "pool.jsonl", records)), cache_dir=cache)
    parts = [
        write_lines(tmp_path / f"{number}.jsonl", part)
        for number, part in enumerate((records[:20], records[20:]))
    ]
    return Pool(parts, cache_dir=cache)


def test_rows_come_as_they_were_written(stored: Pool, records: list) -> None:
    assert len(stored) == len(records)
    assert stored.shape == (len(records),)
    assert stored[5] == records[5]
    assert stored[-1] == records[-1]
    assert list(stored[3:8]) == records[3:8]
    order = np.array([7, 0, 23])
    assert list(stored[order]) == [records[i] for i in order]
    assert rows_of(stored, order) == rows_of(records, order)
    mask = np.zeros(len(records), dtype=bool)
    mask[order] = True
    assert list(stored[mask]) == [records[i] for i in sorted(order)]
    rest = [record for record, gone in zip(records, mask, strict=True) if not gone]
    assert list(stored[~mask]) == rest
    assert list(stored[[-1, 0]]) == [records[-1], records[0]]
    assert list(stored[[]]) == []
    for wrong in (mask[:-1], [len(records)], [0, -len(records) - 1]):
        with pytest.raises(IndexError, match=r"rows|no row"):
            stored[wrong]
    with pytest.raises(TypeError):
        stored[[0.5]]
    assert as_rows(stored) is stored
    assert repr(stored) == f"Pool({len(records)} rows: text, id)"


def test_a_query_of_a_file_is_the_query_of_its_rows(
    stored: Pool, records: list, make_learner: Factory, labelled: Any
) -> None:
    learner = make_learner(verbose=False).fit(*labelled)
    learner.set_params(acquisition__chunk_size=7)
    expected, _ = learner.query(records, 5)
    indices, batch = learner.query(stored, 5)
    assert indices.tolist() == expected.tolist()
    assert batch == [records[i] for i in indices]
    learner.teach(batch, ["red"] * 5)
    found = learner.uncertainty(stored)
    assert np.array_equal(found.mixed, learner.uncertainty(records).mixed)
    assert len(learner.predict(stored)) == len(records)


def test_a_file_that_was_changed_is_read_anew(records: list, tmp_path: Path) -> None:
    file, cache = tmp_path / "pool.jsonl", tmp_path / "cache"
    assert len(Pool(write_lines(file, records), cache_dir=cache)) == len(records)
    changed = [{"text": "another text", "id": 0}, *records[1:]]
    assert Pool(write_lines(file, changed), cache_dir=cache)[0] == changed[0]
    assert len(Pool(write_lines(file, records[:3]), cache_dir=cache)) == 3


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.jsonl", None, "pool file .*none.jsonl does not exist"),
        ("table.xlsx", "text\na\n", r"table.xlsx is not a pool file: .*\.jsonl.*\.csv.*\.parquet"),
        ("empty.jsonl", "", "empty"),
        ("empty.csv", "text\n", "empty"),
        ("broken.jsonl", '{"text": "a"}\nno json\n', "line 2 is not JSON.*one object per line"),
        ("array.json", '[{"text": "a"}]', "line 1 is a list.*jq"),
        ("broken.parquet", "no parquet", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read(
    name: str, content: str | None, reason: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=reason):
        Pool(tmp_path / name, cache_dir=tmp_path / "cache")
    for source in ([], [{"text": "a"}], 3, None):
        with pytest.raises(InputError, match=r"Pool takes files \(\.jsonl"):
            Pool(source)


def test_an_item_that_cannot_be_used_is_named_by_its_row(
    make_learner: Factory, records: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the first chunk, and before the model is loaded."""
    from starlearn.model.backbone import Backbone

    monkeypatch.setattr("starlearn.query.acquisition.KEPT_PROMPTS", 10)
    monkeypatch.setattr(Backbone, "model", property(lambda self: pytest.fail("was loaded")))
    learner = make_learner(acquisition=Acquisition(chunk_size=10))
    empty = write_lines(tmp_path / "empty.jsonl", [*records[:23], {"text": "", "id": 23}])
    with pytest.raises(InputError, match=r"row 23: .*empty"):
        learner.query(Pool(empty, cache_dir=tmp_path / "cache"), 2)
    long = write_lines(tmp_path / "long.jsonl", [*records[:23], {"text": "very " * 80, "id": 23}])
    with pytest.raises(InputError, match=r"row 23: 8\d tokens"):
        learner.query(Pool(long, cache_dir=tmp_path / "cache"), 2)


def test_modal_takes_a_pool_on_disk(make_learner: Factory, labelled: Any, stored: Pool) -> None:
    from starlearn.modal import ActiveLearner, star_sampling

    items, labels = labelled
    records = [{"text": item} for item in items]
    learner = make_learner()
    loop = ActiveLearner(
        learner, query_strategy=star_sampling, X_training=records, y_training=labels
    )
    indices, batch = loop.query(stored, n_instances=3)
    assert list(batch) == [stored[int(i)] for i in indices]
    assert indices.tolist() == loop.estimator.query(stored, 3)[0].tolist()
