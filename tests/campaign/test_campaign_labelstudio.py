"""Label Studio through its own client: batches out, annotations back, each stored once."""

import pytest
from campaign_cases import COLOURS
from typer.testing import CliRunner

pytest.importorskip("label_studio_sdk", reason="the client of Label Studio is not installed")

from fake_labelstudio import URL
from test_campaign_exchange import HOSTILE

from starlearn.campaign import events
from starlearn.campaign.labelstudio import sync
from starlearn.campaign.labelstudio.sync import link_of, pull, push
from starlearn.cli.app import app
from starlearn.errors import InputError
from starlearn.settings import Acquisition
from starlearn.tasks import GenerationTask


def counts(done):
    return done.n_new, done.n_skips, done.n_same


def responses_of(campaign):
    return [(e.kind, e.answer, e.annotator) for e in events.events(campaign.store)]


def of(campaign, fake, task):
    """Return the item of a task."""
    key = fake.tasks[task]["data"]["id"]
    return next(item for item in campaign.batch() if item.id == key)


# Out and back


def test_a_batch_becomes_tasks_once(campaign, fake):
    done = push(campaign, f"{URL}/")
    assert (done.n_new, done.n_same, done.n_predictions) == (4, 0, 4)
    (project,) = fake.projects.values()
    assert project["maximum_annotations"] == 1
    assert campaign.id in project["description"]
    batch = campaign.batch()
    for item, task in zip(batch, fake.tasks.values(), strict=True):  # most valuable first
        assert task["data"] == {
            "text": item.fields["text"],
            "id": item.id,
            "campaign": campaign.id,
            "round": 1,
            "place": item.place,
            "score": item.score,
            "why": item.reason,
        }
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "starlearn, base model"
        assert "score" not in prediction  # no probability was computed
        (answer,) = prediction["result"][0]["value"]["choices"]
        assert f"the model says {answer!r}" in item.reason
    again = push(campaign)
    assert (again.n_new, again.n_same, again.link) == (0, 4, done.link)
    assert len(fake.tasks) == 4
    assert len(fake.projects) == 1


def test_annotations_become_responses_once(pushed, fake):
    campaign, tasks = pushed
    fake.annotate(tasks[0], "red", 1, lead_time=2.5)
    fake.annotate(tasks[0], "blue", 2)
    fake.annotate(tasks[1], [], 2, was_cancelled=True)
    fake.annotate(tasks[2], [], 1)  # its control was left empty
    fake.tasks[tasks[3]]["drafts"] = [{"id": 9, "result": [{"value": {"choices": ["red"]}}]}]
    done = pull(campaign)
    assert (*counts(done), done.n_open, done.notes) == (2, 1, 0, 1, [])
    assert of(campaign, fake, tasks[0]).answers == {
        "ann@example.org": "red",
        "bob@example.org": "blue",
    }
    assert of(campaign, fake, tasks[1]).responses == {"bob@example.org": "skip"}
    assert of(campaign, fake, tasks[3]).responses == {}
    assert events.events(campaign.store)[0].ms == 2500
    before = responses_of(campaign)
    assert counts(pull(campaign)) == (0, 0, 3)
    assert responses_of(campaign) == before
    assert push(campaign).n_new == 0  # nothing is sent twice


def test_responses_of_a_deleted_account_have_their_own_name(pushed, fake):
    campaign, tasks = pushed
    fake.annotate(tasks[0], "red", user=None)
    fake.annotate(tasks[1], "red", user=77)
    pull(campaign)
    assert campaign.status().annotators == {"label-studio": 1, "user-77": 1}


def test_a_change_is_a_newer_response_and_a_later_local_one_counts(pushed, fake):
    campaign, tasks = pushed
    note = fake.annotate(tasks[0], "red")
    pull(campaign)
    for answer in ("blue", "red"):  # and back: an earlier state with a new time
        fake.update(note, answer)
        assert counts(pull(campaign)) == (1, 0, 0)
        assert of(campaign, fake, tasks[0]).answers == {"ann@example.org": answer}
    fake.update(note, "red")  # annotated again
    assert counts(pull(campaign)) == (1, 0, 0)
    campaign.label(of(campaign, fake, tasks[0]), "green", "ann@example.org")
    pull(campaign)
    assert of(campaign, fake, tasks[0]).answers == {"ann@example.org": "green"}
    for _ in range(3):
        campaign.undo("ann@example.org")
    assert of(campaign, fake, tasks[0]).answers == {"ann@example.org": "blue"}
    assert counts(pull(campaign)) == (0, 0, 1)
    assert of(campaign, fake, tasks[0]).answers == {"ann@example.org": "blue"}


