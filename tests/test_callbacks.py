"""Callbacks: what functions are told, and transformers' own in a training."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from transformers import TrainerCallback

from starlearn import Progress
from starlearn.errors import InputError
from starlearn.learner.estimator import STARLearner
from starlearn.settings import Training
from starlearn.tasks import GenerationTask

Factory = Callable[..., STARLearner]
Labelled = tuple[list[str], list[str]]


class Notes(TrainerCallback):  # type: ignore[misc]
    """Counts steps, and stops after some."""

    def __init__(self, stop: int = 100) -> None:
        self.stop, self.steps, self.trainings = stop, 0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainings += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.steps += 1
        if state.global_step >= self.stop:
            control.should_training_stop = True
        return control


def test_a_function_is_told_every_long_step(
    make_learner: Factory, labelled: Labelled, pool: list
) -> None:
    told: list[Progress] = []
    learner = make_learner(callbacks=[told.append])
    learner.set_params(acquisition__chunk_size=20)

    def heard(call: Callable[[], Any]) -> list[Progress]:
        told.clear()
        call()
        return list(told)

    training = heard(lambda: learner.fit(*labelled))
    assert training == [Progress("training", done, 4) for done in range(5)]
    for stage, call in {
        "query": lambda: learner.query(pool, 2),
        "predicting": lambda: learner.predict(pool),
        "embedding": lambda: learner.transform(pool),
    }.items():
        progress = heard(call)
        assert progress[0] == Progress(stage, 0, 48)
        assert progress[-1] == Progress(stage, 48, 48)
        done = [one.done for one in progress]
        assert done == sorted(set(done))
    query_again = heard(lambda: learner.query(pool, 2))  # nothing is computed, all is done
    assert [one.done for one in query_again] == [0, 20, 40, 48]


def test_free_form_answers_are_told(make_learner: Factory, labelled: Labelled, pool: list) -> None:
    told: list[Progress] = []
    learner = make_learner(task=GenerationTask("{text}", 2), callbacks=[told.append])
    learner.fit(*labelled).predict(pool)
    assert told[-1] == Progress("answering", 48, 48)


def test_transformers_callbacks_take_part_in_every_training(
    make_learner: Factory, labelled: Labelled
) -> None:
    notes = Notes()
    learner = make_learner(callbacks=[notes]).fit(*labelled)
    learner.teach(["night sky"], ["blue"]).predict(["sea"])
    assert (notes.trainings, notes.steps) == (2, 8)
    plain = make_learner().fit(*labelled).teach(["night sky"], ["blue"])
    assert np.array_equal(learner.predict_proba(["sea"]), plain.predict_proba(["sea"]))


def test_a_callback_may_end_a_training_early(make_learner: Factory, labelled: Labelled) -> None:
    learner = make_learner(callbacks=[Notes(stop=2)]).fit(*labelled)
    assert learner.rounds_[0]["steps"] == 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_a_callback_raises_ends_the_call_and_changes_nothing(
    make_learner: Factory, labelled: Labelled, pool: list, error: type[BaseException]
) -> None:
    learner = make_learner().fit(*labelled)
    before = learner.predict_proba(pool)

    def stop(progress: Progress) -> None:
        if progress.done > 0:
            raise error("enough")

    learner.set_params(callbacks=[stop])
    for call in (
        lambda: learner.teach(["night sky"], ["blue"]),
        lambda: learner.query(pool),
        lambda: learner.predict(pool),
    ):
        with pytest.raises(error, match="enough"):
            call()
    learner.set_params(callbacks=None)
    assert len(learner.X_training) == 8
    assert np.array_equal(learner.predict_proba(pool), before)
    assert len(learner.teach(["night sky"], ["blue"]).X_training) == 9


def test_a_callback_cannot_change_the_adapter_under_a_training(
    make_learner: Factory, labelled: Labelled, pool: list
) -> None:
    learner = make_learner().fit(*labelled)
    learner.set_params(callbacks=[lambda progress: clone(learner).transform(pool)])
    with pytest.raises(InputError, match="A callback called a learner"):
        learner.teach(["night sky"], ["blue"])
    other = make_learner()  # on a base model of its own, which nobody uses
    learner.set_params(callbacks=[lambda progress: other.transform(pool)])
    learner.teach(["night sky"], ["blue"])


@pytest.mark.parametrize(
    ("callbacks", "reason"),
    [
        ([3], r"callbacks\[0\] must be a function"),
        ([print, None], r"callbacks\[1\] must be"),
        ([Notes], r"callbacks\[0\] is the class Notes\. Pass an instance"),
        (print, "callbacks must be a list"),
        (3, "callbacks must be a list"),
        (iter([print]), "callbacks must be a list"),  # empty when it is asked again
    ],
)
def test_bad_callbacks(
    make_learner: Factory, labelled: Labelled, callbacks: Any, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        make_learner(callbacks=callbacks).fit(*labelled)


def test_clone_and_pickle_keep_callbacks_and_a_folder_does_not(
    make_learner: Factory, labelled: Labelled, tmp_path: Path
) -> None:
    notes = Notes()
    learner = make_learner(callbacks=[print, notes], training=Training(max_steps=1))
    learner.set_params(callbacks=[notes, len])
    copied = clone(learner)
    assert copied.callbacks[1] is len
    assert isinstance(copied.callbacks[0], Notes)
    assert copied.callbacks[0] is not notes  # as every parameter of a clone
    learner.set_params(callbacks=[notes]).fit(*labelled)
    again = pickle.loads(pickle.dumps(learner))  # noqa: S301 - our own bytes
    assert again.callbacks[0].steps == 1
    learner.save(tmp_path / "saved")
    assert STARLearner.load(tmp_path / "saved").callbacks is None
    assert "callbacks" not in (tmp_path / "saved" / "starlearn.json").read_text()


def test_a_campaign_begins_with_a_learner_that_has_callbacks(make_learner: Factory) -> None:
    from starlearn.campaign.learner_settings import parameters_of, to_json

    parameters = parameters_of(to_json(make_learner(callbacks=[print])))
    assert "callbacks" not in parameters
    assert STARLearner(**parameters).callbacks is None


def test_the_bar_of_a_training_counts_whole_steps(make_learner, labelled, capsys):
    training = Training(max_steps=2, batch_size=2, gradient_accumulation=2, learning_rate=5e-3)
    make_learner(verbose=True, training=training).fit(*labelled)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert ".0/2" not in shown
