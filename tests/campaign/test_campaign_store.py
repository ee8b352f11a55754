"""The label store: strict settings, damage found and never papered over, versions, backups."""

import os
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from campaign_cases import fill, store_with_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from starlearn.campaign import events, rounds, schema
from starlearn.campaign.events import Entry
from starlearn.campaign.items import composed
from starlearn.campaign.restore import restore
from starlearn.campaign.store import Store
from starlearn.errors import CampaignCorruptError, InputError, StorageError, UntrustedFileError

VERSIONS = (1, 2)


@pytest.fixture
def path(quick):
    return quick / "labels.db"


def add_labels(store, n=3, annotator="ann"):
    entries = [Entry("label", f"i{i % 5}", annotator, answer=f"answer {i}") for i in range(n)]
    return events.append(store, entries, per_item=1)


def test_every_setting_is_read_back(path):
    store = Store.create(path)
    assert store.execute("PRAGMA synchronous") == [(3,)]
    assert store.execute("PRAGMA journal_mode") == [("delete",)]
    assert next(iter(schema.PRAGMAS)) == "synchronous"
    assert path.stat().st_mode & 0o777 == 0o600
    store.close()
    with pytest.raises(StorageError, match="does not accept synchronous"):
        Store.open(path, pragmas={"synchronous": ("OFF", 3)})


def test_events_are_never_changed(path):
    store = store_with_batch(path)
    add_labels(store)
    for statement in (
        "UPDATE event SET answer = 'other'",
        "DELETE FROM event",
        "DELETE FROM item",
        "UPDATE item SET content = '{}'",
        "DELETE FROM issued",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            store.execute(statement)
    assert [event.answer for event in events.events(store)] == ["answer 0", "answer 1", "answer 2"]


def test_a_batch_is_issued_whole_or_not_at_all(path):
    store = store_with_batch(path, items=2)
    rounds.begin(store, 2, {})
    twice = [rounds.Issued(f"new{i}", "{}", 0, None, "the same place") for i in range(2)]
    with pytest.raises(sqlite3.IntegrityError):
        rounds.issue(store, 2, twice, {})
    assert rounds.batch_of(store, 2) == []
    assert "new0" not in rounds.contents(store)
    assert rounds.current(store).state == "scoring"


def test_the_store_refuses_what_python_let_through(path):
    store = store_with_batch(path)
    add_labels(store, 1)
    columns = "seq, uuid, kind, item, annotator, answer, round, at, crc"
    for values in (
        "(2, 'u', 'label', 'i0', 'ann', NULL, 1, 't', 0)",  # a label without an answer
        "(2, 'u', 'skip', 'i0', 'ann', 'red', 1, 't', 0)",
        "(2, 'u', 'label', 'unknown', 'ann', 'red', 1, 't', 0)",
        "(2, 'u', 'label', 'i0', '', 'red', 1, 't', 0)",
        "('x', 'u', 'label', 'i0', 'ann', 'red', 1, 't', 0)",  # STRICT
        "(2, 'u', 'label', 'i0', 'ann', 'red', 1, 't', 0.5)",
        "(2, 'u', 'undo', 'i0', 'ann', NULL, 1, 't', 0)",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            store.execute(f"INSERT INTO event ({columns}) VALUES {values}")  # noqa: S608


# Damage


def test_a_missing_or_empty_store_is_not_recreated(path):
    for content in (None, b"", b"SQLite", b"x" * 5000):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CampaignCorruptError, match="Nothing was changed"):
            Store.open(path)
        assert (path.read_bytes() if path.exists() else None) == content


def test_every_flipped_byte_is_found_or_harmless(path):
    store = store_with_batch(path)
    add_labels(store, 30)
    expected = events.events(store), rounds.contents(store), store.meta()
    store.close()
    sound = path.read_bytes()
    found = 0
    for position in range(0, len(sound), 61):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 0x10]) + sound[position + 1 :])
        try:
            store = Store.open(path, read_only=True)
            content = events.events(store), rounds.contents(store), store.meta()
            store.close()
        except (CampaignCorruptError, InputError, StorageError):
            found += 1
        else:
            assert content == expected, position
    assert found > 100


def test_a_store_cut_short_is_found(path):
    store = store_with_batch(path, items=200)
    add_labels(store, 200)
    store.close()
    sound = path.read_bytes()
    for length in range(0, len(sound) - 1, 4096):
        path.write_bytes(sound[:length])
        with pytest.raises(CampaignCorruptError):
            Store.open(path)


