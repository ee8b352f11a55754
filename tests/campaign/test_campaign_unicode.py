"""Names, choices and answers in two Unicode forms: "é" is one text, however it was typed."""

import json
import unicodedata
from types import SimpleNamespace

import pytest

from starlearn.campaign import events, learner_settings
from starlearn.campaign.events import Entry
from starlearn.campaign.exchange import export_batch, import_labels
from starlearn.campaign.labelstudio.interface import extended, interface
from starlearn.campaign.responses import checked_answer, checked_name
from starlearn.cli.labelling import parse_line
from starlearn.errors import InputError
from starlearn.evaluate.judging import _columns
from starlearn.export.saving import parameters_from_json, parameters_to_json
from starlearn.learner.estimator import STARLearner
from starlearn.learner.inputs import checked_labels
from starlearn.learner.session import classes_of
from starlearn.tasks import ChoiceTask, GenerationTask

ONE, TWO = "caf\u00e9", "cafe\u0301"
"""The same text with one character and with two, NFC and NFD."""


@pytest.fixture
def cafes(make_campaign, monkeypatch):
    """Return a factory of campaigns with the choices red and café, in a form of one's own."""
    # The tiny tokenizer does not know the texts.
    monkeypatch.setattr(learner_settings, "require_distinct_choices", lambda *_, **__: None)

    def factory(form, **changes):
        return make_campaign(task=ChoiceTask("{text} Answer :", choices=["red", form]), **changes)

    return factory


def issue(campaign, n=3):
    """Issue a batch without a model."""
    from starlearn.campaign import rounds

    rows = campaign.snapshot().slice(0, n).to_pylist()
    rounds.begin(campaign.store, n, {})
    found = [rounds.Issued(r["id"], r["content"], i, 0.5, "why") for i, r in enumerate(rows)]
    rounds.issue(campaign.store, 1, found, {})
    return campaign.batch()


