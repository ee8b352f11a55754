"""modAL's loop for STARLearner, and modAL's two classes repaired for current scikit-learn.

modAL itself is not changed: subclasses override the methods that its release 0.4.2.1 has broken.
modAL pins skorch==0.9.0, so its `modAL.dropout` needs `pkg_resources`: pip install 'setuptools<81'
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from numbers import Integral
from typing import Any, Self

import modAL.models
import numpy as np
from modAL.disagreement import vote_entropy_sampling
from modAL.models.base import BaseLearner
from modAL.uncertainty import uncertainty_sampling
from modAL.utils.validation import check_class_proba
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state, check_X_y
from sklearn.utils.metaestimators import available_if

from starlearn.data.containers import as_count, is_dataset
from starlearn.data.rows import as_array, as_label_array, n_rows_of, rows_at, stacked
from starlearn.errors import InputError, listed
from starlearn.learner.base_models import LOADED, share_bases
from starlearn.learner.estimator import STARLearner
from starlearn.learner.rollback import unchanged_on_error

__all__ = ["ActiveLearner", "Committee", "STARLearner", "star_sampling"]

BaseLearner.register(STARLearner)

NOT_FOR_TEXT = {
    "uncertainty_batch_sampling": (
        "measures distances, and texts have none. Set on_transformed=True: it then measures them "
        "between the rows of learner.transform"
    ),
    "expected_error_reduction": (
        "trains once per item of the pool and class. Use starlearn.modal.star_sampling"
    ),
}
"""Strategies of modAL that cannot read text, by name: modAL.expected_error needs NumPy 1."""


def star_sampling(
    learner: Any, X_pool: Any, n_instances: int = 1
) -> tuple[NDArray[np.intp], NDArray[np.floating[Any]] | None]:
    """Choose as STARLearner does: ``ActiveLearner(STARLearner(), query_strategy=star_sampling)``.

    Parameters
    ----------
    learner : modAL learner whose `estimator` is a STARLearner
    X_pool : pool of m items, as for STARLearner.query
    n_instances : int, default=1
        n, the number of items to choose.

    Returns
    -------
    indices : ndarray of shape (n,)
    metrics : ndarray of shape (n,)
        Scores by which the items were ranked; None for a random draw.

    Raises
    ------
    InputError
        When the learner's estimator is not a STARLearner.

    Notes
    -----
    Use the ActiveLearner of this module: its `teach` starts the next round. modAL's own calls `fit`
    each time, which starts at round 0.
    """
    estimator: Any = getattr(learner, "estimator", None)
    if not isinstance(estimator, STARLearner):
        raise InputError(
            f"star_sampling needs a STARLearner as estimator, got a {type(estimator).__name__}. "
            "A STARLearner reads text, so no Pipeline is needed: "
            "ActiveLearner(estimator=STARLearner(...), query_strategy=star_sampling)."
        )
    # Always a pair: modAL calls a strategy that returns bare indices a second time.
    indices, _, metrics = estimator.query(X_pool, n_instances, return_metrics=True)
    return indices, None if np.isnan(metrics).any() else metrics


class _Loop:
    """Base of ActiveLearner and Committee: the query and its randomness."""

    query_strategy: Callable[..., Any]
    random_state: Any

    def query(
        self, X_pool: Any, *query_args: Any, return_metrics: bool = False, **query_kwargs: Any
    ) -> tuple[Any, ...]:
        """Choose rows by one call of the query strategy.

        Parameters
        ----------
        X_pool : array, sparse matrix, list, Series, DataFrame or datasets.Dataset of m rows
            Read by position, never by an index. The strategy receives lists and Series as arrays.
        *query_args, **query_kwargs
            Passed to the strategy after (learner, X_pool). modAL's own take `n_instances` first.
        return_metrics : bool, default=False

        Returns
        -------
        indices : ndarray of shape (n,), or one integer from a strategy that returns one
        batch : the rows at these positions, in the pool's kind of container
        metrics : ndarray of shape (n,), with `return_metrics` only
            None, with a warning, unless the strategy returns a tuple of length 2.

        Raises
        ------
        InputError
            When n_instances is not a whole number from 1 to m, the strategy does not return
            positions in the pool, or the metric of a chosen row is NaN.
        """
        n_rows, strategy = n_rows_of(X_pool), self.query_strategy
        _check_call(strategy, (self, X_pool, *query_args), query_kwargs, n_rows)
        with self._seeded():
            result = strategy(self, as_array(X_pool), *query_args, **query_kwargs)
        paired = isinstance(result, tuple) and len(result) == 2
        indices, metrics = result if paired else (result, None)
        chosen, values = np.asarray(indices), np.asarray(metrics)
        is_position = chosen.ndim <= 1 and chosen.dtype.kind in "iu"
        if not is_position or np.any((chosen < 0) | (chosen >= n_rows)):
            raise InputError(
                f"The query strategy must return positions from 0 to {n_rows - 1}, alone or as a "
                f"tuple (indices, metrics of the chosen); it returned {indices!r:.80}."
            )
        comparable = values.shape == chosen.shape and values.dtype.kind == "f"
        if comparable and np.isnan(values).any():
            raise InputError(
                f"The metric of a chosen row is NaN (rows {chosen}, metrics {values}). "
                "Fix the estimator, or remove these rows from the pool."
            )
        answer = (indices if chosen.ndim == 0 else chosen), rows_at(X_pool, chosen)
        if not return_metrics:
            return answer
        if metrics is None:
            warnings.warn("The query strategy returns no metrics.", UserWarning, stacklevel=2)
        return *answer, metrics

    def _generator(self) -> np.random.RandomState:
        """Return a generator; a whole number as seed gives another one per number of labels."""
        if not isinstance(self.random_state, Integral):
            generator: np.random.RandomState = check_random_state(self.random_state)
            return generator
        known = [getattr(one, "X_training", None) for one in getattr(self, "learner_list", [self])]
        n_labelled = sum(n_rows_of(rows) for rows in known if rows is not None)
        seeds = np.random.SeedSequence([int(self.random_state), n_labelled])
        return np.random.RandomState(np.random.MT19937(seeds))

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Seed numpy's global generator, from which modAL's strategies draw, and restore it."""
        if self.random_state is None:
            yield
            return
        state = np.random.get_state()  # noqa: NPY002
        np.random.seed(self._generator().randint(2**31))  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