def forge(path, action, statement):
    """Go round a trigger, and leave everything but the rows as it was."""
    raw = sqlite3.connect(path)
    name = f"event_no_{action}"
    ((trigger,),) = raw.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (name,)).fetchall()
    raw.execute(f"DROP TRIGGER {name}")
    raw.execute(statement)
    raw.execute(trigger)
    raw.commit()
    raw.close()


def test_a_dropped_trigger_is_found(path):
    Store.create(path).close()
    raw = sqlite3.connect(path)
    raw.execute("DROP TRIGGER event_no_delete")
    raw.close()
    with pytest.raises(CampaignCorruptError, match="not those that starlearn created"):
        Store.open(path)


def test_a_label_that_another_program_changed_is_found(path):
    store = store_with_batch(path)
    add_labels(store)
    store.close()
    forge(path, "update", "UPDATE event SET answer = 'forged' WHERE seq = 2")
    store = Store.open(path)
    with pytest.raises(CampaignCorruptError, match="event 2"):
        events.events(store)
    store.close()
    forge(path, "delete", "DELETE FROM event WHERE seq = 2")
    with pytest.raises(CampaignCorruptError, match="event 2 is missing"):
        events.events(Store.open(path))


def test_foreign_keys_are_checked_at_opening(path):
    store = store_with_batch(path)
    store.close()
    raw = sqlite3.connect(path)
    raw.execute("INSERT INTO issued VALUES (7, 'i0', 0, 0.5, 'why')")
    raw.commit()
    raw.close()
    with pytest.raises(CampaignCorruptError, match="refers to a missing row"):
        Store.open(path)


def test_restore_puts_the_damaged_files_aside(make_campaign, quick):
    from starlearn.campaign.campaign import Campaign

    campaign = make_campaign()
    batch = campaign.query(3)
    campaign.label(batch[0], "red")
    kept = campaign.backup()
    campaign.close()
    database = quick / "campaign" / "labels.db"
    database.write_bytes(b"damage" * 1000)
    (quick / "campaign" / "labels.db-journal").write_bytes(b"stale journal")
    with pytest.raises(CampaignCorruptError, match=kept.name):
        Campaign.open(quick / "campaign")
    assert restore(quick / "campaign").source == kept
    with Campaign.open(quick / "campaign") as again:
        assert list(again.labels().values()) == ["red"]
    aside = next((quick / "campaign").glob("damaged-*"))
    assert (aside / "labels.db").read_bytes() == b"damage" * 1000
    assert (aside / "labels.db-journal").exists()
    with pytest.raises(InputError, match="no backup"):
        restore(quick / "nowhere")


def test_a_training_that_was_restored_away_keeps_its_folder_and_costs_no_other(
    make_campaign, quick
):
    from starlearn.campaign.campaign import Campaign

    campaign = make_campaign()
    campaign.label(campaign.query(2)[0], "red")
    campaign.teach(partial=True)  # which backs up first
    campaign.close()
    (quick / "campaign" / "labels.db").write_bytes(b"damage" * 1000)
    restore(quick / "campaign")
    with Campaign.open(quick / "campaign") as again:
        assert again.history()[0].state == "issued"
        (left,) = [found for found in again.doctor() if "round-0001-1" in found.what]
        assert "is complete but belongs to no round" in left.what
        again.teach(partial=True)
        assert again.history()[0].adapter == "round-0001-2"
        assert (quick / "campaign" / "adapters" / "round-0001-1").is_dir()


def test_a_restored_copy_is_not_followed_by_backups_of_what_was_given_up(make_campaign, quick):
    from starlearn.campaign.campaign import Campaign

    folder, old = quick / "campaign", quick / "old.db"
    campaign = make_campaign()
    batch = campaign.query(5)
    campaign.label(batch[0], "red")
    campaign.backup(old)
    for item in batch[1:]:
        campaign.label(item, "red")
        campaign.backup()
    campaign.close()
    restore(folder, old)
    (aside,) = folder.glob("damaged-*")
    assert {path.name for path in aside.iterdir()} == {
        "labels.db",
        *(f"labels-{n:09d}.db" for n in (3, 4, 5)),
    }
    with Campaign.open(folder) as again:
        made = again.backup()
        assert made.is_file()
    assert restore(folder).source == made


