"""STARLearner: the loop, its reproducibility, and its manners as a scikit-learn estimator."""

import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.validation import check_is_fitted
from tiny_models import COLOURS, build_model

from starlearn.errors import (
    InputError,
    ModelMismatchError,
    NotFiniteError,
    OutOfMemoryError,
    TrainingDivergedError,
)
from starlearn.learner.estimator import STARLearner
from starlearn.settings import PUBLISHED_ACQUISITION, Acquisition, LoRA, Training
from starlearn.tasks import ChoiceTask, GenerationTask, Task
from starlearn.train import trainer as trainer_module

Factory = Callable[..., STARLearner]
Labelled = tuple[list[str], list[str]]
FIELDS = ("base", "full", "mixed", "entropy", "mutual_information", "n_tokens")


def same_adapter(first: STARLearner, second: STARLearner) -> bool:
    import torch

    one, two = first.adapter_.state, second.adapter_.state
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# The loop


def test_rounds_of_query_and_teach(make_learner: Factory, labelled: Labelled, pool: list) -> None:
    learner = make_learner(acquisition=Acquisition(**PUBLISHED_ACQUISITION)).fit(*labelled)
    for t in range(2):
        indices, batch = learner.query(pool, n_instances=3)
        assert batch == [pool[i] for i in indices]
        assert len(set(indices.tolist())) == 3
        learner.teach(batch, ["red", "green", "blue"])
        assert learner.rounds_[t]["query"]["lambda"] == [0.9, 0.8][t]
    assert [r["n_labels"] for r in learner.rounds_] == [8, 11, 14]
    assert learner.X_training.shape == learner.y_training.shape == (14,)
    assert learner.classes_.tolist() == sorted(COLOURS)
    assert set(learner.predict(pool)) <= set(COLOURS)
    assert 0 <= learner.score(*labelled) <= 1


def test_dicts_changed_after_the_training_change_no_labelled_item(
    make_learner: Factory, labelled: Labelled
) -> None:
    items = [{"text": text} for text in labelled[0]]
    learner = make_learner().fit(items[:6], labelled[1][:6]).teach(items[6:], labelled[1][6:])
    for item in items:
        item["text"] = "changed"
    assert [item["text"] for item in learner.X_training] == labelled[0]


@pytest.mark.parametrize("learning_rate", [1e-7, 1.5e-4])
@pytest.mark.parametrize("free_form", [False, True])
def test_a_ranking_by_an_adapter_that_has_learned_nothing_is_noted(
    make_learner: Factory,
    labelled: Labelled,
    pool: list,
    learning_rate: float,
    free_form: bool,
) -> None:
    training = Training(learning_rate=learning_rate, max_steps=1)
    learner = make_learner(training=training)
    if free_form:
        learner.set_params(task=GenerationTask("{text} Answer :", max_new_tokens=2))
    learner.fit(*labelled)
    words = r"learned nothing: its loss .* base model's is .* nats\).*higher learning rate"
    with pytest.warns(UserWarning, match=words):
        indices, _ = learner.query(pool, n_instances=3)
    # The check changes no later result. By entropy there is nothing to note.
    with pytest.warns(UserWarning, match="learned nothing"):
        assert learner.query(pool, n_instances=3)[0].tolist() == indices.tolist()
    learner.set_params(acquisition__measure="entropy").query(pool, n_instances=3)


def test_warnings_name_the_line_of_the_caller(make_learner: Factory, labelled: Labelled) -> None:
    items = labelled[0]
    short = Training(max_steps=1, learning_rate=1e-7)
    one = make_learner(task=ChoiceTask("{text} Answer :"), training=short)
    free = GenerationTask("{text}", 1, answer_pattern=r"(\w+) !$")
    calls = {
        "All labels": lambda: one.fit(items, ["red"] * 8),
        "learned nothing": lambda: make_learner(training=short).fit(*labelled).query(items[:3]),
        "are new": lambda: make_learner().fit(*labelled).query(items),
        "finds no answer": lambda: make_learner(task=free).fit(items[:2], ["red", "blue !"]),
        "are longer": lambda: make_learner(task=GenerationTask("{text}", 1)).fit(
            items[:2], ["red", "blue sky"]
        ),
    }
    for words, call in calls.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        places = [one.filename for one in caught if words in str(one.message)]
        assert places == [__file__], words


