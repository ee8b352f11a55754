"""STARLearner as a classifier for the pool strategies of scikit-activeml."""

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
        "scikit-activeml is not installed. Type: pip install 'starlearn[activeml]'."
    ) from error

__all__ = ["StarClassifier"]


class StarClassifier(SkactivemlClassifier):
    """A scikit-activeml classifier of texts, which it finds by their feature vectors.

    scikit-activeml's strategies take numbers. X is :meth:`points`: the base model's hidden states,
    between which strategies can measure distances. A row of X is mapped back to its item.

    Parameters
    ----------
    estimator : STARLearner
        It is not changed: `fit` trains a clone that shares its base model in memory.
    items : sequence of str or dict, length m
        The pool, including labelled items.
    missing_label : None or str, default=None
        The value in y of an unknown label.
    cost_matrix : array-like of shape (C, C), default=None
        As in scikit-activeml, in the order of ``classes_``.
    random_state : int, RandomState or None, default=None
        Seed of ties in `predict`. Training uses that of the estimator.

    Attributes
    ----------
    estimator_ : STARLearner
        Fitted on the labelled rows.
    classes_ : ndarray of shape (C,)
        Those of the estimator.
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
        """Return the feature vectors of all items, shape (m, D): the X of strategies."""
        points: NDArray[np.float64] = self.estimator.transform(self.items)
        return points

    def unlabelled(self) -> NDArray[Any]:
        """Return a y in which all labels are missing, shape (m,)."""
        return object_array([self.missing_label] * len(as_items(self.items, "items")))

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on the rows whose label is known.

        Parameters
        ----------
        X : array of shape (N, D)
            Rows of :meth:`points`.
        y : array-like of shape (N,)
            Their labels, or `missing_label`.
        sample_weight : None
            Not supported.

        Raises
        ------
        InputError
            When no label is known, a row of X is not a row of `points`, or weights are passed.
        """
        if sample_weight is not None:
            raise InputError("StarClassifier does not support sample_weight: use None.")
        items = as_items(self.items, "items")
        self._items_by_point = {
            point.tobytes(): item for point, item in zip(self.points(), items, strict=True)
        }
        labels = object_array(list(y))
        known = np.flatnonzero(is_labeled(labels, missing_label=self.missing_label))
        if not known.size:
            raise InputError(
                "y has no known label. Choose the first items at random, or by the base model: "
                "learner.query(items, n_instances=...)."
            )
        found = self._items_of(X)
        if len(found) != len(labels):
            raise InputError(f"Found {len(found)} rows and {len(labels)} labels.")
        self.estimator_ = clone(self.estimator).fit([found[i] for i in known], labels[known])
        self.classes_ = self.estimator_.classes_
        self.n_features_in_ = np.shape(X)[1]
        # scikit-activeml's `predict` and `score` read the attributes below.
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
        probabilities: NDArray[np.float64] = self.estimator_.predict_proba(self._items_of(X))
        return probabilities

    def _items_of(self, X: Any) -> list[Any]:
        points = np.ascontiguousarray(X, dtype=np.float64)
        if points.ndim != 2:
            raise InputError(f"X must be rows of points(), shape (N, D); got {points.shape}.")
        found = [self._items_by_point.get(point.tobytes()) for point in points]
        unknown = [row for row, item in enumerate(found) if item is None]
        if unknown:
            raise InputError(
                f"{len(unknown)} of {len(found)} rows of X belong to no item (first: row "
                f"{unknown[0]}). Pass rows of StarClassifier.points() without scaling or rounding."
            )
        return found