def test_a_copy_of_another_campaign_is_not_restored(make_campaign, quick):
    first, second = make_campaign(name="a"), make_campaign(name="b")
    second.backup(quick / "second.db")
    first.label(first.query(1)[0], "red")
    first.teach()
    first.close()
    labels = quick / "a" / "labels.db"
    for damage in ("labels", "backups too", "adapters alone are left"):
        before = labels.read_bytes()
        with pytest.raises(InputError, match=r"another campaign.*Nothing was restored"):
            restore(quick / "a", quick / "second.db")
        assert labels.read_bytes() == before
        labels.write_bytes(b"damage" * 1000)
        if damage == "backups too":
            for backup in (quick / "a" / "backups").iterdir():
                backup.unlink()
    shutil.rmtree(quick / "a" / "adapters")
    assert restore(quick / "a", quick / "second.db")  # no intact file names another campaign


# Versions, journals


def test_a_newer_store_is_refused(path):
    store = Store.create(path)
    store.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(InputError, match=r"newer starlearn.*pip install -U"):
        Store.open(path)


def test_another_database_is_refused(path):
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE recipes (name TEXT)")
    raw.close()
    with pytest.raises(CampaignCorruptError, match="not a label store"):
        Store.open(path)


def fixture_of(version):
    file = Path(__file__).parent / f"labels_schema_{version}.sql"
    return file.read_text(encoding="utf-8")


def test_the_schema_is_what_it_was(path):
    """A fixture is its schema for ever: a change to the tables needs a new version."""
    store = Store.create(path)
    made = [sql for (sql,) in store.execute("SELECT sql FROM sqlite_schema WHERE sql NOT NULL")]
    raw = sqlite3.connect(":memory:")
    raw.executescript(fixture_of(schema.VERSION))
    query = "SELECT sql FROM sqlite_schema WHERE sql NOT NULL"
    assert sorted(sql for (sql,) in raw.execute(query)) == sorted(made)
    raw.close()
    assert max(VERSIONS) == schema.VERSION, "keep the fixtures, and add one of the new version"


def old_store(path, version=1):
    raw = sqlite3.connect(path)
    raw.executescript(fixture_of(version))
    raw.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_store_of_each_version_opens(path, version):
    old_store(path, version)
    store = Store.open(path)
    found = rounds.rounds(store)
    assert [(r.id, r.n) for r in found] == [(1, 2)]
    assert [i.item for i in rounds.batch_of(store, 1)] == ["i0", "i1"]
    assert [(e.kind, e.answer) for e in events.events(store)] == [("label", "red"), ("skip", None)]
    add_labels(store, 1)


def test_migration_is_one_transaction_after_a_backup(path, monkeypatch):
    old_store(path)
    before = path.read_bytes()
    monkeypatch.setattr(schema, "VERSION", 3)
    steps = {1: ("ALTER TABLE item ADD COLUMN language TEXT",), 2: ("broken statement",)}
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    with pytest.raises(sqlite3.OperationalError):
        Store.open(path)
    assert path.read_bytes()[100:] == before[100:]
    steps[2] = ("CREATE TABLE more (id INTEGER PRIMARY KEY) STRICT",)
    with pytest.raises(StorageError, match="older schema"):
        Store.open(path, read_only=True)
    store = Store.open(path)
    assert store.execute("SELECT language FROM item LIMIT 1") == [(None,)]
    assert store.execute("PRAGMA user_version") == [(3,)]
    assert len(events.events(store)) == 2
    backup = path.parent / "backups" / "before-schema-3.db"
    raw = sqlite3.connect(backup)
    assert raw.execute("PRAGMA user_version").fetchone() == (1,)
    raw.close()


def test_a_journal_without_its_store_is_refused(path):
    path.with_name("labels.db-journal").write_bytes(b"journal")
    with pytest.raises(CampaignCorruptError, match="missing but has a journal"):
        Store.open(path)
    assert not path.exists()


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_leftovers_of_wal_are_refused(path, suffix):
    Store.create(path).close()
    path.with_name(path.name + suffix).write_bytes(b"")
    with pytest.raises(StorageError, match="PRAGMA journal_mode=DELETE"):
        Store.open(path)


def test_wal_mode_is_refused(path):
    Store.create(path).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA journal_mode=WAL")
    raw.close()
    with pytest.raises(StorageError, match="WAL mode"):
        Store.open(path)
    assert 2 in path.read_bytes()[18:20]


# Order, processes, hostile text


def test_events_are_ordered_by_number_not_by_clock(path, monkeypatch):
    store = store_with_batch(path)
    for at in ("2030-01-01T00:00:00", "1999-01-01T00:00:00", "2026-03-29T02:30:00"):
        monkeypatch.setattr(events, "now", lambda at=at: at)
        add_labels(store, 1, annotator=at)
    log = events.events(store)
    assert [event.seq for event in log] == [1, 2, 3]
    assert [event.at[:4] for event in log] == ["2030", "1999", "2026"]
    assert [event.annotator[:4] for event in events.current_responses(log)] == [
        "2030",
        "1999",
        "2026",
    ]