def test_an_adapter_that_has_learned_is_not_noted_where_its_masks_change_little(
    make_learner: Factory, labelled: Labelled, pool: list
) -> None:
    short = Training(max_steps=1, batch_size=4, learning_rate=5e-3)
    learner = make_learner(training=short).fit(*labelled)
    learner.query(pool, n_instances=3)  # warnings are errors
    assert learner.rounds_[-1]["query"]["max_full"] < 1e-3


def test_probabilities_belong_to_classes(make_learner: Factory, labelled: Labelled) -> None:
    learner = make_learner().fit(*labelled)
    probabilities = learner.predict_proba(labelled[0])
    assert probabilities.shape == (8, 3)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(8))
    best = learner.classes_[probabilities.argmax(axis=1)]
    assert learner.predict(labelled[0]).tolist() == best.tolist()


def test_probabilities_of_an_ensemble_of_masks(make_learner: Factory, labelled: Labelled) -> None:
    learner = make_learner(adapter=LoRA(r=4, alpha=8, dropout=0.4)).fit(*labelled)
    plain, found = (learner.predict_proba(labelled[0], n_passes=k) for k in (1, 3))
    assert np.array_equal(plain, learner.predict_proba(labelled[0]))
    assert found.sum(axis=1) == pytest.approx(np.ones(8))
    assert np.abs(found - plain).max() > 1e-4, "masks are at work"
    assert np.array_equal(found, learner.predict_proba(labelled[0], n_passes=np.int64(3)))
    # H[mean] = mean H + I: the masks are those by which a query of this round ranks.
    scores = learner.set_params(acquisition__measure="mutual_information").uncertainty(labelled[0])
    total = -(found * np.log(found)).sum(axis=1)
    assert total == pytest.approx(scores.entropy + scores.mutual_information, abs=1e-6)


@pytest.mark.parametrize("n_passes", [0, -1, 2.0, True, "3", None])
def test_passes_of_an_ensemble_are_checked(
    make_learner: Factory, labelled: Labelled, n_passes: Any
) -> None:
    learner = make_learner().fit(*labelled)
    with pytest.raises(InputError, match="whole number, at least 1"):
        learner.predict_proba(labelled[0], n_passes=n_passes)


def test_an_ensemble_needs_dropout(make_learner: Factory, labelled: Labelled) -> None:
    learner = make_learner(
        adapter=LoRA(r=4, dropout=0.0), acquisition=Acquisition(measure="entropy", n_passes=1)
    )
    learner.fit(*labelled)
    with pytest.raises(InputError, match=r"predict_proba\(n_passes=3\) needs dropout"):
        learner.predict_proba(labelled[0], n_passes=3)


def test_training_on_enough_steps_is_learnt(make_learner: Factory, labelled: Labelled) -> None:
    learner = make_learner(training=Training(max_steps=60, learning_rate=1e-2))
    assert learner.fit(*labelled).score(*labelled) == 1.0


@pytest.mark.parametrize("labels", [[1, 2, 1, 2], [True, False, True, False]])
def test_labels_keep_their_type(make_learner: Factory, labels: list) -> None:
    learner = make_learner(task=ChoiceTask("{text} Answer :"))
    learner.fit(["the sky", "grass", "a sea", "a leaf"], labels)
    assert learner.predict(["the sky"]).dtype == np.asarray(labels).dtype
    assert learner.classes_.tolist() == sorted(set(labels))


def test_free_form_answers(make_learner: Factory, labelled: Labelled, pool: list) -> None:
    task = GenerationTask("{text} Answer :", max_new_tokens=8, answer_pattern=r"is (\w+)")
    learner = make_learner(task=task, training=Training(max_steps=60, learning_rate=1e-2))
    items, colours = labelled
    answers = [f"the colour of {colour} is {colour}" for colour in colours]
    learner.fit(items, answers)
    assert learner.predict(items).tolist() == colours
    assert learner.predict(items, raw=True).tolist() == answers, "the working"
    assert learner.score(items, answers) == 1.0
    found = learner.uncertainty(pool)
    assert [len(text.split()) for text in found.answers] == (found.n_tokens - 1).tolist()
    assert not hasattr(learner, "predict_proba")
    indices, _ = learner.query(pool, 2)
    assert indices.tolist() == np.argsort(-found.mixed, kind="stable")[:2].tolist()


