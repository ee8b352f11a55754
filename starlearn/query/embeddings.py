"""Checks of hidden states before distances between them are computed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.errors import InputError, NotFiniteError, listed


def checked_embeddings(embeddings: Any, n_items: int, name: str = "embeddings") -> NDArray[Any]:
    """Return embeddings as finite floats, [n_items, D]; floats are not copied."""
    points = np.asarray(embeddings)
    if not np.issubdtype(points.dtype, np.floating):
        points = points.astype(np.float64)
    if points.ndim != 2 or len(points) != n_items or points.shape[1] == 0:
        raise InputError(
            f"{name} must have the shape ({n_items}, D), one row per item; got {points.shape}."
        )
    wrong = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if wrong.size:
        raise NotFiniteError(
            f"{name} are NaN or infinite for {len(wrong)} of {n_items} items: "
            f"{listed([f'row {row}' for row in wrong])}. The model's numbers overflow, or its "
            "weights are broken; nothing was chosen."
        )
    return points
