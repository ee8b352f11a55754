"""Pools in a datasets.Dataset: every method sees the rows that the Dataset gives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, Features, Value

from starlearn import Pool
from starlearn.data.containers import as_items, as_labels
from starlearn.data.pool import as_rows
from starlearn.data.rows import as_label_array, stacked
from starlearn.distributed.pool_files import score_pool
from starlearn.errors import InputError
from starlearn.learner.estimator import STARLearner
from starlearn.learner.inputs import check_label_type
from starlearn.tasks import ChoiceTask


def reversed_words(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"text": [" ".join(["very", *reversed(text.split())]) for text in batch["text"]]}


def prompts(X: Any) -> list[str]:
    return [fields["text"] for fields in ChoiceTask("{text}").fill(list(X))]


def test_all_methods_see_the_transformed_texts(
    make_learner: Callable[..., STARLearner], pool: list[str], labelled: Any
) -> None:
    items, labels = labelled
    raw = Dataset.from_dict({"text": pool, "id": range(len(pool))})
    given = raw.with_transform(reversed_words)
    texts = reversed_words({"text": pool})["text"]
    known = Dataset.from_dict({"text": items}).with_transform(reversed_words)
    learner = make_learner().fit(known, labels)
    assert [row["text"] for row in learner.X_training] == reversed_words({"text": items})["text"]
    expected = learner.uncertainty(texts)
    for source in (given, Pool(given)):
        assert np.array_equal(learner.uncertainty(source).mixed, expected.mixed)
        assert np.array_equal(learner.predict_proba(source), learner.predict_proba(texts))
        assert np.array_equal(learner.transform(source), learner.transform(texts))
        assert learner.query(source, 4)[0].tolist() == learner.query(texts, 4)[0].tolist()
        assert learner.estimate(source, 4).prompt_tokens == learner.estimate(texts, 4).prompt_tokens
    assert not np.array_equal(learner.uncertainty(raw).mixed, expected.mixed)
    _, batch = learner.query(given, 4)
    assert [row["text"] for row in batch] == [texts[i] for i in learner.query(given, 4)[0]]


@pytest.mark.parametrize("kind", [None, "numpy", "torch", "pandas", "arrow"])
@pytest.mark.parametrize("number", ["float32", "float64", "int64"])
def test_a_format_gives_the_same_texts_to_fit_and_query(kind: str | None, number: str) -> None:
    features = Features({"text": Value(number), "other": Value("string")})
    values = [0.1, 2.0, 1 / 3] if number.startswith("float") else [1, 2, 2**53 + 1]
    source = Dataset.from_dict({"text": values, "other": list("abc")}, features)
    source = source.with_format(kind, columns=["text"])
    assert prompts(as_items(source)) == prompts(as_rows(source))
    order = [2, 0]
    assert prompts(as_rows(source)[order]) == [prompts(as_items(source))[i] for i in order]
    assert [sorted(row) for row in as_items(source)] == [["text"]] * 3
    if kind == "torch" and number == "float64":
        assert prompts(as_rows(source))[0] == "0.10000000149011612"


def test_rows_of_a_dataset_are_not_copied_into_memory() -> None:
    source = Dataset.from_dict({"text": ["a", "b", "c"]})
    part = Pool(source)[[True, False, True]]
    assert isinstance(part, Pool)
    assert list(part) == [{"text": "a"}, {"text": "c"}]


# Numbers that NumPy would round


def test_large_integer_labels_stay_apart() -> None:
    labels = [-1, 2**63, 2**63 + 1]
    assert as_labels(labels, 3).tolist() == labels
    assert as_label_array(labels).tolist() == labels
    assert as_label_array(np.array(labels, dtype=object)).tolist() == labels
    known, new = np.array([-1]), np.array(labels[1:], dtype=np.uint64)
    assert stacked(known, new).tolist() == labels
    assert as_labels([1, 2], 2).dtype == np.int64
    assert as_label_array([[0.5, 1.0], [1.0, 2.0]]).shape == (2, 2)


def test_labels_are_scored_against_classes_of_the_same_kind_of_number() -> None:
    classes = as_labels([-1, 2**63], 2)
    check_label_type(as_labels([-1, -1], 2), classes)
    check_label_type(as_labels([-1, 2**63], 2), as_labels([1, 2], 2))
    for other in (["a"], [True]):
        with pytest.raises(InputError, match="The learner's classes are int"):
            check_label_type(as_labels(other, 1), classes)


def test_ids_of_scores_are_exact(
    make_learner: Callable[..., STARLearner], pool: list[str], labelled: Any, tmp_path: Any
) -> None:
    import json

    learner = make_learner().fit(*labelled)
    for name, ids, exact in [
        ("unsigned", [2**64 - 1, 2**64 - 2, 7], True),
        ("signed", [-1, 2**53 + 1, 2**53], True),
        ("mixed", [-1, 2**63, 5], False),
        ("kinds", [1, "1", 2], False),
        ("floats", [1, 2.5, 3], False),
    ]:
        rows = [{"text": text, "id": i} for text, i in zip(pool, ids, strict=False)]
        source, out = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-scores.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if not exact:
            with pytest.raises(InputError, match=r"id_field='id'.*texts, in quotes"):
                score_pool(learner, source, out, engine=None, id_field="id")
            continue
        score_pool(learner, source, out, engine=None, id_field="id")
        assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ids


def test_dates_as_ids_are_written_as_text(
    make_learner: Callable[..., STARLearner], pool: list[str], labelled: Any, tmp_path: Any
) -> None:
    import datetime
    import json

    dates = [datetime.date(2024, 1, day) for day in (1, 2, 3)]
    source = Dataset(pa.table({"text": pool[:3], "id": dates}))
    out = tmp_path / "scores.jsonl"
    score_pool(make_learner().fit(*labelled), Pool(source), out, engine=None, id_field="id")
    found = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    assert found == [date.isoformat() for date in dates]