def test_a_pattern_that_finds_no_label_is_refused_with_the_rows(
    make_learner: Factory, labelled: Labelled
) -> None:
    items, colours = labelled
    task = GenerationTask("{text} Answer :", max_new_tokens=4, answer_pattern=r"#### (\w+)")
    learner = make_learner(task=task)
    words = r"'#### .*finds no answer in 8 of 8 labels.*row 0: 'blue'.*change answer_pattern"
    with pytest.raises(InputError, match=words):
        learner.fit(items, colours)
    some = ["#### blue", *colours[1:]]
    with pytest.warns(UserWarning, match=r"in 7 of 8 labels.*row 1: 'green'"):
        learner.fit(items, some)
    with pytest.raises(InputError, match=words):
        learner.score(items, colours)  # bare answers, which no answer would equal


def test_labels_longer_than_the_answers_may_be_are_named_with_the_rows(
    make_learner: Factory,
) -> None:
    learner = make_learner(task=GenerationTask("{text} Answer :", max_new_tokens=3))
    long = "the colour is blue"
    words = r"max_new_tokens=3.*row 0: 4 tokens.*Set max_new_tokens=4"
    with pytest.warns(UserWarning, match=r"2 of 2 labels are longer.*" + words):
        learner.fit(["the sky", "the sea"], [long, long])
    with pytest.warns(UserWarning, match=r"1 of 2 labels are longer.*" + words):
        learner.fit(["the sky", "the sea"], [long, "it is blue"])
    # Where the answer is among the first tokens, nothing of it is cut.
    learner.set_params(task__answer_pattern=r"^(\w+)")
    learner.fit(["the sky", "the sea"], ["blue is the sky", "blue is the sea"])


def test_raw_predictions_over_choices_are_the_labels(
    make_learner: Factory, labelled: Labelled
) -> None:
    learner = make_learner().fit(*labelled)
    assert learner.predict(labelled[0], raw=True).tolist() == learner.predict(labelled[0]).tolist()


def test_cold_start_asks_the_base_model(make_learner: Factory, pool: list) -> None:
    learner = make_learner()
    found = learner.uncertainty(pool)
    assert np.array_equal(found.base, found.full)
    indices, _ = learner.query(pool, 4)
    assert set(indices) == set(np.argsort(-found.base)[:4])
    with pytest.raises(NotFittedError, match="choices"):
        make_learner(task=ChoiceTask("{text}")).query(pool, 4)
    with pytest.raises(NotFittedError, match="fit"):
        learner.predict(pool)


