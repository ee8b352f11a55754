"""A learner's calls: each item is filled once, and the base model runs where it is used."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starlearn import tasks
from starlearn.errors import InputError
from starlearn.export.saving import parameters_from_json
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.query.budget import Budget
from starlearn.query.scoring import Scorer
from starlearn.settings import PUBLISHED_ACQUISITION, Acquisition
from starlearn.tasks import ChoiceTask

Factory = Callable[..., STARLearner]


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count how often each item is brought to the prompt's fields."""
    counts: Counter[str] = Counter()
    fill_one = tasks._fill_one

    def counted(item: Any, fields: list[str]) -> Any:
        counts[item if isinstance(item, str) else item["text"]] += 1
        return fill_one(item, fields)

    monkeypatch.setattr(tasks, "_fill_one", counted)
    return counts


def test_an_item_is_filled_once_per_call(
    make_learner: Factory, labelled: Any, pool: list[str], filled: Counter[str]
) -> None:
    learner = make_learner().fit(*labelled)
    assert set(filled.values()) == {1}
    filled.clear()
    learner.predict(pool)
    assert filled == Counter(pool)
    filled.clear()
    _, batch = learner.query(pool, 3)
    assert filled == Counter([*pool, *labelled[0]])
    filled.clear()
    learner.teach(batch, ["blue", "red", "green"])
    assert filled == Counter([*labelled[0], *batch])


@pytest.fixture
def base_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the runs of the base model for scores."""
    runs: list[str] = []
    original = Scorer._base_work

    def noted(scorer: Scorer, bar: Any, *, counts: bool = False) -> Any:
        if not counts:
            runs.append("base")
        return original(scorer, bar, counts=counts)

    monkeypatch.setattr(Scorer, "_base_work", noted)
    return runs


def test_the_base_model_runs_only_where_its_scores_are_used(
    make_learner: Factory, labelled: Any, pool: list[str], base_runs: list[str]
) -> None:
    learner = make_learner()
    learner.query(pool, 2)  # before the first training there is nothing else
    assert base_runs.pop()
    base_of(learner).store._memory.clear()
    learner.fit(*labelled)
    default = learner.query(pool, 5, return_metrics=True)
    assert not base_runs
    assert "mean_base" not in learner.rounds_[-1]["query"]
    assert learner.uncertainty(pool).base is not None
    assert base_runs.pop()
    learner.set_params(acquisition=Acquisition(**PUBLISHED_ACQUISITION))
    base_of(learner).store._memory.clear()
    learner.query(pool, 5)
    assert base_runs.pop()
    assert learner.rounds_[-1]["query"]["mean_base"] > 0
    # The picks are those of a query that scores the base model too and does not use it.
    learner.set_params(acquisition=Acquisition())
    mixed = learner.uncertainty(pool).mixed
    assert default[2].tolist() == mixed[default[0]].tolist()


def test_a_function_chooses_the_batch(make_learner: Factory, labelled: Any, pool: list) -> None:
    seen: list[Any] = []

    def least(scores: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        seen.append((scores.copy(), n, rng.integers(1000)))
        return np.argsort(scores, kind="stable")[:n]

    learner = make_learner(acquisition=Acquisition(select=least)).fit(*labelled)
    index, batch, metrics = learner.query(pool, 4, return_metrics=True)
    scores = learner.uncertainty(pool).mixed
    assert index.tolist() == np.argsort(scores, kind="stable")[:4].tolist()
    assert batch == [pool[i] for i in index]
    assert metrics.tolist() == scores[index].tolist()
    assert seen[0][0].tolist() == scores.tolist()
    learner.query(pool, 4)
    assert seen[0][2] == seen[1][2]  # the generator comes from random_state
    few = learner.query(pool, 4, budget=Budget(2))[0]
    assert few.tolist() == index[:2].tolist()


@pytest.mark.parametrize(
    "answer", [[0, 0], [0], [-1, 0], [0, 10**6], [0.5, 1.5], [[0, 1]], None, ["a", "b"]]
)
def test_a_function_that_returns_no_batch_is_refused(
    make_learner: Factory, labelled: Any, pool: list[str], answer: Any
) -> None:
    learner = make_learner(acquisition=Acquisition(select=lambda scores, n, rng: answer))
    learner.fit(*labelled)
    with pytest.raises(InputError, match="must return 2 different indices from 0 to"):
        learner.query(pool, 2)


def test_a_learner_with_a_function_is_not_saved(
    make_learner: Factory, labelled: Any, tmp_path: Path
) -> None:
    learner = make_learner(acquisition=Acquisition(select=lambda scores, n, rng: range(n)))
    learner.fit(*labelled)
    with pytest.raises(InputError, match=r"acquisition.select is a function.*select=None"):
        learner.save(tmp_path / "learner")
    learner.set_params(acquisition__select=None).save(tmp_path / "learner")


def test_bad_input_is_refused_before_the_models_folder_is_opened() -> None:
    learner = STARLearner("/no/such/folder", task=ChoiceTask("{text}", choices=["a", "b"]))
    with pytest.raises(InputError, match="X_pool is empty"):
        learner.query([])
    with pytest.raises(InputError, match="n_instances=5"):
        learner.query(["a"], 5)
    with pytest.raises(InputError, match="row 0: expected a string"):
        learner.uncertainty([None])
    with pytest.raises(InputError, match="engine='rya'"):
        learner.uncertainty(["a"], engine="rya")
    with pytest.raises(InputError, match="X is empty"):
        learner.transform([])


def test_a_function_chooses_the_batch_of_workers_too(
    make_learner: Factory, labelled: Any, pool: list[str], in_place_of_ray: list[str]
) -> None:
    def last(scores: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        return np.arange(len(scores))[-n:]

    learner = make_learner(acquisition=Acquisition(select=last)).fit(*labelled)
    assert learner.query(pool, 3, engine="ray")[0].tolist() == [45, 46, 47]
    assert in_place_of_ray


def test_a_strategy_with_a_state_is_called_itself(
    make_learner: Factory, labelled: Any, pool: list[str]
) -> None:
    class Strategy:
        calls = 0

        def __call__(self, scores: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
            self.calls += 1
            return np.arange(n)

    strategy = Strategy()
    learner = make_learner(acquisition=Acquisition(measure="bald", select=strategy)).fit(*labelled)
    learner.query(pool, 3)
    assert strategy.calls == 1


def test_settings_of_an_earlier_version_are_read() -> None:
    old = {"class": "Acquisition", "strategy": "star", "mc_layers": None, "n_passes": 2}
    names = {"task": None, "adapter": None, "training": None, "quantization": "nf4"}
    found = parameters_from_json({**names, "acquisition": old}, "a file")
    assert found["acquisition"].get_params() == Acquisition(n_passes=2).get_params()
    with pytest.warns(UserWarning, match="a file has the removed option mc_layers"):
        parameters_from_json({**names, "acquisition": {**old, "mc_layers": 2}}, "a file")