WRITER = """
import sys
from pathlib import Path
from starlearn.campaign import events
from starlearn.campaign.events import Entry
from starlearn.campaign.store import Store
store = Store.open(Path(sys.argv[1]))
for i in range(int(sys.argv[3])):
    events.append(store, [Entry("label", f"i{i % 5}", sys.argv[2], answer=str(i))], 1)
"""


def test_two_processes_write_without_a_gap(path):
    store_with_batch(path).close()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, "300"])
        for name in ("one", "two")
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    log = events.events(Store.open(path))
    assert len(log) == 600
    for name in ("one", "two"):
        assert [e.answer for e in log if e.annotator == name] == [str(i) for i in range(300)]


def test_opening_a_store_again_does_not_give_up_its_locks(path):
    """On POSIX, closing any handle of a file drops all locks that the process has on it."""
    first = store_with_batch(path)
    code = (
        "import sqlite3, sys\n"
        "raw = sqlite3.connect(sys.argv[1], timeout=0)\n"
        "try:\n    raw.execute('BEGIN IMMEDIATE')\n    print('locks are gone')\n"
        "except sqlite3.OperationalError as error:\n    print(error)\n"
    )
    with first.transaction():
        second = Store.open(path, read_only=True)
        command = [sys.executable, "-c", code, str(path)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        second.close()
    assert ran.stdout == "database is locked\n"


def test_a_reader_opens_at_any_moment_of_a_writer(path):
    store_with_batch(path).close()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path), "one", "300"]) as writer:
        opened = 0
        while writer.poll() is None:
            reader = Store.open(path, read_only=True)
            events.events(reader)
            reader.close()
            opened += 1
    assert writer.returncode == 0
    assert opened > 10


def test_threads_take_turns(path):
    store = store_with_batch(path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add_labels(store, 1, annotator=f"a{i}"), range(60)))
    assert len(events.events(store)) == 60


def test_a_reader_does_not_wait_for_an_open_transaction(path):
    store = store_with_batch(path)
    add_labels(store, 2)
    reader = Store.open(path, read_only=True)
    with store.transaction():
        store.execute("UPDATE round SET n = 3")
        assert len(events.events(reader)) == 2
    with pytest.raises(StorageError, match="cannot be opened or written"):
        reader.execute("UPDATE round SET n = 4")


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(max_size=5))
def test_texts_are_values_never_sql(text, more):
    from campaign_cases import quick_folder

    with quick_folder() as folder:
        store = store_with_batch(folder / "labels.db")
        hostile = f"{text}'); DROP TABLE event; --{more}"
        entry = Entry("label", "i0", hostile, answer=hostile, note=text)
        (event,) = events.append(store, [entry], 1)
        store.close()
        store = Store.open(folder / "labels.db")
        (again,) = events.events(store)
        assert again == event
        assert (again.answer, again.annotator) == (composed(hostile), composed(hostile))
        assert again.note == text
        store.close()


def test_a_symbolic_link_as_store_is_refused(path, tmp_path):
    Store.create(tmp_path / "elsewhere.db").close()
    path.symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(UntrustedFileError, match="symbolic link"):
        Store.open(path)


def test_a_forked_child_opens_its_own_connection(path):
    store = store_with_batch(path)
    add_labels(store, 1)
    inherited = store._connection
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            add_labels(store, 1, annotator="child")
            own = store._connection is not inherited
            os.write(write, f"{len(events.events(store))} {own}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"2 True"
    add_labels(store, 1, annotator="parent")
    assert [e.annotator for e in events.events(store)] == ["ann", "child", "parent"]
    os.close(read)
    os.close(write)


def test_a_backup_is_a_store_of_its_own(path):
    store = store_with_batch(path)
    add_labels(store)
    store.backup(path.parent / "copy.db")
    add_labels(store, 1, annotator="later")
    copy = Store.open(path.parent / "copy.db")
    assert len(events.events(copy)) == 3
    assert os.stat(path.parent / "copy.db").st_mode & 0o777 == 0o600


def test_a_filled_store_opens_quickly_enough_to_check_everything(path):
    store = Store.create(path)
    fill(store, 5)
    add_labels(store, 2000)
    store.close()
    steps = []
    store = Store.open(path)
    store._connection.set_progress_handler(lambda: steps.append(1), 1000)
    store.check()
    assert len(steps) < 2000  # in thousands of SQLite's instructions: work, not time
