"""Label Studio by file: tasks and interface out, an export back, every character kept."""

import json
from xml.etree import ElementTree

import pytest
from campaign_cases import COLOURS, answer_for
from hypothesis import given
from hypothesis import strategies as st
from test_campaign_exchange import HOSTILE
from typer.testing import CliRunner

from starlearn.campaign import events, exchange
from starlearn.campaign.exchange import export_batch, import_labels
from starlearn.campaign.labelstudio.conversion import _answer
from starlearn.campaign.labelstudio.interface import (
    CONTROL,
    NOT_XML,
    OWN_KEYS,
    extended,
    interface,
    keys_of,
)
from starlearn.campaign.labelstudio.payload import TASKS, checked, parsed
from starlearn.cli.app import app
from starlearn.errors import InputError
from starlearn.tasks import GenerationTask

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
TIME = "2026-01-01T00:00:%02dZ"


@pytest.fixture
def campaign(make_campaign):
    made = make_campaign()
    made.query(3)
    return made


def exported(tasks, answers, closed=True, user=1):
    """Make of a file of tasks what Label Studio exports once they are annotated."""
    kind, value = ("choices", "choices") if closed else ("textarea", "text")
    return [
        {
            "id": number,
            "project": 1,
            **task,
            "annotations": [
                {
                    "id": number,
                    "completed_by": user,
                    "was_cancelled": False,
                    "created_at": TIME % 1,
                    "updated_at": TIME % 2,
                    "result": [{"from_name": CONTROL, "type": kind, "value": {value: [answer]}}],
                }
            ],
        }
        for number, (task, answer) in enumerate(zip(tasks, answers, strict=True), start=1)
    ]


def of_xml(text):
    return ElementTree.fromstring(text)  # noqa: S314 - what was written a moment ago


def invoked(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# Tasks out, an export back


def test_tasks_go_out_and_an_export_comes_back(campaign, quick):
    file = quick / "tasks.json"
    run = invoked("export", campaign.folder, file)
    assert run.exit_code == 0, run.output
    assert f"starlearn import {campaign.folder} export.json" in run.output
    tasks = json.loads(file.read_bytes())
    assert [task["data"]["id"] for task in tasks] == [item.id for item in campaign.batch()]
    shown = [task["predictions"][0]["result"][0]["value"]["choices"][0] for task in tasks]
    assert set(shown) <= set(COLOURS)
    view = of_xml(file.with_suffix(".xml").read_text())
    assert [choice.get("value") for choice in view.iter("Choice")] == COLOURS
    answers = [answer_for(item.fields) for item in campaign.batch()]
    (quick / "export.json").write_text(json.dumps(exported(tasks, answers)))
    run = invoked("import", campaign.folder, quick / "export.json")
    assert run.exit_code == 0, run.output
    assert "3 labels saved." in run.output
    assert list(campaign.labels().values()) == answers
    assert campaign.status().annotators == {"user-1": 3}
    done = import_labels(campaign, quick / "export.json")
    assert (done.n_new, done.n_same) == (0, 3)
    assert len(events.events(campaign.store)) == 3


def test_files_that_are_there_are_not_replaced(campaign, quick):
    (quick / "tasks.xml").write_text("mine")
    assert invoked("export", campaign.folder, quick / "tasks.json").exit_code == 2
    assert (quick / "tasks.xml").read_text() == "mine"
    assert invoked("export", campaign.folder, quick / "tasks.json", "--overwrite").exit_code == 0
    refused = invoked("export", campaign.folder, quick / "x.json", "--annotator", "ann")
    assert "hold no labels" in refused.output


def test_only_items_that_need_responses_are_exported(campaign, quick):
    first, *others = campaign.batch()
    campaign.skip(first, "ann")
    assert export_batch(campaign, quick / "x.json") == 2
    for item in others:
        campaign.label(item, "red", "ann")
    with pytest.raises(InputError, match=r"All 3 items .* starlearn teach"):
        export_batch(campaign, quick / "y.json")
    with pytest.raises(InputError, match="Round 7 has no batch"):
        export_batch(campaign, quick / "y.json", round_id=7)


def test_a_table_of_ours_that_was_brought_there_by_hand(campaign, quick):
    """Label Studio imports CSV too; only the id then identifies the campaign."""
    tasks = [{"data": {"id": item.id, **item.fields}} for item in campaign.batch()]
    content = [*exported(tasks, ["red"] * 3), {"id": 9, "data": {"id": "of somebody else"}}]
    (quick / "export.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    done = import_labels(campaign, quick / "export.json")
    assert (done.n_new, done.notes[0]) == (3, "1 tasks are not of this campaign and were ignored.")


def test_users_of_an_export_that_names_them(campaign, quick):
    tasks = [{"data": {"id": item.id}} for item in campaign.batch()[:2]]
    content = exported(tasks, ["red", "blue"], user={"id": 4, "email": "cy@example.org"})
    content[1]["annotations"][0]["completed_by"] = {"id": 5, "username": "dee"}
    (quick / "export.json").write_text(json.dumps(content))
    import_labels(campaign, quick / "export.json")
    assert campaign.status().annotators == {"cy@example.org": 1, "dee": 1}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a JSON export of Label Studio"),
        (b"[", "is not a JSON export of Label Studio"),
        (b'{"id": 1}', "the top level: Input should be a valid list"),
        (b'[{"id": 1, "text": "JSON-MIN"}]', "0.data: Field required"),
        (b"\xff\xfe[\x00]\x00", "is not a JSON export of Label Studio"),
        (
            b'[{"id": 1, "data": {"campaign": "another"}}]',
            "none of its 1 tasks belongs to the campaign",
        ),
    ],
)
def test_files_that_are_no_export(campaign, quick, content, says):
    (quick / "export.json").write_bytes(content)
    with pytest.raises(InputError, match=says):
        import_labels(campaign, quick / "export.json")
    assert events.events(campaign.store) == []


