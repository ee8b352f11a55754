"""Annotations of Label Studio: the newest of each person counts, whatever the order of files."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from campaign_cases import COLOURS, POOL, make_learner, quick_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from starlearn.campaign import events
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.events import Entry
from starlearn.campaign.exchange import import_labels
from starlearn.campaign.labelstudio.authors import USERS
from starlearn.campaign.labelstudio.conversion import import_annotations
from starlearn.campaign.labelstudio.payload import TASKS, checked
from starlearn.campaign.responses import RESOLUTIONS, resolved
from starlearn.errors import CampaignCorruptError, InputError

MONDAY, TUESDAY, WEDNESDAY = (f"2026-03-0{day}T10:00:00Z" for day in (2, 3, 4))
ANN = "ann@example.org"


def note(number, answer, updated, user=1, created="2026-03-01T00:00:00Z"):
    """Make an annotation; without an answer it is a skip."""
    value = {"from_name": "label", "type": "choices", "value": {"choices": [answer]}}
    return {
        "id": number,
        "completed_by": user,
        "was_cancelled": answer is None,
        "created_at": created,
        "updated_at": updated,
        "result": [] if answer is None else [value],
    }


def task(item, *notes, project=1):
    return {"id": 1, "project": project, "data": {"id": item.id}, "annotations": list(notes)}


def export(campaign, *tasks):
    """Import a JSON export."""
    file = campaign.folder.parent / "export.json"
    file.write_text(json.dumps(tasks))
    return import_labels(campaign, file)


def pulled(campaign, *tasks, names, server="http://labels.example"):
    """Import what a pull returns."""
    found = checked(TASKS, list(tasks))
    return import_annotations(campaign, found, "", "", names=names, server=server)


def answers(campaign, place=0):
    return campaign.batch()[place].answers


# The newest counts


def test_an_older_export_does_not_undo_a_newer_correction(campaign):
    item = campaign.batch()[0]
    export(campaign, task(item, note(11, "red", TUESDAY)))
    done = export(campaign, task(item, note(11, "blue", MONDAY)))
    assert campaign.labels() == {item.id: "red"}
    assert done.notes[0].startswith("1 annotations are older than another response of their ann")


def test_an_older_label_does_not_undo_a_newer_skip(campaign):
    item = campaign.batch()[0]
    export(campaign, task(item, note(11, None, TUESDAY)))
    export(campaign, task(item, note(11, "blue", MONDAY)))
    assert campaign.labels() == {}
    assert campaign.batch()[0].responses == {"user-1": "skip"}


@pytest.mark.parametrize("in_one_file", [True, False])
def test_two_annotations_of_one_user_count_by_their_times(campaign, in_one_file):
    item = campaign.batch()[0]
    notes = note(11, "red", WEDNESDAY), note(12, "blue", TUESDAY)
    for some in [notes] if in_one_file else [[one] for one in notes]:
        done = export(campaign, task(item, *some))
    assert campaign.labels() == {item.id: "red"}
    assert ("are older than" in done.notes[0]) is not in_one_file


def test_two_projects_with_the_same_item_count_by_their_times(campaign):
    item = campaign.batch()[0]
    ann = {"id": 1, "email": ANN}
    export(campaign, task(item, note(12, "red", TUESDAY, ann), project=2))
    export(campaign, task(item, note(11, "blue", MONDAY, ann), project=1))
    assert answers(campaign) == {ANN: "red"}


@pytest.mark.parametrize("resolution", ["latest", "majority"])
def test_the_latest_of_two_people_is_the_one_who_answered_last(make_campaign, resolution):
    campaign = make_campaign(resolution=resolution, per_item=2)
    item = campaign.query(1)[0]
    export(campaign, task(item, note(11, "red", TUESDAY, 1)))
    export(campaign, task(item, note(12, "blue", MONDAY, 2)))
    assert campaign.labels() == {item.id: "red"}


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        ("2026-03-02T10:00:00.500000Z", "2026-03-02T10:00:00Z"),
        ("2026-03-02T10:00:00.5Z", "2026-03-02T10:00:00.45Z"),
        ("2026-03-02T10:00:00Z", "2026-03-02T11:30:00+02:00"),
        ("2026-03-02T23:30:00-02:00", "2026-03-03T01:00:00+00:00"),
    ],
)
def test_times_are_compared_across_zones_and_fractions(campaign, newer, older):
    item = campaign.batch()[0]
    for answer, time in (("red", newer), ("blue", older)):
        export(campaign, task(item, note(11, answer, time)))
    assert campaign.labels() == {item.id: "red"}


def test_the_same_time_in_another_zone_is_the_same_state(campaign):
    item = campaign.batch()[0]
    export(campaign, task(item, note(11, "red", "2026-03-02T10:00:00Z")))
    done = export(campaign, task(item, note(11, "red", "2026-03-02T12:00:00+02:00")))
    assert (done.n_new, done.n_same) == (0, 1)


@pytest.mark.parametrize("order", [(11, 12), (12, 11)])
def test_of_two_changes_at_the_same_time_the_newer_annotation_counts(campaign, order):
    item = campaign.batch()[0]
    given = {11: "blue", 12: "red"}
    for number in order:
        export(campaign, task(item, note(number, given[number], MONDAY)))
    assert campaign.labels() == {item.id: "red"}


def test_another_answer_of_the_same_time_is_reported_and_not_stored(campaign):
    item = campaign.batch()[0]
    export(campaign, task(item, note(11, "red", MONDAY)))
    for other in ("blue", None):
        done = export(campaign, task(item, note(11, other, MONDAY)))
        assert "1 annotations have another answer than the stored one" in done.notes[0]
    assert campaign.labels() == {item.id: "red"}
    assert export(campaign, task(item, note(11, " red", MONDAY))).notes == []


def test_annotations_with_one_time_have_it_and_without_any_are_refused(campaign):
    first, second, *_ = campaign.batch()
    changed = note(11, "red", MONDAY) | {"created_at": None}
    created = note(12, "blue", None, created=TUESDAY)
    del created["updated_at"]
    export(campaign, task(first, changed), task(second, created))
    export(campaign, task(second, note(13, "red", MONDAY)))
    assert campaign.labels() == {first.id: "red", second.id: "blue"}
    bad = note(14, "red", None, created=None)
    with pytest.raises(InputError, match=r"annotation 14: it has neither updated_at nor"):
        export(campaign, task(first, bad))


@pytest.mark.parametrize("year", ["0001", "1969"])
def test_times_before_the_clock_of_computers_are_refused(campaign, year):
    item = campaign.batch()[0]
    with pytest.raises(InputError, match="updated_at: Input should be greater than"):
        export(campaign, task(item, note(11, "red", f"{year}-01-01T00:00:00+14:00")))


def test_a_label_given_here_is_newer_than_all_that_was_imported_before(campaign):
    item = campaign.batch()[0]
    export(campaign, task(item, note(11, "red", "2999-01-01T00:00:00Z", {"id": 1, "email": ANN})))
    campaign.label(item, "green", ANN)  # the server's clock is ahead
    assert answers(campaign) == {ANN: "green"}
    campaign.undo(ANN)
    assert answers(campaign) == {ANN: "red"}


def test_an_annotation_older_than_a_label_given_here_does_not_count(campaign):
    item = campaign.batch()[0]
    campaign.label(item, "green", ANN)
    done = export(campaign, task(item, note(11, "red", MONDAY, {"id": 1, "email": ANN})))
    assert answers(campaign) == {ANN: "green"}
    assert "older than another response" in done.notes[0]
    assert campaign.undo(ANN).undoes == 1  # the last response that counts, not the last stored
    assert answers(campaign) == {ANN: "red"}


def test_a_log_that_an_earlier_version_stored_out_of_order_is_read_in_order(campaign):
    item = campaign.batch()[0]
    for answer, day in (("red", 3), ("blue", 2)):
        uuid = f"labelstudio|1|11|2026-03-01T00:00:00+00:00|2026-03-0{day}T00:00:00+00:00"
        campaign.record([Entry("label", item.id, ANN, answer, uuid=uuid)])
    assert campaign.labels() == {item.id: "red"}


@pytest.mark.parametrize(
    "uuid", ["labelstudio|x", "labelstudio|1|2|3|4", "labelstudio|1|x|2026-01-01|2026-01-01"]
)
def test_uuids_of_a_similar_form_are_those_of_labels_given_here(campaign, uuid):
    item = campaign.batch()[0]
    campaign.label(item, "red", uuid=uuid)
    campaign.label(item, "blue")
    assert answers(campaign) == {"me": "blue"}


def test_an_answer_that_was_removed_is_reported(campaign):
    item = campaign.batch()[0]
    export(campaign, task(item, note(11, "red", MONDAY)))
    done = export(campaign, task(item, note(11, "red", TUESDAY) | {"result": []}))
    assert done.n_open == 1
    assert "In 1 annotations the answer was removed" in done.notes[0]
    assert campaign.labels() == {item.id: "red"}


def test_a_task_that_stands_twice_is_counted_once(campaign):
    items = campaign.batch()[:2]
    tasks = [task(item, note(11 + i, "red", MONDAY)) for i, item in enumerate(items)]
    done = export(campaign, *tasks, *tasks)
    assert (done.n_new, done.n_same) == (2, 0)
    assert len(events.events(campaign.store)) == 2
    done = export(campaign, *tasks, *tasks)
    assert (done.n_new, done.n_same) == (0, 2)


def test_drafts_are_no_annotations(campaign):
    item = campaign.batch()[0]
    drafts = [{"id": 9, "updated_at": WEDNESDAY, "result": note(9, "blue", MONDAY)["result"]}]
    done = export(campaign, task(item, note(11, "red", TUESDAY)) | {"drafts": drafts})
    assert done.n_new == 1
    assert campaign.labels() == {item.id: "red"}


# Who is who


@pytest.mark.parametrize("pull_first", [True, False])
def test_a_person_known_by_email_and_by_number_is_one(make_campaign, pull_first):
    campaign = make_campaign(resolution="unanimous", per_item=2)
    item, other = campaign.query(2)

    def pull():
        pulled(campaign, task(item, note(11, "red", MONDAY, 3)), names={3: ANN})

    def by_number():
        notes = note(11, "blue", TUESDAY, 3), note(12, "blue", TUESDAY, 4)
        return export(campaign, task(item, *notes), task(other, note(13, "red", MONDAY, 3)))

    for step in (pull, by_number) if pull_first else (by_number, pull):
        done = step()
    assert answers(campaign) == {ANN: "blue", "user-4": "blue"}
    assert answers(campaign, 1) == {ANN: "red"}
    assert campaign.labels() == {item.id: "blue", other.id: "red"}
    if pull_first:
        assert "users are known: user-4." in done.notes[-1]
    before = len(events.events(campaign.store))
    pull()
    by_number()
    assert len(events.events(campaign.store)) == before


def test_a_number_of_a_filtered_export_has_the_name_of_an_earlier_pull(campaign):
    first, second, *_ = campaign.batch()
    pulled(campaign, task(first, note(11, "red", MONDAY, 3)), names={3: ANN, 4: "not@here.org"})
    assert export(campaign, task(second, note(12, "red", MONDAY, 3))).notes == []
    assert campaign.status().annotators == {ANN: 2}
    assert "not@here.org" not in campaign.meta[USERS]  # only the annotators are stored


def test_a_number_of_another_server_is_another_person(campaign):
    first, second, third, _ = campaign.batch()
    pulled(campaign, task(first, note(11, "red", MONDAY, 3)), names={3: ANN})
    bob = {3: "bob@example.org"}
    pulled(campaign, task(second, note(21, "red", MONDAY, 3)), names=bob, server="http://other")
    export(campaign, task(third, note(31, "red", MONDAY, 3)))  # of which of them?
    export(campaign, task(third, note(41, "red", MONDAY, 3), project=9))  # of a third one
    assert campaign.status().annotators == {ANN: 1, "bob@example.org": 1, "user-3": 1}


def test_a_changed_email_is_the_same_person(campaign):
    first, second, *_ = campaign.batch()
    pulled(campaign, task(first, note(11, "red", MONDAY, 3)), names={3: ANN})
    notes = task(first, note(11, "red", MONDAY, 3)), task(second, note(12, "red", MONDAY, 3))
    pulled(campaign, *notes, names={3: "ann@elsewhere.org"})
    assert campaign.status().annotators == {ANN: 2}


def test_two_deleted_accounts_are_two_people(make_campaign):
    campaign = make_campaign(per_item=3)
    item = campaign.query(1)[0]
    notes = (
        note(11, "red", MONDAY, None),
        note(12, "red", TUESDAY, None),
        note(13, "blue", WEDNESDAY, 5),
    )
    export(campaign, task(item, *notes))
    assert answers(campaign) == {"label-studio": "red", "label-studio-2": "red", "user-5": "blue"}
    assert campaign.labels() == {item.id: "red"}
    export(campaign, task(item, note(11, "green", WEDNESDAY, None)))
    assert answers(campaign)["label-studio"] == "green"
    assert answers(campaign)["label-studio-2"] == "red"


def test_an_annotation_keeps_its_author_when_the_account_is_deleted(campaign):
    item = campaign.batch()[0]
    pulled(campaign, task(item, note(11, "red", MONDAY, 3)), names={3: ANN})
    export(campaign, task(item, note(11, "blue", TUESDAY, None)))
    assert answers(campaign) == {ANN: "blue"}


def test_an_author_who_becomes_known_later_gets_the_earlier_response(campaign):
    item = campaign.batch()[0]
    export(campaign, task(item, note(11, "blue", TUESDAY, None)))
    export(campaign, task(item, note(11, "red", MONDAY, 3)))
    assert answers(campaign) == {"user-3": "blue"}
    done = pulled(campaign, task(item, note(11, "red", MONDAY, 3)), names={3: ANN})
    assert answers(campaign) == {ANN: "blue"}
    assert f"user-3 is {ANN}" in done.notes[0]


def test_a_response_that_was_undone_here_stays_undone_when_its_author_is_named(campaign):
    item = campaign.batch()[0]
    export(campaign, task(item, note(11, "red", MONDAY, 3)))
    campaign.undo("user-3")
    pulled(campaign, task(item, note(11, "red", MONDAY, 3)), names={3: ANN})
    assert answers(campaign) == {}


def test_deleted_accounts_that_an_earlier_version_stored_as_one_are_separated(campaign):
    item = campaign.batch()[0]
    for number, answer in ((11, "red"), (12, "blue")):
        time = "2026-03-02T10:00:00+00:00"
        uuid = f"labelstudio|1|{number}|{time}|{time}"
        campaign.record([Entry("label", item.id, "label-studio", answer, uuid=uuid)])
    export(campaign, task(item))
    assert answers(campaign) == {"label-studio": "red", "label-studio-2": "blue"}


def test_an_unreadable_setting_with_users_is_damage(campaign):
    with campaign.store.transaction():
        campaign.store.set_meta(**{USERS: '{"x": 1}'})
    with pytest.raises(CampaignCorruptError, match="labelstudio_users"):
        export(campaign, task(campaign.batch()[0]))


# Any order of any files


@pytest.fixture(scope="module")
def template(tiny_model):
    """Return the folder of a campaign with a batch of three open."""
    with quick_folder() as folder:
        with Campaign.create(folder / "template", POOL, make_learner(tiny_model)) as made:
            made.query(3)
        yield folder / "template"


EMAILS = {1: ANN, 2: "bob@example.org", 3: "cy@example.org"}
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
HOURS = st.integers(0, 20)
ANNOTATIONS = st.fixed_dictionaries(
    {
        "place": st.integers(0, 2),
        "user": st.sampled_from(sorted(EMAILS)),
        "states": st.dictionaries(HOURS, st.sampled_from([*COLOURS, None]), min_size=1, max_size=3),
        "deleted": st.none() | HOURS,
        "project": st.sampled_from([1, 2]),
    }
)
FILES = st.lists(
    st.tuples(st.sampled_from([1, 2]), HOURS, st.sampled_from(["numbers", "names", "pull"])),
    min_size=2,
    max_size=4,
)


def snapshot(items, annotations, closed, project, hour, kind):
    """Return a project's tasks as they are at an hour; accounts are deleted when closed."""
    found = []
    for number, one in enumerate(annotations, start=1):
        states = {when: answer for when, answer in one["states"].items() if when <= hour}
        is_gone = one["deleted"] is not None and one["deleted"] <= hour
        if one["project"] != project or not states or is_gone:
            continue
        user = one["user"]
        if closed.get(user, 99) <= hour:
            account = None
        else:
            account = {"id": user, "email": EMAILS[user]} if kind == "names" else user
        created, updated = (
            (BEGIN + timedelta(hours=when)).isoformat() for when in (min(states), max(states))
        )
        made = note(number, states[max(states)], updated, account, created=created)
        found.append(task(items[one["place"]], made, project=project))
    return found


