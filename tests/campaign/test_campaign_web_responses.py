"""Responses on the web page: stored once, for the right annotator, or refused with a reason."""

import itertools
import subprocess
import sys
import threading

import pytest
from campaign_cases import COLOURS, POOL, answer_for, make_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from page_cases import HOSTILE, responses_of, visitors
from test_campaign_commands import HOLD

from starlearn.campaign import events
from starlearn.campaign.annotation import Action
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.web import serving
from starlearn.campaign.web.service import AnnotationService, OutOfDateError
from starlearn.errors import CampaignLockedError
from starlearn.storage.lock import Lock

# Each response once


def test_label_skip_and_flag_with_a_note(batch):
    (visitor,) = visitors(batch, "ann")
    visitor.send(visitor.get().form("label"), choice="2:blue", ms="1500")
    assert "Saved: skipped" in visitor.send(visitor.get().form("skip")).text
    assert "Saved: flagged" in visitor.send(visitor.get().form("flag"), note=" odd\r\none ").text
    visitor.send(visitor.get().form("flag"), note="")
    assert responses_of(batch) == [
        ("ann", "label", "blue"),
        ("ann", "skip", None),
        ("ann", "flag", "odd\none"),
        ("ann", "flag", None),
    ]
    assert batch.history()[0].label_seconds == 1.5
    assert batch.status().state == "labelled"


def test_a_page_that_is_sent_twice_is_one_response(batch):
    (visitor,) = visitors(batch, "ann")
    first = visitor.get()
    assert "Item 2 of 4" in visitor.label(first, 0).text
    assert "Item 2 of 4" in visitor.label(first, 0).text  # a double click, a reload, back and again
    assert responses_of(batch) == [("ann", "label", "red")]
    page = visitor.label(first, 1, code=409)
    assert "'red' to this item is already saved" in page.text
    assert page.text.count("green") == 1  # what was chosen now is shown back
    assert responses_of(batch) == [("ann", "label", "red")]
    # Also after an undo: only a new page makes a new response.
    shown_again = visitor.send(visitor.get().form("undo"))
    visitor.label(first, 0)
    assert batch.labels() == {}
    visitor.label(shown_again, 1)
    assert list(batch.labels().values()) == ["green"]


def test_undo_that_is_sent_twice_undoes_one_response(batch):
    (visitor,) = visitors(batch, "ann")
    for _ in range(3):
        page = visitor.label(visitor.get(), 0)
    undo = page.form("undo")
    assert "Item 3 of 4" in visitor.send(undo).text
    assert "Item 3 of 4" in visitor.send(undo).text
    assert [kind for _, kind, _ in responses_of(batch)] == ["label", "label", "label", "undo"]
    page = visitor.label(visitor.get(), 1)
    old = {**page.form("undo").fields, "response": "1"}  # a page from before the last response
    assert "no longer your last response" in visitor.post("/undo", old).text
    assert visitor.answer.status_code == 409
    assert batch.status().done == 3


def test_a_response_in_another_window_or_terminal_is_not_replaced_unseen(batch):
    (visitor,) = visitors(batch, "ann")
    page = visitor.get()
    batch.label(batch.batch()[0], "green", "ann")
    assert "after this page was shown" in visitor.label(page, 0, code=409).text
    assert responses_of(batch) == [("ann", "label", "green")]
    item = batch.batch()[0].id
    page = visitor.get(f"/?item={item}")
    assert "Your current answer: green" in page.text
    visitor.label(page, 0)
    assert batch.labels() == {item: "red"}


def test_a_response_during_the_making_of_a_page_is_not_replaced_unseen(batch, monkeypatch):
    (visitor,) = visitors(batch, "ann")
    made = Campaign.status

    def answered_meanwhile(self):
        if not responses_of(self):
            self.label(self.batch()[0], "green", "ann")  # in a terminal
        return made(self)

    monkeypatch.setattr(Campaign, "status", answered_meanwhile)
    page = visitor.get()
    assert "Your current answer" not in page.text
    assert "after this page was shown" in visitor.label(page, 0, code=409).text
    assert responses_of(batch) == [("ann", "label", "green")]


def test_an_answer_for_a_batch_that_has_ended_is_shown_back(free):
    (visitor,) = visitors(free, "ann")
    visitor.send(visitor.get().form("label"), answer="the first")
    old = visitor.get()
    free.teach(partial=True)
    page = visitor.send(old.form("label"), 409, answer=" a long\nanswer ")
    assert "The batch of round 1 has ended" in page.text
    assert "a long\nanswer " in page.text
    assert "no longer your last response" in visitor.send(old.form("undo"), 409).text
    assert "There is no batch to label now" in visitor.get().text
    before = free.batch()
    new = {item.id for item in free.query(1)}
    gone = next(item.id for item in before[1:] if item.id not in new)
    assert "has ended" in visitor.send(old.form("label"), 409, item=gone, answer="x").text
    assert "has ended" in visitor.send(old.form("flag"), 409, item=gone, note="why").text
    assert responses_of(free) == [("ann", "label", "the first")]
    assert not visitor.get().element(action="/undo")  # nothing of the earlier round