@pytest.mark.parametrize("free_form", [False, True])
def test_a_model_of_nan_chooses_nothing(tmp_path: Path, pool: list, free_form: bool) -> None:
    from safetensors.torch import load_file, save_file

    folder = build_model(tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    task: Any = GenerationTask("{text}", 2) if free_form else ChoiceTask("{text}", COLOURS)
    with pytest.raises(NotFiniteError, match=r"48 of 48 items: row 0;.*nothing was chosen"):
        STARLearner(folder, task=task, verbose=False).query(pool, 3)


def test_measures_and_mix(make_learner: Factory, labelled: Labelled, pool: list) -> None:
    learner = make_learner(training=Training(max_steps=20, learning_rate=2e-2)).fit(*labelled)
    for measure in ("entropy", "predictive_entropy", "mutual_information"):
        learner.set_params(acquisition__measure=measure, acquisition__schedule=0.0)
        found = learner.uncertainty(pool)
        assert all(len(getattr(found, name)) == len(pool) for name in (*FIELDS, "answers"))
        if measure != "predictive_entropy":
            assert found.full == pytest.approx(getattr(found, measure))
        assert np.array_equal(np.argsort(found.mixed), np.argsort(found.full))
        learner.set_params(acquisition__schedule=1.0)
        found = learner.uncertainty(pool)
        assert np.array_equal(np.argsort(found.mixed), np.argsort(found.base))
    assert (found.mutual_information > 0).all()
    learner.set_params(acquisition__n_passes=1)
    with pytest.raises(InputError, match="Set n_passes=3, or measure='entropy'"):
        learner.query(pool, 2)
    learner.set_params(acquisition__measure="entropy")
    assert (learner.uncertainty(pool).mutual_information == 0).all()


def test_a_random_draw_is_seeded_and_needs_no_weights(make_learner: Factory, pool: list) -> None:
    learner = make_learner(acquisition=Acquisition(strategy="random"))
    first, _, metrics = learner.query(pool, 5, return_metrics=True)
    assert np.isnan(metrics).all()
    assert "model" not in vars(learner._base.backbone)
    again = make_learner(acquisition=Acquisition(strategy="random"), random_state=8)
    assert first.tolist() != again.query(pool, 5)[0].tolist()


def test_running_out_of_memory_can_travel_between_processes() -> None:
    error = OutOfMemoryError(3, 9, 2, while_training=True)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(again) == str(error)
    assert (again.index, again.length, again.n_passes) == (3, 9, 2)


def test_a_first_fit_that_fails_keeps_the_model_that_it_loaded(
    make_learner: Factory, labelled: Labelled
) -> None:
    learner = make_learner()
    learner.set_params(callbacks=[_interrupts])
    with pytest.raises(KeyboardInterrupt):
        learner.fit(*labelled)
    assert not hasattr(learner, "rounds_")
    loaded = learner._base.backbone.model
    learner.set_params(callbacks=()).fit(*labelled)
    assert learner._base.backbone.model is loaded


def _interrupts(progress: object) -> None:
    raise KeyboardInterrupt


def test_bootstrap_and_only_new(make_learner: Factory, labelled: Labelled) -> None:
    items, labels = labelled
    whole = make_learner().fit(items[:4], labels[:4]).teach(items[4:], labels[4:])
    new = make_learner().fit(items[:4], labels[:4]).teach(items[4:], labels[4:], only_new=True)
    bag = make_learner().fit(items[:4], labels[:4]).teach(items[4:], labels[4:], bootstrap=True)
    assert len(whole.X_training) == len(new.X_training) == len(bag.X_training) == 8
    assert not same_adapter(whole, new)
    assert not same_adapter(whole, bag)


def test_warm_start_continues(make_learner: Factory, labelled: Labelled) -> None:
    import torch

    settings = {"max_steps": 1, "batch_size": 4, "learning_rate": 1e-9}
    warm = make_learner(training=Training(**settings, warm_start=True)).fit(*labelled)
    before = dict(warm.adapter_.state)
    warm.teach(["night sky"], ["blue"])
    a = next(name for name in before if "lora_A" in name)
    assert torch.allclose(before[a], warm.adapter_.state[a], atol=1e-7)
    fresh = make_learner(training=Training(**settings)).fit(*labelled)
    fresh.teach(["night sky"], ["blue"])
    assert not torch.allclose(before[a], fresh.adapter_.state[a], atol=1e-3)


# Scoring never spoils training


def test_scoring_between_two_fits_changes_nothing(
    make_learner: Factory, labelled: Labelled, pool: list
) -> None:
    plain, scored = make_learner().fit(*labelled), make_learner().fit(*labelled)
    assert same_adapter(plain, scored)
    scored.query(pool, 3)
    scored.predict_proba(pool)
    plain.fit(*labelled)
    scored.fit(*labelled)
    assert same_adapter(plain, scored)


@pytest.mark.parametrize("method", ["fit", "teach"])
def test_a_failed_training_leaves_the_learner_as_it_was(
    make_learner: Factory,
    labelled: Labelled,
    pool: list,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    learner = make_learner().fit(*labelled)
    learner.query(pool, 2)
    before, history = learner.predict_proba(pool), list(learner.rounds_)
    for error, failure in [(TrainingDivergedError, float("nan")), (KeyboardInterrupt, None)]:

        def broken(self: Any, model: Any, inputs: Any, failure: Any = failure, **_: Any) -> Any:
            if failure is None:
                raise KeyboardInterrupt
            return sum(p.sum() for p in model.parameters() if p.requires_grad) * failure

        with monkeypatch.context() as patch:
            patch.setattr(trainer_module._AdapterTrainer, "compute_loss", broken)
            with pytest.raises(error):
                getattr(learner, method)(["night sky"], ["blue"])
        assert len(learner.y_training) == 8
        assert learner.rounds_ == history
        assert np.array_equal(learner.predict_proba(pool), before)
    learner.teach(["night sky"], ["blue"])
    assert len(learner.y_training) == 9


# No label is read before it is bought


class Guarded(dict):
    """An item whose label raises when it is touched."""

    def __getitem__(self, key: str) -> Any:
        if key == "label":
            raise RuntimeError("a label was read before it was bought")
        return super().__getitem__(key)

    def values(self) -> Any:
        raise RuntimeError("all fields were read")

    items = values


@pytest.mark.parametrize("choices", [True, False])
def test_labels_of_the_pool_are_never_touched(
    make_learner: Factory, labelled: Labelled, pool: list, choices: bool
) -> None:
    task: Any = ChoiceTask("{text}", COLOURS) if choices else GenerationTask("{text}", 3)
    learner = make_learner(task=task).fit(*labelled)
    guarded = [Guarded(text=text, label="secret") for text in pool]
    indices, batch = learner.query(guarded, 3)
    learner.uncertainty(guarded)
    assert [item["text"] for item in batch] == [pool[i] for i in indices]
    with pytest.raises(RuntimeError, match="before it was bought"):
        guarded[0]["label"]


# Same seed, same picks


@pytest.mark.parametrize("free_form", [False, True])
def test_same_scores_in_another_batch_size_and_order(
    make_learner: Factory, labelled: Labelled, pool: list, free_form: bool
) -> None:
    task: Any = GenerationTask("{text} is", 4) if free_form else ChoiceTask("{text} is", COLOURS)
    learner = make_learner(task=task).fit(*labelled)
    expected = learner.uncertainty(pool)
    picks = learner.query(pool, 6)[0]
    order = np.random.default_rng(0).permutation(len(pool))
    shuffled = [pool[i] for i in order]
    for budget in (1, 100, 1000):
        again = make_learner(task=task).fit(*labelled)
        again.set_params(acquisition__max_batch_tokens=budget)
        found = again.uncertainty(shuffled)
        for name in FIELDS:
            assert np.array_equal(getattr(found, name), getattr(expected, name)[order]), name
        assert order[again.query(shuffled, 6)[0]].tolist() == picks.tolist()


SCRIPT = """
import json, sys
from starlearn import Acquisition, ChoiceTask, LoRA, STARLearner, Training
import torch
torch.set_num_threads(1)
given = json.load(sys.stdin)
learner = STARLearner(given["model"], task=ChoiceTask("{text} Answer :", choices=given["choices"]),
    adapter=LoRA(r=4, alpha=8, dropout=0.2), acquisition=Acquisition(n_passes=3),
    training=Training(max_steps=4, batch_size=4, learning_rate=5e-3), random_state=7, verbose=False)
learner.fit(given["items"], given["labels"])
print(json.dumps(learner.query(given["pool"], 6)[0].tolist()))
"""


def test_same_picks_in_another_process(
    make_learner: Factory, labelled: Labelled, pool: list, tiny_model: str
) -> None:
    given = {"model": tiny_model, "choices": COLOURS, "pool": pool}
    given.update(items=labelled[0], labels=labelled[1])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout) == make_learner().fit(*labelled).query(pool, 6)[0].tolist()


def test_another_seed_gives_other_picks_and_none_gives_any(
    make_learner: Factory, labelled: Labelled, pool: list
) -> None:
    own = Acquisition(schedule=0.0)  # the base model is the same for all seeds
    picks = {
        tuple(
            make_learner(random_state=seed, acquisition=own)
            .fit(*labelled)
            .query(pool, 6)[0]
            .tolist()
        )
        for seed in (1, 2, np.random.RandomState(3), None)
    }
    assert len(picks) > 1


# Every container gives the same result


def dataset(texts: list[str]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"text": texts})


