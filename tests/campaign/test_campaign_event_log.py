"""The log in memory: only newer events are read, and another store in its place is noticed."""

import os
import shutil
import sqlite3
import threading

import pytest
from campaign_cases import store_with_batch
from page_cases import responses_of, visitors

from starlearn.campaign import events, rounds
from starlearn.campaign.annotation import Action
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.event_log import log_of
from starlearn.campaign.events import Entry
from starlearn.campaign.restore import restore
from starlearn.campaign.store import Store
from starlearn.campaign.web.service import AnnotationService, OutOfDateError
from starlearn.errors import CampaignCorruptError, StorageError


@pytest.fixture
def path(quick):
    return quick / "labels.db"


def add(store, n, annotator="ann"):
    entries = [Entry("label", f"i{i % 5}", annotator, answer=f"{annotator} {i}") for i in range(n)]
    return events.append(store, entries, per_item=9)


def rows_read(store, monkeypatch):
    """Return a list that grows by the number of rows of each statement."""
    found = []
    original = store.execute

    def counted(statement, values=()):
        rows = original(statement, values)
        found.append(len(rows))
        return rows

    monkeypatch.setattr(store, "execute", counted)
    return found


def test_a_page_and_a_response_read_as_much_after_many_events_as_after_few(
    make_campaign, monkeypatch
):
    read = {}
    for n in (0, 400):
        campaign = make_campaign(name=f"campaign{n}", per_item=3)
        campaign.query(20)
        items = [item.id for item in campaign.batch()]
        entries = [Entry("label", items[i % 20], "eve", answer="red") for i in range(n)]
        campaign.record(entries)
        service = AnnotationService(campaign)
        service.view("ann")
        with monkeypatch.context() as patch:
            found = rows_read(campaign.store, patch)
            view = service.view("ann")
            service.record("ann", view.item.id, Action("label", "red"), view.seen)
        read[n] = sum(found)
    # Settings and the newest event, whatever the length of the log and of the batch.
    assert read[400] <= read[0] + 5
    assert read[400] < 60


def test_only_newer_events_are_read(path, monkeypatch):
    store = store_with_batch(path)
    add(store, 50)
    log = log_of(store)
    other = Store.open(path)
    add(other, 3, "bob")
    found = rows_read(store, monkeypatch)
    assert [event.annotator for event in log_of(store).events[50:]] == ["bob"] * 3
    assert found == [4]  # the newest known event, and three others
    assert log_of(store) is log


def test_events_that_were_rolled_back_are_forgotten(path):
    store = store_with_batch(path)
    add(store, 2)

    def fail():
        with store.transaction():
            events._append_one(store, Entry("skip", "i0", "ann"))
            assert len(log_of(store).events) == 3
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert len(log_of(store).events) == 2
    (event,) = add(store, 1, "bob")
    assert event.seq == 3
    assert log_of(store).last_response("ann").kind == "label"


def test_a_damaged_newer_event_is_found(path):
    store = store_with_batch(path)
    add(store, 2)
    raw = sqlite3.connect(path)
    raw.execute(
        "INSERT INTO event SELECT 3, 'u', kind, item, annotator, answer, note, undoes, round, ms, "
        "at, crc FROM event WHERE seq = 2"
    )
    raw.commit()
    raw.close()
    for _ in range(2):
        with pytest.raises(CampaignCorruptError, match="event 3"):
            log_of(store)


def test_another_content_under_the_same_file_is_read_from_its_beginning(path, quick):
    first = store_with_batch(path)
    add(first, 3)
    other = store_with_batch(quick / "other.db")
    for number in range(4):
        add(other, 1, f"ann{number}")
    other.close()
    assert len(log_of(first).events) == 3
    path.write_bytes((quick / "other.db").read_bytes())
    assert [event.annotator for event in log_of(first).events] == [f"ann{n}" for n in range(4)]


def test_a_store_that_was_replaced_gets_no_answer(batch):
    """A restore moves the file away; what is written to the old one would be lost."""
    (visitor,) = visitors(batch, "ann")
    visitor.label(visitor.get(), 0)
    batch.backup()
    page = visitor.label(visitor.get(), 1)
    restore(batch.folder)
    assert "replaced or moved" in visitor.label(page, 2, code=503).text
    assert "replaced or moved" in visitor.get().text
    with pytest.raises(StorageError, match="replaced or moved"):
        batch.label(batch.batch()[0], "red")
    with Campaign.open(batch.folder) as again:
        assert responses_of(again) == [("ann", "label", "red")]
        again.label(again.batch()[1], "blue")


def test_a_store_that_was_removed_gets_no_answer(path):
    store = store_with_batch(path)
    shutil.copy(path, path.with_name("copy"))
    os.replace(path.with_name("copy"), path)
    with pytest.raises(StorageError, match="replaced or moved"):
        add(store, 1)
    path.unlink()
    with pytest.raises(StorageError, match="replaced or moved"):
        add(store, 1)


def test_a_changed_batch_or_round_is_found(path):
    store = store_with_batch(path)
    store.close()
    sound = path.read_bytes()
    for statement in (
        "UPDATE round SET record = '{\"pool\":7}'",
        "UPDATE round SET n = 4",
        "UPDATE round SET state = 'failed'",
    ):
        raw = sqlite3.connect(path)
        raw.execute(statement)
        raw.commit()
        raw.close()
        store = Store.open(path)
        with pytest.raises(CampaignCorruptError, match="round 1 is not the one that was written"):
            rounds.rounds(store)
        with pytest.raises(CampaignCorruptError):  # and it gets no new checksum
            rounds.change(store, 1, error="new")
        store.close()
        path.write_bytes(sound)
    place = sound.rindex(b"why")
    path.write_bytes(sound[:place] + b"who" + sound[place + 3 :])
    with pytest.raises(CampaignCorruptError, match="batch of round 1"):
        rounds.batch_of(Store.open(path), 1)


def test_responses_of_many_threads_share_transactions_and_each_gets_its_own_result(
    make_campaign, monkeypatch
):
    campaign = make_campaign(per_item=2)
    campaign.query(4)
    items = [item.id for item in campaign.batch()]
    service = AnnotationService(campaign)
    made = []
    write = campaign.store.transaction

    def counted():
        made.append(1)
        return write()

    monkeypatch.setattr(campaign.store, "transaction", counted)
    results = {}

    def respond(name, item, seen, text):
        try:
            service.record(name, item, Action("label", text), seen)
            results[name, text] = "stored"
        except OutOfDateError:
            results[name, text] = "out of date"

    service._mutex.acquire()  # as if another annotator's transaction were running
    sent = [
        ("ann", items[0], 0, "red"),
        ("ann", items[0], 0, "blue"),  # a second click on another choice
        ("bob", items[0], 0, "red"),
        ("cal", items[1], 5, "red"),  # an old page
        ("dan", "i0", 0, "red"),  # another batch
    ]
    threads = []
    for waiting, values in enumerate(sent, start=1):
        threads.append(threading.Thread(target=respond, args=values))
        threads[-1].start()
        while len(service._waiting) < waiting:
            pass
    service._mutex.release()
    for thread in threads:
        thread.join()
    assert results == {
        ("ann", "red"): "stored",
        ("ann", "blue"): "out of date",
        ("bob", "red"): "stored",
        ("cal", "red"): "out of date",
        ("dan", "red"): "out of date",
    }
    assert len(made) == 1
    assert service.n_saved == 2
    assert sorted(responses_of(campaign)) == [("ann", "label", "red"), ("bob", "label", "red")]