def test_a_retry_after_the_round_ended_succeeds(batch):
    (visitor,) = visitors(batch, "ann")
    page = visitor.get()
    visitor.label(page, 0)
    batch.teach(partial=True)
    visitor.label(page, 0)  # the browser never saw the first answer
    assert responses_of(batch) == [("ann", "label", "red")]


ACTIONS = st.tuples(
    st.sampled_from(["look", "send", "send", "undo", "terminal"]),
    st.integers(0, 5),
    st.integers(0, 1),
)


@pytest.fixture(scope="module")
def shared_service(tiny_model, tmp_path_factory):
    """One campaign for all examples: each has an annotator of its own."""
    folder = tmp_path_factory.mktemp("shared") / "campaign"
    with Campaign.create(folder, POOL, make_learner(tiny_model), per_item=10**6) as campaign:
        campaign.query(2)
        yield AnnotationService(campaign), itertools.count()


@settings(max_examples=40, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=14))
def test_with_repeated_forms_the_store_holds_what_the_annotator_saw(shared_service, actions):
    service, numbers = shared_service
    name, items = f"ann{next(numbers)}", [item.id for item in service.campaign.batch()]
    pages, sent = [service.view(name, items[0])], {}
    history, undone = [], {}  # what a careful annotator would write down

    def count(item):
        return sum(what[0] == item for what in history)

    for action, which, choice in actions:
        answer, page = COLOURS[choice], pages[which % len(pages)]
        standing = [n for n, what in enumerate(history) if what[1] and n not in undone.values()]
        if action == "look":
            pages.append(service.view(name, items[choice]))
        elif action == "terminal":
            service.campaign.label(items[choice], answer, name)
            history.append((items[choice], answer))
        elif action == "send":
            key = (page.item.id, page.seen)
            form = (page.item.id, Action("label", answer), page.seen)
            if sent.get(key, answer) != answer or (key not in sent and count(key[0]) != key[1]):
                with pytest.raises(OutOfDateError):
                    service.record(name, *form)
                continue
            service.record(name, *form)
            if key not in sent:
                history.append((key[0], answer))
            sent[key] = answer
        elif page.last is not None:
            seq = page.last.seq
            place = [e.seq for e in mine_of(service, name)].index(seq)
            if seq in undone:
                service.undo(name, seq)
            elif standing and standing[-1] == place:
                assert service.undo(name, seq) == history[place][0]
                history.append((history[place][0], None))
                undone[seq] = place
            else:
                with pytest.raises(OutOfDateError):
                    service.undo(name, seq)
    assert [(e.item, e.answer) for e in mine_of(service, name)] == history
    left = [what for n, what in enumerate(history) if what[1] and n not in undone.values()]
    assert {i.id: i.answers[name] for i in service.campaign.batch() if name in i.answers} == dict(
        left
    )


def mine_of(service, name):
    return [e for e in events.events(service.campaign.store) if e.annotator == name]


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "undo"},
        {"kind": ""},
        {"annotator": ""},
        {"annotator": "a\nb"},
        {"seen": "x", "item": "i0"},
        {"item": "' OR 1=1 --"},
        {"choice": ""},
    ],
)
def test_forms_that_no_page_has_store_nothing(batch, values):
    (visitor,) = visitors(batch, "ann")
    visitor.post("/respond", {**visitor.get().form("label").fields, "choice": "0:red", **values})
    assert visitor.answer.status_code in (400, 409)
    assert responses_of(batch) == []


def test_free_answers_that_cannot_be_stored(free):
    (visitor,) = visitors(free, "ann")
    form = visitor.get().form("label")
    assert "empty" in visitor.send(form, 400, answer=" \r\n ").text
    page = visitor.send(form, 400, answer="é" * 1_000_001)
    assert "1,000,001 characters" in page.text
    assert "é" * 1_000_001 in page.text
    visitor.send(form, 400, answer="x" * (17 * 2**20))
    assert responses_of(free) == []
    visitor.send(form, answer="é" * 1_000_000)
    assert len(responses_of(free)[0][2]) == 1_000_000


# Several annotators


def test_two_annotators_get_two_items_and_each_their_own_undo(batch):
    ann, bob = visitors(batch, "ann", "bob")
    first, second = ann.get(), bob.get()
    assert "Item 1 of 4" in first.text
    assert "Item 2 of 4" in second.text
    assert "Item 2 of 4" in bob.get().text  # a reload keeps it
    bob.label(second, 1)
    assert "Item 4 of 4" in ann.label(first, 0).text
    assert "Undone: red" in ann.send(ann.get().form("undo")).text
    assert responses_of(batch) == [
        ("bob", "label", "green"),
        ("ann", "label", "red"),
        ("ann", "undo", None),
    ]
    assert batch.status().annotators == {"bob": 1}
    # The last item is shown to both.
    for place in range(2):
        bob.label(bob.get(), place)
    assert ann.get().form("label").fields["item"] == bob.get().form("label").fields["item"]


