"""STARLearner inside what scikit-learn's users try first."""

import re
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import (
    GridSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_html_repr

from starlearn.errors import InputError
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.settings import LoRA, Training
from starlearn.tasks import ChoiceTask

TEXTS = ["the sky is", "grass is", "a rose is", "the big sea is", "a small leaf is", "the sun"] * 2
LABELS = ["blue", "green", "red", "blue", "green", "red"] * 2
NEW = ["night sky is", "a leaf is", "the moon is big"]


@pytest.fixture(scope="module")
def learner(tiny_model: str) -> STARLearner:
    """A fitted learner that no test may change."""
    return STARLearner(
        tiny_model,
        task=ChoiceTask("{text} Answer :", choices=["red", "green", "blue"]),
        adapter=LoRA(r=2, alpha=4, dropout=0.1),
        training=Training(max_steps=2, batch_size=4, learning_rate=1e-2),
        random_state=3,
        verbose=False,
    ).fit(TEXTS, LABELS)


def lower(texts: Any) -> list[str]:
    return [text.lower() for text in texts]


def test_a_pipeline_with_a_step_for_texts_before_it(learner: STARLearner) -> None:
    pipeline = make_pipeline(FunctionTransformer(lower), clone(learner))
    pipeline.fit([text.upper() for text in TEXTS], LABELS)
    loud = [text.upper() for text in NEW]
    np.testing.assert_array_equal(pipeline.predict_proba(loud), learner.predict_proba(NEW))
    assert pipeline.classes_.tolist() == ["blue", "green", "red"]
    pipeline.set_params(starlearner__adapter__r=1, starlearner__training__max_steps=1)
    assert pipeline.fit(TEXTS, LABELS)[-1].adapter_.r == 1
    assert 0 <= pipeline.score(TEXTS, LABELS) <= 1


def test_points_as_features_of_another_classifier(learner: STARLearner) -> None:
    points = FrozenEstimator(learner)
    probe = make_pipeline(points, LogisticRegression(C=100)).fit(TEXTS, LABELS)
    assert probe.score(TEXTS, LABELS) == 1.0
    both = FeatureUnion([("points", points), ("again", points)]).fit(TEXTS)
    assert both.transform(NEW).shape == (3, 128)
    assert both.get_feature_names_out()[0] == "points__starlearner0"


def test_calibration_of_a_frozen_learner(learner: STARLearner) -> None:
    calibrated = CalibratedClassifierCV(FrozenEstimator(learner), method="temperature", cv=2)
    calibrated.fit(TEXTS, LABELS)
    assert calibrated.classes_.tolist() == learner.classes_.tolist()
    probabilities = calibrated.predict_proba(TEXTS)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert log_loss(LABELS, probabilities) <= log_loss(LABELS, learner.predict_proba(TEXTS)) + 1e-6


def test_cross_validation_with_several_scores(learner: STARLearner) -> None:
    found = cross_validate(
        learner,
        TEXTS,
        LABELS,
        cv=2,
        scoring=["accuracy", "neg_log_loss", "f1_macro"],
        error_score="raise",
    )
    assert all(np.isfinite(values).all() for values in found.values())
    assert cross_val_predict(learner, np.array(TEXTS), LABELS, cv=2).shape == (12,)


def test_grid_search_over_closed_choices(learner: STARLearner) -> None:
    grid = {"training__learning_rate": [1e-7, 3e-2], "quantization": ["nf4", "none"]}
    search = GridSearchCV(
        clone(learner).set_params(training__max_steps=10), grid, cv=2, error_score="raise"
    )
    search.fit(TEXTS, LABELS)
    assert search.best_params_["training__learning_rate"] == 3e-2
    assert search.best_estimator_.classes_.tolist() == ["blue", "green", "red"]
    assert search.predict(NEW).shape == (3,)


def test_threads_give_what_one_gives(learner: STARLearner) -> None:
    alone = cross_val_score(learner, TEXTS, LABELS, cv=2)
    with joblib.parallel_config("threading", n_jobs=2):
        assert cross_val_score(learner, TEXTS, LABELS, cv=2).tolist() == alone.tolist()


@pytest.fixture(scope="module")
def three(learner: STARLearner) -> list[tuple[str, Any]]:
    seeds = [clone(learner).set_params(random_state=seed) for seed in range(3)]
    return [(f"seed {n}", FrozenEstimator(one.fit(TEXTS, LABELS))) for n, one in enumerate(seeds)]


def test_a_vote_of_frozen_learners(three: list[tuple[str, Any]]) -> None:
    vote = VotingClassifier(three, voting="soft").fit(TEXTS, LABELS)
    mean = np.mean([one.predict_proba(NEW) for _, one in three], axis=0)
    np.testing.assert_allclose(vote.predict_proba(NEW), mean)
    assert vote.predict(NEW).tolist() == vote.classes_[mean.argmax(axis=1)].tolist()
    assert len({id(base_of(one.estimator).backbone) for _, one in three}) == 1


def test_a_stack_of_frozen_learners(three: list[tuple[str, Any]]) -> None:
    stack = StackingClassifier(three, LogisticRegression(), cv="prefit").fit(TEXTS, LABELS)
    assert set(stack.predict(NEW)) <= {"blue", "green", "red"}


@pytest.mark.parametrize(
    "call",
    [
        lambda one: VotingClassifier([("one", one)]).fit(TEXTS, LABELS),
        lambda one: CalibratedClassifierCV(one, cv=2, ensemble=False).fit(TEXTS, LABELS),
        lambda one: cross_val_predict(one, TEXTS, LABELS, cv=2, method="predict_proba"),
    ],
    ids=["vote", "calibration", "cross-validation"],
)
def test_where_the_labels_are_numbered_the_error_says_what_to_do(
    learner: STARLearner, call: Any
) -> None:
    with pytest.raises(InputError, match=r"numbers the labels itself.*FrozenEstimator\(learner\)"):
        call(clone(learner))


@pytest.mark.parametrize(
    "call",
    [
        lambda one, X, y: VotingClassifier([("one", one)]).fit(X, y),
        lambda one, X, y: StackingClassifier([("one", one)], LogisticRegression(), cv=2).fit(X, y),
        lambda one, X, y: OneVsRestClassifier(one).fit(X, y),
        lambda one, X, y: CalibratedClassifierCV(one, cv=2, ensemble=False).fit(X, y),
        lambda one, X, y: cross_val_predict(one, X, y, cv=2, method="predict_proba"),
    ],
    ids=["vote", "stack", "one against the rest", "calibration", "cross-validation"],
)
def test_without_choices_a_warning_says_that_numbered_labels_have_lost_their_words(
    learner: STARLearner, call: Any
) -> None:
    unnamed = clone(learner).set_params(task__choices=None)
    two = [(text, label) for text, label in zip(TEXTS, LABELS, strict=True) if label != "red"]
    texts, labels = zip(*two, strict=True)
    with pytest.warns(UserWarning, match=r"numbers 0 to 1, .* their words are lost.*choices=\["):
        call(unnamed, list(texts), list(labels))


def test_words_booleans_and_other_numbers_are_not_taken_for_numbered_labels(
    learner: STARLearner,
) -> None:
    unnamed = clone(learner).set_params(task__choices=None)
    for labels in (LABELS, [label == "red" for label in LABELS], [1, 14] * 6):
        unnamed.fit(TEXTS, labels)  # warnings are errors


def test_the_warning_about_numbered_labels_is_not_repeated_in_later_rounds(
    learner: STARLearner,
) -> None:
    unnamed = clone(learner).set_params(task__choices=None)
    with pytest.warns(UserWarning, match="numbers 0 to 1"):
        unnamed.fit(TEXTS, [0, 1] * 6)
    unnamed.teach(TEXTS[:2], [0, 1])  # warnings are errors


# The representation in a notebook


def without_styles(page: str) -> str:
    page = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_html_tells_the_state(learner: STARLearner) -> None:
    page = estimator_html_repr(learner)
    assert "Fitted" in without_styles(page)
    assert "Not fitted" in without_styles(estimator_html_repr(clone(learner)))
    assert "Fitted" in without_styles(learner._repr_mimebundle_()["text/html"])
    shown = without_styles(page)
    for name in ("adapter__r", "training__max_steps", "random_state", "callbacks", "classes_"):
        assert name in shown
    assert "tensor" not in page  # no weights
    assert len(page) < 100_000
    assert "tensor" not in repr(learner.adapter_)


def test_html_of_a_pipeline_and_of_a_search(learner: STARLearner) -> None:
    pipeline = make_pipeline(FunctionTransformer(lower), clone(learner))
    assert "Not fitted" in without_styles(pipeline._repr_html_())
    search = GridSearchCV(pipeline, {"starlearner__adapter__r": [1]})
    assert "STARLearner" in without_styles(search._repr_html_())


def test_html_needs_no_model() -> None:
    assert "no/such/folder" in STARLearner("no/such/folder")._repr_html_()


# Metadata routing


@pytest.fixture
def _routing() -> Iterator[None]:
    with config_context(enable_metadata_routing=True):
        yield


@pytest.mark.usefixtures("_routing")
def test_weights_are_routed_to_score(learner: STARLearner) -> None:
    class Seen(STARLearner):
        weights: list[Any] = []  # noqa: RUF012 - one list for all clones

        def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
            self.weights.append(sample_weight)
            return super().score(X, y, sample_weight=sample_weight)

    one = Seen(**learner.get_params(deep=False)).set_score_request(sample_weight=True)
    weights = np.arange(12.0)
    cross_val_score(one, TEXTS, LABELS, cv=2, params={"sample_weight": weights})
    assert sorted(np.concatenate(Seen.weights)) == weights.tolist()
    assert clone(one).get_metadata_routing().score.requests == {"sample_weight": True}


@pytest.mark.usefixtures("_routing")
def test_weights_that_nobody_asked_for_are_an_error(learner: STARLearner) -> None:
    weights = np.ones(12)
    with pytest.raises(UnsetMetadataPassedError, match="set_score_request"):
        cross_val_score(learner, TEXTS, LABELS, cv=2, params={"sample_weight": weights})
    assert not hasattr(learner, "set_fit_request")  # fit takes none
    quiet = clone(learner).set_score_request(sample_weight=False)
    with pytest.raises(TypeError, match="sample_weight"):
        make_pipeline(quiet).fit(TEXTS, LABELS, sample_weight=weights)


@pytest.mark.usefixtures("_routing")
def test_a_pipeline_is_routed_through(learner: STARLearner) -> None:
    pipeline = make_pipeline(
        FunctionTransformer(lower), clone(learner).set_score_request(sample_weight=True)
    )
    pipeline.fit(TEXTS, LABELS)
    right = [n for n, x in enumerate(pipeline.predict(TEXTS)) if x == LABELS[n]]
    weights = np.zeros(12)
    weights[right[:1]] = 1
    assert pipeline.score(TEXTS, LABELS, sample_weight=weights) == 1.0
