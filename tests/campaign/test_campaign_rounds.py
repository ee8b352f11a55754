"""Rounds of a campaign on the real learner: from a pool to a second adapter, and back on track."""

import json
import sqlite3
import warnings
from dataclasses import asdict

import numpy as np
import pytest
from campaign_cases import COLOURS, POOL, answer_for, label_all, make_learner

from starlearn.campaign import batch_scores, querying, rounds
from starlearn.campaign.campaign import Campaign
from starlearn.errors import InputError, ModelMismatchError, StorageError, TrainingDivergedError
from starlearn.query import scoring as query_scoring
from starlearn.query.score_store import ScoreStore
from starlearn.settings import Acquisition, Training
from starlearn.tasks import ChoiceTask, GenerationTask


def ids(batch):
    return [item.id for item in batch]


def test_two_rounds(make_campaign):
    campaign = make_campaign()
    assert campaign.status().next.startswith("starlearn query")
    batch = campaign.query(4)
    assert [item.place for item in batch] == [0, 1, 2, 3]
    assert all(item.reason and set(item.fields) == {"text"} for item in batch)
    assert campaign.status().next.startswith("starlearn label")
    label_all(campaign)
    assert campaign.status().state == "labelled"
    assert campaign.teach().state == "published"
    second = campaign.query(3)
    assert not set(ids(batch)) & set(ids(second))
    label_all(campaign)
    campaign.teach()
    history = campaign.history()
    assert [(r.round, r.state, r.n_instances, r.n_labels) for r in history] == [
        (1, "published", 4, 4),
        (2, "published", 3, 7),
    ]
    assert history[0].adapter == "round-0001-1"
    learner = campaign.learner()
    assert len(learner.X_training) == 7
    assert len(learner.rounds_) == 2
    json.dumps([asdict(campaign.status()), *map(asdict, history)])
    assert campaign.doctor() == []


def test_scores_and_learners_of_earlier_rounds(make_campaign):
    campaign = make_campaign()
    for number in (1, 2):
        batch = campaign.query(3)
        scores = campaign.scores(number)
        assert scores.num_rows == len(POOL) - 3 * (number - 1)
        found = dict(zip(scores["id"].to_pylist(), scores["mixed"].to_pylist(), strict=True))
        assert [found[item.id] for item in batch] == [item.score for item in batch]
        assert ("fine-tuned" in batch[0].reason) == (number == 2)
        label_all(campaign)
        campaign.teach()
    assert len(campaign.learner(1).rounds_) == 1
    assert len(campaign.learner(2).rounds_) == 2
    assert campaign.scores(3) is None
    campaign.paths.round_scores(1).write_bytes(b"damaged")
    assert campaign.scores(1) is None
    with pytest.raises(InputError, match=r"these rounds have one: \[1, 2\]"):
        campaign.learner(3)


def test_the_learner_is_the_one_that_was_taught(make_campaign, quick):
    campaign = make_campaign()
    campaign.query(4)
    label_all(campaign)
    campaign.teach()
    taught = campaign.learner().predict_proba(POOL)
    with Campaign.open(quick / "campaign") as again:
        assert np.array_equal(again.learner().predict_proba(POOL), taught)
        assert again.batch() == campaign.batch()


def scored_at_a_time(n):
    return Acquisition(n_passes=2, chunk_size=n)


def test_the_batch_does_not_depend_on_chunks_or_order(make_campaign):
    first = make_campaign(name="a", acquisition=scored_at_a_time(5))
    second = make_campaign(pool=POOL[::-1], name="b", acquisition=scored_at_a_time(100))
    for _ in range(2):
        assert ids(first.query(4)) == ids(second.query(4))
        for campaign in (first, second):
            label_all(campaign)
            campaign.teach()


@pytest.fixture
def computed(monkeypatch):
    """Prompts of each call that the model computes; it is interrupted after `stop_after` calls."""
    calls = []

    def counted(work, tree, prompts, keys):
        if len(calls) == counted.stop_after:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return original(work, tree, prompts, keys)

    original = query_scoring.choice_distribution
    counted.stop_after, counted.calls = -1, calls
    monkeypatch.setattr(query_scoring, "choice_distribution", counted)
    return counted