def test_two_annotations_of_one_user_are_stored_in_the_order_of_changes(pushed, fake):
    campaign, tasks = pushed
    fake.annotate(tasks[0], "red", updated_at="2026-03-01T00:00:00Z")
    fake.annotate(tasks[0], "blue", updated_at="2026-02-01T00:00:00Z", ground_truth=True)
    assert counts(pull(campaign)) == (2, 0, 0)
    assert [answer for _, answer, _ in responses_of(campaign)] == ["blue", "red"]


def test_deleted_annotations_are_reported_and_kept(pushed, fake):
    campaign, tasks = pushed
    fake.annotate(tasks[0], "red")
    note = fake.annotate(tasks[1], "blue")
    pull(campaign)
    fake.update(note, "blue")
    fake.tasks[tasks[0]]["annotations"].clear()
    done = pull(campaign)
    assert "1 annotations that were pulled earlier are no longer" in done.notes[0]
    assert list(campaign.labels().values()) == ["red", "blue"]


def test_a_text_edited_there_moves_no_label(pushed, fake):
    campaign, tasks = pushed
    first = of(campaign, fake, tasks[0])
    fake.annotate(tasks[0], "red")
    fake.tasks[tasks[0]]["data"]["text"] = "another text"
    done = pull(campaign)
    assert campaign.labels() == {first.id: "red"}
    assert "In 1 rows the text differs" in done.notes[0]
    assert campaign.batch()[0].fields == first.fields
    fake.annotate(tasks[1], "red")
    fake.tasks[tasks[1]]["data"]["text"] = first.fields["text"]
    with pytest.raises(InputError, match=r"annotation .* has the text of"):
        pull(campaign)
    assert campaign.labels() == {first.id: "red"}


@pytest.mark.parametrize(
    ("note", "says"),
    [
        ({"answer": "purple"}, "'purple' is not among the choices"),
        ({"answer": "rde"}, "Did you mean 'red'"),
        (
            {
                "answer": [
                    {"from_name": "label", "type": "choices", "value": {"choices": ["red"] * 2}}
                ]
            },
            "2 answers",
        ),
        ({"answer": "red", "completed_by": {"id": 1, "email": "x" * 101}}, "annotator must be"),
    ],
)
def test_one_bad_annotation_and_nothing_is_stored(pushed, fake, note, says):
    campaign, tasks = pushed
    fake.annotate(tasks[0], "red")
    bad = fake.annotate(tasks[1], **note)
    with pytest.raises(InputError, match=rf"task {tasks[1]}, annotation {bad['id']}: .*{says}"):
        pull(campaign)
    assert responses_of(campaign) == []


def test_spellings_are_confirmed_by_whoever_pulls(pushed, fake):
    campaign, tasks = pushed
    fake.annotate(tasks[0], "Red")
    pull(campaign, relabel={"Red": "red"})
    assert list(campaign.labels().values()) == ["red"]


def test_tasks_of_others_are_passed_over(pushed, fake, make_campaign):
    campaign, _ = pushed
    other = make_campaign(name="other")
    other.query(2)
    push(other, URL, project=link_of(campaign).project)
    assert len(fake.tasks) == 6  # the same items, and each campaign has its own
    for task in fake.tasks:
        fake.annotate(task, "red")
    done = pull(campaign)
    assert done.n_new == 4
    assert done.notes == ["2 tasks are not of this campaign and were ignored."]
    push(other, new=True)
    with pytest.raises(InputError, match="none of its 2 tasks belongs to the campaign"):
        pull(campaign, project=link_of(other).project)


@pytest.mark.parametrize(("count", "most"), [(99, 100), (100, 100), (101, 100), (250, 30)])
def test_projects_of_any_number_of_pages(make_campaign, fake, count, most):
    fake.largest_page = most  # the server ignores the requested page size
    random = Acquisition(n_passes=2, strategy="random")
    campaign = make_campaign(pool=[f"the sky is {i}" for i in range(count)], acquisition=random)
    campaign.query(count)
    assert push(campaign, URL).n_predictions == 0  # drawn at random: nothing was scored
    assert len(fake.tasks) == count
    for number, task in enumerate(fake.tasks):
        fake.annotate(task, COLOURS[number % 3])
    assert pull(campaign).n_new == count
    assert len(campaign.labels()) == count


