"""Simulated rounds: labels are read when bought, arms share their start, bad numbers refused."""

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from starlearn.errors import InputError
from starlearn.evaluate.simulate import content_id, simulate

WORDS = ("red", "green", "blue", "grey")
ITEMS = [f"{WORDS[i % 4]} thing number {i}" for i in range(80)]
LABELS = [item.split()[0] for item in ITEMS]
TEST, TEST_LABELS = ITEMS[:8], LABELS[:8]


class FakeLearner:
    """A linear model with query, teach and score; query takes the last or random items."""

    def __init__(self, seed=None):
        self.rng = None if seed is None else np.random.default_rng(seed)
        self.model = make_pipeline(CountVectorizer(), LogisticRegression())
        self.X, self.y, self.pools, self.rounds_ = [], [], [], []

    def query(self, X_pool, n_instances):
        self.pools.append(list(X_pool))
        last = np.arange(len(X_pool))[-n_instances:]
        rows = last if self.rng is None else self.rng.permutation(len(X_pool))[:n_instances]
        if self.rounds_:
            self.rounds_[-1]["query"] = {"lambda": 0.9, "mean_base": 1.5, "mean_full": 2.5}
        return rows, [X_pool[i] for i in rows]

    def teach(self, X, y):
        self.X += X
        self.y += y
        self.rounds_.append({"round": len(self.rounds_)})
        if len(set(self.y)) > 1:
            self.model.fit(self.X, self.y)
        return self

    def score(self, X, y):
        return self.model.score(X, y)


class SealedLabels:
    """Labels that raise when they are read; a test opens those that were bought."""

    def __init__(self, labels, pools):
        self.labels, self.pools = labels, pools

    def __len__(self):
        return len(self.labels)

    def __iter__(self):
        raise AssertionError("all labels were read")

    def __getitem__(self, position):
        last_query = self.pools[-1] if self.pools else ITEMS
        bought = last_query[-5:] if self.pools else last_query
        assert ITEMS[position] in bought, f"label {position} was read and not bought"
        return self.labels[position]


def play(learner, X=ITEMS, y=LABELS, **settings):
    settings = {"n_initial": 12, "n_instances": 5, "n_rounds": 3} | settings
    return simulate(learner, X, y, TEST, TEST_LABELS, **settings)


def test_records():
    records = play(FakeLearner())
    assert [r["round"] for r in records] == [0, 1, 2, 3]
    assert [r["n_labels"] for r in records] == [12, 17, 22, 27]
    assert [r["n_offered"] for r in records] == [0, 68, 63, 58]
    assert [r["lambda"] for r in records] == [None, 0.9, 0.9, 0.9]
    assert records[1]["mean_base"] == 1.5
    assert records[1]["mean_full"] == 2.5
    assert records[1]["mean_mixed"] is None
    assert all(sum(r["class_mix"].values()) == len(r["chosen"]) for r in records)
    assert all(0 <= r["accuracy"] <= 1 for r in records)
    assert records[-1]["accuracy"] == 1.0
    bought = [i for r in records for i in r["chosen"]]
    assert len(set(bought)) == 27, "nothing is bought twice"
    assert set(bought) <= set(map(content_id, ITEMS))


def test_chosen_are_the_items_that_were_taught():
    learner = FakeLearner()
    records = play(learner)
    assert [content_id(x) for x in learner.X] == [i for r in records for i in r["chosen"]]
    assert learner.y == [x.split()[0] for x in learner.X]


def test_labels_are_read_only_when_they_are_bought():
    learner = FakeLearner()
    records = play(learner, y=SealedLabels(LABELS, learner.pools))
    assert records[-1]["n_labels"] == 27


def test_the_sealed_labels_do_raise():
    sealed = SealedLabels(LABELS, [ITEMS])
    with pytest.raises(AssertionError, match="not bought"):
        sealed[0]
    with pytest.raises(AssertionError, match="all labels"):
        list(sealed)


def test_a_query_never_offers_what_is_labelled():
    learner = FakeLearner()
    play(learner)
    for number, pool in enumerate(learner.pools):
        assert not set(pool) & set(learner.X[: 12 + 5 * number])


def test_arms_share_the_initial_set_and_seeds_differ():
    one, other, elsewhere = (
        play(FakeLearner(), random_state=7),
        play(FakeLearner(seed=1), random_state=7),
        play(FakeLearner(), random_state=8),
    )
    assert one[0]["chosen"] == other[0]["chosen"]
    assert one[1]["chosen"] != other[1]["chosen"]
    assert one[0]["chosen"] != elsewhere[0]["chosen"]
    timed = ("seconds_query", "seconds_teach", "seconds_score")
    again = play(FakeLearner(), random_state=7)
    for a, b in zip(one, again, strict=True):
        assert {k: v for k, v in a.items() if k not in timed} == {
            k: v for k, v in b.items() if k not in timed
        }


