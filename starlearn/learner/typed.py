"""What type checkers see of the public face where an untyped library would hide it."""

from collections.abc import Callable
from typing import Any, Literal, Required, TypedDict, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.metaestimators import available_if as untyped_available_if

from starlearn.query.budget import Budget
from starlearn.tasks import Item

PoolT = TypeVar("PoolT")
"""A pool's container: a batch comes in one of the same kind."""
Method = TypeVar("Method", bound=Callable[..., Any])

Items = list[Item]
"""What a batch of a Pool on disk is."""
Batch = tuple[NDArray[np.intp], PoolT]
"""Positions in the pool, and the items there."""
Measured = tuple[NDArray[np.intp], PoolT, NDArray[np.float64]]
"""The same with the uncertainty of each."""


class Asked(TypedDict, total=False):
    """What a query takes besides the pool and n."""

    return_metrics: Literal[False]
    budget: Budget | None
    engine: Any


class AskedToo(TypedDict, total=False):
    """The same for a query that also returns what it ranked by."""

    return_metrics: Required[Literal[True]]
    budget: Budget | None
    engine: Any


class AskedPerhaps(TypedDict, total=False):
    """The same where only the run can tell which of the two it is."""

    return_metrics: Required[bool]
    budget: Budget | None
    engine: Any


def available_if(check: Callable[[Any], bool]) -> Callable[[Method], Method]:
    """Give a method to the objects that pass a check; as scikit-learn's, and the type stays."""
    return cast("Callable[[Method], Method]", untyped_available_if(check))