def test_texts_and_answers_survive_the_client(make_campaign, fake):
    campaign = make_campaign(pool=HOSTILE[:-1], task=GenerationTask("{text}", 2))
    batch = campaign.query(len(HOSTILE) - 1)
    push(campaign, URL)
    sent = [task["data"]["text"] for task in fake.tasks.values()]
    assert sent == [item.fields["text"] for item in batch]
    for task, answer in zip(fake.tasks, HOSTILE, strict=False):
        result = [{"from_name": "label", "type": "textarea", "value": {"text": [answer]}}]
        fake.annotate(task, result)
    assert pull(campaign).notes == []
    assert [i.answers["ann@example.org"] for i in campaign.batch()] == HOSTILE[:-1]


def test_predictions_of_the_newest_adapter_bring_a_probability(campaign, fake):
    with pytest.raises(InputError, match="No adapter is trained yet"):
        push(campaign, URL, predictions="computed")
    for item in campaign.batch():
        campaign.label(item, "red")
    campaign.teach()
    campaign.query(2)
    assert push(campaign, URL, predictions="computed").n_predictions == 2
    found = [task["predictions"][0] for task in fake.tasks.values()]
    assert {p["model_version"] for p in found} == {"starlearn, adapter of round 1"}
    answers = [p["result"][0]["value"]["choices"][0] for p in found]
    fields = [item.fields for item in campaign.batch()]
    expected = campaign.learner().predict_proba(fields)
    assert [p["score"] for p in found] == pytest.approx(expected.max(axis=1).tolist())
    assert answers == [sorted(COLOURS)[i] for i in expected.argmax(axis=1)]
    assert push(campaign, new=True, predictions="none").n_predictions == 0
    with pytest.raises(InputError, match="one of stored, computed, none"):
        push(campaign, predictions="yes")


# The project


def test_a_choice_that_was_added_is_added_there(pushed, fake):
    campaign, tasks = pushed
    (project,) = fake.projects.values()
    project["label_config"] = project["label_config"].replace("<Text", '<Text hint="mine"')
    campaign.add_choice('b"<l>ack')
    push(campaign)
    assert 'hint="mine"' in project["label_config"]
    assert 'value="b&quot;&lt;l&gt;ack"' in project["label_config"]
    fake.annotate(tasks[0], 'b"<l>ack')
    pull(campaign)
    assert list(campaign.labels().values()) == ['b"<l>ack']


def test_a_project_whose_number_was_lost_is_found_again(campaign, fake, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sync, "_remember", killed)
        with pytest.raises(KeyboardInterrupt):
            push(campaign, URL)
    assert (len(fake.projects), link_of(campaign)) == (1, None)
    assert push(campaign, URL).n_new == 4
    assert len(fake.projects) == 1


def test_an_interface_that_somebody_designed_is_not_replaced(campaign, fake):
    fake.projects[7] = {"id": 7, "label_config": '<View><Text name="t" value="$text"/></View>'}
    with pytest.raises(InputError, match='has no <Choices name="label">'):
        push(campaign, URL, project=7)
    assert fake.tasks == {}
    fake.projects[7]["label_config"] = "<View></View>"
    push(campaign, project=7)
    assert 'value="green"' in fake.projects[7]["label_config"]


def test_push_and_pull_on_the_command_line(campaign, fake):
    def done(*arguments):
        run = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert run.exit_code == 0, run.output
        return run.output

    folder = campaign.folder
    output = done("push", folder, "--url", URL, "--predictions", "none")
    assert "0 of them show an answer of the model." in output
    assert f"Next: starlearn pull {folder}" in output
    for task, answer in zip(fake.tasks, ["red", "rde", "blue"], strict=False):
        fake.annotate(task, answer)
    fake.annotate(max(fake.tasks), [], was_cancelled=True)
    run = CliRunner().invoke(app, ["pull", str(folder)])
    assert run.exit_code == 2
    assert "Nothing was imported" in run.output
    output = done("pull", folder, "--relabel", "rde=red")
    assert "3 labels saved, 1 skips." in output
    assert f"Next: starlearn teach {folder}" in output
    assert "0 labels saved, 4 were there already." in done("pull", folder)