CONTAINERS: dict[str, Callable[[list[str]], Any]] = {
    "array": lambda texts: np.array(texts, dtype=object),
    "series": lambda texts: pd.Series(texts, index=list(range(len(texts)))[::-1]),
    "frame": lambda texts: pd.DataFrame({"text": texts}, index=list(range(len(texts)))[::-1]),
    "dicts": lambda texts: [{"text": text} for text in texts],
    "dataset": dataset,
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_the_same_result(
    make_learner: Factory, labelled: Labelled, pool: list, kind: str
) -> None:
    wrap = CONTAINERS[kind]
    expected, learner = make_learner().fit(*labelled), make_learner()
    learner.fit(wrap(labelled[0]), pd.Series(labelled[1], index=range(8, 0, -1)))
    assert same_adapter(expected, learner)
    indices, batch = learner.query(wrap(pool), 4)
    assert indices.tolist() == expected.query(pool, 4)[0].tolist()
    assert type(batch) is type(wrap(pool))
    assert np.array_equal(learner.predict_proba(wrap(pool)), expected.predict_proba(pool))
    learner.teach(batch, ["red"] * 4)
    assert len(learner.X_training) == 12


def test_a_generator_is_read_once(make_learner: Factory, labelled: Labelled, pool: list) -> None:
    learner = make_learner().fit((text for text in labelled[0]), labelled[1])
    indices, batch = learner.query((text for text in pool), 2)
    assert batch == [pool[i] for i in indices]


# Manners of a scikit-learn estimator


def test_clone_and_parameters(make_learner: Factory) -> None:
    learner = make_learner(random_state=3)
    copy = clone(learner.set_params(adapter__r=8, training__learning_rate=1e-4))
    assert copy.adapter.r == 8
    assert copy.adapter is not learner.adapter
    assert copy.get_params()["training__learning_rate"] == 1e-4
    assert "STARLearner" in repr(copy)
    assert "STARLearner" in copy._repr_html_()


def test_parts_that_were_left_out_can_be_set() -> None:
    learner = STARLearner().set_params(adapter__r=8, acquisition__n_passes=5)
    assert (learner.adapter.r, learner.acquisition.n_passes) == (8, 5)
    assert learner.training is None
    assert learner.set_params(adapter=None, adapter__r=2).adapter.r == 2
    with pytest.raises(InputError, match="LoRA has no parameter 'rank'"):
        learner.set_params(adapter__rank=8)
    with pytest.raises(InputError, match="STARLearner has no parameter 'no_such_part'"):
        learner.set_params(no_such_part__r=8)


def test_grid_search_and_cross_validation(make_learner: Factory, labelled: Labelled) -> None:
    items, labels = labelled[0] * 2, labelled[1] * 2
    search = GridSearchCV(make_learner(), {"training__learning_rate": [1e-6, 2e-2]}, cv=2)
    search.estimator.set_params(training__max_steps=25)
    search.fit(items, labels)
    assert search.best_params_ == {"training__learning_rate": 2e-2}
    scores = cross_val_score(make_learner(), items, labels, cv=2)
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()


def test_pickle_round_trip(make_learner: Factory, labelled: Labelled, pool: list) -> None:
    learner = make_learner().fit(*labelled)
    content = pickle.dumps(learner)
    # The base model does not travel: 77 k parameters would be over 100 kB.
    assert len(content) < 60_000
    again = pickle.loads(content)  # noqa: S301
    assert np.array_equal(again.predict_proba(pool), learner.predict_proba(pool))
    assert again.query(pool, 3)[0].tolist() == learner.query(pool, 3)[0].tolist()
    assert pickle.loads(pickle.dumps(make_learner())).get_params()["random_state"] == 7  # noqa: S301


def test_base_scores_are_computed_once(
    make_learner: Factory, labelled: Labelled, pool: list
) -> None:
    learner = make_learner(acquisition=Acquisition(**PUBLISHED_ACQUISITION)).fit(*labelled)
    learner.query(pool, 2)
    kept = learner._base.store._memory
    base = [key for key in kept if not key[0].endswith("*")]
    assert len(base) == len(pool)
    learner.teach(["night sky"], ["blue"]).query(pool, 2)
    assert [key for key in kept if not key[0].endswith("*")] == base


# Bad input is refused at the door, before any model work


@pytest.fixture
def unloadable(make_learner: Factory, monkeypatch: pytest.MonkeyPatch) -> STARLearner:
    """A learner whose base model must not be loaded."""
    from starlearn.model.backbone import Backbone

    def fail(self: Any) -> Any:
        raise RuntimeError("the model was loaded")

    monkeypatch.setattr(Backbone, "model", property(fail))
    return make_learner()


@pytest.mark.parametrize(
    ("X", "y", "reason"),
    [
        (["a", ""], ["red", "red"], r"row 1: .*empty"),
        (["a", None], ["red", "red"], r"row 1: .*NoneType"),
        (["a", 3], ["red", "red"], r"row 1: .*int"),
        (["a"], ["red", "blue"], "1 items and 2 labels"),
        (["a", "b"], ["red", "pink"], r"row 1: 'pink'.*choices"),
        ([{"text": "a"}, {"texts": "a"}], ["red", "red"], r"row 1: .*\{text\}.*texts"),
        (["a " * 70], ["red"], r"row 0: 7\d tokens"),
        ([], [], "empty"),
        ("a text", ["red"], "collection"),
    ],
)
def test_bad_labelled_data(unloadable: STARLearner, X: Any, y: Any, reason: str) -> None:
    for method in (unloadable.fit, unloadable.teach):
        with pytest.raises(InputError, match=reason):
            method(X, y)


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "3", None, 49])
def test_bad_number_of_instances(unloadable: STARLearner, pool: list, n: Any) -> None:
    with pytest.raises(InputError, match="n_instances"):
        unloadable.query(pool, n_instances=n)


