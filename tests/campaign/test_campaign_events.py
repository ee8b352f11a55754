"""Events: stored once even if sent twice, undone, and resolved to labels."""

import math
from collections import Counter

import pytest
from campaign_cases import COLOURS, store_with_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from starlearn.campaign import events, rounds
from starlearn.campaign.event_log import EventLog, log_of
from starlearn.campaign.events import Entry
from starlearn.campaign.responses import checked_answer, checked_name, resolved
from starlearn.campaign.store import Store
from starlearn.errors import InputError


@pytest.fixture
def campaign(make_campaign):
    made = make_campaign()
    made.query(3)
    return made


def test_answers_of_two_annotators_are_both_kept(campaign):
    first, *_ = campaign.batch()
    campaign.label(first, "red", "ann")
    campaign.label(first, "blue", "bob")
    assert campaign.batch()[0].answers == {"ann": "red", "bob": "blue"}
    assert campaign.labels() == {first.id: "blue"}  # a tie: the latest
    campaign.label(first, "red", "cal")
    assert campaign.labels() == {first.id: "red"}  # the majority


def test_the_rule_is_a_setting():
    def responses(*answers):
        return [
            events.Event(i, str(i), "label", "i", f"a{i}", answer, None, None, 1, None, "")
            for i, answer in enumerate(answers)
        ]

    assert resolved(responses("red", "red", "blue"), "majority") == {"i": "red"}
    assert resolved(responses("red", "red", "blue"), "latest") == {"i": "blue"}
    assert resolved(responses("red", "red", "blue"), "unanimous") == {}
    assert resolved(responses("red", "red"), "unanimous") == {"i": "red"}
    assert resolved(responses("red", "blue", "blue", "red"), "majority") == {"i": "red"}


def test_what_is_sent_twice_is_stored_once(campaign):
    first, second, _ = campaign.batch()
    event = campaign.label(first, "red", uuid="u1", ms=1500)
    assert campaign.label(first, "red", uuid="u1") == event
    campaign.label(second, "blue", uuid="u2")
    undone = campaign.undo(uuid="u3")
    assert campaign.undo(uuid="u3") == undone
    assert campaign.labels() == {first.id: "red"}
    for answer, item in (("blue", first), ("red", second)):
        with pytest.raises(InputError, match="used before"):
            campaign.label(item, answer, uuid="u1")
    assert campaign.history()[0].label_seconds == 1.5


def test_items_that_were_not_issued_and_labels_that_are_replaced(campaign):
    known = set(campaign.snapshot()["id"].to_pylist()) - {i.id for i in campaign.batch()}
    for item in (next(iter(known)), "i0", "", "../x"):
        with pytest.raises(InputError, match="never issued"):
            campaign.label(item, "red")
    first, *_ = campaign.batch()
    campaign.label(first, "red")
    campaign.label(first.id, "blue")
    log = events.events(campaign.store)
    assert [event.answer for event in log] == ["red", "blue"]
    assert campaign.labels() == {first.id: "blue"}


def test_skip_flag_and_undo(campaign):
    first, second, third = campaign.batch()
    campaign.label(first, "red")
    campaign.skip(second)
    campaign.flag(third, note="two questions in one")
    status = campaign.status()
    assert (status.state, status.done, status.skipped, status.flagged) == ("labelled", 3, 1, 1)
    assert campaign.labels() == {first.id: "red"}
    campaign.undo()
    assert campaign.status().state == "issued"
    assert [i.id for i in campaign.open_items()] == [third.id]
    campaign.undo()
    campaign.undo()
    assert campaign.undo() is None
    assert campaign.labels() == {}
    campaign.label(first, "blue")
    campaign.flag(first)
    assert campaign.labels() == {}  # a flag is not a label
    campaign.undo()
    assert campaign.labels() == {first.id: "blue"}


def test_an_undo_affects_only_ones_own_response(campaign):
    first, *_ = campaign.batch()
    campaign.label(first, "red", "ann")
    campaign.label(first, "blue", "bob")
    campaign.undo("ann")
    assert campaign.labels() == {first.id: "blue"}
    assert campaign.undo("ann") is None


def test_items_that_need_two_annotators(make_campaign):
    campaign = make_campaign(per_item=2)
    batch = campaign.query(2)
    for item in batch:
        campaign.label(item, "red", "ann")
    assert campaign.status().state == "issued"
    assert campaign.open_items("ann") == []
    for item in campaign.open_items("bob"):
        campaign.label(item, "red", "bob")
    assert campaign.status().state == "labelled"
    assert campaign.open_items("cal") == []
    assert campaign.status().annotators == {"ann": 2, "bob": 2}


@pytest.mark.parametrize("answer", [1, True, 1.0, math.nan, b"red", ["red"]])
def test_labels_that_are_no_text(campaign, answer):
    with pytest.raises(InputError, match="A label is text"):
        campaign.label(campaign.batch()[0], answer)
    assert campaign.labels() == {}


@pytest.mark.parametrize("answer", [None, "", " ", "\t\n", "\ud800", "x" * 1_000_001])
def test_empty_labels_are_refused(answer):
    with pytest.raises(InputError):
        checked_answer(answer, None)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        ("Red", "Did you mean 'red'"),
        ("GREEN ", "Did you mean 'green'"),
        ("bleu", "Did you mean 'blue'"),
        ("7", "Did you mean '007'"),
        ("zebra", "add_choice"),
    ],
)
def test_near_matches_are_named_not_taken(answer, hint):
    with pytest.raises(InputError, match=hint):
        checked_answer(answer, [*COLOURS, "007"])