@pytest.mark.parametrize("options", [{}, {"screen": 2}, {"diversity": "kmeans++"}])
def test_finished_chunks_are_not_scored_again(make_campaign, computed, options):
    acquisition = Acquisition(n_passes=2, chunk_size=8, **options)
    whole = make_campaign(name="whole", acquisition=acquisition).query(4)
    assert computed.calls == [8] * 4
    computed.calls.clear()
    campaign = make_campaign(name="interrupted", acquisition=acquisition)
    computed.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        campaign.query(4)
    assert campaign.status().state == "scoring"
    assert campaign.status().next.startswith("starlearn resume")
    computed.stop_after = -1
    with Campaign.open(campaign.folder) as again:  # what another process would do
        assert again.resume().state == "issued"
        assert computed.calls == [8] * 4
        assert ids(again.batch()) == ids(whole)


def test_the_base_models_scores_are_kept_over_rounds(make_campaign, computed):
    campaign = make_campaign()
    campaign.query(4)
    label_all(campaign)
    campaign.teach()
    computed.calls.clear()
    with Campaign.open(campaign.folder) as again:
        again.query(4)
    assert sum(computed.calls) == 28  # in two passes, and none by the base model


def test_a_damaged_cache_is_scored_again(make_campaign, monkeypatch):
    whole = ids(make_campaign(name="whole").query(4))
    campaign = make_campaign(name="damaged")
    with monkeypatch.context() as patch:
        patch.setattr(
            batch_scores, "_write_scores", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            campaign.query(4)
    campaign.close()
    file = campaign.paths.cache / "scores.sqlite"
    file.write_bytes(b"x" * 4096 + file.read_bytes()[4096:])
    with Campaign.open(campaign.folder) as again, pytest.warns(UserWarning, match="is damaged"):
        assert ids(again.query(4)) == whole


def test_a_full_disk_while_scores_are_written_is_reported_and_harmless(make_campaign, monkeypatch):
    whole = ids(make_campaign(name="whole").query(4))
    campaign = make_campaign(name="full")

    def full(self, *_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ScoreStore, "_made", full)
        with pytest.raises(StorageError, match=r"disk is full.*Free the disk"):
            campaign.query(4)
    assert campaign.status().state == "failed"
    assert ids(campaign.query(4)) == whole


def test_a_query_that_had_ended_gives_the_open_batch(make_campaign):
    campaign = make_campaign()
    batch = campaign.query(4)
    assert campaign.query(4) == batch
    with pytest.raises(InputError, match="open batch of 4 items"):
        campaign.query(5)
    label_all(campaign)
    with pytest.raises(InputError, match="train on their labels first"):
        campaign.query(4)


def test_small_and_exhausted_pools(make_campaign):
    with pytest.raises(InputError, match="pool is empty"):
        make_campaign(pool=[], name="empty")
    campaign = make_campaign(pool=POOL[:3])
    with pytest.raises(InputError, match="at most 3"):
        campaign.query(5, strict=True)
    with pytest.warns(UserWarning, match="the batch has 3"):
        assert len(campaign.query(5)) == 3
    label_all(campaign)
    campaign.teach()
    assert campaign.query(1) == []
    assert campaign.status().next.startswith("starlearn report")
    single = make_campaign(pool=POOL[:1], name="single")
    assert len(single.query(1)) == 1


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "3"])
def test_sizes_that_cannot_be_used(make_campaign, n):
    with pytest.raises(InputError, match="n_instances"):
        make_campaign().query(n)


def test_a_numpy_integer_is_a_size(make_campaign):
    assert len(make_campaign().query(np.int64(2))) == 2


