"""scikit-activeml: STARLearner as the classifier that its pool strategies ask.

The only file that imports skactiveml.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state

from starlearn.data.containers import as_items, object_array
from starlearn.errors import InputError, MissingDependencyError

try:
    from skactiveml.base import SkactivemlClassifier
    from skactiveml.utils import ExtLabelEncoder, check_cost_matrix, is_labeled
except ImportError as error:
    raise MissingDependencyError(
        "scikit-activeml is not installed. Install it: pip install 'starlearn[activeml]'."
    ) from error

__all__ = ["StarClassifier"]


class StarClassifier(SkactivemlClassifier):
    """A classifier of scikit-activeml that knows its items by their points.

    scikit-activeml's strategies take numbers: X is :meth:`points`, the base model's hidden states,
    in which they may measure distances. Here a point stands for the item that it was made of.

    Parameters
    ----------
    estimator : STARLearner
        Is not changed: a clone is fitted, on the same base model in memory.
    items : sequence of str or dict, length m
        The pool, labelled items too. Items with the same point have the same text.
    missing_label : None or str, default=None
        What stands in y for a label that is not known.
    cost_matrix : array-like of shape (C, C), default=None
        As in scikit-activeml; in the order of ``classes_``.
    random_state : int, RandomState or None, default=None
        Breaks ties of `predict`. The training has the estimator's own.

    Attributes
    ----------
    estimator_ : STARLearner
        Fitted on the labelled rows.
    classes_ : ndarray of shape (C,)
        The estimator's.

    Raises
    ------
    MissingDependencyError
        When the module is imported and scikit-activeml is not there.
    """

    def __init__(
        self,
        estimator: Any,
        items: Sequence[Any],
        missing_label: Any = None,
        cost_matrix: Any = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            missing_label=missing_label, cost_matrix=cost_matrix, random_state=random_state
        )
        self.estimator = estimator
        self.items = items

    def points(self) -> NDArray[np.float64]:
        """Return the points of all items, the X of a strategy, shape (m, D)."""
        points: NDArray[np.float64] = self.estimator.transform(self.items)
        return points

    def unlabelled(self) -> NDArray[Any]:
        """Return a y for all items in which every label is missing, shape (m,)."""
        return object_array([self.missing_label] * len(as_items(self.items, "items")))

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on the rows whose label is there.

        Parameters
        ----------
        X : array of shape (N, D)
            Rows of :meth:`points`.
        y : array-like of shape (N,)
            Their labels, or `missing_label`.
        sample_weight : None
            Is refused: every label counts once.

        Raises
        ------
        InputError
            When no label is there, a row is no point of an item, or a weight is given.
        """
        if sample_weight is not None:
            raise InputError("StarClassifier takes no sample_weight: every label counts once.")
        self._items_by_point = self._table()
        labels = object_array(list(y))
        there = np.flatnonzero(is_labeled(labels, missing_label=self.missing_label))
        if not there.size:
            raise InputError(
                "No label is known yet, so there is nothing to train on. Choose the first items by "
                "the base model, learner.query(items, n_instances=...), or at random."
            )
        found = self._found(X)
        if len(found) != len(labels):
            raise InputError(f"Found {len(found)} rows and {len(labels)} labels.")
        self.estimator_ = clone(self.estimator).fit([found[i] for i in there], labels[there])
        self.classes_ = self.estimator_.classes_
        self.n_features_in_ = np.shape(X)[1]
        # What scikit-activeml's own `predict` and `score` read.
        self._le = ExtLabelEncoder(classes=self.classes_, missing_label=self.missing_label)
        self._le.fit(self.classes_)
        costs = 1 - np.eye(len(self.classes_)) if self.cost_matrix is None else self.cost_matrix
        self.cost_matrix_ = check_cost_matrix(costs, len(self.classes_))
        self.random_state_ = check_random_state(self.random_state)
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each class, shape (m, C), for rows of :meth:`points`."""
        if not hasattr(self, "estimator_"):
            raise NotFittedError("This StarClassifier is not fitted yet: call fit(X, y) first.")
        probabilities: NDArray[np.float64] = self.estimator_.predict_proba(self._found(X))
        return probabilities

    def _table(self) -> dict[bytes, Any]:
        items = as_items(self.items, "items")
        return {point.tobytes(): item for point, item in zip(self.points(), items, strict=True)}

    def _found(self, X: Any) -> list[Any]:
        points = np.ascontiguousarray(X, dtype=np.float64)
        if points.ndim != 2:
            raise InputError(f"X must be rows of points(), shape (N, D); got {points.shape}.")
        found = [self._items_by_point.get(point.tobytes()) for point in points]
        strange = [row for row, item in enumerate(found) if item is None]
        if strange:
            raise InputError(
                f"{len(strange)} of {len(found)} rows of X are no point of an item (first: row "
                f"{strange[0]}). Give rows of StarClassifier.points(), as they are, unscaled."
            )
        return found