def expected(items, annotations, closed, files):
    """Return the current responses: item, answer by author, oldest first."""
    numbers, names, states = {}, {}, {}
    for project, hour, kind in files:
        for found in snapshot(items, annotations, closed, project, hour, kind):
            (made,) = found["annotations"]
            account = made["completed_by"]
            number = account["id"] if isinstance(account, dict) else account
            if number is not None:
                numbers[made["id"]] = project, number
            if number is not None and kind != "numbers":
                names[project, number] = EMAILS[number]
            answer = None if made["was_cancelled"] else made["result"][0]["value"]["choices"][0]
            place = made["updated_at"], made["created_at"], made["id"]
            states[place] = found["data"]["id"], answer
    current = {}
    for place in sorted(states):
        item, answer = states[place]
        account = numbers.get(place[2], (None, f"unknown {place[2]}"))
        person = item, names.get(account, account[1])
        current.pop(person, None)
        current[person] = answer
    return [(item, answer) for (item, _), answer in current.items()]


@given(
    st.lists(ANNOTATIONS, min_size=1, max_size=6),
    st.dictionaries(st.sampled_from(sorted(EMAILS)), HOURS, max_size=2),
    FILES,
    st.randoms(use_true_random=False),
)
@settings(max_examples=25, deadline=None)
def test_any_order_of_the_same_files_gives_the_same_labels(
    template, annotations, closed, files, random
):
    shuffled = random.sample(files, len(files))
    outcomes = []
    for order in (files, shuffled, sorted(files)):
        with quick_folder() as folder:
            shutil.copytree(template, folder / "campaign")
            with Campaign.open(folder / "campaign") as campaign:
                items = campaign.batch()
                for project, hour, kind in order:
                    tasks = snapshot(items, annotations, closed, project, hour, kind)
                    if kind == "pull":
                        pulled(campaign, *tasks, names=EMAILS)
                    else:
                        export(campaign, *tasks)
                responses = events.current_responses(events.events(campaign.store))
        outcomes.append([resolved(responses, resolution) for resolution in RESOLUTIONS])
        assert [(event.item, event.answer) for event in responses] == expected(
            items, annotations, closed, files
        )
    assert outcomes[0] == outcomes[1] == outcomes[2]
