"""Items and labels in every container that users pass, read by position."""

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Reversible, Sequence, Set
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.data.text_files import SUFFIXES
from starlearn.errors import InputError, listed, row_lines
from starlearn.tasks import Item

POOL_SUFFIXES = (*SUFFIXES, ".parquet")
"""Ends of the names of files that a Pool reads."""
TABLE_FORMATS = ("arrow", "pandas", "polars")
"""Formats of a Dataset whose rows are tables of one row."""


def as_items(X: Any, name: str = "X") -> list[Item]:
    """Return a pool in any container as a list of items.

    Parameters
    ----------
    X : list, tuple, iterator, 1-D array, pandas Series or DataFrame, datasets.Dataset or Pool
        m items: strings, or dicts of template fields. Rows of a DataFrame and of a Dataset
        become dicts. A Series is read by position, never by its index.
    name : str
        Name of X in error messages.

    Returns
    -------
    list, length m

    Raises
    ------
    InputError
        When X is one string or mapping, no container, a set, an array of more than one dimension,
        or a DataFrame in which two columns have the same name.
    """
    _check_order(X, name)
    if hasattr(X, "nnz"):  # scipy's sparse matrices and arrays
        raise InputError(
            f"{name} is a sparse matrix of shape {X.shape}: sparse input is not supported, because "
            "starlearn reads text. Pass a list of texts."
        )
    require_collection(X, name)
    if is_dataset(X):
        return dataset_rows(X)
    if hasattr(X, "to_dict") and hasattr(X, "columns"):  # pandas.DataFrame
        if twice := [repr(column) for column, n in Counter(X.columns).items() if n > 1]:
            raise InputError(
                f"{name} has several columns of the same name: {listed(twice)}. Rename or drop all "
                "but one of them."
            )
        return list(X.to_dict("records"))
    in_pandas = hasattr(X, "to_numpy") and hasattr(X, "iloc")
    if isinstance(X, np.ndarray) or in_pandas or _is_array_alone(X):
        values = np.asarray(X)
        if values.dtype.kind == "c":
            raise InputError(f"Complex data not supported: {name} must contain text.")
        values = values.astype(object)
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise InputError(
                f"{name} must be one-dimensional, with one text per item; got an array of shape "
                f"{values.shape}. For several fields per item pass a DataFrame or a list of dicts."
            )
        return list(values)
    if not isinstance(X, Iterable):
        raise InputError(
            f"{name} must be a list, array, pandas Series or DataFrame, or datasets.Dataset of "
            f"items; got {type(X).__name__}."
        )
    return list(X)


def require_collection(X: Any, name: str = "X") -> None:
    """Raise InputError for one item, or for the path of a file, in place of a collection."""
    if isinstance(X, os.PathLike) or (isinstance(X, str) and is_pool_path(X)):
        raise InputError(
            f"{name} must be a collection of items, got a path. Open the file: "
            f"Pool({os.fspath(X)!r}) (from starlearn import Pool)."
        )
    if isinstance(X, str | bytes | Mapping):
        kind = "text" if isinstance(X, str) else type(X).__name__
        raise InputError(
            f"{name} must be a collection of items, got one {kind}. For one item pass a list: "
            f"[{X!r:.80}]."
        )


def is_pool_path(text: str) -> bool:
    """Whether a text is the name of a pool's file, or the folder of a saved Dataset."""
    is_name = Path(text).suffix.lower() in POOL_SUFFIXES and "\n" not in text
    return is_name or os.path.isfile(os.path.join(text, "state.json"))


def dataset_rows(dataset: Any) -> list[Any]:
    """Return all rows of a datasets.Dataset, in its format or through its transform.

    The rows of a table format, such as "pandas", are dicts of the same values.
    """
    kind = dataset.format["type"]
    if kind in TABLE_FORMATS:
        dataset = dataset.with_format(None, columns=dataset.format["columns"])
    elif kind is not None:
        return list(dataset)
    columns = dataset[:]  # many times faster than row by row
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _check_order(values: Any, name: str) -> None:
    """Raise InputError for a set. Views of a dict have an order, and can be reversed."""
    if isinstance(values, Set) and not isinstance(values, Reversible):
        raise InputError(
            f"{name} is a {type(values).__name__}, which has no order, so items and labels or "
            "results cannot be matched. Pass a list."
        )


