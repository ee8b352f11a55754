"""starlearn.modal repairs modAL's loop.

The assertions about plain modAL show which errors its installed release still has. When one of them
fails, modAL has fixed that error, and the repair can be removed.
"""

import copy
import pickle
from functools import partial
from typing import Any

import modAL.models
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from modAL.batch import uncertainty_batch_sampling
from modAL.disagreement import (
    consensus_entropy_sampling,
    max_disagreement_sampling,
    vote_entropy,
    vote_entropy_sampling,
)
from modAL.models.base import BaseLearner
from modAL.uncertainty import entropy_sampling, margin_sampling, uncertainty_sampling
from modAL.utils.data import data_vstack, retrieve_rows
from modal_text_model import BLUE, RED, UNSURE, BagOfWords, texts
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import starlearn
import starlearn.modal
from starlearn.errors import InputError
from starlearn.learner.base_models import base_of
from starlearn.modal import ActiveLearner, Committee, star_sampling

X = np.random.default_rng(0).normal(size=(40, 3))
Y = (X[:, 0] > 0).astype(int)
WORDS = np.where(Y, "yes", "no").astype(object)
TEXTS, LABELS = RED + BLUE, ["yes"] * 4 + ["no"] * 4


def numeric(**settings: Any) -> ActiveLearner:
    return ActiveLearner(LogisticRegression(), X_training=X[:10], y_training=Y[:10], **settings)


def textual(**settings: Any) -> ActiveLearner:
    return ActiveLearner(BagOfWords(), X_training=TEXTS, y_training=LABELS, **settings)


def plain(**settings: Any) -> Any:
    """modAL's own learner, fitted by its constructor, the one way that still works."""
    return modAL.models.ActiveLearner(
        LogisticRegression(), X_training=X[:10], y_training=Y[:10], **settings
    )


def global_state() -> Any:
    """Return a copy of the state of numpy's global generator."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return state[1].copy()


class Counted:
    """A query strategy that counts its calls and answers, or raises, what it is told."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.calls = answers, 0

    def __call__(self, learner: Any, pool: Any, **kwargs: Any) -> Any:
        answer = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        if isinstance(answer, BaseException):
            raise answer
        return answer