def test_outer_spaces_are_not_part_of_a_choice():
    assert checked_answer(" red\n", COLOURS) == "red"
    assert checked_answer(" red", [" red", "red"]) == " red"
    assert checked_answer(" red ", None) == " red "  # in free form every character counts


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x1b[31m", "x" * 101, None, 3])
def test_names_of_annotators(name):
    with pytest.raises(InputError, match="annotator"):
        checked_name(name)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from(COLOURS)))
)
def test_the_view_of_the_store_equals_the_current_responses(responses):
    from campaign_cases import quick_folder

    with quick_folder() as folder:
        store = store_with_batch(folder / "labels.db")
        for number, (who, what, answer) in enumerate(responses):
            if what == "x":
                events.undo(store, who, None, 1)
            else:
                events.append(store, [Entry("label", f"i{number % 3}", who, answer=answer)], 1)
        words = [seq for (seq,) in store.execute("SELECT seq FROM word ORDER BY seq")]
        assert words == [event.seq for event in events.current_responses(events.events(store))]
        store.close()


class Labelling(RuleBasedStateMachine):
    """Labels, skips, undos, repeats and crashes against a dict; a crash is a lost connection."""

    items = [f"i{n}" for n in range(4)]  # noqa: RUF012 - never changed

    @initialize()
    def begin(self):
        from campaign_cases import quick_folder

        self.context = quick_folder()
        self.path = self.context.__enter__() / "labels.db"
        self.store = store_with_batch(self.path, items=4)
        self.responses: list[tuple[str, str, str, str | None]] = []
        self.sent: dict[str, tuple[str, str, str, str | None]] = {}

    @rule(
        item=st.sampled_from(items),
        who=st.sampled_from(["ann", "bob"]),
        kind=st.sampled_from(["label", "skip", "flag"]),
        answer=st.sampled_from(COLOURS),
    )
    def say(self, item, who, kind, answer):
        given = answer if kind == "label" else None
        uuid = f"u{len(self.sent)}"
        events.append(self.store, [Entry(kind, item, who, answer=given, uuid=uuid)], 2)
        self.responses.append((who, item, kind, given))
        self.sent[uuid] = (kind, item, who, given)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def send_again(self, data):
        uuid = data.draw(st.sampled_from(sorted(self.sent)))
        kind, item, who, answer = self.sent[uuid]
        events.append(self.store, [Entry(kind, item, who, answer=answer, uuid=uuid)], 2)

    @rule(who=st.sampled_from(["ann", "bob"]))
    def undo(self, who):
        undone = events.undo(self.store, who, None, 2)
        mine = [n for n, (name, *_) in enumerate(self.responses) if name == who]
        assert (undone is None) == (not mine)
        if mine:
            del self.responses[mine[-1]]

    @rule(entries=st.lists(st.tuples(st.sampled_from([*items, "never issued"])), min_size=1))
    def many_or_none(self, entries):
        names = [item for (item,) in entries]
        batch = [Entry("label", item, "imp", answer="red") for item in names]
        if "never issued" in names:
            with pytest.raises(InputError):
                events.append(self.store, batch, 2)
            return
        events.append(self.store, batch, 2)
        self.responses += [("imp", item, "label", "red") for item in names]

    @rule(item=st.sampled_from(items), who=st.sampled_from(["ann", "bob"]))
    def fail_before_the_commit(self, item, who):
        def fail():
            with self.store.transaction():
                events._append_one(self.store, Entry("skip", item, who))
                log_of(self.store)  # which reads the event that is rolled back
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()

    @rule()
    def crash(self):
        self.store._connection.execute("BEGIN IMMEDIATE")
        self.store._connection.execute("UPDATE round SET n = 99")
        self.store.close()  # an open transaction is rolled back, as after a crash
        self.store = Store.open(self.path)

    @invariant()
    def holds(self):
        if not hasattr(self, "store"):
            return
        expected = {(item, who): (kind, answer) for who, item, kind, answer in self.responses}
        log = log_of(self.store)
        words = events.current_responses(log.events)
        assert {(e.item, e.annotator): (e.kind, e.answer) for e in words} == expected
        assert log.responses() == words
        assert log.events == EventLog(self.store).refresh().events
        assert log.n_labelled("majority") == len(resolved(words, "majority"))
        assert log.n_labelled("unanimous") == len(resolved(words, "unanimous"))
        assert log.items_per_annotator() == Counter(e.annotator for e in words)
        for kind in ("skip", "flag"):
            assert log.n_items(kind) == len({e.item for e in words if e.kind == kind})
        given = Counter(e.item for e in words)
        assert log.items_with(2) == {item for item in given if given[item] >= 2}
        for who in ("ann", "bob"):
            mine = [e for e in words if e.annotator == who]
            assert log.last_response(who) == (mine[-1] if mine else None)
            assert log.items_of(who) == {e.item for e in mine}
        found = rounds.current(self.store)
        complete = all(sum(i == item for i, _ in expected) >= 2 for item in self.items)
        assert found.state == ("labelled" if complete else "issued")
        assert found.n == 4

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            self.context.__exit__(None, None, None)


Labelling.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestLabelling = Labelling.TestCase
