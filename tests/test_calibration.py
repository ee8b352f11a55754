"""Temperature: it fits known cases, changes no answer, and is kept with the learner."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import softmax

from starlearn.errors import InputError
from starlearn.learner.calibration import COLDEST, HOTTEST, best_temperature, folds, tempered
from starlearn.learner.estimator import STARLearner
from starlearn.learner.session import Session
from starlearn.settings import Training
from starlearn.tasks import GenerationTask

Factory = Callable[..., STARLearner]


@given(seed=st.integers(0, 2**32 - 1), temperature=st.floats(0.2, 5.0))
def test_a_temperature_keeps_sums_and_order(seed: int, temperature: float) -> None:
    plain = softmax(np.random.default_rng(seed).normal(size=(7, 4)), axis=1)
    found = tempered(plain, temperature)
    assert found.sum(axis=1) == pytest.approx(np.ones(7))
    assert np.array_equal(np.argsort(found, axis=1), np.argsort(plain, axis=1))
    assert tempered(found, 1 / temperature) == pytest.approx(plain, rel=1e-6)


def test_probabilities_of_zero_stay_finite() -> None:
    found = tempered(np.array([[1.0, 0.0], [0.5, 0.5]]), 3.0)
    assert np.isfinite(found).all()
    assert found[1] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_known_data_is_found(true_temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2.0, size=(4000, 5))
    right = softmax(logits, axis=1)
    columns = np.array([rng.choice(5, p=row) for row in right])
    told = softmax(logits * true_temperature, axis=1)
    assert best_temperature(told, columns) == pytest.approx(true_temperature, rel=0.1)


def test_it_is_the_temperature_of_scikit_learn() -> None:
    calibration = pytest.importorskip("sklearn.calibration")
    if not hasattr(calibration, "_TemperatureScaling"):
        pytest.skip("scikit-learn has temperatures since 1.8")
    rng = np.random.default_rng(1)
    told = softmax(rng.normal(scale=3.0, size=(300, 3)), axis=1)
    columns = np.where(rng.random(300) < 0.3, rng.integers(0, 3, 300), told.argmax(axis=1))
    theirs = calibration._TemperatureScaling().fit(np.log(told), columns).beta_
    assert best_temperature(told, columns) == pytest.approx(1 / theirs, rel=1e-3)


def test_data_without_errors_have_a_bounded_temperature() -> None:
    told = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert COLDEST <= best_temperature(told, np.array([0, 1])) < 2 * COLDEST
    assert best_temperature(told, np.array([1, 0])) > HOTTEST / 2


@given(n_labels=st.integers(2, 40), data=st.data())
def test_every_label_is_judged_once_by_an_adapter_that_never_saw_it(
    n_labels: int, data: st.DataObject
) -> None:
    n_splits = data.draw(st.integers(2, n_labels))
    judged: list[int] = []
    items = [{"text": str(i)} for i in range(n_labels)]
    for train, judge in folds(items, n_splits, seed=3):
        assert not set(train) & set(judge)
        assert len(train) + len(judge) == n_labels
        judged += judge.tolist()
    assert sorted(judged) == list(range(n_labels))


@given(numbers=st.lists(st.integers(0, 5), min_size=2, max_size=30), data=st.data())
def test_an_item_that_is_labelled_twice_is_never_judged_by_one_that_saw_it(
    numbers: list[int], data: st.DataObject
) -> None:
    assume(len(set(numbers)) > 1)
    n_splits = data.draw(st.integers(2, len(set(numbers))))
    judged: list[int] = []
    for train, judge in folds([{"text": str(n)} for n in numbers], n_splits, seed=3):
        assert not {numbers[i] for i in train} & {numbers[i] for i in judge}
        judged += judge.tolist()
    assert sorted(judged) == list(range(len(numbers)))


def test_the_adapters_of_the_folds_see_the_other_labels_alone(
    make_learner: Factory, labelled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner().fit(*labelled)
    seen: list[set[tuple[int, ...]]] = []
    judged: list[set[tuple[int, ...]]] = []
    train, probabilities = Session.train, Session.probabilities

    def spied_train(session: Session, examples: Any, **options: Any) -> Any:
        seen.append({tuple(example.prompt) for example in examples})
        return train(session, examples, **options)

    def spied_probabilities(session: Session, prompts: Any, *tree: Any, **options: Any) -> Any:
        judged.append(set(map(tuple, prompts)))
        return probabilities(session, prompts, *tree, **options)

    monkeypatch.setattr(Session, "train", spied_train)
    monkeypatch.setattr(Session, "probabilities", spied_probabilities)
    learner.calibrate(n_splits=np.int64(3))
    assert len(seen) == len(judged) == 3
    for known, unseen in zip(seen, judged, strict=True):
        assert not known & unseen
        assert len(known | unseen) == 8


def test_calibrating_a_learner(make_learner: Factory, labelled: Any, tmp_path: Path) -> None:
    learner = make_learner(training=Training(max_steps=40, learning_rate=1e-2))
    learner.fit(*labelled)
    adapter, plain = learner.adapter_, learner.predict_proba(labelled[0])
    answers, scores = learner.predict(labelled[0]), learner.uncertainty(labelled[0])
    ensemble = learner.predict_proba(labelled[0], n_passes=3)
    assert learner.calibrate(n_splits=2) is learner
    temperature = learner.rounds_[-1]["temperature"]
    assert temperature != pytest.approx(1.0, abs=0.05)
    assert learner.adapter_ is adapter, "the adapters of the folds are not kept"
    found = learner.predict_proba(labelled[0])
    assert np.array_equal(found, tempered(plain, temperature))
    assert learner.predict(labelled[0]).tolist() == answers.tolist()
    assert np.array_equal(learner.uncertainty(labelled[0]).mixed, scores.mixed)
    assert np.array_equal(learner.predict_proba(labelled[0], n_passes=3), ensemble)

    learner.save(tmp_path / "saved")
    assert np.array_equal(STARLearner.load(tmp_path / "saved").predict_proba(labelled[0]), found)
    learner.calibrate(n_splits=2)
    assert learner.rounds_[-1]["temperature"] == temperature, "the seed decides"
    learner.teach(["a new sky"], ["blue"])
    assert "temperature" not in learner.rounds_[-1], "it belongs to one adapter"


@pytest.mark.parametrize("n_splits", [1, 9, 2.5, "2", None])
def test_splits_that_do_not_fit(make_learner: Factory, labelled: Any, n_splits: Any) -> None:
    learner = make_learner().fit(*labelled)
    with pytest.raises(InputError, match=r"n_splits.*There are 8 labels"):
        learner.calibrate(n_splits=n_splits)
    assert "temperature" not in learner.rounds_[-1]


def test_free_form_answers_have_no_temperature(make_learner: Factory) -> None:
    learner = make_learner(task=GenerationTask("{text} Answer :", max_new_tokens=3))
    assert not hasattr(learner, "calibrate")