def test_a_file_of_any_size_is_not_read(campaign, quick, monkeypatch):
    monkeypatch.setattr(exchange, "LARGEST_EXPORT", 10)
    (quick / "export.json").write_text("[" * 11)
    with pytest.raises(InputError, match="has 11 bytes, but at most 10 are read"):
        import_labels(campaign, quick / "export.json")
    with pytest.raises(InputError, match="cannot be read"):
        import_labels(campaign, quick / "nowhere.json")


def test_texts_and_free_form_answers_survive_the_files(make_campaign, quick):
    campaign = make_campaign(pool=HOSTILE[:-1], task=GenerationTask("{text}", 2))
    batch = campaign.query(len(HOSTILE) - 1)
    export_batch(campaign, quick / "tasks.json")
    tasks = json.loads((quick / "tasks.json").read_bytes())
    assert [task["data"]["text"] for task in tasks] == [item.fields["text"] for item in batch]
    content = exported(tasks, HOSTILE[:-1], closed=False)
    (quick / "export.json").write_text(json.dumps(content, ensure_ascii=False))
    (message,) = import_labels(campaign, quick / "export.json").notes
    assert "numbers of these users are known: user-1." in message
    assert [item.answers["user-1"] for item in campaign.batch()] == HOSTILE[:-1]


@given(TEXTS, TEXTS, st.booleans(), st.booleans())
def test_any_text_and_answer_survive_an_export(text, answer, closed, ascii_only):
    content = exported([{"data": {"text": text}}], [answer], closed)
    raw = json.dumps(content, ensure_ascii=ascii_only).encode()
    (task,) = checked(TASKS, parsed(raw))
    assert task.data["text"] == text
    assert _answer(task.annotations[0], closed) == answer


def test_answers_under_other_controls_are_not_taken(campaign, quick):
    tasks = [{"data": {"id": item.id}} for item in campaign.batch()[:1]]
    content = exported(tasks, ["red"])
    (note,) = content[0]["annotations"]
    note["result"][0]["from_name"] = "sentiment"
    note["result"] += [{"type": "relation"}, {"from_name": CONTROL, "type": "rating", "value": {}}]
    (quick / "export.json").write_text(json.dumps(content))
    assert import_labels(campaign, quick / "export.json").n_open == 1


# The labelling interface


@given(st.lists(TEXTS, min_size=1, max_size=6, unique=True))
def test_keys_of_fields_are_names_that_label_studio_can_refer_to(names):
    keys = keys_of(names)
    assert set(keys) == set(names)
    assert len(set(keys.values())) == len(names)
    assert not set(keys.values()) & set(OWN_KEYS)
    assert all(key.isascii() and key.isidentifier() for key in keys.values())


def test_numbers_that_choices_show_are_keys_in_label_studio():
    config = interface(["text"], ["0: none", "1: mild"])
    assert [choice.get("hotkey") for choice in of_xml(config).iter("Choice")] == ["0", "1"]
    config = extended(config, ["text"], ["0: none", "1: mild", "2: severe"])
    assert [choice.get("hotkey") for choice in of_xml(config).iter("Choice")] == ["0", "1", "2"]
    config = extended(config, ["text"], ["0: none", "1: mild", "2: severe", "unsure"])
    assert "hotkey" not in config
    assert "hotkey" not in interface(["text"], ["red", "green"])


@given(
    st.lists(TEXTS.filter(lambda text: text and not NOT_XML.search(text)), max_size=6, unique=True),
    st.lists(TEXTS, min_size=1, max_size=3, unique=True),
)
def test_any_choice_survives_the_interface(choices, names):
    config = interface(names, choices)
    found = list(of_xml(config).iter("Choice"))
    assert [choice.get("value") for choice in found] == choices
    assert extended(config, names, choices) is None
    assert extended(config, names, choices[:1]) is None
    assert extended(interface(names, choices[:1]), names, choices) in (None, config)


def test_a_dollar_in_a_choice_is_no_reference_to_the_task():
    config = interface(["text"], ["$50", "5 $", "<b>$x</b>"])
    first, second, third = of_xml(config).iter("Choice")
    assert first.attrib == {"value": "$50", "alias": "$50", "html": "$50"}
    assert second.attrib == {"value": "5 $"}
    assert third.get("html") == "&lt;b&gt;$x&lt;/b&gt;"


def test_interfaces_with_several_fields_and_free_answers():
    view = of_xml(interface(["question", "label", "$a b"], None))
    shown = [(part.tag, part.get("value")) for part in view]
    assert shown == [
        ("Header", "a b"),
        ("Text", "$field_1"),
        ("Header", "label"),
        ("Text", "$field_2"),
        ("Header", "question"),
        ("Text", "$question"),
        ("TextArea", None),
    ]
    assert view[-1].attrib["name"] == CONTROL
    assert view[-1].attrib["toName"] == "field_1"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("<View><Choices/></View>", 'has no <Choices name="label">'),
        ("<View>", "is not XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><View>&a;</View>', "declares XML entities"),
    ],
)
def test_interfaces_that_do_not_fit(config, says):
    with pytest.raises(InputError, match=says):
        extended(config, ["text"], ["red"])


def test_a_choice_that_xml_cannot_hold_is_named():
    with pytest.raises(InputError, match=r"'a\\x07b'.*starlearn label FOLDER"):
        interface(["text"], ["red", "a\x07b"])
