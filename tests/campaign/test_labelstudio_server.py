"""A real Label Studio: pushed to, annotated by two users, changed, pulled, pushed again."""

import json

import pytest
from campaign_cases import POOL

pytest.importorskip("label_studio_sdk", reason="the client of Label Studio is not installed")

from labelstudio_process import ADMIN, ADMIN_KEY, PROGRAM, admin, joined, of, running
from test_campaign_exchange import HOSTILE

from starlearn.campaign import learner_settings
from starlearn.campaign.exchange import export_batch, import_labels
from starlearn.campaign.labelstudio.interface import interface
from starlearn.campaign.labelstudio.sync import link_of, pull, push
from starlearn.errors import InputError, ServerError
from starlearn.settings import Acquisition
from starlearn.tasks import ChoiceTask, GenerationTask

pytestmark = [
    pytest.mark.labelstudio,
    pytest.mark.slow,
    pytest.mark.enable_socket,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PROGRAM.exists(), reason="no Label Studio: make test-labelstudio"),
]
BOB = "bob@example.org"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with running(tmp_path_factory.mktemp("labelstudio")) as address:
        yield address


@pytest.fixture(scope="module")
def ann(url):
    with admin(url) as person:
        yield person


@pytest.fixture(scope="module")
def bob(url, ann):
    with joined(url, BOB, ann.request("GET", "/api/invite")["invite_url"]) as person:
        yield person


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", ADMIN_KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def tasks_of(person, campaign):
    """Return the tasks of a campaign's project as the server keeps them."""
    params = {"project": link_of(campaign).project, "fields": "all", "page_size": 1000}
    return person.request("GET", "/api/tasks/", params=params)["tasks"]


def exported(person, campaign):
    """Return the JSON export of a campaign's project."""
    params = {"exportType": "JSON", "download_all_tasks": "true"}
    path = f"/api/projects/{link_of(campaign).project}/export"
    return json.dumps(person.request("GET", path, params=params))


def counts(done):
    return done.n_new, done.n_skips, done.n_same, done.n_open


def test_two_users_annotate_change_and_skip(make_campaign, url, ann, bob, quick, monkeypatch):
    campaign = make_campaign()
    campaign.query(5)
    assert push(campaign, url).n_new == 5
    assert (push(campaign).n_new, push(campaign).n_same) == (0, 5)
    first, second, third, fourth, fifth = tasks_of(ann, campaign)
    batch = campaign.batch()
    assert [task["data"]["id"] for task in (first, second, third, fourth, fifth)] == [
        item.id for item in batch
    ]
    assert all(len(task["predictions"]) == 1 for task in tasks_of(ann, campaign))
    assert counts(pull(campaign)) == (0, 0, 0, 0)

    note = ann.annotate(first["id"], "red", lead_time=1.5)
    bob.annotate(first["id"], "blue")
    gone = bob.annotate(second["id"], "green", ground_truth=True)
    bob.annotate(third["id"], None)
    bob.request("POST", f"/api/tasks/{fourth['id']}/drafts", json={**of("red"), "lead_time": 1})
    done = pull(campaign)
    assert counts(done) == (3, 1, 0, 0)
    assert done.notes == []
    items = {item.id: item for item in campaign.batch()}
    assert items[batch[0].id].answers == {ADMIN: "red", BOB: "blue"}
    assert items[batch[1].id].answers == {BOB: "green"}
    assert items[batch[2].id].responses == {BOB: "skip"}
    assert items[batch[3].id].responses == {}

    ann.request("PATCH", f"/api/annotations/{note['id']}/", json=of("green"))
    ann.request("DELETE", f"/api/annotations/{gone['id']}/")
    ann.request(
        "PATCH", f"/api/tasks/{fourth['id']}/", json={"data": {**fourth["data"], "text": "x"}}
    )
    ann.annotate(fourth["id"], "red")
    done = pull(campaign)
    assert counts(done) == (2, 0, 2, 0)
    assert "In 1 rows the text differs" in done.notes[0]
    assert "1 annotations that were pulled earlier are no longer" in done.notes[1]
    assert campaign.batch()[0].answers == {ADMIN: "green", BOB: "blue"}
    assert campaign.batch()[1].answers == {BOB: "green"}
    assert campaign.batch()[3].answers == {ADMIN: "red"}
    assert campaign.batch()[3].fields == batch[3].fields
    assert counts(pull(campaign)) == (0, 0, 4, 0)

    monkeypatch.setenv("LABEL_STUDIO_API_KEY", bob.key)  # another kind of key, renewed when used
    assert counts(pull(campaign)) == (0, 0, 4, 0)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", ADMIN_KEY)

    (quick / "export.json").write_text(exported(ann, campaign))
    assert counts(import_labels(campaign, quick / "export.json")) == (0, 0, 4, 0)

    campaign.add_choice("black & 'white' <grey>")
    ann.request("DELETE", f"/api/tasks/{fifth['id']}/")
    assert (push(campaign).n_new, push(campaign).n_same) == (1, 1)
    (again,) = (task for task in tasks_of(ann, campaign) if task["data"]["id"] == batch[4].id)
    ann.annotate(again["id"], "black & 'white' <grey>")
    assert counts(pull(campaign)) == (1, 0, 4, 0)
    assert campaign.status().state == "labelled"