def test_sub_pool_is_a_new_seeded_draw_each_round():
    one, other = FakeLearner(), FakeLearner()
    records = play(one, sub_pool=20)
    play(other, sub_pool=20)
    assert [r["n_offered"] for r in records] == [0, 20, 20, 20]
    assert one.pools == other.pools
    first, second = (set(pool) for pool in one.pools[:2])
    assert len(first & second) < 15, "15 of 20 would stay if nothing but the batch left"


def test_without_initial_labels_the_first_round_is_a_query():
    learner = FakeLearner()
    records = play(learner, n_initial=0)
    assert [r["round"] for r in records] == [1, 2, 3]
    assert [r["n_labels"] for r in records] == [5, 10, 15]


@pytest.mark.parametrize("kind", ["array", "series", "frame", "dicts"])
def test_pool_containers(kind):
    order = np.random.default_rng(0).permutation(len(ITEMS))
    X, y = {
        "array": (np.array(ITEMS, dtype=object), np.array(LABELS)),
        "series": (pd.Series(ITEMS, index=order), pd.Series(LABELS, index=order)),
        "frame": (pd.DataFrame({"text": ITEMS}, index=order), pd.Series(LABELS, index=order)),
        "dicts": ([{"text": item} for item in ITEMS], LABELS),
    }[kind]
    learner = FakeLearner()
    learner.model = make_pipeline(
        CountVectorizer(preprocessor=lambda x: x if isinstance(x, str) else x["text"]),
        LogisticRegression(),
    )
    records = play(learner, X, y)
    expected = play(FakeLearner())
    assert [r["class_mix"] for r in records] == [r["class_mix"] for r in expected]
    assert [r["n_labels"] for r in records] == [r["n_labels"] for r in expected]
    texts = [x if isinstance(x, str) else x["text"] for x in learner.X]
    assert learner.y == [text.split()[0] for text in texts]


def test_events_come_in_order():
    events = []
    records = play(FakeLearner(), n_rounds=1, on_event=lambda *event: events.append(event))
    steps = [(p["round"], p.get("step", "end")) for _, p in events]
    assert steps == [
        (0, "teach"),
        (0, "score"),
        (0, "end"),
        (1, "query"),
        (1, "teach"),
        (1, "score"),
        (1, "end"),
    ]
    assert [payload for kind, payload in events if kind == "round"] == records


def test_free_form_answers_have_a_length_and_no_class_mix():
    answers = [f"step one\nstep two\n#### {i % 2}" for i in range(80)]
    records = play(FakeLearner(), y=answers)
    assert records[0]["class_mix"] == {}
    assert records[0]["mean_label_length"] == len(answers[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_instances": 0}, "n_instances must be a whole number of at least 1, got 0"),
        ({"n_instances": 1.5}, "n_instances"),
        ({"n_instances": True}, "n_instances"),
        ({"n_initial": -1}, "n_initial"),
        ({"n_rounds": 0, "n_initial": 0}, "n_rounds"),
        ({"sub_pool": 4}, "sub_pool must be a whole number of at least 5"),
        ({"n_rounds": 20}, "12 initial labels and 20 rounds of 5 are 112 labels"),
        ({"y": LABELS[:-1]}, "Found 80 pool items and 79 labels"),
        ({"X": [], "y": []}, "X_pool is empty"),
    ],
)
def test_bad_numbers_are_refused_before_any_model_work(settings, words):
    learner = FakeLearner()
    with pytest.raises(InputError, match=words):
        play(learner, **settings)
    assert not learner.X
    assert not learner.pools


@pytest.mark.parametrize("answer", [[0, 0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3, 68], [-1, 0, 1, 2, 3]])
def test_a_query_that_returns_what_cannot_be_bought(answer):
    learner = FakeLearner()
    learner.query = lambda X_pool, n_instances: (np.array(answer), None)
    with pytest.raises(InputError, match="5 distinct positions below 68"):
        play(learner)


def test_content_id_depends_on_content_alone():
    assert content_id({"a": "x", "b": "y"}) == content_id({"b": "y", "a": "x"})
    assert content_id("x") != content_id("y")
    assert len(content_id("x")) == 16


def test_the_pool_itself_is_refused_as_test_set():
    sizes = {"n_initial": 4, "n_instances": 2, "n_rounds": 1}
    with pytest.raises(InputError, match="X_test has the same items as X_pool"):
        simulate(FakeLearner(), ITEMS, LABELS, ITEMS[::-1], LABELS[::-1], **sizes)