class ActiveLearner(_Loop, modAL.models.ActiveLearner):
    """modAL's ActiveLearner, repaired. A clone keeps the settings, not the rows.

    Parameters
    ----------
    estimator : scikit-learn estimator or STARLearner
    query_strategy : callable, default=modAL.uncertainty.uncertainty_sampling
        Called as strategy(learner, X_pool, ...); returns (indices, metrics of the chosen).
    X_training, y_training : N rows and their labels, default=None
        The constructor fits the estimator on them, with `fit_kwargs`.
    bootstrap_init, force_all_finite : bool
        As in modAL.
    on_transformed : bool, default=False
        Whether strategies that measure distances (ranked batch mode) receive the rows as the
        Pipeline's steps transform them, or as STARLearner.transform does.
    random_state : int, RandomState or None, default=None
        Seed of bootstrap samples, and of ties where the query has ``random_tie_break=True``:
        otherwise the order of ties depends on the processor. None is numpy's global generator.
        Members of a Committee with the same seed draw the same samples.

    Attributes
    ----------
    X_training : the N rows taught so far; lists and Series become an array
    y_training : ndarray of shape (N,) or (N, n_outputs), of dtype object for text
    """

    def __init__(
        self,
        estimator: Any,
        query_strategy: Callable[..., Any] = uncertainty_sampling,
        X_training: Any = None,
        y_training: Any = None,
        bootstrap_init: bool = False,
        on_transformed: bool = False,
        force_all_finite: bool = True,
        random_state: Any = None,
        **fit_kwargs: Any,
    ) -> None:
        _check_callable(query_strategy)
        if not isinstance(force_all_finite, bool):
            raise InputError(f"force_all_finite must be True or False, got {force_all_finite!r}.")
        if (X_training is None) != (y_training is None):
            raise InputError("Give X_training and y_training together, or neither.")
        # Without rows: modAL's constructor would fit before the parameters below are set.
        super().__init__(estimator, query_strategy, on_transformed=on_transformed)
        self.bootstrap_init, self.force_all_finite = bootstrap_init, force_all_finite
        self.X_training, self.y_training = X_training, y_training
        self.random_state = random_state
        if X_training is not None:
            self.fit(X_training, y_training, bootstrap=bootstrap_init, **fit_kwargs)

    def __sklearn_clone__(self) -> Self:
        settings = self.get_params(deep=False)
        del settings["X_training"], settings["y_training"]
        return type(self)(**{name: clone(value, safe=False) for name, value in settings.items()})

    def fit(self, X: Any, y: Any, bootstrap: bool = False, **fit_kwargs: Any) -> Self:
        """Train on these rows alone; with `bootstrap`, on N of them drawn with replacement.

        Parameters
        ----------
        X : array, sparse matrix, list, Series, DataFrame or datasets.Dataset of N rows
            ValueError, by scikit-learn, when it is empty or not finite.
        y : texts or numbers, shape (N,) or (N, n_outputs)
            InputError when its length is not N, or texts and numbers are mixed.
        """
        with self._kept_on_error():
            self.X_training, self.y_training = self._checked(X, y)
            return self._fit_to_known(bootstrap=bootstrap, **fit_kwargs)

    def teach(
        self, X: Any, y: Any, bootstrap: bool = False, only_new: bool = False, **fit_kwargs: Any
    ) -> Self:
        """Add N rows and their labels, and train again; a training that fails adds none.

        Parameters and errors are those of `fit`, and InputError when the new rows do not match the
        known ones. `only_new` trains on the new rows without adding them. A STARLearner starts its
        next round by its own `teach`, and always adds them.
        """
        is_star = isinstance(self.estimator, STARLearner)
        if only_new and not is_star:
            return self._fit_on_new(*self._checked(X, y), bootstrap=bootstrap, **fit_kwargs)
        with self._kept_on_error():
            self._add_training_data(X, y)
            if not is_star:
                return self._fit_to_known(bootstrap=bootstrap, **fit_kwargs)
            self.estimator.teach(X, y, bootstrap=bootstrap, only_new=only_new, **fit_kwargs)
            return self

    def predict_proba(self, X: Any, **predict_proba_kwargs: Any) -> Any:
        """Return probabilities of shape (m, n_classes); InputError when one is not finite."""
        return _finite(super().predict_proba(X, **predict_proba_kwargs))

    @available_if(lambda learner: hasattr(learner.estimator, "transform"))
    def transform(self, X: Any) -> Any:
        """Return the estimator's features of m rows, (m, D), such as for information_density."""
        return self.estimator.transform(X)

    def transform_without_estimating(self, X: Any) -> Any:
        """Return rows as strategies receive them with `on_transformed`: as the last step does.

        A STARLearner's last step is its own `transform`, because texts have no distances.
        """
        if _reads_text(self.estimator):
            return self.estimator.transform(X)
        return super().transform_without_estimating(X)

    def _checked(self, X: Any, y: Any) -> tuple[Any, Any]:
        X, y = as_array(X), as_label_array(y)
        if n_rows_of(X) != n_rows_of(y):
            raise InputError(
                f"Found {n_rows_of(X)} rows and {n_rows_of(y)} labels. Give one label for each row."
            )
        if not is_dataset(X):
            check_X_y(X, y, accept_sparse=True, ensure_2d=False, allow_nd=True, multi_output=True,
                      dtype=None, ensure_all_finite=self.force_all_finite)  # fmt: skip
        return X, y

    def _add_training_data(self, X: Any, y: Any) -> None:
        X, y = self._checked(X, y)
        if self.X_training is not None:
            X, y = stacked(self.X_training, X), stacked(self.y_training, y)
        self.X_training, self.y_training = X, y

    def _fit_to_known(self, bootstrap: bool = False, **fit_kwargs: Any) -> Self:
        return self._fit_on_new(self.X_training, self.y_training, bootstrap, **fit_kwargs)

    def _fit_on_new(self, X: Any, y: Any, bootstrap: bool = False, **fit_kwargs: Any) -> Self:
        if bootstrap:
            if isinstance(self.estimator, STARLearner):
                raise InputError(
                    "A STARLearner draws its own bootstrap samples. Fit it without bootstrap, then "
                    "call teach(X, y, bootstrap=True)."
                )
            drawn = self._generator().randint(0, n_rows_of(X), size=n_rows_of(X))
            X, y = rows_at(X, drawn), rows_at(y, drawn)
        self.estimator.fit(X, y, **fit_kwargs)
        return self

    @contextmanager
    def _kept_on_error(self) -> Iterator[None]:
        with ExitStack() as undo:
            # After Ctrl-C too: teaching the same rows again must not add them twice.
            undo.enter_context(unchanged_on_error(self))
            for part in _steps(self.estimator):
                undo.enter_context(unchanged_on_error(part, LOADED))
            yield


