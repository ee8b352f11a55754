"""modAL's own strategies on STARLearner: uncertainty, margin, entropy, ranked batches, density."""

from functools import partial
from typing import Any

import modAL.models
import numpy as np
import pandas as pd
import pytest
from modAL.batch import uncertainty_batch_sampling
from modAL.density import information_density
from modAL.uncertainty import (
    classifier_margin,
    classifier_uncertainty,
    entropy_sampling,
    margin_sampling,
    uncertainty_sampling,
)
from modAL.utils.combination import make_product, make_query_strategy
from modAL.utils.selection import multi_argmax
from scipy.spatial.distance import cdist
from scipy.stats import entropy
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from starlearn.errors import InputError
from starlearn.learner.estimator import STARLearner
from starlearn.modal import ActiveLearner, Committee
from starlearn.settings import LoRA, Training
from starlearn.tasks import ChoiceTask

TEXTS = ["the sky is", "grass is", "a rose is", "the big sea is"]
LABELS = ["blue", "green", "red", "blue"]
POOL = np.array(
    [f"{a} {b} is" for a in ("the", "a", "big") for b in ("sea", "leaf", "sun", "moon", "sand")],
    dtype=object,
)


@pytest.fixture(scope="module")
def star(tiny_model: str) -> STARLearner:
    return STARLearner(
        tiny_model,
        task=ChoiceTask("{text} Answer :", choices=["red", "green", "blue"]),
        adapter=LoRA(r=2, alpha=4, dropout=0.1),
        training=Training(max_steps=3, batch_size=4, learning_rate=2e-2),
        random_state=3,
        verbose=False,
    )


@pytest.fixture(scope="module")
def learner(star: STARLearner) -> ActiveLearner:
    """A fitted learner; tests change its query_strategy and on_transformed alone."""
    return ActiveLearner(star, X_training=TEXTS, y_training=LABELS)


@pytest.fixture
def asking(learner: ActiveLearner, monkeypatch: pytest.MonkeyPatch) -> Any:
    def ask(strategy: Any, pool: Any = POOL, n: int = 4, **changes: Any) -> Any:
        for name, value in {"query_strategy": strategy, **changes}.items():
            monkeypatch.setattr(learner, name, value)
        return learner.query(pool, n_instances=n, return_metrics=True)

    return ask


def margins(probabilities: Any) -> Any:
    best = np.sort(probabilities, axis=1)
    return best[:, -1] - best[:, -2]


@pytest.mark.parametrize(
    ("strategy", "measure", "sign"),
    [
        (uncertainty_sampling, lambda p: 1 - p.max(axis=1), 1),
        (margin_sampling, margins, -1),
        (entropy_sampling, lambda p: entropy(p, axis=1), 1),
    ],
)
def test_the_most_uncertain_by_modals_measure(
    learner: ActiveLearner, asking: Any, strategy: Any, measure: Any, sign: int
) -> None:
    expected = measure(learner.predict_proba(POOL))
    indices, batch, metrics = asking(strategy)
    assert set(indices) == set(np.argsort(-sign * expected)[:4])
    np.testing.assert_allclose(np.abs(metrics), np.abs(expected[indices]))
    assert batch.tolist() == POOL[indices].tolist()
    theirs = modAL.models.ActiveLearner(learner.estimator, strategy)  # not fitted again
    assert set(theirs.query(POOL, n_instances=4)[0]) == set(indices)


def ranked(uncertainty: Any, points: Any, labelled: Any, n: int) -> list[int]:
    """Rank by Cardoso et al., "Ranked batch-mode active learning" (2017), equation 3."""
    chosen: list[int] = []
    for _ in range(n):
        free = [i for i in range(len(points)) if i not in chosen]
        distance = cdist(points[free], labelled).min(axis=1)
        alpha = len(free) / (len(free) + len(labelled))
        scores = alpha * (1 - 1 / (1 + distance)) + (1 - alpha) * uncertainty[free]
        chosen.append(free[int(np.argmax(scores))])
        labelled = np.vstack([labelled, points[chosen[-1]]])
    return chosen