@pytest.mark.parametrize("bad", [["a", " "], ["a", float("nan")], ["a " * 70], []])
def test_bad_pool(unloadable: STARLearner, bad: list) -> None:
    for method in (unloadable.query, unloadable.uncertainty):
        with pytest.raises(InputError):
            method(bad)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapter": LoRA(dropout=0.0)}, "dropout"),
        ({"adapter": Training()}, "adapter=.*must be a LoRA"),
        ({"task": "Answer:"}, "task=.*must be a Task"),
        ({"task": Task()}, "task=.*must be a Task"),
        ({"quantization": np.array(["nf4"])}, "quantization"),
        ({"acquisition": Acquisition(n_passes=0)}, "n_passes"),
        ({"acquisition": Acquisition(distinct=True)}, "'exact', 'none' or a cosine"),
        ({"quantization": "int3"}, "quantization"),
    ],
)
def test_bad_parameters(
    unloadable: STARLearner, labelled: Labelled, changes: dict, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        unloadable.set_params(**changes).fit(*labelled)


def test_bad_model_folder(labelled: Labelled, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model folder"):
        STARLearner(tmp_path / "none").fit(*labelled)


def test_scoring_against_labels_that_cannot_be(make_learner: Factory, labelled: Labelled) -> None:
    learner = make_learner().fit(*labelled)
    with pytest.raises(InputError, match="choices"):
        learner.score(["a"], ["Blue"])
    with pytest.raises(InputError, match="Convert them"):
        learner.score(["a"], [1])
    seen = make_learner(task=ChoiceTask("{text}")).fit(*labelled)
    with pytest.raises(InputError, match="type that fit received"):
        seen.score(["a"], [1])
    assert seen.score(["a"], ["a class that fit has not seen"]) == 0.0
    with pytest.raises(ValueError, match="sample_weight"):
        learner.score(labelled[0], labelled[1], sample_weight="heavy")


def test_an_adapter_is_never_used_on_another_base(
    make_learner: Factory, labelled: Labelled, pool: list, tmp_path: Path
) -> None:
    learner = make_learner().fit(*labelled).set_params(quantization="none")
    for call in (learner.predict, learner.query, learner.uncertainty):
        with pytest.raises(ModelMismatchError, match="quantisation"):
            call(pool)
    with pytest.raises(ModelMismatchError):
        learner.save(tmp_path / "saved")
    learner.set_params(quantization="nf4").predict(pool)


def test_earlier_labels_are_checked_against_new_choices(
    make_learner: Factory, labelled: Labelled
) -> None:
    learner = make_learner().fit(*labelled).set_params(task__choices=["red", "pink"])
    with pytest.raises(InputError, match="'blue'"):
        learner.teach(["a"], ["pink"])


def test_a_query_before_fit_does_not_make_it_fitted(make_learner: Factory, pool: list) -> None:
    learner = make_learner()
    learner.query(pool, 2)
    with pytest.raises(NotFittedError):
        check_is_fitted(learner)


def test_a_random_draw_needs_no_choices(make_learner: Factory, pool: list) -> None:
    learner = make_learner(task=ChoiceTask("{text}"), acquisition=Acquisition(strategy="random"))
    assert len(learner.query(pool, 3)[1]) == 3


def test_one_class_alone_is_trained_with_a_warning(make_learner: Factory) -> None:
    with pytest.warns(UserWarning, match="Name all classes"):
        make_learner(task=ChoiceTask("{text}")).fit(["a", "b"], ["red", "red"])


@pytest.mark.parametrize("seed", ["a", -1, 1.5, np.random.default_rng(0)])
def test_bad_random_state(make_learner: Factory, labelled: Labelled, seed: Any) -> None:
    with pytest.raises(InputError, match="random_state"):
        make_learner(random_state=seed).fit(*labelled)


def test_mixed_label_types_across_rounds(make_learner: Factory) -> None:
    learner = make_learner(task=ChoiceTask("{text}"))
    learner.fit(["a", "b"], ["1", "4"])
    with pytest.raises(InputError, match="mixed types"):
        learner.teach(["c"], [1])
    assert len(learner.y_training) == 2
