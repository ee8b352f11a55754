"""Arms of a study: all play, all of one seed share what they must, and none sees a label."""

from dataclasses import replace

import numpy as np
import pytest
from studies import SETTINGS, first_run, tiny_study

from starlearn.errors import InputError
from starlearn.evaluate import runs
from starlearn.evaluate.arms import (
    ARMS,
    agreeing_scores,
    arm_named,
    by_rank,
    longest_first,
    shuffled_base,
)
from starlearn.evaluate.judging import gold_losses, judge
from starlearn.evaluate.run_log import append_line, read_lines
from starlearn.evaluate.runs import Observed, made_part, play, without_times
from starlearn.evaluate.simulate import content_id, simulate
from starlearn.evaluate.study_file import StudySettings
from starlearn.query.score_table import Uncertainty
from starlearn.settings import PUBLISHED_ACQUISITION, Acquisition
from starlearn.tasks import GenerationTask
from starlearn.train import trainer


class Sealed(dict):
    """Gold labels that must not be read."""

    def __getitem__(self, key):
        raise AssertionError(f"the label of {key} was read")


class Blind(Observed):
    """A learner that fails when an arm without leaks_labels reads gold labels."""

    def __init__(self, learner, arm, *others):
        super().__init__(learner, arm, *others)
        if not arm.leaks_labels:
            self.gold = Sealed()


def spy_on(seen):
    """Make a trainer that records the initial weights and the order of the examples."""

    class Spy(trainer._AdapterTrainer):
        def __init__(self, **arguments):
            places = {id(one): i for i, one in enumerate(arguments["train_dataset"])}
            collate, batches = arguments["data_collator"], []
            seen["order"].append(batches)
            weights = {n: p for n, p in arguments["model"].named_parameters() if p.requires_grad}
            seen["weights"].append({n: p.detach().clone().numpy() for n, p in weights.items()})

            def collated(examples):
                batches.append([places[id(one)] for one in examples])
                return collate(examples)

            super().__init__(**{**arguments, "data_collator": collated})

    return Spy


@pytest.fixture(scope="module")
def short_study(tmp_path_factory, tiny_model):
    """Every arm, two seeds, two trainings each."""
    settings = {**SETTINGS, "model": tiny_model, "n_rounds": 1}
    folder = tmp_path_factory.mktemp("arms")
    return tiny_study(folder, tiny_model, arms=list(ARMS), settings=settings)


