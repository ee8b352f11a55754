"""Groups of settings: names of other libraries, synonyms, and STAR as published."""

import pytest

import starlearn
from starlearn.errors import InputError
from starlearn.learner.estimator import STARLearner
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.tasks import ChoiceTask


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        (LoRA, "lora_alpha", r"LoRA\(alpha=...\)"),
        (LoRA, "lora_dropout", r"LoRA\(dropout=...\)"),
        (Training, "num_train_epochs", r"Training\(epochs=...\)"),
        (Training, "warmup_ratio", r"Training\(warmup_steps=...\)"),
        (Training, "lr_scheduler_type", r"Training\(scheduler=...\)"),
        (STARLearner, "load_in_4bit", r"STARLearner\(quantization='nf4'\)"),
        (STARLearner, "measure", r"Acquisition\(measure=...\)"),
        (Training, "learnin_rate", "Did you mean 'learning_rate'?"),
        (ChoiceTask, "labels_of_the_task", "Its parameters are chat, choices"),
    ],
)
def test_an_unknown_parameter_is_refused_with_the_name_that_is_meant(
    kind: type, name: str, hint: str
) -> None:
    with pytest.raises(InputError, match=f"{kind.__name__} has no parameter '{name}'. .*{hint}"):
        kind(**{name: 1})
    with pytest.raises(InputError, match=hint):
        kind().set_params(**{name: 1})  # type: ignore[attr-defined]


def test_bald_is_mutual_information() -> None:
    assert Acquisition(measure="bald").resolved().measure == "mutual_information"
    assert Acquisition(measure="bald").get_params()["measure"] == "bald"
    with pytest.raises(InputError, match="measure='bald', n_passes=1"):
        Acquisition(measure="bald", n_passes=1).check()


def test_the_published_settings_are_those_of_the_paper_and_new_each_time() -> None:
    learner = STARLearner(**starlearn.PUBLISHED)
    assert learner.adapter.get_params() | {"target_modules": None} == {
        "r": 64,
        "alpha": 16,
        "dropout": 0.1,
        "target_modules": None,
    }
    assert learner.acquisition.measure == "entropy"
    assert [learner.acquisition.base_weight(t) for t in (0, 1, 8, 9)] == [0.9, 0.8, 0.1, 0.1]
    assert (learner.training.epochs, learner.training.learning_rate) == (3, 1.5e-4)
    assert learner.training.b_weight_decay == 0.5
    learner.set_params(adapter__r=2)
    assert starlearn.PUBLISHED["adapter"].r == 64
    assert len(starlearn.PUBLISHED) == 3