def _is_array_alone(X: Any) -> bool:
    """Whether an object can become an array, but cannot be iterated."""
    return hasattr(X, "__array__") and not isinstance(X, Iterable)


def as_labels(y: Any, n_items: int) -> NDArray[Any]:
    """Return labels (texts, whole numbers or booleans) as a 1-D array, texts as objects.

    Texts are returned in Unicode's form NFC, with a warning where this changes one.
    """
    _check_order(y, "y")
    if hasattr(y, "columns") and hasattr(y, "to_numpy"):  # pandas.DataFrame
        y = y.to_numpy()
    if isinstance(y, np.ndarray) and y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y is None:
        raise InputError(
            "fit requires y to be passed, but the target y is None. Pass one label per item."
        )
    if _is_array_alone(y):
        y = np.asarray(y)
    if isinstance(y, str | bytes | Mapping) or not isinstance(y, Iterable):
        raise InputError(f"y must be a sequence of labels, got {type(y).__name__} ({y!r:.40}).")
    labels = [value.item() if isinstance(value, np.generic) else value for value in y]
    if len(labels) != n_items:
        raise InputError(
            f"Found {n_items} items and {len(labels)} labels. Pass one label per item."
        )
    wrong = [
        f"row {row}: {label!r:.40} of type {type(label).__name__}"
        for row, label in enumerate(labels)
        if not isinstance(label, str | int) or (isinstance(label, str) and not label.strip())
    ]
    if wrong:
        raise InputError(
            f"Labels must be texts, whole numbers or booleans. {len(wrong)} of {n_items} labels "
            f"are missing, continuous or of another type:{row_lines(wrong)}Remove these items."
        )
    kinds = sorted({type(label).__name__ for label in labels})
    if len(kinds) > 1:
        raise InputError(
            f"Labels are of mixed types ({', '.join(kinds)}), and 1 and '1' are different labels. "
            "Convert all to one type, for example [str(label) for label in y]."
        )
    if kinds != ["str"]:
        return exact_array(labels)
    composed = [unicodedata.normalize("NFC", label) for label in labels]
    changed = [label for label, new in zip(labels, composed, strict=True) if label != new]
    if changed:
        warnings.warn(
            f"{len(changed)} of {n_items} labels, such as {changed[0]!r:.40}, were converted to "
            "Unicode's form NFC, in which predictions are returned. To compare labels with "
            "predictions, convert them too: unicodedata.normalize('NFC', label).",
            UserWarning,
            stacklevel=3,
        )
    return object_array(composed)


def object_array(values: Sequence[Any]) -> NDArray[Any]:
    """Return texts or dicts as a 1-D array of objects."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def exact_array(values: Sequence[Any]) -> NDArray[Any]:
    """Return numbers as an array; whole numbers that NumPy would round, as objects.

    Examples
    --------
    >>> exact_array([1, 2]).dtype.kind, exact_array([-1, 2**63]).dtype.kind
    ('i', 'O')
    """
    found = np.array(values)
    rounded = found.dtype.kind == "f" and all(isinstance(value, Integral) for value in values)
    return object_array(values) if rounded else found


def is_dataset(X: Any) -> bool:
    """Whether X is a datasets.Dataset, by its attributes: importing datasets is slow."""
    return hasattr(X, "select") and hasattr(X, "features")


def take(X: Any, indices: NDArray[np.intp]) -> Any:
    """Return the rows at these positions, in the container of X or else in a list."""
    if hasattr(X, "iloc"):
        return X.iloc[indices]
    if isinstance(X, np.ndarray):
        return X[indices]
    if is_dataset(X):
        return X.select([int(i) for i in indices])
    rows = [X[i] for i in indices]
    return tuple(rows) if isinstance(X, tuple) else rows


def as_count(value: Any, name: str, most: int) -> int:
    """Return a number of items from 1 to `most`; raise InputError for any other value."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise InputError(f"{name} must be a whole number, got {value!r}.")
    count = int(value)
    if count < 1:
        raise InputError(f"{name} must be at least 1, got {value}.")
    if count > most:
        raise InputError(
            f"{name}={value} is more than the {most} items of the pool. It must be at most {most}."
            if most
            else "The pool is empty: there is no item to query."
        )
    return count