@pytest.fixture(scope="module")
def everything(short_study):
    """Play every arm with the first seed; return the records and what was seen."""
    seen = {"weights": [], "order": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_AdapterTrainer", spy_on(seen))
        patch.setattr(runs, "Observed", Blind)
        return {run.arm: play(run) for run in runs.runs_of(short_study) if run.seed == 0}, seen


def test_every_arm_plays_and_none_sees_a_label_that_it_has_not_bought(everything):
    records, _ = everything
    assert list(records) == list(ARMS)
    assert all([r["n_labels"] for r in one["rounds"]] == [4, 7] for one in records.values())


def test_arms_of_a_seed_share_all_but_what_they_choose(everything):
    records, seen = everything
    lines = records.values()
    assert len({one["data"] for one in lines}) == 1, "pool and test set"
    assert len({one["protocol"] for one in lines}) == 1
    assert len({one["rounds"][0]["chosen"] for one in lines}) == 1, "initial set"
    assert [[r["steps"] for r in one["rounds"]] for one in lines] == [[3, 3]] * len(ARMS)
    for number in range(2):
        orders, weights = seen["order"][number::2], seen["weights"][number::2]
        assert orders == [orders[0]] * len(ARMS), "order of training"
        for one in weights:
            assert one.keys() == weights[0].keys()
            assert all(np.array_equal(one[name], weights[0][name]) for name in one)
    assert len({one["rounds"][1]["chosen"] for one in lines}) > 5, "they do choose differently"
    assert len({one["key"] for one in lines}) == len(ARMS)


def test_arms_that_train_alike_are_alike_until_they_choose(everything):
    records, _ = everything
    first = [records[arm]["rounds"][0] for arm in ARMS if not ARMS[arm].training]
    assert len(first) > 10
    for name in ("accuracy", "test_nll", "ece", "train_loss"):
        assert len({one[name] for one in first}) == 1
    assert first[0]["train_loss"] != records["strong_decay"]["rounds"][0]["train_loss"]


def test_seeds_differ(short_study, everything):
    records, _ = everything
    run = next(run for run in runs.runs_of(short_study) if (run.arm, run.seed) == ("random", 1))
    other = play(run)
    assert records["random"]["rounds"][0]["chosen"] != other["rounds"][0]["chosen"]
    assert records["random"]["key"] != other["key"]
    assert records["random"]["protocol"] == other["protocol"]


def test_a_saved_run_is_repeated_exactly_but_for_its_times(tmp_path, short_study, everything):
    append_line(tmp_path / "lines.jsonl", everything[0]["star_entropy"])
    (saved,) = read_lines(tmp_path / "lines.jsonl")
    run = first_run(short_study, "star_entropy")
    again = play(run)
    assert without_times(saved) == without_times(again)
    assert saved["key"] == again["key"] == run.key
    assert saved["seconds"] > 0


@pytest.mark.parametrize("free", [False, True])
def test_what_a_record_holds(tmp_path, tiny_model, free):
    record = play(first_run(tiny_study(tmp_path, tiny_model, free=free), "star_entropy"))
    rounds = record["rounds"]
    assert [r["n_labels"] for r in rounds] == [4, 7, 10]
    assert [r["lambda"] for r in rounds] == [None, 0.9, 0.8]
    assert len(record["spearman_rounds"]) == 4, "the base model and three trainings"
    assert [record["spearman_rounds"][i][i] for i in range(4)] == [1.0] * 4
    assert all(sum(r["reliability"]["count"]) == 9 for r in rounds)
    assert all(bool(r["class_mix"]) != free for r in rounds)


def test_recording_metrics_changes_nothing(short_study, everything):
    run = first_run(short_study, "star_entropy")
    data = runs.load_task(run.task, run.seed)
    bare = simulate(
        runs.make_learner(run, data),
        data.items,
        data.labels,
        data.test_items,
        data.test_labels,
        random_state=run.seed,
        n_rounds=1,
        **{name: SETTINGS[name] for name in ("n_initial", "n_instances", "sub_pool")},
    )
    watched = everything[0]["star_entropy"]["rounds"]
    assert [runs.hashed(r["chosen"]) for r in bare] == [r["chosen"] for r in watched]
    assert [r["accuracy"] for r in bare] == [r["accuracy"] for r in watched]


def test_only_one_arm_reads_gold_labels_and_its_name_says_so(tmp_path, tiny_model, monkeypatch):
    leaking = [name for name, arm in ARMS.items() if arm.leaks_labels]
    assert leaking == ["gold_loss_leaks_labels"]
    monkeypatch.setattr(Observed, "gold", property(lambda _: Sealed(), lambda *_: None), False)
    run = first_run(tiny_study(tmp_path, tiny_model, arms=leaking), leaking[0])
    with pytest.raises(AssertionError, match="was read"):
        play(run)


def test_unknown_arms_are_refused_with_the_closest_one():
    with pytest.raises(InputError, match="Did you mean 'lambda_reversed'"):
        arm_named("lambda_reverse")


def test_every_arm_makes_parts_that_can_be_used():
    settings = StudySettings(**SETTINGS, acquisition={"n_passes": 4})
    for name, arm in ARMS.items():
        acquisition = made_part("acquisition", settings, arm)
        acquisition.check()
        made_part("training", settings, arm).check()
        assert acquisition.n_passes == arm.acquisition.get("n_passes", 4), name
        assert arm.leaks_labels == ("leaks_labels" in name)
    made = {
        name: made_part("acquisition", StudySettings(**SETTINGS), arm) for name, arm in ARMS.items()
    }
    assert made["bald"].get_params() == Acquisition().get_params(), "the default is what won"
    assert made["star_entropy"].get_params() == Acquisition(**PUBLISHED_ACQUISITION).get_params()
    weights = [
        made_part("acquisition", settings, arm_named("lambda_reversed")).base_weight(t)
        for t in range(10)
    ]
    assert weights == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9]


class FixedUncertainty:
    """A learner with fixed uncertainty; t is the round."""

    def __init__(self, base, full, schedule, t=0):
        self.base, self.full = np.asarray(base, float), np.asarray(full, float)
        self.acquisition = Acquisition(schedule=schedule)
        self.rounds_ = [{}] * (t + 1)

    def uncertainty(self, items):
        zeros = np.zeros(len(items))
        return Uncertainty(
            base=self.base,
            full=self.full,
            mixed=zeros,
            entropy=zeros,
            mutual_information=zeros,
            confidence=zeros,
            n_tokens=zeros.astype(int),
            answers=None,
        )


