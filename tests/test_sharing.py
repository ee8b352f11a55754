"""One base model in memory for a learner, its clones and a committee of learners."""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from modAL.disagreement import consensus_entropy_sampling
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from tiny_models import build_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from starlearn.errors import InputError
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.modal import ActiveLearner, Committee, star_sampling
from starlearn.settings import Acquisition, Training

Factory = Callable[..., STARLearner]
Labelled = tuple[list[str], list[str]]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The base models whose weights were loaded, in order."""
    names: list[str] = []
    load = AutoModelForCausalLM.from_pretrained

    def counted(source: str, **arguments: Any) -> Any:
        names.append(source)
        return load(source, **arguments)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    return names


def storages(learners: list[STARLearner]) -> dict[int, int]:
    """Return bytes by address of all that the models of some learners hold, quantisation too."""
    found: dict[int, int] = {}

    def add(thing: Any) -> None:
        if hasattr(thing, "untyped_storage"):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif type(thing).__name__ == "QuantState":
            for part in vars(thing).values():
                add(part)

    for learner in learners:
        model = base_of(learner).backbone.model
        for tensor in (*model.parameters(), *model.buffers()):
            add(tensor)
            add(getattr(tensor, "quant_state", None))
    found.pop(0, None)  # of empty tensors
    return found


def adapter_bytes(learner: STARLearner) -> int:
    return sum(tensor.nbytes for tensor in learner.adapter_.state.values())


def members(make_learner: Factory, n: int = 4) -> list[STARLearner]:
    quick = Training(max_steps=1, learning_rate=2e-2)
    return [make_learner(random_state=seed, training=quick) for seed in range(n)]


def test_a_committee_holds_one_base_model(
    make_learner: Factory, labelled: Labelled, pool: list, loads: list
) -> None:
    alone = make_learner().fit(*labelled)
    alone.predict(pool)
    one_base, one_adapter = sum(storages([alone]).values()), adapter_bytes(alone)
    loads.clear()
    inner = members(make_learner)
    committee = Committee(
        [*inner[:2], *(ActiveLearner(one, star_sampling) for one in inner[2:])],
        consensus_entropy_sampling,
    )
    committee.fit(*labelled)
    committee.teach(committee.query(pool, n_instances=2)[1], ["red", "blue"])
    committee.vote_proba(pool)
    assert len(loads) == 1
    assert len({id(base_of(one).backbone) for one in inner}) == 1
    first = {n: p.data_ptr() for n, p in base_of(inner[0]).backbone.model.named_parameters()}
    for one in inner[1:]:
        mine = {n: p.data_ptr() for n, p in base_of(one).backbone.model.named_parameters()}
        assert mine == first
    held = sum(storages(inner).values()) + sum(map(adapter_bytes, inner))
    assert held <= one_base + 4 * one_adapter
    # Apart from each other they would hold four.
    apart = [one.fit(*labelled) for one in members(make_learner)]
    assert sum(storages(apart).values()) > 3.9 * one_base


def test_members_answer_as_if_each_were_alone(
    make_learner: Factory, labelled: Labelled, pool: list
) -> None:
    committee = Committee(list(members(make_learner, 3))).fit(*labelled)
    committee.teach(["night sky", "sand is"], ["blue", "red"])
    votes = committee.vote_proba(pool)
    assert np.array_equal(committee.vote_proba(pool), votes)
    for place, alone in enumerate(members(make_learner, 3)):
        alone.fit(*labelled).teach(["night sky", "sand is"], ["blue", "red"])
        assert np.array_equal(alone.predict_proba(pool), votes[:, place])
        found = alone.uncertainty(pool)
        assert np.array_equal(committee.learner_list[place].uncertainty(pool).mixed, found.mixed)


def test_base_scores_are_computed_once_for_all_members(
    make_learner: Factory, labelled: Labelled, pool: list
) -> None:
    first, second = Committee(list(members(make_learner, 2))).fit(*labelled).learner_list
    first.query(pool, 2)
    known = len(base_of(first).store._memory)
    second.query(pool, 2)
    assert base_of(second).store is base_of(first).store
    assert len(base_of(second).store._memory) == known + len(pool)  # its full scores alone


def test_members_of_other_bases_keep_their_own(
    make_learner: Factory, labelled: Labelled, tmp_path: Any, loads: list
) -> None:
    other = str(build_model(tmp_path / "other", hidden_size=32))
    learners = [
        make_learner(),
        make_learner().set_params(model=other),
        make_learner(quantization="none"),
        make_learner(random_state=1, cache_dir=str(tmp_path / "scores")),
    ]
    committee = Committee(learners).fit(*labelled)
    committee.predict(labelled[0])
    assert len(loads) == 3
    first, *_, cached = (base_of(one) for one in learners)
    assert cached.backbone is first.backbone
    assert cached.store is not first.store


def test_learners_that_had_loaded_give_their_copies_up(
    make_learner: Factory, labelled: Labelled, pool: list
) -> None:
    one, two = make_learner().fit(*labelled), make_learner(random_state=1).fit(*labelled)
    before = two.predict_proba(pool)
    assert base_of(one) is not base_of(two)
    Committee([one, two])
    assert base_of(one) is base_of(two)
    assert np.array_equal(two.predict_proba(pool), before)


def test_a_committee_shares_again_after_clone_and_pickle(
    make_learner: Factory, labelled: Labelled, pool: list, loads: list
) -> None:
    committee = Committee(list(members(make_learner, 3))).fit(*labelled)
    expected = committee.predict_proba(pool)
    for again in (
        pickle.loads(pickle.dumps(committee)),  # noqa: S301 - our own bytes
        copy.deepcopy(committee),
        clone(committee).fit(*labelled),
    ):
        loads.clear()
        assert np.array_equal(again.predict_proba(pool), expected)
        assert len(loads) <= 1
        assert len({id(base_of(one)) for one in again}) == 1


def test_a_learner_joined_later_shares_too(make_learner: Factory, labelled: Labelled) -> None:
    committee = Committee([make_learner()])
    committee.learner_list.append(make_learner(random_state=1))
    committee.fit(*labelled)
    assert len({id(base_of(one)) for one in committee}) == 1


def test_a_search_loads_the_base_model_once(
    make_learner: Factory, labelled: Labelled, loads: list
) -> None:
    items, labels = labelled[0] * 2, labelled[1] * 2
    learner = make_learner().set_params(training__max_steps=1)
    GridSearchCV(learner, {"adapter__r": [1, 2]}, cv=2).fit(items, labels)
    cross_val_score(learner, items, labels, cv=2)
    assert len(loads) == 1


def test_a_learner_answers_from_one_training_while_another_thread_trains_it(
    make_learner: Factory, labelled: Labelled, pool: list
) -> None:
    learner = make_learner().set_params(training__max_steps=2)
    items, labels = labelled
    rights = [clone(learner).fit(items[:n], labels[:n]).predict_proba(pool) for n in (6, 8)]
    training, stop = threading.Event(), threading.Event()
    learner.set_params(callbacks=[lambda progress: training.set()]).fit(items[:6], labels[:6])

    def train() -> None:
        for n in (8, 6, 8, 6):
            learner.fit(items[:n], labels[:n])
        stop.set()

    def answer() -> list[Any]:
        found = []
        while not stop.is_set():
            training.wait()
            found.append(learner.predict_proba(pool))
            learner.predict(pool)
            learner.query(pool, 2)
        return found

    with ThreadPoolExecutor(2) as threads:
        answers, trained = threads.submit(answer), threads.submit(train)
        trained.result()
        found = answers.result()
    assert all(any(np.array_equal(one, right) for right in rights) for one in found)


def test_a_callback_that_calls_its_learner_does_not_wait_for_itself(
    make_learner: Factory, labelled: Labelled, pool: list
) -> None:
    learner = make_learner()

    def ask(progress: Any) -> None:
        learner.predict(pool)

    learner.fit(*labelled)
    learner.set_params(callbacks=[ask])
    with pytest.raises(InputError, match="callback called a learner"):
        learner.fit(*labelled)


def test_a_clone_without_a_model_is_no_error() -> None:
    learner = STARLearner("no/such/folder")
    assert clone(learner).model == "no/such/folder"


def test_threads_take_turns(make_learner: Factory, labelled: Labelled, pool: list) -> None:
    learner = make_learner().set_params(training__max_steps=2)
    apart = [clone(learner).set_params(random_state=seed) for seed in range(3)]
    expected = [clone(one).fit(*labelled).predict_proba(pool) for one in apart]

    def work(one: STARLearner) -> Any:
        one.fit(*labelled)
        one.query(pool, 2)
        return one.predict_proba(pool)

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(work, apart))
    assert all(np.array_equal(x, y) for x, y in zip(found, expected, strict=True))


def test_two_quantisations_that_python_calls_equal(
    make_learner: Factory, labelled: Labelled, pool: list
) -> None:
    def config(kind: str) -> Any:
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind)

    assert config("nf4") == config("fp4")
    own = Acquisition(measure="entropy", n_passes=1)
    learner = make_learner(quantization=config("nf4"), acquisition=own)
    first = learner.uncertainty(pool).base
    learner.set_params(quantization=config("fp4"))
    expected = make_learner(quantization=config("fp4"), acquisition=own).uncertainty(pool).base
    assert np.array_equal(learner.uncertainty(pool).base, expected)
    assert not np.array_equal(first, expected)


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Models of one test must not be counted in the next."""
    import gc

    yield
    gc.collect()