class Committee(_Loop, modAL.models.Committee):
    """modAL's Committee, repaired: several learners vote, on labels of any kind.

    STARLearners of the same model share one copy of it in memory; each has its own adapter.

    Parameters
    ----------
    learner_list : list of starlearn.modal.ActiveLearner or STARLearner, at least one
    query_strategy : callable, default=modAL.disagreement.vote_entropy_sampling
    on_transformed : bool, default=False
    random_state : int, RandomState or None, default=None
        Seed of ties. Bootstrap samples follow the learners' own.
    """

    def __init__(
        self,
        learner_list: list[Any],
        query_strategy: Callable[..., Any] = vote_entropy_sampling,
        on_transformed: bool = False,
        random_state: Any = None,
    ) -> None:
        _check_callable(query_strategy)
        if not isinstance(learner_list, list) or not learner_list:
            raise InputError(f"learner_list must be a list of learners, got {learner_list!r:.80}.")
        super().__init__(learner_list, query_strategy, on_transformed)
        self.random_state = random_state
        self._share_bases()

    def fit(self, X: Any, y: Any, **fit_kwargs: Any) -> Self:
        """Train every learner on these N rows alone; see ActiveLearner.fit."""
        return self._each("fit", X, y, **fit_kwargs)

    def teach(
        self, X: Any, y: Any, bootstrap: bool = False, only_new: bool = False, **fit_kwargs: Any
    ) -> Self:
        """Teach every learner these N rows; see ActiveLearner.teach."""
        return self._each("teach", X, y, bootstrap=bootstrap, only_new=only_new, **fit_kwargs)

    def vote(self, X: Any, **predict_kwargs: Any) -> NDArray[Any]:
        """Return every learner's predictions, shape (m, n_learners)."""
        return np.stack([np.asarray(one.predict(X, **predict_kwargs)) for one in self], axis=1)

    def vote_proba(self, X: Any, **predict_proba_kwargs: Any) -> NDArray[np.floating[Any]]:
        """Return every learner's probabilities, shape (m, n_learners, n_classes).

        Columns are in the order of `classes_`, with 0 for a class that a learner does not know.
        NotFittedError when a learner is not fitted, InputError when a value is not finite.
        """
        self._set_classes()  # a learner may have been taught by itself
        if self.classes_ is None:
            raise NotFittedError("A learner of the Committee is not fitted. Call fit(X, y) first.")
        parts = []
        for one in self:
            proba = _finite(one.predict_proba(X, **predict_proba_kwargs))
            parts.append(check_class_proba(proba, one.estimator.classes_, self.classes_))
        return np.stack(parts, axis=1)

    def _share_bases(self) -> None:
        parts = [part for one in self for part in _steps(one.estimator)]
        share_bases([part for part in parts if isinstance(part, STARLearner)])

    def _each(self, method: str, *args: Any, **kwargs: Any) -> Self:
        self._share_bases()  # learners may have been added
        with ExitStack() as undo:
            for row, one in enumerate(self):
                if isinstance(one, STARLearner):
                    undo.enter_context(unchanged_on_error(one, LOADED))
                elif isinstance(one, ActiveLearner):
                    undo.enter_context(one._kept_on_error())
                elif isinstance(one, modAL.models.ActiveLearner):
                    raise InputError(
                        f"learner_list[{row}] is modAL's own ActiveLearner, whose fit and teach "
                        "fail with scikit-learn 1.8 or newer. Use starlearn.modal.ActiveLearner."
                    )
            for one in self:
                getattr(one, method)(*args, **kwargs)
        self._set_classes()
        return self


