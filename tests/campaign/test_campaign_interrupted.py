"""Interrupted trainings and half-labelled batches of a campaign: what is kept, and what is said."""

import os
import signal
import warnings

import pytest
from campaign_cases import answer_for, label_all
from typer.testing import CliRunner

from starlearn.campaign.annotation import Action, entry_of, store_entry
from starlearn.campaign.campaign import Campaign
from starlearn.cli.app import app
from starlearn.errors import InputError
from starlearn.settings import LoRA, Training
from starlearn.train import resuming
from starlearn.train import trainer as trainer_module

STEPS = 6
SETTINGS = Training(max_steps=STEPS, batch_size=2, learning_rate=5e-3)
CONTINUES = r"continues at step {} of 6"


@pytest.fixture
def stopping(monkeypatch):
    """Return a function that lets the next trainings receive signals within a step."""
    real = trainer_module._AdapterTrainer.training_step

    def stop(step, *numbers):
        def training_step(self, *arguments, **named):
            if self.state.global_step + 1 == step:
                for number in numbers:
                    if number is None:
                        os._exit(137)
                    signal.raise_signal(number)
            return real(self, *arguments, **named)

        monkeypatch.setattr(trainer_module._AdapterTrainer, "training_step", training_step)

    return stop


@pytest.fixture
def make_labelled(make_campaign):
    """Return a factory of campaigns with a labelled batch, all of them alike."""

    def factory(name="campaign", training=SETTINGS):
        lora = LoRA(r=2, alpha=4, dropout=0.3, target_modules=["q_proj"])
        campaign = make_campaign(name=name, training=training, adapter=lora)
        campaign.query(5)
        label_all(campaign)
        return campaign

    return factory


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def interrupt(campaign, stopping, step):
    stopping(step, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        campaign.teach()
    stopping(0)


@pytest.mark.parametrize("warm_start", [False, True])
def test_an_interrupted_training_of_each_round_gives_the_same_adapter(
    make_labelled, stopping, warm_start
):
    digests = []
    for name in ("whole", "interrupted"):
        settings = Training(**{**SETTINGS.get_params(), "warm_start": warm_start})
        campaign = make_labelled(name, settings)
        for step in (2, 5):
            if name == "interrupted":
                interrupt(campaign, stopping, step)
                assert campaign.paths.checkpoint.exists()
                with (
                    Campaign.open(campaign.folder) as again,
                    pytest.warns(UserWarning, match=CONTINUES.format(step)),
                ):
                    again.resume()
            else:
                campaign.teach()
            assert not campaign.paths.checkpoint.exists()
            digests.append(campaign.learner().adapter_.digest)
            campaign.query(5)
            label_all(campaign)
    assert digests[:2] == digests[2:]
    assert campaign.doctor() == []


def test_steps_are_not_used_after_a_label_has_changed(make_labelled, stopping):
    campaign = make_labelled()
    interrupt(campaign, stopping, 3)
    item = campaign.batch()[0]
    other = next(c for c in campaign.choices if c != answer_for(item.fields))
    campaign.label(item, other, "ann")
    with pytest.warns(UserWarning, match="task or labels.*starts at step 0"):
        campaign.resume()
    again = make_labelled("again")
    again.label(again.batch()[0], other, "ann")
    again.teach()
    assert campaign.learner().adapter_.digest == again.learner().adapter_.digest


def test_a_failed_publication_keeps_the_steps(make_labelled, stopping, monkeypatch):
    campaign = make_labelled()
    interrupt(campaign, stopping, 3)

    def full(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("starlearn.campaign.publish.require_space", full)
        with (
            pytest.warns(UserWarning, match=CONTINUES.format(3)),
            pytest.raises(KeyboardInterrupt),
        ):
            campaign.teach()
    with pytest.warns(UserWarning, match=CONTINUES.format(3)):
        campaign.teach()


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_killed_training_continues_from_its_last_checkpoint(
    make_labelled, stopping, monkeypatch, step
):
    whole = make_labelled("whole")
    whole.teach()
    campaign = make_labelled("killed")
    if (child := os.fork()) == 0:
        monkeypatch.setattr(resuming, "INTERVAL", 0.0)
        monkeypatch.setattr(resuming, "SHARE", 0)
        stopping(step, None)
        try:
            with Campaign.open(campaign.folder) as own:
                own.teach()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137
    with Campaign.open(campaign.folder) as again, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again.resume()
    notes = [str(warning.message) for warning in caught]
    assert len(notes) == (step > 1)
    assert all(f"continues at step {step - 1} of 6" in note for note in notes)
    assert campaign.learner().adapter_.digest == whole.learner().adapter_.digest


def test_the_learner_of_a_campaign_keeps_no_steps_outside_its_trainings(make_labelled):
    campaign = make_labelled()
    campaign.teach()
    learner = campaign.learner()
    assert not hasattr(learner, "_checkpoint")


# What the command line says


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_teach_says_how_many_steps_are_kept(make_labelled, stopping, number):
    campaign = make_labelled()
    stopping(4, number)
    result = call("teach", campaign.folder)
    assert result.exit_code == 130, result.output
    assert "The first 4 of 6 steps of the training are kept." in result.stderr
    assert f"Continue: starlearn resume {campaign.folder}" in result.stderr
    stopping(6, number)
    result = call("resume", campaign.folder)
    assert "Note: The training continues at step 4 of 6" in result.stderr
    assert "The first 6 of 6 steps of the training are kept." in result.stderr
    stopping(0)
    result = call("teach", campaign.folder)
    assert result.exit_code == 0, result.output
    assert "Note: The training continues at step 6 of 6" in result.stderr


def test_ctrl_c_says_when_nothing_of_a_training_is_kept(make_labelled, stopping):
    campaign = make_labelled()
    stopping(4, signal.SIGINT, signal.SIGINT)
    result = call("teach", campaign.folder)
    assert result.exit_code == 130, result.output
    assert "All saved labels are kept. No step of the training is kept" in result.stderr
    stopping(0)
    assert "Note" not in call("resume", campaign.folder).stderr


def test_ctrl_c_after_the_training_says_that_the_adapter_is_kept(make_labelled, monkeypatch):
    campaign = make_labelled()

    def stop(name):
        if name == "publish_renamed":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("starlearn.campaign.publish.failpoint", stop)
        assert "The trained adapter is kept." in call("teach", campaign.folder).stderr
    assert call("resume", campaign.folder).exit_code == 0
    assert campaign.status().adapter == "round-0001-1"


# Half-labelled batches


def half_labelled(make_campaign, **changes):
    campaign = make_campaign(**changes)
    batch = campaign.query(6)
    campaign.label(batch[0], "red", "ann")
    campaign.skip(batch[1], "bob")
    campaign.flag(batch[2], "bob")
    return campaign, batch


def test_teach_says_how_many_items_wait_and_who_is_labelling(make_campaign):
    campaign, _ = half_labelled(make_campaign)
    with pytest.raises(
        InputError, match=r"round 1, responses are missing for 3 of 6 items\. .* bob 2, ann 1\."
    ) as found:
        campaign.teach()
    assert "campaign.teach(partial=True)" in str(found.value)
    assert campaign.status().state == "issued"
    result = call("teach", campaign.folder)
    assert result.exit_code == 2
    assert f"starlearn teach {campaign.folder} --partial" in result.stderr


def test_a_partial_teach_returns_open_items_to_the_pool(make_campaign):
    campaign, batch = half_labelled(make_campaign)
    result = call("teach", campaign.folder, "--partial")
    assert result.exit_code == 0, result.output
    assert "3 of 6 items left the batch with too few responses." in result.stdout
    assert campaign.history()[0].n_labels == 1
    again = {item.id for item in campaign.query(29)}
    assert again >= {item.id for item in batch[3:]}
    assert not again & {item.id for item in batch[:3]}


def test_skipped_and_flagged_items_do_not_wait(make_campaign):
    campaign, batch = half_labelled(make_campaign)
    for item in batch[3:]:
        campaign.skip(item, "ann")
    assert campaign.teach().state == "published"


def test_items_wait_for_as_many_annotators_as_they_need(make_campaign):
    campaign = make_campaign(per_item=2)
    first, second = campaign.query(2)
    for item in (first, second):
        campaign.label(item, "red", "ann")
    campaign.label(first, "red", "bob")
    with pytest.raises(
        InputError,
        match=r"responses of 2 annotators are missing for 1 of 2 .*too few keeps the answers",
    ):
        campaign.teach()
    campaign.teach(partial=True)
    assert campaign.history()[0].n_labels == 2
    assert second.id not in {item.id for item in campaign.query(30)}


def test_an_undone_response_waits_again(make_campaign):
    campaign = make_campaign()
    campaign.query(2)
    label_all(campaign)
    campaign.undo("ann")
    with pytest.raises(InputError, match="missing for 1 of 2 items"):
        campaign.teach()


def test_a_partial_training_that_was_interrupted_is_not_asked_about_again(make_campaign, stopping):
    campaign, _ = half_labelled(make_campaign)
    stopping(1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        campaign.teach(partial=True)
    stopping(0)
    with pytest.warns(UserWarning, match="continues at step 1 of 2"):
        assert campaign.resume().state == "published"


def test_a_late_answer_in_the_terminal_says_what_has_happened(make_campaign):
    campaign, batch = half_labelled(make_campaign)
    campaign.teach(partial=True)
    with pytest.raises(InputError, match=r"round 1 has ended: the adapter was trained.*not saved"):
        store_entry(campaign, entry_of(campaign, batch[3], Action("label", "red"), "ann"))
    campaign.query(3)
    with pytest.raises(InputError, match=r"round 1 has ended, because round 2 .*not saved"):
        store_entry(campaign, entry_of(campaign, batch[0].id, Action("skip"), "ann"))
    assert campaign.status().n_labelled == 1