class FixedProbabilities(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose probabilities are the rows of its input."""

    def fit(self, X: Any, y: Any) -> "FixedProbabilities":
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> Any:
        return self.classes_[np.argmax(X, axis=1)]

    def predict_proba(self, X: Any) -> Any:
        return np.asarray(X, dtype=float)


# The learner is one of modAL's


def test_isinstance_of_modals_classes() -> None:
    assert isinstance(numeric(), modAL.models.ActiveLearner)
    assert isinstance(numeric(), BaseLearner)
    assert isinstance(Committee([numeric()]), modAL.models.Committee)


def test_modal_itself_is_left_as_it_was() -> None:
    from modAL.models import base, learners

    assert learners.ActiveLearner is modAL.models.ActiveLearner is not ActiveLearner
    assert learners.check_X_y.__module__ == "sklearn.utils.validation"
    assert learners.data_vstack is data_vstack
    assert base.retrieve_rows is retrieve_rows


# Faults of modAL 0.4.2.1 on today's libraries, one test each


def test_force_all_finite_is_gone_from_scikit_learn() -> None:
    learner = ActiveLearner(LogisticRegression())
    assert learner.fit(X[:10], Y[:10]) is learner
    assert learner.teach(X[10:12], Y[10:12]) is learner
    assert learner.teach(X[12:14], Y[12:14], only_new=False).X_training.shape == (14, 3)
    np.testing.assert_array_equal(learner.X_training, X[:14])
    np.testing.assert_array_equal(learner.y_training, Y[:14])

    with pytest.raises(TypeError, match="force_all_finite"):
        plain().fit(X[:10], Y[:10])
    with pytest.raises(TypeError, match="force_all_finite"):
        plain().teach(X[10:12], Y[10:12])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_force_all_finite_still_decides(bad: float) -> None:
    dirty = X[:4].copy()
    dirty[1, 1] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        numeric().teach(dirty, Y[:4])
    tolerant = ActiveLearner(FixedProbabilities(), force_all_finite=False)
    assert tolerant.fit(dirty, Y[:4]).force_all_finite is False


def test_strategy_is_called_once() -> None:
    mine, theirs = Counted(np.array([3, 1, 2])), Counted(np.array([3, 1, 2]))
    indices, batch = numeric(query_strategy=mine).query(X)
    np.testing.assert_array_equal(indices, [3, 1, 2])
    np.testing.assert_array_equal(batch, X[[3, 1, 2]])
    assert mine.calls == 1

    plain(query_strategy=theirs).query(X)
    assert theirs.calls == 2


@pytest.mark.parametrize("kind", ["learner", "committee"])
def test_ctrl_c_is_not_swallowed(kind: str) -> None:
    mine = Counted(KeyboardInterrupt(), np.array([0]))
    learner = numeric(query_strategy=mine)
    asked = learner if kind == "learner" else Committee([numeric()], query_strategy=mine)
    with pytest.raises(KeyboardInterrupt):
        asked.query(X)
    assert mine.calls == 1

    theirs = Counted(KeyboardInterrupt(), np.array([0]))
    plain(query_strategy=theirs).query(X)
    assert theirs.calls == 2


def test_error_of_a_strategy_is_its_own_and_comes_once() -> None:
    strategy = Counted(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        numeric(query_strategy=strategy).query(X)
    assert strategy.calls == 1


@pytest.mark.parametrize("answer", [np.array([7, 4]), [7, 4]])
def test_two_bare_indices_are_two_indices(answer: Any) -> None:
    indices, batch = numeric(query_strategy=Counted(answer)).query(X)
    np.testing.assert_array_equal(indices, [7, 4])
    np.testing.assert_array_equal(batch, X[[7, 4]])

    assert plain(query_strategy=Counted(answer)).query(X)[0] == 7


def test_a_pair_is_indices_and_metrics() -> None:
    strategy = Counted((np.array([7, 4]), np.array([0.9, 0.8])))
    indices, batch, metrics = numeric(query_strategy=strategy).query(X, return_metrics=True)
    np.testing.assert_array_equal(indices, [7, 4])
    np.testing.assert_array_equal(batch, X[[7, 4]])
    np.testing.assert_array_equal(metrics, [0.9, 0.8])


def test_one_integer_gives_one_row() -> None:
    indices, row = numeric(query_strategy=Counted((5, 0.3))).query(X)
    assert indices == 5
    np.testing.assert_array_equal(row, X[5])


def test_metrics_that_a_strategy_does_not_have_warn() -> None:
    learner = numeric(query_strategy=Counted(np.array([1])))
    with pytest.warns(UserWarning, match="no metrics") as caught:
        assert learner.query(X, return_metrics=True)[2] is None
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "answer", [[-1], [40], [0.5], [True], [[1, 2], [3, 4]], None, (np.array([1, 40]), None)]
)
def test_what_is_no_position_is_refused(answer: Any) -> None:
    with pytest.raises(InputError, match="positions from 0 to 39"):
        numeric(query_strategy=Counted(answer)).query(X)


def test_clone_repr_get_params() -> None:
    learner = numeric(bootstrap_init=True, random_state=3, query_strategy=margin_sampling)
    settings = learner.get_params()
    assert settings["bootstrap_init"] is True
    assert settings["random_state"] == 3
    assert settings["estimator__C"] == 1.0
    assert "margin_sampling" in repr(learner)
    assert "ActiveLearner" in learner._repr_html_()
    copied = clone(learner)
    assert type(copied) is ActiveLearner
    assert copied.query_strategy is margin_sampling
    assert copied.estimator is not learner.estimator
    assert learner.set_params(estimator__C=0.5).estimator.C == 0.5

    for call in (repr, BaseEstimator.get_params):
        with pytest.raises(AttributeError, match="bootstrap_init"):
            call(plain())


def test_clone_leaves_the_labelled_rows_behind() -> None:
    copied = clone(numeric())
    assert copied.X_training is None
    assert copied.y_training is None
    with pytest.raises(NotFittedError):
        copied.predict(X)
    kept = copy.deepcopy(numeric())
    np.testing.assert_array_equal(kept.X_training, X[:10])


def test_committee_clone_repr_get_params() -> None:
    committee = Committee([numeric(), numeric()], random_state=1)
    copied = clone(committee)
    assert copied.random_state == 1
    assert len(copied) == 2
    assert copied.learner_list[0] is not committee.learner_list[0]
    assert copied.fit(X, Y).score(X, Y) > 0.8
    assert "Committee" in repr(committee)


def test_model_selection_of_scikit_learn() -> None:
    learner = ActiveLearner(LogisticRegression())
    assert cross_val_score(learner, X, Y, cv=3).mean() > 0.8
    grid = GridSearchCV(learner, {"estimator__C": [1e-4, 1.0]}, cv=3).fit(X, Y)
    assert grid.best_params_ == {"estimator__C": 1.0}


def test_pickle_round_trip() -> None:
    learner = pickle.loads(pickle.dumps(textual()))  # noqa: S301 - our own bytes
    assert learner.predict(["red red"]) == ["yes"]
    assert learner.teach(["green grass"], ["no"]).X_training.shape == (9,)


def test_series_with_a_permuted_index_is_read_by_position() -> None:
    pool = pd.Series([*UNSURE, *RED], index=[6, 5, 4, 3, 2, 1, 0])
    learner = textual()
    indices, batch = learner.query(pool, n_instances=2)
    by_list = learner.query(list(pool), n_instances=2)[0]
    np.testing.assert_array_equal(indices, by_list)
    assert list(batch) == [list(pool)[i] for i in indices]
    assert list(batch.index) == [6 - i for i in indices]

    assert list(retrieve_rows(pool, np.array([0, 1]))) == list(pool)[:-3:-1]


def test_series_with_a_permuted_index_in_bootstrap() -> None:
    index = np.arange(8)[::-1]
    learner = ActiveLearner(BagOfWords(), random_state=0)
    learner.fit(pd.Series(TEXTS, index=index), pd.Series(LABELS, index=index), bootstrap=True)
    same = ActiveLearner(BagOfWords(), random_state=0).fit(TEXTS, LABELS, bootstrap=True)
    assert learner.estimator.seen_ == same.estimator.seen_
    np.testing.assert_array_equal(learner.predict_proba(UNSURE), same.predict_proba(UNSURE))


def test_dataframe_is_taught() -> None:
    frame = pd.DataFrame({"text": TEXTS, "id": range(8)}, index=range(8, 0, -1))
    learner = ActiveLearner(BagOfWords(), X_training=frame, y_training=LABELS)
    more = pd.DataFrame({"id": [9], "text": ["green grass"]})
    learner.teach(more, ["no"])
    assert learner.estimator.seen_ == [*TEXTS, "green grass"]
    assert learner.X_training["id"].tolist() == [*range(8), 9]
    indices, batch = learner.query(frame, n_instances=2)
    assert batch["text"].tolist() == [TEXTS[i] for i in indices]
    with pytest.raises(InputError, match=r"columns are \['text', 'id'\]"):
        learner.teach(pd.DataFrame({"text": ["a"]}), ["no"])

    with pytest.raises(AttributeError, match="append"):
        data_vstack((frame, more))


def test_dataset_is_taught() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    more = datasets.Dataset.from_dict({"text": ["green grass"]})
    learner = ActiveLearner(BagOfWords(), X_training=rows, y_training=LABELS)
    assert learner.teach(more, ["no"]).estimator.seen_ == [*TEXTS, "green grass"]
    indices, batch = learner.query(rows, n_instances=3)
    assert isinstance(batch, datasets.Dataset)
    assert list(batch["text"]) == [TEXTS[i] for i in indices]
    assert len(learner.fit(rows, LABELS, bootstrap=False).X_training) == 8

    with pytest.raises(TypeError, match="not supported"):
        data_vstack((rows, more))


def test_column_of_a_dataset_is_a_list_of_texts() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS})
    learner = ActiveLearner(BagOfWords()).fit(rows["text"], rows["label"])
    assert learner.estimator.seen_ == TEXTS
    indices, batch = learner.query(rows["text"], n_instances=2)
    assert batch == [TEXTS[i] for i in indices]


def test_lists_are_queried_and_taught() -> None:
    learner = textual(bootstrap_init=False)
    for strategy in (uncertainty_sampling, margin_sampling, entropy_sampling):
        learner.query_strategy = strategy
        indices, batch = learner.query(UNSURE + RED, n_instances=2)
        assert batch == [(UNSURE + RED)[i] for i in indices]
        assert isinstance(batch, list)
    assert learner.teach(["green grass"], ["no"]).estimator.seen_ == [*TEXTS, "green grass"]
    assert learner.X_training.shape == (9,)
    assert learner.teach([{"text": "grey"}], ["no"]).estimator.seen_[-1] == "grey"
    committee = Committee([textual(), textual()])
    assert len(committee.query(UNSURE, n_instances=2)[1]) == 2

    theirs = modAL.models.Committee([textual(), textual()])
    with pytest.raises(AttributeError, match="shape"):
        theirs.query(UNSURE, n_instances=2)


@pytest.mark.parametrize("known", ["list", "array", "object", "series"])
@pytest.mark.parametrize("new", ["list", "array", "object", "series"])
def test_one_dimensional_containers_go_together(known: str, new: str) -> None:
    make = {
        "list": list,
        "array": np.array,
        "object": partial(np.array, dtype=object),
        "series": pd.Series,
    }
    learner = ActiveLearner(BagOfWords()).fit(make[known](TEXTS), make[known](LABELS))
    learner.teach(make[new](["a much longer text than those before"]), make[new](["maybe"]))
    assert list(learner.X_training) == [*TEXTS, "a much longer text than those before"]
    assert list(learner.y_training) == [*LABELS, "maybe"]
    assert set(learner.predict(TEXTS)) == {"yes", "no"}


@pytest.mark.parametrize("form", ["csr", "csc", "lil", "coo"])
def test_sparse_rows(form: str) -> None:
    pool = sp.csr_matrix(X).asformat(form)
    learner = ActiveLearner(LogisticRegression(), X_training=pool, y_training=Y)
    indices, batch = learner.query(pool, n_instances=2)
    assert batch.format == form
    np.testing.assert_array_equal(batch.toarray(), X[indices])
    assert learner.teach(batch, Y[indices], bootstrap=True).X_training.shape == (42, 3)


@pytest.mark.parametrize("n_instances", [0, -1, 1.5, True, "3", 41])
@pytest.mark.parametrize("positional", [False, True])
def test_n_instances_that_make_no_sense(n_instances: Any, positional: bool) -> None:
    given = (n_instances,) if positional else ()
    named = {} if positional else {"n_instances": n_instances}
    for learner in (numeric(), Committee([numeric()])):
        with pytest.raises(InputError, match="n_instances"):
            learner.query(X, *given, **named)

    assert len(plain().query(X, n_instances=0)[0]) == 0
    assert len(plain().query(X, n_instances=-1)[0]) == 39


def test_n_instances_of_a_partial_and_of_keywords() -> None:
    with pytest.raises(InputError, match="at least 1, got -1"):
        numeric(query_strategy=partial(uncertainty_sampling, n_instances=-1)).query(X)
    strategy = Counted(np.array([0]))  # takes **kwargs alone
    with pytest.raises(InputError, match="at least 1, got 0"):
        numeric(query_strategy=strategy).query(X, n_instances=0)
    assert strategy.calls == 0


def test_default_batch_of_ranked_mode_may_exceed_the_pool() -> None:
    learner = numeric(query_strategy=uncertainty_batch_sampling)
    assert len(learner.query(X[:6])[0]) == 6


def test_empty_pool() -> None:
    with pytest.raises(InputError, match="pool is empty"):
        textual().query([])


def test_one_text_is_not_a_pool() -> None:
    with pytest.raises(InputError, match=r"\['red apple'\]"):
        textual().query("red apple")
    with pytest.raises(InputError, match="got one text"):
        textual().teach("red apple", "yes")


def test_committee_fit_and_teach_return_self() -> None:
    committee = Committee([numeric(), numeric()])
    assert committee.fit(X[:10], Y[:10]) is committee
    assert committee.teach(X[10:12], Y[10:12]) is committee
    assert [len(one.X_training) for one in committee] == [12, 12]

    theirs = modAL.models.Committee([numeric()])
    assert theirs.fit(X[:10], Y[:10]) is None
    assert theirs.teach(X[10:12], Y[10:12]) is None


@pytest.mark.parametrize(
    "strategy", [vote_entropy_sampling, consensus_entropy_sampling, max_disagreement_sampling]
)
def test_string_labels_in_a_committee(strategy: Any) -> None:
    halves = [
        ActiveLearner(LogisticRegression(), X_training=X[rows], y_training=WORDS[rows])
        for rows in (slice(0, 12), slice(12, 24))
    ]
    committee = Committee(halves, query_strategy=strategy)
    assert committee.classes_.tolist() == ["no", "yes"]
    assert set(committee.vote(X).ravel()) == {"no", "yes"}
    assert committee.score(X, WORDS) > 0.8
    indices = committee.query(X, n_instances=3)[0]
    as_numbers = Committee(
        [
            ActiveLearner(LogisticRegression(), X_training=X[rows], y_training=Y[rows])
            for rows in (slice(0, 12), slice(12, 24))
        ],
        query_strategy=strategy,
    )
    np.testing.assert_array_equal(indices, as_numbers.query(X, n_instances=3)[0])
    np.testing.assert_array_equal(vote_entropy(committee, X), vote_entropy(as_numbers, X))


def test_string_labels_crash_modals_own_committee() -> None:
    members = [
        modAL.models.ActiveLearner(
            LogisticRegression(), X_training=X[:10], y_training=WORDS[:10].astype(str)
        )
    ]
    with pytest.raises(ValueError, match="could not convert string to float"):
        modAL.models.Committee(members).vote(X)


def test_committee_of_members_that_know_different_classes() -> None:
    red_only = ActiveLearner(BagOfWords()).fit([*RED, *UNSURE], ["yes"] * 4 + ["unsure"] * 3)
    committee = Committee([textual(), red_only])
    assert committee.classes_.tolist() == ["no", "unsure", "yes"]
    proba = committee.vote_proba(UNSURE)
    assert proba.shape == (3, 2, 3)
    assert (proba[:, 1, 0] == 0).all()
    np.testing.assert_allclose(proba.sum(axis=2), 1)
    red_only.teach(["green"], ["grass"])  # on its own: the committee learns of it when asked
    assert committee.predict_proba(UNSURE).shape == (3, 4)


def test_committee_query_takes_n_instances_second() -> None:
    committee = Committee([numeric(), numeric()])
    assert len(committee.query(X, 4)) == 2
    assert len(committee.query(X, 4)[0]) == 4
    assert len(committee.query(X, 4, return_metrics=True)) == 3

    assert len(modAL.models.Committee([numeric(), numeric()]).query(X, 4)[0]) == 1


def test_nan_probabilities_are_refused() -> None:
    pool = np.array([[0.9, 0.1], [np.nan, np.nan], [0.6, 0.4], [0.8, 0.2]])
    learner = ActiveLearner(FixedProbabilities()).fit(pool[[0, 2]], [0, 1])
    for strategy in (uncertainty_sampling, margin_sampling, entropy_sampling):
        learner.query_strategy = strategy
        with pytest.raises(InputError, match=r"not finite for 1 of 4 rows: 1\."):
            learner.query(pool)
    with pytest.raises(InputError, match="not finite"):
        Committee([learner]).vote_proba(pool)

    theirs = modAL.models.ActiveLearner(
        FixedProbabilities(), X_training=pool[[0, 2]], y_training=[0, 1]
    )
    assert theirs.query(pool, random_tie_break=True)[0].tolist() == [1]


def test_nan_metrics_of_a_strategy_are_refused() -> None:
    learner = numeric(query_strategy=Counted((np.array([3, 4]), np.array([np.nan, 0.1]))))
    with pytest.raises(InputError, match="metric of a chosen row is NaN"):
        learner.query(X)


def test_ties_follow_random_state_and_leave_the_global_generator_alone() -> None:
    pool = np.full((50, 2), 0.5)

    def ask(learner: Any) -> list[int]:
        return learner.query(pool, n_instances=5, random_tie_break=True)[0].tolist()  # type: ignore[no-any-return]

    first, second, other = (
        ActiveLearner(FixedProbabilities(), random_state=seed).fit(pool[:2], [0, 1])
        for seed in (0, 0, 1)
    )
    before = global_state()
    picks = ask(first)
    assert picks == ask(first) == ask(second)
    assert picks != ask(other)
    np.testing.assert_array_equal(global_state(), before)
    assert ask(second.teach(pool[:1], [0])) != picks  # another round, another draw
    first.set_params(random_state=np.random.RandomState(0))
    assert ask(first) != ask(first)

    np.random.seed(0)  # noqa: NPY002
    free = ActiveLearner(FixedProbabilities()).fit(pool[:2], [0, 1])
    as_modal = ask(free)
    np.random.seed(0)  # noqa: NPY002
    theirs = modAL.models.ActiveLearner(
        FixedProbabilities(), X_training=pool[:2], y_training=[0, 1]
    )
    assert ask(theirs) == as_modal


def test_global_generator_is_put_back_after_an_error() -> None:
    learner = numeric(query_strategy=Counted(RuntimeError()), random_state=0)
    before = global_state()
    with pytest.raises(RuntimeError):
        learner.query(X)
    np.testing.assert_array_equal(global_state(), before)


def test_committee_breaks_ties_by_its_own_random_state() -> None:
    pool = np.full((50, 2), 0.5)
    members = [ActiveLearner(FixedProbabilities()).fit(pool[:2], [0, 1]) for _ in range(2)]
    picks = [
        Committee(members, random_state=seed).query(pool, 5, random_tie_break=True)[0].tolist()
        for seed in (0, 0, 1)
    ]
    assert picks[0] == picks[1] != picks[2]


def test_bootstrap_follows_random_state() -> None:
    seen = [
        ActiveLearner(BagOfWords(), random_state=seed)
        .fit(TEXTS, LABELS, bootstrap=True)
        .estimator.seen_
        for seed in (0, 0, 3)
    ]
    assert seen[0] == seen[1] != seen[2]
    assert sorted(seen[0]) != sorted(TEXTS)
    committee = Committee([textual(random_state=0), textual(random_state=3)])
    committee.rebag()
    assert committee.learner_list[0].estimator.seen_ != committee.learner_list[1].estimator.seen_


# What a failed call leaves behind


class Stubborn(BagOfWords):
    """Fits once, then is interrupted."""

    def fit(self, X: Any, y: Any) -> "Stubborn":
        if getattr(self, "n_fits_", 0):
            raise KeyboardInterrupt
        super().fit(X, y)
        return self


@pytest.mark.parametrize("kind", ["learner", "committee"])
def test_interrupted_training_adds_no_rows(kind: str) -> None:
    learner = ActiveLearner(Stubborn()).fit(TEXTS, LABELS)
    first = textual()
    taught = learner if kind == "learner" else Committee([first, learner])
    with pytest.raises(KeyboardInterrupt):
        taught.teach(["green"], ["no"])
    assert len(learner.X_training) == len(learner.y_training) == 8
    assert len(first.X_training) == 8


@pytest.mark.parametrize("method", ["fit", "teach"])
def test_bad_rows_change_nothing(method: str) -> None:
    learner = textual()
    for rows, labels, reason in [
        (["a", "b"], ["no"], "2 rows and 1 labels"),
        (["a", "b"], ["no", 1], "mixes texts"),
        (["a"], [None], "mixes texts"),
    ]:
        with pytest.raises(InputError, match=reason):
            getattr(learner, method)(rows, labels)
    assert learner.X_training.shape == (8,)
    assert learner.estimator.n_fits_ == 1


def test_rows_of_another_form_are_refused() -> None:
    for rows, labels in [
        (X[:2, :2], Y[:2]),
        (["a"], [1]),
        (X[:2], ["yes", "no"]),
        (pd.DataFrame(X[:2]), Y[:2]),
    ]:
        learner = numeric()
        with pytest.raises(InputError, match="cannot be added"):
            learner.teach(rows, labels)
        assert learner.X_training.shape == (10, 3)


def test_only_new_does_not_add() -> None:
    learner = textual()
    assert learner.teach(["green", "grass red"], ["no", "yes"], only_new=True) is learner
    assert learner.estimator.seen_ == ["green", "grass red"]
    assert learner.X_training.shape == (8,)


def test_bad_parameters() -> None:
    with pytest.raises(InputError, match="query_strategy"):
        ActiveLearner(LogisticRegression(), query_strategy="uncertainty")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="force_all_finite"):
        ActiveLearner(LogisticRegression(), force_all_finite="yes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="together"):
        ActiveLearner(LogisticRegression(), X_training=X)
    with pytest.raises(InputError, match="query_strategy"):
        Committee([numeric()], query_strategy=None)  # type: ignore[arg-type]
    wrong: tuple[Any, ...] = ((numeric(),), [], None)
    for members in wrong:
        with pytest.raises(InputError, match="learner_list"):
            Committee(members)


def test_committee_refuses_to_train_modals_own_learners() -> None:
    committee = Committee([numeric(), plain()])
    assert len(committee.query(X, 2)[0]) == 2
    with pytest.raises(InputError, match=r"learner_list\[1\].*Use starlearn\.modal"):
        committee.teach(X[:2], Y[:2])
    assert len(committee.learner_list[0].X_training) == 10


# Other uses that modAL has


def test_ranked_batch_mode_on_transformed_rows() -> None:
    learner = ActiveLearner(
        make_pipeline(StandardScaler(), LogisticRegression()),
        query_strategy=uncertainty_batch_sampling,
        X_training=pd.DataFrame(X[:10]),
        y_training=Y[:10],
        on_transformed=True,
    )
    assert len(learner.query(pd.DataFrame(X), n_instances=4)[0]) == 4


def test_unfitted_learner_takes_any_row() -> None:
    assert len(ActiveLearner(BagOfWords()).query(TEXTS, n_instances=2)[1]) == 2
    committee = Committee([ActiveLearner(BagOfWords())])
    assert committee.classes_ is None
    with pytest.raises(NotFittedError):
        committee.vote_proba(TEXTS)


def test_regression_with_a_strategy_of_the_user() -> None:
    def far_out(learner: Any, pool: Any, n_instances: int = 1) -> Any:
        return np.argsort(-np.abs(learner.predict(pool)))[:n_instances]

    learner = ActiveLearner(LinearRegression(), far_out, X[:10], X[:10, 0])
    indices, batch = learner.query(X, n_instances=2)
    assert learner.teach(batch, X[indices, 0]).y_training.dtype == float


def test_several_outputs() -> None:
    both = np.stack([Y, 1 - Y], axis=1)
    learner = ActiveLearner(LinearRegression(), Counted(np.array([1])), X[:10], both[:10])
    assert learner.teach(X[10:12], both[10:12]).y_training.shape == (12, 2)


def test_expected_error_cannot_be_imported() -> None:
    with pytest.raises(AttributeError, match="float"):
        import modAL.expected_error  # noqa: F401


# STARLearner, on a tiny model with random weights


def test_star_sampling_wants_a_star_learner() -> None:
    for learner in (
        numeric(query_strategy=star_sampling),
        ActiveLearner(make_pipeline(StandardScaler(), LogisticRegression()), star_sampling),
        Committee([numeric()], query_strategy=star_sampling),
    ):
        with pytest.raises(InputError, match="STARLearner"):
            learner.query(X)


def star(model: str, **acquisition: Any) -> Any:
    from starlearn import Acquisition, ChoiceTask, LoRA, STARLearner, Training

    return STARLearner(
        model,
        task=ChoiceTask(choices=["no", "yes"]),
        adapter=LoRA(r=4),
        acquisition=Acquisition(n_passes=2, **acquisition),
        training=Training(max_steps=1, learning_rate=1e-2),
        random_state=0,
        verbose=False,
    )


def test_star_learner_is_one_of_modals_learners() -> None:
    from starlearn import STARLearner

    assert isinstance(STARLearner(), BaseLearner)
    assert issubclass(STARLearner, BaseLearner)


def test_registration_happens_on_the_public_path() -> None:
    assert starlearn._HOME["STARLearner"] == starlearn.modal.__name__
    assert starlearn.STARLearner is starlearn.modal.STARLearner


def test_star_inside_a_learner_chooses_what_star_chooses(tiny_model: str) -> None:
    pool = np.array([*UNSURE, *RED], dtype=object)
    alone = star(tiny_model).fit(TEXTS, LABELS)
    expected, _, mixed = alone.query(pool, 3, return_metrics=True)
    for wrapper in (ActiveLearner, modAL.models.ActiveLearner):
        learner = wrapper(star(tiny_model), star_sampling, TEXTS, LABELS)
        indices, batch, metrics = learner.query(pool, n_instances=3, return_metrics=True)
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(metrics, mixed)
        np.testing.assert_array_equal(batch, pool[indices])


def test_star_inside_a_learner_counts_its_rounds(tiny_model: str) -> None:
    published = star(tiny_model, schedule="published")
    learner = ActiveLearner(published, star_sampling, TEXTS[2:6], LABELS[2:6])
    pool = [*UNSURE, TEXTS[0], TEXTS[7]]
    for _ in range(2):
        batch = learner.query(pool, n_instances=2)[1]
        assert learner.teach(batch, ["yes", "no"]) is learner
    learner.query(pool)
    rounds = learner.estimator.rounds_
    assert [one["query"]["lambda"] for one in rounds] == [0.9, 0.8, 0.7]
    assert [one["n_labels"] for one in rounds] == [4, 6, 8]
    assert list(learner.X_training) == list(learner.estimator.X_training)
    assert list(learner.y_training) == list(learner.estimator.y_training)

    theirs = modAL.models.ActiveLearner(learner.estimator, star_sampling)
    theirs.X_training, theirs.y_training = learner.X_training, learner.y_training
    theirs._fit_to_known()  # what its teach comes to, where it runs at all
    assert len(learner.estimator.rounds_) == 1


def test_star_inside_a_learner_takes_every_container(tiny_model: str) -> None:
    datasets = pytest.importorskip("datasets")
    index = list(range(8))[::-1]
    # The pool is what it has learnt from: nothing would be left to ask.
    learner = ActiveLearner(star(tiny_model, distinct="none"), star_sampling, TEXTS, LABELS)
    expected = learner.query(TEXTS, n_instances=3)[0]
    for make in (
        partial(np.array, dtype=object),
        partial(pd.Series, index=index),
        lambda rows: pd.DataFrame({"text": rows}, index=index),
        lambda rows: [{"text": row} for row in rows],
        lambda rows: datasets.Dataset.from_dict({"text": rows}),
    ):
        indices, batch = learner.query(make(TEXTS), n_instances=3)
        np.testing.assert_array_equal(indices, expected)
        assert type(batch) is type(make(TEXTS))
        assert texts(batch) == [TEXTS[i] for i in indices]


def test_star_learns_from_a_dataset_and_from_a_frame(tiny_model: str) -> None:
    datasets = pytest.importorskip("datasets")
    proba = []
    for make in (pd.DataFrame, datasets.Dataset.from_dict):
        learner = ActiveLearner(star(tiny_model), star_sampling)
        learner.fit(make({"text": TEXTS[:6]}), LABELS[:6])
        learner.teach(make({"text": TEXTS[6:]}), LABELS[6:])
        assert texts(learner.estimator.X_training) == TEXTS
        proba.append(learner.predict_proba(UNSURE))
    np.testing.assert_array_equal(proba[0], proba[1])


def test_star_before_any_fit_and_at_random(tiny_model: str) -> None:
    learner = ActiveLearner(star(tiny_model), star_sampling)
    assert len(learner.query(TEXTS, n_instances=2)[1]) == 2
    drawn = ActiveLearner(star(tiny_model, strategy="random"), star_sampling)
    with pytest.warns(UserWarning, match="no metrics"):
        assert drawn.query(TEXTS, n_instances=2, return_metrics=True)[2] is None


def test_modals_uncertainty_sampling_on_star(tiny_model: str) -> None:
    learner = ActiveLearner(star(tiny_model), entropy_sampling, TEXTS, LABELS)
    indices, _, entropies = learner.query(UNSURE, n_instances=3, return_metrics=True)
    assert sorted(indices) == [0, 1, 2]
    assert (entropies > 0).all()
    assert len(learner.query(UNSURE)[0]) == 1


def test_committee_of_star_learners(tiny_model: str) -> None:
    committee = Committee(
        [star(tiny_model), ActiveLearner(star(tiny_model).set_params(random_state=1))],
        consensus_entropy_sampling,
    )
    assert not committee.n_classes_
    assert committee.fit(TEXTS, LABELS) is committee
    assert committee.vote(UNSURE).shape == (3, 2)
    assert committee.classes_.tolist() == ["no", "yes"]
    batch = committee.query(UNSURE, n_instances=2)[1]
    committee.teach(batch, ["yes", "no"])
    assert [len(one.X_training) for one in committee] == [10, 10]
    assert [len(one.estimator.rounds_) for one in committee] == [2, 2]


def test_interrupted_star_training_adds_no_rows(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = ActiveLearner(star(tiny_model), star_sampling, TEXTS, LABELS)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(learner.estimator), "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learner.teach(["red blue"], ["yes"])
    assert len(learner.X_training) == 8


@pytest.mark.parametrize("wrapped", ["bare", "learner", "pipeline"])
def test_an_interrupted_committee_of_star_learners_is_as_it_was(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, wrapped: str
) -> None:
    members = [star(tiny_model), star(tiny_model).set_params(random_state=1)]
    learners: list[Any] = members
    if wrapped == "learner":
        learners = [ActiveLearner(one) for one in members]
    elif wrapped == "pipeline":
        learners = [ActiveLearner(make_pipeline(FunctionTransformer(), one)) for one in members]
    committee = Committee(learners)
    committee.fit(TEXTS, LABELS)
    assert base_of(members[0]).backbone is base_of(members[1]).backbone
    adapters = [one.adapter_ for one in members]
    rounds = [len(one.rounds_) for one in members]

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(members[1], "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        committee.teach(["red blue"], ["yes"])
    assert [one.adapter_ for one in members] == adapters
    assert [len(one.rounds_) for one in members] == rounds
    assert [len(one.X_training) for one in (*committee, *members)] == [8] * 4
    monkeypatch.undo()
    committee.teach(["red blue"], ["yes"])
    assert [len(one.X_training) for one in (*committee, *members)] == [9] * 4


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("uncertainty_batch_sampling", "Set on_transformed=True"),
        ("expected_error_reduction", r"Use starlearn\.modal\.star_sampling"),
    ],
)
def test_strategies_that_cannot_read_text_are_refused(
    name: str, remedy: str, tiny_model: str
) -> None:
    def strategy(learner: Any, pool: Any, n_instances: int = 1) -> Any:
        raise NotImplementedError

    strategy.__name__ = name
    for given in (strategy, partial(strategy, n_instances=2)):
        with pytest.raises(InputError, match=remedy):
            ActiveLearner(star(tiny_model), given).query(TEXTS)


def test_star_draws_its_own_bootstrap(tiny_model: str) -> None:
    with pytest.raises(InputError, match=r"teach\(X, y, bootstrap=True\)"):
        ActiveLearner(star(tiny_model)).fit(TEXTS, LABELS, bootstrap=True)
    learner = ActiveLearner(star(tiny_model), star_sampling, TEXTS, LABELS)
    assert learner.teach(UNSURE[:1], ["yes"], bootstrap=True).X_training.shape == (9,)
    assert learner.teach(UNSURE[1:2], ["yes"], only_new=True).X_training.shape == (10,)
    assert len(learner.estimator.X_training) == 10


def test_clone_of_a_learner_with_star(tiny_model: str) -> None:
    learner = ActiveLearner(star(tiny_model), star_sampling, random_state=1)
    learner.X_training = np.array(TEXTS)
    copied = clone(learner)
    assert copied.X_training is None
    assert copied.estimator is not learner.estimator
    assert copied.get_params()["estimator__adapter__r"] == 4
    assert "star_sampling" in repr(copied)
