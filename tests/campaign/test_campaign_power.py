"""Power cuts, full disks and failing disks under the label store, at every single operation.

The code under test is the store itself, with the statements and settings that it always uses. It
normally runs on the standard library's sqlite3; here its connection is apsw's (which brings an
SQLite of its own), because only apsw lets a test replace the disk. What a power cut leaves is
then written to real files and opened as a user would, by the standard library's sqlite3.
"""

import hashlib
from collections import Counter
from pathlib import Path
from random import Random

import apsw
import pytest
from campaign_cases import fill, quick_folder
from simulated_disk import Connection, Disk, Inode

from starlearn.campaign import events, schema
from starlearn.campaign.events import Entry
from starlearn.campaign.store import Store
from starlearn.errors import CampaignCorruptError, StarlearnError, StorageError

NAME = "/labels.db"
LABELS = 25


def new_store(name, pragmas=schema.PRAGMAS):
    disk = Disk(name)
    disk.files[NAME] = Inode(
        named=True
    )  # the file itself is made and synced before SQLite opens it
    store = Store(
        Path(NAME), connect=lambda path, read_only: Connection(path, disk), pragmas=pragmas
    )
    return disk, store


def work(disk, store, labels=LABELS):
    """Make tables, issue a batch, store labels one by one; acknowledge what has returned."""
    store.build()
    fill(store, 5)
    disk.acknowledge()
    for number in range(labels):
        label(store, number)
        disk.acknowledge()


def label(store, number):
    entry = Entry("label", f"i{number % 5}", "ann", answer=f"answer {number}", uuid=str(number))
    events.append(store, [entry], per_item=1)


def stored(image, folder):
    """Return the answers in what a power cut left, as the store reads them; None if unreadable."""
    for name in ("labels.db", "labels.db-journal", "labels.db-wal"):
        (folder / name).unlink(missing_ok=True)
        if f"/{name}" in image:
            (folder / name).write_bytes(image[f"/{name}"])
    try:
        store = Store.open(folder / "labels.db")
    except StarlearnError:
        return None
    try:
        return [event.answer for event in events.events(store)]
    except CampaignCorruptError:
        return None
    finally:
        store.close()


def cut_everywhere(disk, draws):
    """Cut the power after every operation; count what was lost and what could not be read."""
    found = Counter(points=len(disk.history))
    seen, rng = set(), Random(0)
    with quick_folder() as folder:
        for moment in disk.history:
            for image in moment.images(rng, draws):
                content = b"".join(k.encode() + v for k, v in sorted(image.items()))
                key = (hashlib.sha256(content).digest(), moment.acknowledged)
                if key in seen:
                    continue
                seen.add(key)
                found["images"] += 1
                count(found, stored(image, folder), moment.acknowledged)
    return found


def count(found, answers, acknowledged):
    if acknowledged == 0:
        return  # the store was not complete, so nothing was acknowledged
    if answers is None:
        found["unreadable"] += 1
        return
    expected = [f"answer {n}" for n in range(LABELS)]
    found["not a prefix"] += answers != expected[: len(answers)]
    found["lost"] += len(answers) < acknowledged - 1
    found["too many"] += len(answers) > acknowledged


def run_with(name, draws, **changes):
    pragmas = {**schema.PRAGMAS, **changes}
    disk, store = new_store(name, pragmas)
    disk.recording = True
    work(disk, store)
    return cut_everywhere(disk, draws)


def test_a_power_cut_at_every_operation_loses_nothing():
    found = run_with("extra", draws=2)
    print(dict(found))
    assert found["points"] >= 400
    assert found["images"] >= 800
    assert {k: found[k] for k in ("unreadable", "not a prefix", "lost", "too many")} == {
        "unreadable": 0,
        "not a prefix": 0,
        "lost": 0,
        "too many": 0,
    }


@pytest.mark.slow
def test_many_more_power_cuts():
    found = run_with("extra-long", draws=12)
    print(dict(found))
    assert found["unreadable"] + found["not a prefix"] + found["lost"] + found["too many"] == 0


@pytest.mark.parametrize(
    "changes",
    [{"synchronous": ("OFF", 0)}, {"synchronous": ("NORMAL", 1)}, {"synchronous": ("FULL", 2)}],
    ids=["off", "normal", "full"],
)
def test_controls_that_do_lose(changes, request):
    """Check the simulation itself: with less than EXTRA, acknowledged labels are lost."""
    found = run_with(request.node.callspec.id, draws=1, **changes)
    print(dict(found))
    assert found["lost"] + found["unreadable"] > 0


def count_operations(name):
    """Count the disk operations of the store from the first label on."""
    disk, store = new_store(name)
    store.build()
    fill(store, 5)
    asked = []
    disk.fail = lambda operation: asked.append(operation) and None
    for number in range(3):
        label(store, number)
    return asked


def fails_at(position, error, only_once):
    """Fail at one operation, or from it on."""
    asked = []

    def fail(operation):
        asked.append(operation)
        here = len(asked) - 1 == position if only_once else len(asked) - 1 >= position
        return error(operation) if here else None

    return fail


def labels_until_error(store, position, error, only_once, disk):
    acknowledged = 0
    disk.fail = fails_at(position, error, only_once)
    try:
        for number in range(3):
            label(store, number)
            acknowledged += 1
    except StorageError as raised:
        return acknowledged, raised
    finally:
        disk.fail = lambda operation: None
    return acknowledged, None


def full(operation):
    """A full disk can still overwrite, shorten, remove and sync what is there."""
    return apsw.FullError(operation) if operation in ("open", "grow") else None


def failing(operation):
    return None if operation == "read" else apsw.IOError(operation)


def contents_of(disk):
    return {name: inode.content() for name, inode in disk.files.items()}


def test_a_disk_that_is_full_at_any_operation():
    asked = count_operations("count-full")
    refused = 0
    with quick_folder() as folder:
        for position in range(len(asked)):
            disk, store = new_store(f"full-{position}")
            store.build()
            fill(store, 5)
            acknowledged, error = labels_until_error(store, position, full, False, disk)
            if error is None:
                continue
            refused += 1
            answers = stored(contents_of(disk), folder)
            assert answers == [f"answer {n}" for n in range(acknowledged)]
            assert f"disk is full writing {NAME}" in str(error)
            assert f"nothing was lost, {acknowledged} labels are kept" in str(error)
            assert "Free at least" in str(error)
            label(store, acknowledged)  # after space was freed, without a new process
            assert stored(contents_of(disk), folder)[-1] == f"answer {acknowledged}"
    assert refused > 20


def test_a_disk_that_fails_at_any_operation():
    asked = count_operations("count-failing")
    failed = Counter()
    with quick_folder() as folder:
        for position, operation in enumerate(asked):
            disk, store = new_store(f"failing-{position}")
            store.build()
            fill(store, 5)
            acknowledged, error = labels_until_error(store, position, failing, True, disk)
            if error is None:
                continue
            failed[operation] += 1
            answers = stored(contents_of(disk), folder)
            assert answers[:acknowledged] == [f"answer {n}" for n in range(acknowledged)]
            assert len(answers) <= acknowledged + 1
            # Not tried again: the system may have thrown away what could not be synced.
            with pytest.raises(StorageError, match="new process"):
                label(store, acknowledged)
            with pytest.raises(StorageError, match="new process"):
                events.events(store)
    assert failed["sync"] >= 9
    assert failed["write"] + failed["grow"] >= 9