def test_items_that_need_two_annotators_are_shown_to_both(make_campaign):
    campaign = make_campaign(per_item=2)
    campaign.query(2)
    ann, bob, eve = visitors(campaign, "ann", "bob", "eve")
    assert "Item 1 of 2" in ann.get().text
    assert "Item 1 of 2" in bob.get().text
    assert "Item 2 of 2" in eve.get().text
    ann.label(ann.get(), 0)
    assert "0 of 2 done, 1 by you" in ann.get().text
    bob.label(bob.get(), 1)
    assert "1 of 2 done, 1 by you" in bob.get().text


def test_a_form_is_stored_under_the_name_on_its_page(batch):
    (visitor,) = visitors(batch, "ann")
    page = visitor.get()
    visitor.post("/name", {"name": "bob"})  # in another window of the same browser
    visitor.label(page, 0)
    assert responses_of(batch) == [("ann", "label", "red")]


def test_many_annotators_in_threads_lose_and_double_nothing(make_campaign):
    campaign = make_campaign(per_item=4)
    campaign.query(8)
    service = AnnotationService(campaign)
    problems = []

    def at_once(*output):
        """Say the same in two threads, as a double click does."""
        start = threading.Barrier(2)

        def one():
            start.wait()
            try:
                service.record(*output)
            except BaseException as error:
                problems.append(error)
                raise

        both = [threading.Thread(target=one) for _ in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()

    def label_everything(name):
        undone = False
        try:
            while (view := service.view(name)).item is not None:
                action = Action("label", answer_for(view.item.fields))
                at_once(name, view.item.id, action, view.seen)
                if view.n_done == 3 and not undone:
                    service.undo(name, service.view(name).last.seq)
                    undone = True
        except BaseException as error:
            problems.append(error)
            raise

    threads = [threading.Thread(target=label_everything, args=(f"ann{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert campaign.status().done == 8
    kinds = [kind for _, kind, _ in responses_of(campaign)]
    assert (kinds.count("label"), kinds.count("undo")) == (36, 4)
    assert service.n_saved == 32  # without the four that were undone
    assert campaign.labels() == {item.id: answer_for(item.fields) for item in campaign.batch()}


def test_what_was_undone_is_not_counted_as_saved(batch):
    service = AnnotationService(batch)
    first, second, *_ = batch.batch()
    service.record("ann", first.id, Action("label", "red"), 0)
    service.record("bob", second.id, Action("skip"), 0)
    service.undo("ann", 1)
    assert service.n_saved == 1
    service.record("ann", first.id, Action("label", "blue"), 2)
    assert service.n_saved == 2


# When it cannot be stored


def full(campaign):
    """Let the database grow no further."""
    ((pages,),) = campaign.store.execute("PRAGMA page_count")
    campaign.store.execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_keeps_the_answer_on_the_page(free):
    (visitor,) = visitors(free, "ann")
    form = visitor.get().form("label")
    text = f"\n{HOSTILE}\n\n" + "long " * 5000
    full(free)
    page = visitor.send(form, 503, answer=text)
    assert "The disk is full" in page.text
    assert "Free at least 10 MB" in page.text
    assert responses_of(free) == []
    kept = page.forms[0]
    assert kept.fields["answer"] == text
    assert "Your answer" in visitor.get().text  # what can be read is shown
    free.store.execute("PRAGMA max_page_count = 1000000")
    for _ in range(2):
        visitor.send(kept)
    assert responses_of(free) == [("ann", "label", text)]


def test_a_training_elsewhere_is_named_and_the_answer_kept(batch):
    (visitor,) = visitors(batch, "ann")
    page = visitor.get()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(batch.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "held\n"
        output = visitor.label(page, 0, code=503)
        assert f"held by pid {other.pid}" in output.text
        assert "(teach)" in output.text
        assert "In use by pid" in visitor.get().text
        with pytest.raises(CampaignLockedError):
            serving.serve(batch, "ann")
    finally:
        other.communicate("\n")
    assert responses_of(batch) == []
    page = visitor.send(output.forms[0])
    assert responses_of(batch) == [("ann", "label", "red")]
    with Lock(batch.paths.lock).held("query"):  # as another process does
        output = visitor.send(page.form("undo"), 503)
        assert "(query)" in output.text
    assert batch.labels() != {}
    visitor.send(output.forms[0])
    assert batch.labels() == {}
    assert "In use by pid" not in visitor.get().text


def test_a_process_that_writes_a_response_is_named_to_others(batch, monkeypatch):
    seen = []
    write = batch.store.transaction

    def watched():
        seen.append(batch.status().holder)
        return write()

    monkeypatch.setattr(batch.store, "transaction", watched)
    (visitor,) = visitors(batch, "ann")
    visitor.label(visitor.get(), 0)
    visitor.send(visitor.get().form("undo"))
    assert [holder.endswith("(label --web)") for holder in seen] == [True, True]
    assert batch.status().holder is None  # between two responses, teach can begin


def test_a_failed_disk_is_reported_on_every_page(batch):
    (visitor,) = visitors(batch, "ann")
    page = visitor.get()
    batch.store._broken = "The disk failed."
    assert "The disk failed." in visitor.label(page, 0, code=503).text
    assert "The disk failed." in visitor.get().text
    assert visitor.answer.status_code == 503
