"""Rows in every container that modAL's learners accept: count, take, convert, stack."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from starlearn.data.containers import (
    exact_array,
    is_dataset,
    object_array,
    require_collection,
    take,
)
from starlearn.data.pool import Pool, rows_of
from starlearn.errors import InputError, listed


def n_rows_of(X: Any) -> int:
    """Return the number of rows. A sparse matrix has a shape, but no length."""
    require_collection(X)
    return int(X.shape[0]) if hasattr(X, "shape") else len(X)


def rows_at(X: Any, index: NDArray[np.intp]) -> Any:
    """Return rows by position in X's kind of container, or one row for one integer."""
    if sp.issparse(X):
        return X.tocsr()[np.atleast_1d(index)].asformat(X.format)
    if index.ndim == 0:
        return (X.iloc if hasattr(X, "iloc") else X)[int(index)]
    if isinstance(X, Pool):
        return rows_of(X, index)
    if isinstance(X, Sequence) or hasattr(X, "iloc") or is_dataset(X):
        return take(X, index)
    return X[index]


def as_array(X: Any) -> Any:
    """Return a list or a Series as an array, of dtype object for texts, and all else unchanged.

    modAL reads the shape of rows, indexes them by arrays and stacks them.
    """
    require_collection(X)
    if isinstance(X, pd.Series):
        X = X.to_numpy()
    elif isinstance(X, Sequence):
        X = list(X)
        if not any(isinstance(item, str | dict) for item in X):
            return np.asarray(X)
        return object_array(X)
    return X.astype(object) if isinstance(X, np.ndarray) and X.dtype.kind in "US" else X


def as_label_array(y: Any) -> Any:
    """Return labels as an array, texts as objects; InputError for a mix of texts and numbers."""
    if sp.issparse(y):
        return y
    values = y.tolist() if hasattr(y, "tolist") else y
    labels = exact_array(list(values)) if isinstance(values, Sequence) else np.asarray(values)
    if labels.dtype.kind in "USO" and not all(isinstance(v, Integral) for v in labels.flat):
        labels = np.array(values, dtype=object)
        other = [repr(label) for label in labels.flat if not isinstance(label, str)]
        if other:
            raise InputError(
                f"y mixes texts with other labels ({listed(other)}), and 1 and '1' are different "
                "labels. Convert all to one type, for example [str(label) for label in y]."
            )
    return labels


def stacked(known: Any, new: Any) -> Any:
    """Return the known rows and the new ones below them, in the same kind of container."""
    try:
        if sp.issparse(known) or sp.issparse(new):
            return sp.vstack((known, new), format="csr")
        if type(known) is not type(new):
            raise TypeError("the containers differ")
        if isinstance(known, pd.DataFrame):
            columns = list(known.columns)
            if set(columns) != set(new.columns):
                raise ValueError(f"the known columns are {columns}")
            return pd.concat([known, new[columns]])
        if is_dataset(known):
            from datasets import concatenate_datasets

            return concatenate_datasets([known, new])
        if isinstance(known, np.ndarray) and (known.dtype == object) != (new.dtype == object):
            raise TypeError(f"dtype {known.dtype} and {new.dtype}")
        if known.ndim == new.ndim == 1 and {known.dtype.kind, new.dtype.kind} == {"i", "u"}:
            return exact_array([*known.tolist(), *new.tolist()])
        return np.concatenate([known, new])
    except (ValueError, TypeError) as error:
        kinds = [f"{type(rows).__name__} of shape {np.shape(rows)}" for rows in (new, known)]
        raise InputError(
            f"New rows, {kinds[0]}, cannot be added to the known rows, {kinds[1]}: {error}. "
            "Pass new rows in the container of the known ones."
        ) from error