def test_ranked_batch_mode_measures_distances_between_points(
    learner: ActiveLearner, asking: Any
) -> None:
    uncertainty = 1 - learner.predict_proba(POOL).max(axis=1)
    expected = ranked(uncertainty, learner.transform(POOL), learner.transform(TEXTS), 5)
    indices, batch, metrics = asking(uncertainty_batch_sampling, n=5, on_transformed=True)
    assert indices.tolist() == expected
    assert batch.tolist() == POOL[expected].tolist()
    np.testing.assert_allclose(metrics, uncertainty[expected])
    nearest_first = np.argsort(-uncertainty)[:5]
    assert set(expected) != set(nearest_first)  # distances took part


@pytest.mark.parametrize("wrap", [list, pd.Series, lambda rows: pd.DataFrame({"text": rows})])
def test_ranked_batch_mode_in_any_container(asking: Any, wrap: Any) -> None:
    cosine = partial(uncertainty_batch_sampling, metric="cosine")
    expected = asking(cosine, on_transformed=True)[0]
    assert asking(cosine, wrap(POOL), on_transformed=True)[0].tolist() == expected.tolist()


def test_ranked_batch_mode_on_texts_is_refused(asking: Any) -> None:
    with pytest.raises(InputError, match="Set on_transformed=True"):
        asking(uncertainty_batch_sampling)


def test_ranked_batch_mode_from_the_first_round(star: STARLearner) -> None:
    one = ActiveLearner(clone(star), uncertainty_batch_sampling, on_transformed=True)
    one.teach(TEXTS, LABELS)
    batch = one.query(POOL, n_instances=2)[1]
    assert one.teach(batch, ["red", "blue"]).X_training.shape == (6,)
    assert [r["round"] for r in one.estimator.rounds_] == [0, 1]


def test_ranked_batch_mode_behind_a_pipeline(star: STARLearner) -> None:
    pipeline = make_pipeline(FunctionTransformer(), clone(star))
    one = ActiveLearner(pipeline, uncertainty_batch_sampling, TEXTS, LABELS, on_transformed=True)
    assert len(one.query(POOL, n_instances=3)[0]) == 3
    one.on_transformed = False
    with pytest.raises(InputError, match="Set on_transformed=True"):
        one.query(POOL, n_instances=3)


def test_information_density_of_points(learner: ActiveLearner, asking: Any) -> None:
    points = learner.transform(POOL)
    density = information_density(points, "euclidean")
    np.testing.assert_allclose(density, (1 / (1 + cdist(points, points))).mean(axis=1), atol=1e-6)

    def unsure_and_typical(learner: Any, X: Any, n_instances: int = 1) -> Any:
        utility = classifier_uncertainty(learner, X) * information_density(learner.transform(X))
        return multi_argmax(utility, n_instances)

    expected = (1 - learner.predict_proba(POOL).max(axis=1)) * density
    assert set(asking(unsure_and_typical)[0]) == set(np.argsort(-expected)[:4])


def test_modals_combined_measures(learner: ActiveLearner, monkeypatch: Any) -> None:
    product = make_product(classifier_uncertainty, classifier_margin, exponents=[1.0, 0.5])
    combined = make_query_strategy(product, partial(multi_argmax, n_instances=4))
    monkeypatch.setattr(learner, "query_strategy", combined)
    indices = learner.query(POOL)[0]
    p = learner.predict_proba(POOL)
    expected = (1 - p.max(axis=1)) * margins(p) ** 0.5
    assert set(indices) == set(np.argsort(-expected)[:4])


def test_points_of_a_learner_that_has_none() -> None:
    assert not hasattr(ActiveLearner(LogisticRegression()), "transform")


def test_strategies_of_a_committee(star: STARLearner) -> None:
    members = [clone(star).set_params(random_state=seed) for seed in range(2)]
    committee = Committee([ActiveLearner(one) for one in members], entropy_sampling)
    committee.fit(TEXTS, LABELS)
    mean = np.mean([one.predict_proba(POOL) for one in members], axis=0)
    indices = committee.query(POOL, n_instances=3)[0]
    assert set(indices) == set(np.argsort(-entropy(mean, axis=1))[:3])
