"""Containers of items and labels."""

import numpy as np
import pandas as pd
import pytest

from starlearn.data.containers import as_count, as_items, as_labels, take
from starlearn.errors import InputError

TEXTS = ["a", "b", "c"]


def series() -> pd.Series:
    return pd.Series(TEXTS, index=[2, 0, 1])


def dataset() -> object:
    from datasets import Dataset

    return Dataset.from_dict({"text": TEXTS})


@pytest.mark.parametrize(
    "X",
    [
        TEXTS,
        tuple(TEXTS),
        iter(TEXTS),
        np.array(TEXTS, dtype=object),
        np.array([[t] for t in TEXTS]),
        series(),
    ],
    ids=["list", "tuple", "iterator", "array", "column", "series"],
)
def test_items_come_by_position(X: object) -> None:
    assert as_items(X) == TEXTS


def test_rows_of_tables_become_dicts() -> None:
    rows = [{"text": text} for text in TEXTS]
    assert as_items(pd.DataFrame({"text": TEXTS}, index=[2, 0, 1])) == rows
    assert as_items(dataset()) == rows


@pytest.mark.parametrize("X", ["one text", b"x", {"a": 1}, 3, np.zeros((2, 2)), np.array("x")])
def test_what_is_no_pool(X: object) -> None:
    with pytest.raises(InputError, match="X"):
        as_items(X)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_sets_are_refused_because_they_have_no_order(kind: type) -> None:
    with pytest.raises(InputError, match=r"X is a (frozen)?set, which has no order.*Pass a list"):
        as_items(kind(TEXTS))
    with pytest.raises(InputError, match=r"y is a (frozen)?set, which has no order"):
        as_labels(kind(TEXTS), 3)


def test_views_of_a_dict_have_its_order() -> None:
    labels = {"b": "x", "a": "y", "c": "x"}
    assert as_items(labels.keys()) == ["b", "a", "c"]
    assert as_labels(labels.values(), 3).tolist() == ["x", "y", "x"]


def test_columns_of_the_same_name_are_refused() -> None:
    table = pd.DataFrame([["a", "b", "c"]], columns=["text", "title", "text"])
    with pytest.raises(InputError, match=r"several columns of the same name: 'text'\. Rename"):
        as_items(table)
    assert as_items(table.iloc[:, 1:]) == [{"title": "b", "text": "c"}]


def test_labels_may_come_as_a_column() -> None:
    assert as_labels(pd.DataFrame({"label": ["x", "y"]}), 2).tolist() == ["x", "y"]


def test_taken_rows_keep_the_container_and_ignore_the_index() -> None:
    # modAL reads a Series by label: with a permuted index it returns the wrong rows.
    where = np.array([2, 0])
    assert take(TEXTS, where) == ["c", "a"]
    assert take(tuple(TEXTS), where) == ("c", "a")
    assert take(pd.Index(TEXTS), where) == ["c", "a"]
    assert take(series(), where).tolist() == ["c", "a"]
    assert take(pd.DataFrame({"t": TEXTS}), where)["t"].tolist() == ["c", "a"]
    assert take(np.array(TEXTS), where).tolist() == ["c", "a"]
    assert take(dataset(), where)["text"][:] == ["c", "a"]


@pytest.mark.parametrize(
    ("y", "reason"),
    [
        (["a"], "2 items and 1 labels"),
        (["a", None], "row 1"),
        (["a", ""], "row 1"),
        (["a", float("nan")], "row 1"),
        (["a", 1.5], "row 1"),
        (["1", 1], "mixed types"),
        ([True, 1], "mixed types"),
        ("ab", "sequence"),
        (3, "sequence"),
        ({"a": 1, "b": 2}, "sequence"),
    ],
)
def test_labels_that_cannot_be_used(y: object, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        as_labels(y, 2)


@pytest.mark.parametrize(
    "y", [["x", "y"], np.array([1, 2]), pd.Series([True, False], index=[1, 0])]
)
def test_labels_keep_their_type(y: object) -> None:
    assert as_labels(y, 2).tolist() == list(y)  # type: ignore[call-overload]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None, 4, np.float64(2)])
def test_counts_that_cannot_be_used(value: object) -> None:
    with pytest.raises(InputError, match="n_instances"):
        as_count(value, "n_instances", 3)


def test_numpy_integers_count() -> None:
    assert as_count(np.int64(2), "n_instances", 3) == 2
