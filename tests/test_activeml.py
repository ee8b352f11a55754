"""scikit-activeml's own strategies, asking a STARLearner."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

pytest.importorskip("skactiveml", reason="scikit-activeml is not installed (an extra)")

from skactiveml.pool import CoreSet, QueryByCommittee, RandomSampling, UncertaintySampling

from starlearn.activeml import StarClassifier
from starlearn.errors import InputError
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.settings import LoRA, Training
from starlearn.tasks import ChoiceTask

TEXTS = ["the sky is", "grass is", "a rose is", "the big sea is"]
LABELS = ["blue", "green", "red", "blue"]
POOL = [f"{a} {b} is" for a in ("the", "a", "big") for b in ("sea", "leaf", "sun", "moon")]


@pytest.fixture(scope="module")
def star(tiny_model: str) -> STARLearner:
    return STARLearner(
        tiny_model,
        task=ChoiceTask("{text} Answer :", choices=["red", "green", "blue"]),
        adapter=LoRA(r=2, alpha=4, dropout=0.1),
        training=Training(max_steps=2, batch_size=4, learning_rate=2e-2),
        random_state=3,
        verbose=False,
    )


@pytest.fixture(scope="module")
def classifier(star: STARLearner) -> StarClassifier:
    return StarClassifier(star, items=[*TEXTS, *POOL], random_state=0)


@pytest.fixture
def data(classifier: StarClassifier) -> tuple[Any, Any]:
    y = classifier.unlabelled()
    y[:4] = LABELS
    return classifier.points(), y


def test_uncertainty_sampling_picks_the_most_uncertain(
    classifier: StarClassifier, star: STARLearner, data: tuple[Any, Any]
) -> None:
    X, y = data
    fitted = clone(star).fit(TEXTS, LABELS)
    expected = entropy(fitted.predict_proba(POOL), axis=1)
    strategy = UncertaintySampling(method="entropy", missing_label=None, random_state=0)
    chosen = strategy.query(X, y, clf=classifier, fit_clf=True, batch_size=3)
    assert set(chosen - 4) == set(np.argsort(-expected)[:3])
    assert not hasattr(classifier, "estimator_")  # scikit-activeml fits a clone


def test_rounds_with_a_classifier_that_is_kept(
    classifier: StarClassifier, data: tuple[Any, Any]
) -> None:
    X, y = data
    one = clone(classifier)
    strategy = UncertaintySampling(method="margin_sampling", missing_label=None, random_state=0)
    for _ in range(2):
        one.fit(X, y)
        chosen = strategy.query(X, y, clf=one, fit_clf=False, batch_size=2)
        assert all(y[i] is None for i in chosen)
        y[chosen] = ["red", "green"]
    one.fit(X, y)
    assert one.estimator_.X_training.shape == (8,)
    assert set(one.predict(X)) <= {"red", "green", "blue"}
    assert 0 <= one.score(X[:4], LABELS) <= 1


def test_it_answers_what_the_learner_answers(
    classifier: StarClassifier, star: STARLearner, data: tuple[Any, Any]
) -> None:
    X, y = data
    one = clone(classifier).fit(X, y)
    fitted = clone(star).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(one.predict_proba(X[4:]), fitted.predict_proba(POOL))
    assert one.predict(X[4:]).tolist() == fitted.predict(POOL).tolist()
    assert one.classes_.tolist() == ["blue", "green", "red"]
    assert base_of(one.estimator_) is base_of(star)  # one base model in memory


def test_costs_decide_the_answer(classifier: StarClassifier, data: tuple[Any, Any]) -> None:
    X, y = data
    always_red = np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0]])  # to say "red" costs nothing
    one = clone(classifier).set_params(cost_matrix=always_red).fit(X, y)
    assert set(one.predict(X)) == {"red"}


def test_strategies_that_go_by_distance_or_vote(
    classifier: StarClassifier, data: tuple[Any, Any]
) -> None:
    X, y = data
    assert len(CoreSet(missing_label=None, random_state=0).query(X, y, batch_size=3)) == 3
    assert len(RandomSampling(missing_label=None, random_state=0).query(X, y, batch_size=3)) == 3
    members = [clone(classifier).set_params(estimator__random_state=n).fit(X, y) for n in (0, 1)]
    committee = QueryByCommittee(missing_label=None, random_state=0)
    chosen = committee.query(X, y, ensemble=members, fit_ensemble=False, batch_size=2)
    assert (chosen >= 4).all()


def test_what_cannot_be_used_is_refused(classifier: StarClassifier, data: tuple[Any, Any]) -> None:
    X, y = data
    one = clone(classifier)
    with pytest.raises(NotFittedError):
        one.predict_proba(X)
    with pytest.raises(InputError, match="y has no known label"):
        one.fit(X, one.unlabelled())
    with pytest.raises(InputError, match="does not support sample_weight"):
        one.fit(X, y, sample_weight=np.ones(len(y)))
    with pytest.raises(InputError, match=r"16 of 16 rows.*belong to no item"):
        one.fit(X * 2, y)
    with pytest.raises(InputError, match="16 rows and 15 labels"):
        one.fit(X, y[:-1])
    with pytest.raises(InputError, match="shape"):
        one.fit(X[0], y)


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib
    import sys

    from starlearn.errors import MissingDependencyError

    monkeypatch.setitem(sys.modules, "skactiveml.base", None)
    monkeypatch.delitem(sys.modules, "starlearn.activeml")
    with pytest.raises(MissingDependencyError, match=r"starlearn\[activeml\]"):
        importlib.import_module("starlearn.activeml")