def test_an_export_from_before_a_correction_changes_no_label(make_campaign, url, ann, quick):
    campaign = make_campaign()
    first, _ = campaign.query(2)
    push(campaign, url)
    task, _ = tasks_of(ann, campaign)
    note = ann.annotate(task["id"], "red")
    (quick / "export.json").write_text(exported(ann, campaign))
    ann.request("PATCH", f"/api/annotations/{note['id']}/", json=of("blue"))
    assert counts(pull(campaign)) == (1, 0, 0, 0)
    done = import_labels(campaign, quick / "export.json")
    assert "older than another response" in done.notes[0]
    assert campaign.labels() == {first.id: "blue"}
    assert campaign.status().annotators == {ADMIN: 1}  # the export names only a number


def test_refusals_of_a_real_server(make_campaign, url, monkeypatch):
    campaign = make_campaign()
    campaign.query(2)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "of-nobody")
    with pytest.raises(InputError, match=r"401: Invalid token.*export LABEL_STUDIO_API_KEY"):
        push(campaign, url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", ADMIN_KEY)
    for command in (push, pull):
        with pytest.raises(InputError, match=r"cannot find .* 98765.*--project NUMBER"):
            command(campaign, url, project=98765)
    with pytest.raises(ServerError, match="cannot be reached"):
        push(campaign, "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot find the list of projects"):
        push(campaign, f"{url}/a/path/that/is/not/there")
    assert link_of(campaign) is None


def test_a_project_of_several_pages_and_choices_of_every_kind(make_campaign, url, ann, monkeypatch):
    # The tiny tokenizer knows none of these words, and gives some of them the same tokens.
    monkeypatch.setattr(learner_settings, "require_distinct_choices", lambda *_: None)
    random = Acquisition(n_passes=2, strategy="random")
    choices = ["$50", 'a "b" & <c>', "two\nlines", " é 漢字 😀", "007"]
    task = ChoiceTask("{text}", choices=choices)
    pool = [f"the sky is {i}" for i in range(230)]
    campaign = make_campaign(pool=pool, task=task, acquisition=random)
    campaign.query(230)
    assert push(campaign, url).n_new == 230
    found = tasks_of(ann, campaign)
    expected = {}
    for number, task in enumerate(found[:3] + found[115:118] + found[-3:]):
        expected[task["data"]["id"]] = choices[number % len(choices)]
        ann.annotate(task["id"], choices[number % len(choices)])
    assert counts(pull(campaign)) == (9, 0, 0, 0)
    assert campaign.labels() == expected
    assert (push(campaign).n_new, push(campaign).n_same) == (0, 221)


def test_texts_and_free_form_answers_survive_a_real_server(make_campaign, url, ann):
    texts = HOSTILE[:-1]
    campaign = make_campaign(pool=texts, task=GenerationTask("{text}", 2))
    batch = campaign.query(len(texts))
    push(campaign, url)
    found = tasks_of(ann, campaign)
    assert [task["data"]["text"] for task in found] == [item.fields["text"] for item in batch]
    for task, answer in zip(found, texts, strict=True):
        ann.annotate(task["id"], answer, closed=False)
    assert pull(campaign).notes == []
    assert [item.answers[ADMIN] for item in campaign.batch()] == texts


def test_the_files_for_a_server_that_cannot_be_reached(make_campaign, ann, quick):
    campaign = make_campaign(pool=POOL[:4])
    campaign.query(4)
    export_batch(campaign, quick / "tasks.json")
    config = (quick / "tasks.xml").read_text()
    assert config == interface(["text"], campaign.choices)
    made = ann.request("POST", "/api/projects/", json={"title": "by hand", "label_config": config})
    with (quick / "tasks.json").open("rb") as file:
        ann.request("POST", f"/api/projects/{made['id']}/import", files={"file": file})
    params = {"project": made["id"], "fields": "all"}
    for task in ann.request("GET", "/api/tasks/", params=params)["tasks"]:
        assert len(task["predictions"]) == 1
        ann.annotate(task["id"], "blue")
    params = {"exportType": "JSON", "download_all_tasks": "true"}
    content = ann.request("GET", f"/api/projects/{made['id']}/export", params=params)
    (quick / "export.json").write_text(json.dumps(content))
    assert counts(import_labels(campaign, quick / "export.json")) == (4, 0, 0, 0)
    assert list(campaign.labels().values()) == ["blue"] * 4
    assert campaign.status().annotators == {"user-1": 4}