def _steps(estimator: Any) -> list[Any]:
    """Return an estimator and the steps of a Pipeline: every object that a training changes."""
    inner = [part for _, part in estimator.steps] if isinstance(estimator, Pipeline) else []
    return [part for part in (estimator, *inner) if hasattr(part, "__dict__")]


def _reads_text(estimator: Any) -> bool:
    """Whether an estimator is a STARLearner, or a Pipeline that ends in one."""
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    return isinstance(last, STARLearner)


def _check_callable(query_strategy: Any) -> None:
    if not callable(query_strategy):
        raise InputError(f"query_strategy must be a function, got {query_strategy!r:.80}.")


def _check_call(
    strategy: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], n_rows: int
) -> None:
    """Raise InputError for a call that would fail, or silently choose wrong rows."""
    if _reads_text(getattr(args[0], "estimator", None)):
        name = getattr(getattr(strategy, "func", strategy), "__name__", "")  # func: of a partial
        in_points = args[0].on_transformed and name == "uncertainty_batch_sampling"
        if name in NOT_FOR_TEXT and not in_points:
            raise InputError(f"{name} {NOT_FOR_TEXT[name]}.")
    try:
        bound = inspect.signature(strategy).bind(*args, **kwargs)
    except (TypeError, ValueError):  # no signature, or a wrong call, which raises when it is made
        return
    given = "n_instances" in {**bound.arguments, **bound.kwargs}
    bound.apply_defaults()
    value = {**bound.kwargs, **bound.arguments}.get("n_instances", 1)
    if not given and n_rows and isinstance(value, Integral):
        value = min(value, n_rows)  # the default, 20 in ranked batch sampling, may be too large
    as_count(value, "n_instances", n_rows)


def _finite(probabilities: Any) -> Any:
    for part in probabilities if isinstance(probabilities, list) else [probabilities]:
        finite = np.isfinite(np.asarray(part, dtype=float))
        wrong = np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))
        if wrong.size:
            raise InputError(
                f"The estimator's probabilities are not finite for {len(wrong)} of {len(finite)} "
                f"rows: {listed([str(row) for row in wrong])}. Fix the estimator, or remove these "
                "rows."
            )
    return probabilities