def test_duplicates_are_one_item(make_campaign):
    campaign = make_campaign(pool=[*POOL, *POOL[:5]])
    assert campaign.n_items == len(POOL)
    assert campaign.status().n_duplicates == 5
    assert len(set(ids(campaign.query(len(POOL))))) == len(POOL)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("a \ud800 b", "lone surrogate"),
        (None, "NoneType"),
        (3, "int"),
        (b"bytes", "bytes"),
        ({"other": "x"}, "missing"),
    ],
)
def test_rows_that_cannot_be_used(make_campaign, quick, row, why):
    with pytest.raises(InputError, match=f"row 2.*{why}"):
        make_campaign(pool=["a sky is", "a sea is", row])
    assert not (quick / "campaign" / "labels.db").exists()


def test_odd_texts_are_stored_as_they_are(make_campaign):
    odd = ["nul \0 and \x1b[31m red", "[red]markup[/red] <script>x</script>", "\u202e </s> <s> day"]
    campaign = make_campaign(pool=odd)
    assert sorted(item.fields["text"] for item in campaign.query(3)) == sorted(odd)


def test_any_container(make_campaign):
    import pandas as pd

    wanted = ids(make_campaign(name="list").query(4))
    series = pd.Series(POOL, index=range(len(POOL), 0, -1))
    frame = pd.DataFrame({"text": POOL, "more": 1})
    for name, pool in {"generator": (t for t in POOL), "series": series, "frame": frame}.items():
        assert ids(make_campaign(pool=pool, name=name).query(4)) == wanted
    with pytest.raises(InputError, match="pool"):
        make_campaign(pool=3, name="number")


def test_edits_of_the_pools_file_move_no_label(make_campaign, tmp_path):
    file = tmp_path / "pool.jsonl"
    file.write_text(
        "".join(json.dumps({"text": text, "row": i}) + "\n" for i, text in enumerate(POOL))
    )
    campaign = make_campaign(pool=str(file))
    facts = campaign.pool_facts
    assert facts["size"] == file.stat().st_size
    batch = campaign.query(4)
    assert set(batch[0].fields) == {"text"}  # nothing else of the file is read into the campaign
    lines = file.read_text().splitlines()
    edited = [json.dumps({"text": "new row"}), *lines[::-1][:-1], json.dumps({"text": "changed"})]
    file.write_text("\n".join(edited))
    for item in batch:
        campaign.label(item, answer_for(item.fields))
    campaign.teach()
    learner = campaign.learner()
    for item, label in zip(learner.X_training, learner.y_training, strict=True):
        assert label == answer_for(item)
    assert {item["text"] for item in learner.X_training} == {i.fields["text"] for i in batch}
    notes = [finding.what for finding in campaign.doctor()]
    assert len(notes) == 1
    assert "has changed since the campaign began" in notes[0]
    assert not {"new row", "changed"} & {i.fields["text"] for i in campaign.query(28)}


def test_extra_fields_are_shown_and_do_not_make_an_item(make_campaign):
    pool = [{"text": text, "source": f"page {i}"} for i, text in enumerate([*POOL, POOL[0]])]
    campaign = make_campaign(pool=pool, extra_fields=["source"])
    assert campaign.n_items == len(POOL)
    assert all(item.fields["source"].startswith("page") for item in campaign.query(3))
    with pytest.raises(InputError, match="no field 'url'"):
        make_campaign(pool=pool, extra_fields=["url"], name="other")


def test_no_label_is_refused_and_one_is_enough(make_campaign):
    campaign = make_campaign()
    with pytest.raises(InputError, match="no batch"):
        campaign.teach()
    batch = campaign.query(3)
    with pytest.raises(InputError, match="None of the 3 items of round 1 is labelled"):
        campaign.teach()
    campaign.skip(batch[1])
    with pytest.raises(InputError, match="no label"):
        campaign.teach(partial=True)
    campaign.label(batch[0], "red")
    assert campaign.teach(partial=True).state == "published"
    assert campaign.history()[0].n_labels == 1


def test_a_round_that_nobody_has_labelled_does_not_end_in_python_either(make_campaign):
    campaign = make_campaign()
    for _ in range(2):
        campaign.query(2)
        with pytest.raises(InputError, match="is labelled, so there is nothing new to learn"):
            campaign.teach()
        assert campaign.status().state == "issued"
        label_all(campaign)
        campaign.teach()
    assert [record.n_labels for record in campaign.history()] == [2, 4]


