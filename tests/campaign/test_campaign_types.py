"""Values of any type at every public call: stored as they are returned, or refused at the door."""

import datetime
import enum
import shutil
from dataclasses import replace

import numpy as np
import pytest
from campaign_cases import COLOURS, POOL, make_learner, quick_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from starlearn.campaign import events
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.events import Entry
from starlearn.errors import InputError, StarlearnError


class Colour(str, enum.Enum):  # noqa: UP042 - its str() is not its value, which is the point
    RED = "red"


def test_numbers_and_texts_of_other_types_are_stored_as_they_are_returned(campaign):
    first, second, *_ = campaign.batch()
    stored = [
        campaign.label(first, Colour.RED, np.str_("ann"), ms=np.int64(1500), uuid=np.str_("u1")),
        campaign.flag(second, note=np.str_("a\0note")),
    ]
    assert [(type(e.answer), type(e.ms)) for e in stored] == [(str, int), (type(None),) * 2]
    assert stored[0].answer == "red"
    with Campaign.open(campaign.folder) as again:
        assert events.events(again.store) == stored


@pytest.mark.parametrize("ms", [1500.0, True, "5", -1, 2**70, float("nan"), b"1"])
def test_milliseconds_that_are_no_count_are_refused(campaign, ms):
    with pytest.raises(InputError, match=r"^ms must be"):
        campaign.label(campaign.batch()[0], "red", ms=ms)
    assert events.events(campaign.store) == []


@pytest.mark.parametrize("value", [5, 1.5, True, b"x", ["x"], "\ud800", "x" * 1_000_001])
@pytest.mark.parametrize("name", ["uuid", "note", "annotator", "item"])
def test_values_that_are_no_text_are_refused(campaign, name, value):
    item = campaign.batch()[0].id
    given = {"item": item, "annotator": "ann", "note": "n", "uuid": "u", name: value}
    with pytest.raises(InputError):
        campaign.flag(given.pop("item"), **given)
    assert events.events(campaign.store) == []
    Campaign.open(campaign.folder).close()


def test_entries_of_no_kind_are_refused(campaign):
    item = campaign.batch()[0].id
    for entry in (
        Entry("undo", item, "ann"),
        Entry("other", item, "ann"),
        Entry("label", item, "ann"),
        Entry("skip", item, "ann", answer="red"),
        Entry("skip", item, ""),
        "label",
        None,
    ):
        with pytest.raises(InputError):
            campaign.record([entry])
    assert events.events(campaign.store) == []


def test_a_row_that_sqlite_returns_otherwise_is_not_committed(campaign, monkeypatch):
    """Also a type that the checks at the door should not know."""
    monkeypatch.setattr(events, "checked", lambda entry: entry)
    item = campaign.batch()[0].id
    with pytest.raises(StarlearnError):
        campaign.record([Entry("label", item, "ann", answer="red", ms=True)])
    with pytest.raises(StarlearnError):
        campaign.record([Entry("flag", item, "ann", note=5)])
    monkeypatch.undo()
    assert events.events(campaign.store) == []
    campaign.label(item, "red")
    with Campaign.open(campaign.folder) as again:
        assert list(again.labels().values()) == ["red"]


@pytest.mark.parametrize("value", [5, None, b"x", ["x"], "\ud800", "", "a\0b"])
def test_a_backup_needs_the_name_of_a_file(campaign, value):
    if value is None:
        assert campaign.backup(value).is_file()
        return
    with pytest.raises(InputError, match="cannot be the name of a file"):
        campaign.backup(value)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.binary(max_size=3),
    st.text(max_size=4),
    st.text(st.characters(categories=["Cs", "Cc", "Lu"]), max_size=4),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from(
        [
            *(np.int64(5), np.float64(1.5), np.str_("red"), np.bool_(True), Colour.RED),
            *(2**70, 10**12, datetime.date(2026, 1, 1), object(), Ellipsis, "x" * 300),
        ]
    ),
)


def or_odd(*usual):
    """Draw a usual value four times out of five."""
    return st.one_of(*[st.sampled_from(usual)] * 4, ODD)


NAMES = or_odd("ann", "bob", "Zoë 山")
UUIDS = or_odd(None, "u1", "u2", "u3")
ITEMS = st.one_of(*[st.integers(0, 3).map(lambda place: ("batch", place))] * 4, ODD)
TIMES = or_odd(None, 0, 1500)
CALLS = st.one_of(
    st.tuples(st.just("label"), ITEMS, or_odd(*COLOURS), NAMES, UUIDS, TIMES),
    st.tuples(st.just("skip"), ITEMS, NAMES, UUIDS),
    st.tuples(st.just("flag"), ITEMS, NAMES, or_odd(None, "why"), UUIDS),
    st.tuples(st.just("undo"), NAMES, UUIDS),
    st.tuples(st.just("record"), ITEMS, or_odd("label", "skip", "undo"), ODD, NAMES, ODD),
    st.tuples(st.just("set_params"), or_odd("lr", "cache_dir"), ODD),
    st.tuples(st.just("add_choice"), ODD),
    st.tuples(st.just("query"), ODD),
    st.tuples(st.just("backup"), ODD.filter(lambda value: not isinstance(value, str))),
    st.tuples(st.just("reopen")),
)


def call(campaign, name, *values):
    """Make one public call, and return the events that it acknowledged."""
    batch = campaign.batch()
    if name in ("label", "skip", "flag", "record") and isinstance(values[0], tuple):
        values = (batch[values[0][1]], *values[1:])
    if name == "label":
        item, answer, annotator, uuid, ms = values
        return [campaign.label(item, answer, annotator, uuid=uuid, ms=ms)]
    if name == "skip":
        return [campaign.skip(values[0], values[1], uuid=values[2])]
    if name == "flag":
        return [campaign.flag(values[0], values[1], values[2], uuid=values[3])]
    if name == "undo":
        return list(filter(None, [campaign.undo(values[0], uuid=values[1])]))
    if name == "record":
        item, kind, answer, annotator, note = values
        key = getattr(item, "id", item)
        return campaign.record([Entry(kind, key, annotator, answer=answer, note=note)])
    if name == "set_params":
        key = {"lr": "training__learning_rate"}.get(str(values[0]), "cache_dir")
        campaign.set_params(**{key: values[1]})
    elif name != "reopen":
        getattr(campaign, name)(values[0])
    return []


@pytest.fixture(scope="module")
def template(tiny_model):
    """Return a folder with a campaign whose batch of four is open."""
    with quick_folder() as folder:
        campaign = Campaign.create(folder / "campaign", POOL, make_learner(tiny_model))
        campaign.query(4)
        campaign.close()
        yield folder / "campaign"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(calls=st.lists(CALLS, max_size=12))
def test_a_campaign_opens_after_any_calls_and_has_what_was_acknowledged(template, calls):
    with quick_folder() as folder:
        shutil.copytree(template, folder / "campaign")
        acknowledged = {}
        campaign = Campaign.open(folder / "campaign")
        for name, *values in calls:
            try:
                for event in call(campaign, name, *values):
                    acknowledged[event.seq] = event
            except StarlearnError:
                pass
            if name == "reopen":
                campaign.close()
                campaign = Campaign.open(folder / "campaign")
        campaign.close()
        with Campaign.open(folder / "campaign") as again:
            assert events.events(again.store) == [replace(e) for e in acknowledged.values()]
            assert again.doctor() == []
            again.status()
            again.labels()
            again.batch()