def test_the_placebo_shuffles_only_the_base_scores():
    rng = np.random.default_rng(0)
    full = np.arange(100.0)
    only_full, _ = shuffled_base(
        FixedUncertainty(np.arange(100.0)[::-1], full, 0.0), ["x"] * 100, 5, rng, None
    )
    assert only_full.tolist() == [99, 98, 97, 96, 95]
    only_base, facts = shuffled_base(
        FixedUncertainty(full, np.zeros(100), 1.0), ["x"] * 100, 50, rng, None
    )
    assert facts["lambda"] == 1.0
    assert facts["mean_base"] == 49.5
    assert 15 < sum(place >= 50 for place in only_base) < 35, "no better than chance"


def test_longest_first():
    items = ["a", "abc", {"x": "ab", "y": "cd"}, "ab"]
    chosen, _ = longest_first(None, items, 2, np.random.default_rng(0), None)
    assert chosen.tolist() == [2, 1]


def test_accuracy_without_the_test_items_that_leak(tmp_path, tiny_model):
    run = first_run(tiny_study(tmp_path, tiny_model), "random")
    data = runs.load_task(run.task, run.seed)
    half = frozenset(map(content_id, data.test_items[:5]))
    watched = Observed(
        runs.make_learner(run, data), ARMS["random"], replace(data, leaked=half), 0, 8
    )
    watched.teach(data.items[:4], data.labels[:4])
    watched.score(data.test_items, data.test_labels)
    clean = watched.learner.score(data.test_items[5:], data.test_labels[5:])
    assert watched.metrics[0]["accuracy_without_leaks"] == clean


# Metrics of the answers


def test_metrics_of_choices_come_from_their_probabilities(make_learner, labelled):
    items, labels = labelled
    learner = make_learner().fit(items, labels)
    found = judge(learner, items, labels)
    probabilities = learner.predict_proba(items)
    columns = [list(learner.classes_).index(label) for label in labels]
    gold = probabilities[np.arange(len(items)), columns]
    np.testing.assert_allclose(found.loss, -np.log(gold))
    np.testing.assert_allclose(found.confidence, probabilities.max(axis=1))
    assert found.correct.mean() == learner.score(items, labels)
    np.testing.assert_allclose(gold_losses(learner, items, labels), found.loss)


def test_metrics_of_free_form_answers_come_from_their_tokens(make_learner, labelled):
    items, labels = labelled
    learner = make_learner(task=GenerationTask("{text} Answer :", max_new_tokens=3))
    learner.set_params(training__max_steps=60).fit(items, labels)
    found = judge(learner, items, labels)
    assert found.correct.mean() == learner.score(items, labels) > 0.5
    assert ((found.confidence > 0) & (found.confidence <= 1)).all()
    assert (found.loss > 0).all()
    # A right answer here is the gold text, with its end: the same tokens, the same loss.
    written = -np.log(found.confidence[found.correct])
    np.testing.assert_allclose(written / 2, found.loss[found.correct], rtol=1e-4, atol=1e-6)
    wrong = gold_losses(learner, items, ["moon" for _ in items])
    assert (wrong > found.loss).all()


def test_a_draw_by_rank_gives_each_item_a_chance_of_one_over_its_rank():
    values, rng = np.array([0.3, 0.9, 0.1, 0.5]), np.random.default_rng(0)
    first = np.bincount([by_rank(values, 1, rng)[0] for _ in range(20000)], minlength=4)
    chances = 1 / np.array([3, 1, 4, 2])
    assert first / 20000 == pytest.approx(chances / chances.sum(), abs=0.02)
    assert sorted(by_rank(values, 4, rng).tolist()) == [0, 1, 2, 3], "no item twice"


@pytest.mark.parametrize(("base", "weight"), [([1, 2, 3], 0.9), ([3, 2, 1], 0.0), ([5, 5, 5], 0)])
def test_a_base_that_does_not_agree_has_no_weight(base, weight):
    class Learner:
        acquisition, rounds_ = Acquisition(**PUBLISHED_ACQUISITION), [{}]

        def uncertainty(self, items):
            full = np.array([0.1, 0.2, 0.4])
            rest = dict.fromkeys(Uncertainty.__dataclass_fields__, full)
            return Uncertainty(**{**rest, "base": np.array(base, float), "full": full})

    values, facts = agreeing_scores(Learner(), ["a", "b", "c"])
    assert facts["lambda"] == pytest.approx(weight)
    assert np.argsort(values).tolist() == [0, 1, 2]