def test_a_training_that_diverges_keeps_labels_and_the_earlier_adapter(make_campaign):
    campaign = make_campaign(training=Training(max_steps=2, learning_rate=1e30, b_weight_decay=0.0))
    campaign.query(3)
    label_all(campaign)
    with pytest.raises(TrainingDivergedError):
        campaign.teach()
    status = campaign.status()
    assert (status.state, status.n_labelled, status.adapter) == ("failed", 3, None)
    assert "learning_rate" in status.error
    assert status.next.startswith("starlearn teach")
    campaign.set_params(training__learning_rate=1e-3)
    assert campaign.teach().adapter == "round-0001-2"


def test_ctrl_c_in_a_training_leaves_a_round_that_goes_on(make_campaign, monkeypatch):
    campaign = make_campaign()
    campaign.query(3)
    label_all(campaign)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("starlearn.train.trainer._AdapterTrainer.training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            campaign.teach()
    assert campaign.status().state == "training"
    assert campaign.resume().state == "published"


def killed_after_the_rename(campaign, monkeypatch):
    """Let a training die when its adapter is complete and not yet named in the store."""

    def die(name):
        if name == "publish_renamed":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("starlearn.campaign.publish.failpoint", die)
        with pytest.raises(KeyboardInterrupt):
            campaign.teach()
    assert campaign.status().state == "training"
    assert campaign.published() is None


def test_a_complete_adapter_is_taken_over_without_another_training(make_campaign, monkeypatch):
    campaign = make_campaign()
    campaign.query(3)
    label_all(campaign)
    killed_after_the_rename(campaign, monkeypatch)
    monkeypatch.setattr(
        "starlearn.learner.estimator.STARLearner.teach", lambda *_: pytest.fail("trained again")
    )
    assert campaign.resume().adapter == "round-0001-1"
    record = campaign.history()[0]
    assert (record.n_labels, record.state) == (3, "published")
    assert record.train_loss is not None


@pytest.mark.parametrize("what", ["label", "setting"])
def test_an_adapter_of_other_labels_or_settings_is_not_taken_over(make_campaign, monkeypatch, what):
    campaign = make_campaign()
    batch = campaign.query(3)
    label_all(campaign)
    killed_after_the_rename(campaign, monkeypatch)
    if what == "label":
        campaign.label(batch[0], "red")
    else:
        campaign.set_params(training__learning_rate=1e-4)
    assert campaign.teach().adapter == "round-0001-2"
    assert [f.what for f in campaign.doctor() if "round-0001-1" in f.what]
    campaign.doctor(fix=True)
    assert campaign.doctor() == []


def test_a_label_between_interruption_and_resumption_changes_no_batch(make_campaign, monkeypatch):
    batches = []
    for name in ("whole", "interrupted"):
        campaign = make_campaign(name=name)
        first = campaign.query(6)
        for item in first[:2]:
            campaign.label(item, answer_for(item.fields))
        campaign.teach(partial=True)
        if name == "interrupted":
            with monkeypatch.context() as patch:
                patch.setattr(
                    batch_scores,
                    "_write_scores",
                    lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
                )
                with pytest.raises(KeyboardInterrupt):
                    campaign.query(26)
            campaign.label(first[3], "red")
            campaign.resume()
        else:
            campaign.query(26)
        batches.append(ids(campaign.batch()))
    assert batches[0] == batches[1]


def test_a_first_batch_without_a_label_can_be_left(make_campaign):
    campaign = make_campaign()
    first = campaign.query(2)
    campaign.skip(first[0])
    campaign.flag(first[1])
    assert campaign.status().state == "labelled"
    assert campaign.status().next.startswith("starlearn query")
    with pytest.raises(InputError, match=r"skips or flags.*starlearn query .* -n 50"):
        campaign.teach()
    second = campaign.query(3)
    assert not set(ids(first)) & set(ids(second))
    assert campaign.status().round == 2
    label_all(campaign)
    assert campaign.teach().state == "published"
    campaign.label(first[0], "red")  # the first batch is not closed to second thoughts
    campaign.query(2)
    label_all(campaign)
    campaign.teach()
    assert campaign.doctor() == []
    assert [(r.round, r.state, r.n_labels) for r in campaign.history()] == [
        (1, "labelled", None),
        (2, "published", 3),
        (3, "published", 6),
    ]


def test_a_choice_with_the_tokens_of_another_is_refused(make_campaign):
    campaign = make_campaign()
    campaign.add_choice("yes")
    campaign.add_choice("never")  # unknown to the word tokenizer, and the only such word
    with pytest.raises(InputError, match="'never' and 'always' have the same tokens"):
        campaign.add_choice("always")
    assert campaign.choices == [*COLOURS, "yes", "never"]
    task = ChoiceTask("{text} Answer :", choices=["never", "always"])
    with pytest.raises(InputError, match="have the same tokens"):
        make_campaign(name="other", task=task)


def test_a_correction_counts_in_the_next_training(make_campaign):
    campaign = make_campaign()
    batch = campaign.query(3)
    for item in batch:
        campaign.label(item, "red")
    campaign.teach()
    campaign.query(2)
    label_all(campaign)
    campaign.label(batch[1], "blue")
    campaign.teach()
    learner = campaign.learner()
    texts = [item["text"] for item in learner.X_training]
    assert len(texts) == len(set(texts)) == 5
    assert learner.y_training[texts.index(batch[1].fields["text"])] == "blue"


def test_a_trained_learner_brings_its_labels(make_campaign, tiny_model, quick):
    learner = make_learner(tiny_model).fit(POOL[:3], COLOURS)
    campaign = make_campaign(learner=learner)
    assert campaign.history()[0].round == 0
    assert np.array_equal(campaign.learner().predict_proba(POOL), learner.predict_proba(POOL))
    batch = campaign.query(29)
    assert not {item.fields["text"] for item in batch} & set(POOL[:3])
    campaign.label(batch[0], "blue")
    campaign.teach(partial=True)
    with Campaign.open(quick / "campaign") as again:
        found = again.learner()
    assert [i if isinstance(i, str) else i["text"] for i in found.X_training] == [
        *POOL[:3],
        batch[0].fields["text"],
    ]
    assert found.y_training.tolist() == [*COLOURS, "blue"]
    assert len(found.rounds_) == 2


def test_first_labels_of_items_outside_the_pool_take_nothing_away(make_campaign, tiny_model):
    """The usual case: a seed set, and a pool without it."""
    learner = make_learner(tiny_model).fit(POOL[:4], [*COLOURS, "red"])
    campaign = make_campaign(pool=POOL[3:9], learner=learner)
    assert campaign.status().next.endswith("-n 5")
    with pytest.warns(UserWarning, match="more than the 5 items that are left"):
        batch = campaign.query(6)
    assert {item.fields["text"] for item in batch} == set(POOL[4:9])
    label_all(campaign)
    campaign.teach()
    assert "report" in campaign.status().next


def test_the_only_label_counts_as_it_is_now(make_campaign):
    campaign = make_campaign()
    (item,) = campaign.query(1)
    campaign.label(item, "red")
    campaign.teach()
    (other,) = campaign.query(1)
    campaign.label(item, "blue")
    campaign.skip(other)
    campaign.teach()
    assert campaign.learner().y_training.tolist() == ["blue"]


def test_random_choice_and_residual_scores(make_campaign):
    random = make_campaign(name="random", acquisition=Acquisition(n_passes=2, strategy="random"))
    batch = random.query(4)
    assert all(item.score is None and "drawn at random" in item.reason for item in batch)
    residual = make_campaign(
        name="residual",
        task=GenerationTask("{text}", 2),
        acquisition=Acquisition(n_passes=2, reduce="residual"),
    )
    assert len(residual.query(3)) == 3


def test_free_form_answers(make_campaign):
    campaign = make_campaign(task=GenerationTask("{text}", 3))
    batch = campaign.query(2)
    campaign.label(batch[0], "blue  \n it is")
    campaign.label(batch[1], "007")
    campaign.teach()
    assert sorted(campaign.learner().y_training) == ["007", "blue  \n it is"]


def test_another_base_model_is_refused(make_campaign, tmp_path, quick):
    from tiny_models import build_model

    campaign = make_campaign()
    campaign.query(2)
    label_all(campaign)
    other = str(build_model(tmp_path / "other", rms_norm_eps=1e-4))
    with Campaign.open(quick / "campaign", model=other) as moved, pytest.raises(ModelMismatchError):
        moved.teach()
    campaign.teach()
    with Campaign.open(quick / "campaign", model=other) as moved, pytest.raises(ModelMismatchError):
        moved.query(2)


def test_settings_that_a_campaign_keeps(make_campaign, tiny_model):
    campaign = make_campaign()
    for name in ("model", "task__prompt", "quantization", "random_state"):
        with pytest.raises(InputError, match="cannot change"):
            campaign.set_params(**{name: "x"})
    with pytest.raises(InputError):
        campaign.set_params(training__speed=3)
    with pytest.raises(InputError):
        campaign.set_params(training__epochs=0)
    with pytest.raises(InputError, match="STARLearner"):
        make_campaign(learner="a learner", name="b")
    with pytest.raises(InputError, match="resolution"):
        make_campaign(resolution="loudest", name="c")
    with pytest.raises(InputError, match="per_item"):
        make_campaign(per_item=0, name="d")
    drawn = make_campaign(learner=make_learner(tiny_model, random_state=None), name="e")
    assert isinstance(drawn.learner().random_state, int)


def test_folders_that_are_not_free(make_campaign, quick):
    make_campaign()
    with pytest.raises(InputError, match=r"campaign in .* already"):
        make_campaign()
    (quick / "full").mkdir()
    (quick / "full" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        make_campaign(name="full")
    (quick / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        make_campaign(name="file")
    with pytest.raises(InputError, match="no campaign"):
        Campaign.open(quick / "nowhere")


def test_a_new_choice_is_learnt_by_the_next_training(make_campaign):
    campaign = make_campaign()
    batch = campaign.query(2)
    with pytest.raises(InputError, match="add_choice"):
        campaign.label(batch[0], "maybe")
    campaign.add_choice("maybe")
    campaign.label(batch[0], "maybe")
    campaign.teach(partial=True)
    assert campaign.learner().classes_.tolist() == ["blue", "green", "maybe", "red"]
    with pytest.raises(InputError, match="distinct"):
        campaign.add_choice("red")


def test_every_state_has_a_next_command(quick):
    from starlearn.campaign.status import next_command

    for state in rounds.STATES:
        found = rounds.Round(1, state, 5, 0, {}, 0, None, None, None, {}, None, "", "", 0)
        assert next_command(quick, found, 5, 10, 3).startswith("starlearn ")


def test_opening_and_labelling_load_no_model(make_campaign, quick):
    import subprocess
    import sys

    make_campaign().query(2)
    code = (
        "import sys\nfrom starlearn.campaign.campaign import Campaign\n"
        f"campaign = Campaign.open({str(quick / 'campaign')!r})\n"
        "campaign.label(campaign.open_items()[0], 'red')\ncampaign.status()\n"
        "heavy = {'torch', 'transformers', 'sklearn', 'pandas', 'numpy', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_no_warning_in_a_plain_campaign(make_campaign):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        campaign = make_campaign(task=ChoiceTask("{text} Answer :", choices=COLOURS))
        campaign.query(1)
    assert querying.waiting_message(campaign, rounds.current(campaign.store))


def test_scores_that_an_interrupted_query_left_are_not_those_of_another_query(
    make_campaign, monkeypatch
):
    campaign = make_campaign()

    def interrupted(name):
        if name == "query_scores_written":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch_scores, "failpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            campaign.query(2)
    assert campaign.scores(1) is not None
    campaign.set_params(acquisition__strategy="random")
    assert all(item.score is None for item in campaign.query(2))
    assert campaign.scores(1) is None  # a random draw computes none
