"""From a ranking to a batch: what is drawn, through the learner's own query."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from starlearn import Budget
from starlearn.errors import InputError, OutOfMemoryError
from starlearn.learner.base_models import base_of
from starlearn.learner.estimator import STARLearner
from starlearn.query import batch
from starlearn.settings import PUBLISHED_ACQUISITION, Acquisition
from starlearn.tasks import ChoiceTask, GenerationTask

Factory = Callable[..., STARLearner]


@pytest.fixture
def learner(make_learner: Factory, labelled: Any) -> STARLearner:
    return make_learner().fit(*labelled)


def ask(learner: STARLearner, pool: list, n: int, **options: Any) -> list[int]:
    learner.set_params(
        acquisition=Acquisition(**{**PUBLISHED_ACQUISITION, "n_passes": 3, **options})
    )
    return learner.query(pool, n)[0].tolist()  # type: ignore[no-any-return]


def test_an_item_is_asked_once_whatever_its_case_and_spaces(
    learner: STARLearner, pool: list
) -> None:
    copies = [*pool, *(f"  {text.capitalize()} . " for text in pool)]
    chosen = ask(learner, copies, 20)
    assert len({i % len(pool) for i in chosen}) == 20
    both = ask(learner, copies, 20, distinct="none")
    assert len({i % len(pool) for i in both}) < 20


def test_a_labelled_item_is_not_asked_again(
    learner: STARLearner, labelled: Any, pool: list
) -> None:
    again = [f"{text}  " for text in labelled[0]] + pool[:4]
    assert sorted(ask(learner, again, 4)) == [8, 9, 10, 11]


def test_a_random_draw_asks_no_item_twice_either(
    learner: STARLearner, labelled: Any, pool: list
) -> None:
    learner.set_params(acquisition__strategy="random")
    copies = [*pool, *[pool[0]] * 40, *labelled[0]]
    first = learner.query(copies, 12)[1]
    assert len(set(first)) == 12
    assert not set(first) & set(labelled[0])
    learner.teach(first, ["red"] * 12)
    again = learner.query(copies, 12)[1]
    assert not set(again) & {*first, *labelled[0]}
    learner.set_params(acquisition__distinct="none")
    assert len(learner.query(copies, len(copies))[1]) == len(copies)  # without a warning


def test_a_random_draw_passes_over_what_is_too_dear(learner: STARLearner, pool: list) -> None:
    learner.set_params(acquisition__strategy="random", acquisition__diversity="kmeans++")
    dear = set(pool[::2])
    budget = Budget(100, cost=lambda item: 200 if item in dear else 1)
    batch = learner.query(pool, 10, budget=budget)[1]
    assert len(batch) == 10
    assert not set(batch) & dear


def test_the_last_label_is_bought_though_nine_tenths_and_one_are_not_one(
    learner: STARLearner, pool: list
) -> None:
    budget = Budget(1.0, cost=0.1, spent=0.9)
    assert budget.remaining < 0.1
    assert len(learner.query(pool, 5, budget=budget)[0]) == 1


def test_what_repeats_others_fills_up_with_a_warning(learner: STARLearner, pool: list) -> None:
    copies = [*pool[:5], *pool[:5], *pool[:5]]
    with pytest.warns(UserWarning, match="Only 5 of the 15 items"):
        chosen = ask(learner, copies, 8)
    assert len(set(chosen)) == 8
    assert {i % 5 for i in chosen[:5]} == set(range(5))


def test_near_duplicates_by_hidden_states(learner: STARLearner, pool: list) -> None:
    points = learner.transform(pool)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    chosen = ask(learner, pool, 6, distinct=0.8)
    cosines = unit[chosen] @ unit[chosen].T
    assert cosines[np.triu_indices(6, 1)].max() < 0.8
    plain = ask(learner, pool, 6)
    cosines = unit[plain] @ unit[plain].T
    assert cosines[np.triu_indices(6, 1)].max() >= 0.8


@pytest.mark.parametrize("diversity", ["kmeans++", "k-centre"])
def test_a_diverse_batch_is_spread_and_does_not_depend_on_the_order(
    learner: STARLearner, pool: list, diversity: str
) -> None:
    def spread(chosen: list[int]) -> float:
        points = learner.transform([pool[i] for i in chosen])
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
        return float(distances[np.triu_indices(len(chosen), 1)].min())

    diverse = ask(learner, pool, 6, diversity=diversity, candidates=4)
    assert spread(diverse) > spread(ask(learner, pool, 6))
    order = np.random.default_rng(0).permutation(len(pool))
    again = ask(learner, [pool[i] for i in order], 6, diversity=diversity, candidates=4)
    assert [int(order[i]) for i in again] == diverse
    best = ask(learner, pool, 24)
    assert set(diverse) <= set(best)
    assert ask(learner, pool, 6, diversity=diversity, candidates=1) != diverse


def test_embeddings_do_not_depend_on_the_batch(learner: STARLearner, pool: list) -> None:
    points = learner.transform(pool)
    learner.set_params(acquisition__max_batch_tokens=30, acquisition__chunk_size=5)
    base_of(learner).store = type(base_of(learner).store)()
    assert np.array_equal(learner.transform(pool[::-1])[::-1], points)
    assert points.shape == (len(pool), 64)


def test_a_budget_ends_the_batch(learner: STARLearner, pool: list) -> None:
    best = ask(learner, pool, 10)
    indices, batch = learner.query(pool, 10, budget=Budget(4))
    assert indices.tolist() == best[:4]
    assert len(batch) == 4
    dear = {pool[i] for i in best[:3]}
    budget = Budget(9, cost=lambda item: 100 if item in dear else 2)
    assert learner.query(pool, 4, budget=budget)[0].tolist() == best[3:7]
    costs = budget.costs(learner.query(pool, 4, budget=budget)[1])
    assert budget.spend(costs).remaining == pytest.approx(1)
    assert len(learner.query(pool, 10, budget=Budget(1, cost=2))[0]) == 0
    learner.set_params(acquisition__strategy="random")
    assert len(learner.query(pool, 10, budget=Budget(4))[0]) == 4
    learner.set_params(acquisition__strategy="uncertainty", acquisition__diversity="kmeans++")
    assert len(learner.query(pool, 10, budget=Budget(4))[0]) == 4


@pytest.mark.parametrize("cost", [1.0, "price"])
@pytest.mark.parametrize("diversity", ["none", "kmeans++", "k-centre"])
def test_money_that_ends_early_does_not_make_the_whole_pool_candidates(
    learner: STARLearner,
    pool: list,
    cost: Any,
    diversity: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items = [{"text": text, "price": 1} for text in pool]
    best = ask(learner, items, 16)
    sizes: list[int] = []
    original = batch.best_places

    def top(values: Any, keys: Any, places: Any, n: int) -> Any:
        sizes.append(n)
        return original(values, keys, places, n)

    monkeypatch.setattr(batch, "best_places", top)
    learner.set_params(
        acquisition=Acquisition(**PUBLISHED_ACQUISITION, diversity=diversity, candidates=2)
    )
    chosen = learner.query(items, 8, budget=Budget(3, cost=cost))[0].tolist()
    assert len(chosen) == 3
    assert set(chosen) <= set(best)
    if cost == 1.0:
        assert sizes == [3 if diversity == "none" else 6]
    else:
        assert sizes == [8 if diversity == "none" else 16]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (5, r"budget must be a Budget, got 5.*Budget\(100\)"),
        (Budget(5, cost="price"), r"field 'price', which 1 of 72 items lack: row 70 has"),
        (Budget(5, cost=lambda item: 3 - item["n"] // 71), r"row 71: 0"),
    ],
    ids=["number", "field", "function"],
)
def test_a_budget_is_checked_before_any_scoring(
    make_learner: Factory, budget: Any, message: str
) -> None:
    items = [{"text": f"sky {n}", "price": 1, "n": n * 3} for n in range(70)]
    items += [{"text": "sea", "n": 0}, {"text": "sun", "price": 2, "n": 213}]
    if not isinstance(budget, Budget) or budget.cost != "price":
        items[70]["price"] = 1
    fresh = make_learner()
    with pytest.raises(InputError, match=message):
        fresh.query(items, 2, budget=budget)
    assert "model" not in vars(base_of(fresh).backbone)


def test_a_labelled_item_that_leaves_no_room_for_an_answer_has_a_point(
    make_learner: Factory, labelled: Any, pool: list
) -> None:
    task = GenerationTask("{text} Answer :", max_new_tokens=30)
    items, labels = ["the sky " * 20, *labelled[0]], ["blue", *labelled[1]]
    fitted = make_learner(task=task, acquisition=Acquisition(distinct=0.99)).fit(items, labels)
    assert len(fitted.query(pool[:6], 2)[0]) == 2


def test_points_need_no_choices(make_learner: Factory, pool: list) -> None:
    assert make_learner(task=ChoiceTask("{text} :")).transform(pool[:2]).shape == (2, 64)


def test_an_item_whose_point_does_not_fit_is_named_by_its_own_row(
    make_learner: Factory, pool: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlearn.query import scoring

    original = scoring.prompt_embeddings

    def points(work: Any, prompts: Any) -> Any:
        if any(len(prompt) > 20 for prompt in prompts):
            raise OutOfMemoryError([len(p) > 20 for p in prompts].index(True), 22, 1)
        return original(work, prompts)

    monkeypatch.setattr(scoring, "prompt_embeddings", points)
    fresh = make_learner(acquisition=Acquisition(chunk_size=4))
    with pytest.raises(OutOfMemoryError, match="row 9,"):
        fresh.transform([*pool[:9], "very " * 22])


def test_screening_spends_the_passes_on_the_best_candidates(
    learner: STARLearner, pool: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlearn.query.scoring import Scorer

    calls: list[tuple[int, int]] = []
    original = Scorer.score

    def score(self: Scorer, prompts: Any, n_passes: int, bar: Any, tie_seed: int) -> Any:
        calls.append((len(prompts), n_passes))
        found = original(self, prompts, n_passes, bar, tie_seed)
        informations.append(found.information)
        return found

    informations: list[np.ndarray] = []
    monkeypatch.setattr(Scorer, "score", score)
    chosen = ask(learner, pool, 4, screen=3)
    assert calls == [(len(pool), 1), (12, 3)]
    plain = ask(learner, pool, 4)
    assert len(set(chosen) & set(plain)) >= 3
    assert ask(learner, pool, 4, screen=1000) == plain
    calls.clear()
    ask(learner, pool, 4, screen=3, measure="mutual_information")
    assert calls == [(len(pool), 1), (12, 3)]
    screened = learner.rounds_[-1]["query"]  # of the 12: the others were not looked at so closely
    assert screened["mean_full"] == pytest.approx(informations[-1].mean())
    assert screened["max_full"] == informations[-1].max()
    ask(learner, pool, 4, measure="mutual_information")
    assert screened["mean_base"] == learner.rounds_[-1]["query"]["mean_base"]
    learner.set_params(acquisition=Acquisition(measure="entropy", n_passes=1, screen=3))
    calls.clear()
    learner.query(pool, 4)
    assert calls == [(len(pool), 1)]


def test_a_sub_pool_is_drawn_by_the_seed_not_by_the_order(learner: STARLearner, pool: list) -> None:
    chosen = ask(learner, pool, 5, sub_pool=12)
    order = np.random.default_rng(1).permutation(len(pool))
    again = ask(learner, [pool[i] for i in order], 5, sub_pool=12)
    assert [int(order[i]) for i in again] == chosen
    assert ask(learner, pool, 5, sub_pool=10_000) == ask(learner, pool, 5)
    assert len(ask(learner, pool, 20, sub_pool=5)) == 20
    learner.seed_ += 1
    assert ask(learner, pool, 5, sub_pool=12) != chosen


def test_approximations_rank_alike(learner: STARLearner, pool: list) -> None:
    def full(**options: Any) -> np.ndarray:
        learner.set_params(acquisition=Acquisition(**PUBLISHED_ACQUISITION, n_passes=8, **options))
        return learner.uncertainty(pool).full

    whole = full()
    for options in ({"mask_mode": "token"}, {"mc_scope": "answer"}):
        found = full(**options)
        assert not np.array_equal(found, whole), options
        assert spearmanr(found, whole).statistic > 0.9, options


@pytest.mark.parametrize(
    "options",
    [
        {"distinct": "near"},
        {"distinct": 0.0},
        {"distinct": 1.5},
        {"diversity": "dpp"},
        {"candidates": 0},
        {"screen": 0},
        {"sub_pool": 0},
        {"mc_scope": "prompt"},
        {"mask_mode": "item"},
        {"chunk_size": 0},
        {"max_batch_tokens": 0},
    ],
    ids=str,
)
def test_settings_that_cannot_be_used(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Acquisition(**options).check()


def test_an_estimate_comes_near_and_leaves_the_scores_alone(
    learner: STARLearner, pool: list
) -> None:
    learner.set_params(acquisition=Acquisition(n_passes=3))
    before = dict(base_of(learner).store._memory)
    found = learner.estimate(pool, 5)
    assert base_of(learner).store._memory == before
    assert found.n_items == len(pool)
    assert found.seconds > 0
    assert found.peak_memory_mb > 50
    assert found.prompt_tokens == pytest.approx(np.mean([len(p.split()) for p in pool]) + 2)
    assert "items of" in str(found)
    learner.set_params(acquisition__sub_pool=12, acquisition__screen=1)
    assert learner.estimate(pool, 5).n_items == 12
    learner.set_params(acquisition__strategy="random")
    assert learner.estimate(pool, 5).seconds == 0