@pytest.mark.parametrize("form", [ONE, TWO])
def test_answers_and_names_in_two_forms_are_one(cafes, form, quick):
    campaign = cafes(form, per_item=2)
    assert campaign.choices == ["red", ONE]
    first, second, third = issue(campaign)
    campaign.label(first, TWO, f"Jos{TWO[3:]}")
    campaign.label(first, ONE, f"Jos{ONE[3:]}")
    campaign.label(second, TWO, "ann")
    assert campaign.status().annotators == {f"Jos{ONE[3:]}": 1, "ann": 1}
    assert campaign.labels() == {first.id: ONE, second.id: ONE}
    assert parse_line(TWO, campaign.choices).text == ONE
    (quick / "x.csv").write_text(f"id,label\n{third.id},{TWO}\n")
    assert import_labels(campaign, quick / "x.csv", f"Jos{TWO[3:]}").n_new == 1
    assert import_labels(campaign, quick / "x.csv", f"Jos{ONE[3:]}").n_same == 1
    export_batch(campaign, quick / "y.jsonl", annotator=f"Jos{TWO[3:]}")
    rows = [json.loads(line) for line in (quick / "y.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [ONE, None, ONE]


def test_relabel_takes_spellings_in_both_forms(cafes, quick):
    campaign = cafes(ONE)
    first, *_ = issue(campaign)
    (quick / "x.csv").write_text(f"id,label\n{first.id},{TWO.upper()}!\n")
    import_labels(campaign, quick / "x.csv", relabel={f"{ONE.upper()}!": ONE})
    assert campaign.labels() == {first.id: ONE}


def test_an_edited_unicode_form_of_a_text_is_no_edited_text(make_campaign, quick):
    campaign = make_campaign([f"the sky is {TWO}", "the sea is"])
    first, _ = issue(campaign, 2)
    assert first.fields["text"] == f"the sky is {TWO}"  # texts of items stay as they are
    (quick / "x.csv").write_text(f"id,text,label\n{first.id},the sky is {ONE},red\n")
    assert import_labels(campaign, quick / "x.csv").notes == []


def test_free_form_answers_are_one_for_the_majority(make_campaign):
    campaign = make_campaign(task=GenerationTask("{text} Answer :", 2), per_item=3)
    first, *_ = issue(campaign)
    campaign.label(first, ONE, "ann")
    campaign.label(first, TWO, "bob")
    campaign.label(first, "tea", "cid")
    assert campaign.labels() == {first.id: ONE}


def test_a_campaign_of_an_earlier_version_still_works(cafes, monkeypatch):
    campaign = cafes(TWO, per_item=2, resolution="unanimous")
    settings = json.loads(campaign.meta["learner"])
    settings["task"]["choices"] = ["red", TWO, ONE]  # added because it was "not among" the choices
    with campaign.store.transaction():
        campaign.store.set_meta(learner=json.dumps(settings))
    first, *_ = issue(campaign)
    with monkeypatch.context() as earlier:
        earlier.setattr(events.Event, "__post_init__", lambda self: None)
        old = [Entry("label", first.id, name, TWO) for name in ("ann", f"Jos{TWO[3:]}")]
        events.append(campaign.store, old, 2)
    with type(campaign).open(campaign.folder) as again:
        assert again.choices == ["red", ONE]
        again.label(first, ONE, f"Jos{ONE[3:]}")
        assert again.batch()[0].answers == {"ann": ONE, f"Jos{ONE[3:]}": ONE}
        for _ in range(2):
            assert again.undo(f"Jos{TWO[3:]}") is not None
        assert again.batch()[0].answers == {"ann": ONE}
        assert again.labels() == {first.id: ONE}
        task = again.parameters()["task"]
        task.check()
        assert task.choices == ["red", ONE]
        with pytest.raises(InputError, match="more than once"):
            again.add_choice(TWO)


def test_a_choice_is_removed_in_either_form_if_no_label_is_it(cafes):
    campaign = cafes(TWO)
    campaign.add_choice("tea")
    first, *_ = issue(campaign)
    campaign.label(first, TWO)
    for form in (ONE, TWO):
        with pytest.raises(InputError, match="is the answer to 1 items"):
            campaign.remove_choice(form)
    campaign.undo()
    campaign.remove_choice(TWO)
    assert campaign.choices == ["red", "tea"]
    for bad in (5, "29 \x80"):
        with pytest.raises(InputError, match=r"must be text|control character"):
            campaign.add_choice(bad)


def test_names_and_answers_are_checked_in_one_form():
    assert checked_name(f" {TWO} ") == ONE
    assert checked_answer(TWO, None) == ONE
    assert checked_answer(TWO, ["tea", ONE]) == ONE


def test_a_project_gets_no_choice_a_second_time():
    assert extended(interface(["text"], ["red", TWO]), ["text"], ["red", ONE]) is None


@pytest.mark.parametrize("form", [ONE, TWO])
def test_labels_of_a_learner_are_in_one_form(form):
    task = ChoiceTask(choices=["tea", form])
    with pytest.warns(UserWarning, match="1 of 2 labels, such as .*, were converted"):
        _, _, labels = checked_labels(["x", "y"], [TWO, "tea"], task)
    assert labels.tolist() == [ONE, "tea"]
    assert classes_of(task, None).tolist() == [ONE, "tea"]
    with pytest.warns(UserWarning, match="NFC"):
        assert _columns(SimpleNamespace(classes_=labels), [TWO, "tea"]).tolist() == [0, 1]
    assert GenerationTask().correct([TWO], [ONE]) == [True]


def test_settings_of_an_earlier_version_hold_a_choice_once():
    learner = STARLearner(task=ChoiceTask(choices=["tea", TWO, ONE]))
    saved = parameters_to_json(learner.get_params(deep=False))
    assert parameters_from_json(saved, "here")["task"].choices == ["tea", ONE]


def test_choices_in_two_forms_are_one_choice():
    with pytest.raises(InputError, match="more than once"):
        ChoiceTask(choices=[ONE, TWO]).check()
    task = ChoiceTask(choices=["tea", TWO])
    assert task.composed_choices() == ["tea", ONE]
    assert unicodedata.normalize("NFD", ONE) == task.choices[1]  # a parameter stays as given


def test_an_entry_that_is_sent_again_in_another_form_is_stored_once(campaign):
    item = campaign.batch()[0].id
    for name in ("Jos\u00e9", "Jose\u0301"):
        (event,) = campaign.record([Entry("skip", item, name, uuid="one")])
        assert (event.seq, event.annotator) == (1, "Jos\u00e9")
    assert events.undo(campaign.store, "Jose\u0301", None, 1).undoes == 1
