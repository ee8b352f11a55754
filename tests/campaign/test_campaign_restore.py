"""Damage and restore: copies are read whole before they count, and no damage is a traceback."""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from campaign_cases import POOL, label_all, make_learner, quick_folder
from typer.testing import CliRunner

from starlearn.campaign import events, rounds
from starlearn.campaign.campaign import Campaign
from starlearn.campaign.doctor import examine
from starlearn.campaign.failpoints import RESTORE_FAILPOINTS, VARIABLE
from starlearn.campaign.restore import restore
from starlearn.cli.app import app
from starlearn.errors import CampaignCorruptError, InputError, StarlearnError


@pytest.fixture(scope="module")
def template(tiny_model):
    """Return a folder with two rounds of labels, three backups and a journal."""
    with quick_folder() as folder:
        with Campaign.create(folder / "campaign", POOL, make_learner(tiny_model)) as campaign:
            campaign.query(3)
            label_all(campaign)
            campaign.teach()
            first, *_ = campaign.query(3)
            campaign.label(first, "red", "bob", uuid="é note")
            campaign.backup()
            campaign.flag(first, "cal", note="odd é")
            campaign.backup()
        yield folder / "campaign"


@pytest.fixture
def folder(template, quick):
    return shutil.copytree(template, quick / "campaign")


def backups(folder):
    return sorted((folder / "backups").glob("labels-*.db"))


def flip(path, what):
    """Change one byte of a text in a file."""
    content = path.read_bytes()
    place = content.rindex(what)
    path.write_bytes(content[:place] + bytes([content[place] ^ 0x04]) + content[place + 1 :])


def contents(folder):
    with Campaign.open(folder, read_only=True) as campaign:
        log = events.events(campaign.store)
        return log, rounds.rounds(campaign.store), campaign.meta


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_backup_with_one_flipped_bit_is_passed_over(folder):
    *_, older, newest = backups(folder)
    n_events = int(older.stem.removeprefix("labels-"))
    flip(newest, b"odd")
    (folder / "exports" / "labels.jsonl").unlink()
    (folder / "labels.db").write_bytes(b"damage" * 1000)
    done = restore(folder)
    assert (done.source, done.n_events) == (older, n_events)
    log, *_ = contents(folder)
    assert len(log) == n_events
    assert not newest.exists()
    assert (done.replaced / newest.name).is_file()
    with Campaign.open(folder) as campaign:
        assert campaign.doctor() == []


def test_without_an_intact_copy_nothing_is_changed_and_the_message_goes_round_in_no_circle(folder):
    for backup in backups(folder):
        backup.write_bytes(b"coffee" * 1000)
    flip(folder / "exports" / "labels.jsonl", b"odd")
    (folder / "labels.db").write_bytes(b"damage" * 1000)
    before = {path: path.read_bytes() for path in folder.rglob("*.db")}
    with pytest.raises(CampaignCorruptError) as raised:
        restore(folder)
    for backup in backups(folder):
        assert backup.name in str(raised.value)
    assert "labels.jsonl cannot be used: line" in str(raised.value)
    assert "--restore --from FILE" in str(raised.value)
    assert {path: path.read_bytes() for path in folder.rglob("*.db")} == before
    output = command("doctor", folder, "--restore")
    assert output.exit_code == 4
    assert isinstance(output.exception, SystemExit)


def test_the_journal_restores_everything_when_no_backup_is_intact(folder):
    expected = contents(folder)
    for backup in backups(folder):
        flip(backup, b"red")
    (folder / "labels.db").unlink()
    done = restore(folder)
    assert done.source == folder / "exports" / "labels.jsonl"
    assert contents(folder) == expected
    with Campaign.open(folder) as campaign:
        assert campaign.doctor() == []
        assert campaign.published() is not None
        label_all(campaign)
        campaign.teach()


def test_the_journal_counts_before_an_older_backup(folder):
    expected = contents(folder)
    backups(folder)[-1].unlink()
    (folder / "labels.db").write_bytes(b"")
    assert restore(folder).source.name == "labels.jsonl"
    assert contents(folder) == expected


def test_a_journal_can_be_named_and_an_old_one_is_refused(folder):
    journal = folder.parent / "labels.jsonl"
    shutil.copy(folder / "exports" / "labels.jsonl", journal)
    expected = contents(folder)
    assert restore(folder, journal).source == journal
    assert contents(folder) == expected
    _, *lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines))
    with pytest.raises(CampaignCorruptError, match="older starlearn wrote it"):
        restore(folder, journal)
    journal.write_bytes(b"")
    with pytest.raises(CampaignCorruptError, match="older starlearn wrote it"):
        restore(folder, journal)


@pytest.mark.parametrize("cut", [1, 2, 100])
def test_a_journal_that_was_cut_short_is_refused(folder, cut):
    path = folder / "exports" / "labels.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-cut]) if cut < 100 else content[:-cut])
    with pytest.raises(CampaignCorruptError, match="cannot be used"):
        restore(folder, path)
    with Campaign.open(folder) as campaign:
        (found,) = campaign.doctor()
        assert "The journal" in found.what


def test_what_is_not_a_file_is_no_backup(folder):
    for name in ("nowhere.db", "."):
        with pytest.raises(InputError, match="is not a file"):
            restore(folder, folder / name)


def test_doctor_reads_backups_journal_and_scores(folder):
    with Campaign.open(folder) as campaign:
        assert campaign.doctor() == []
        damaged = backups(folder)
        for backup in damaged:
            backup.write_bytes(b"coffee" * 1000)
        flip(folder / "exports" / "labels.jsonl", b"odd")
        scores = campaign.paths.round_scores(2)
        assert campaign.scores(2).num_rows > 0
        flip(scores, b"PAR1")
        found = campaign.doctor()
        assert [finding.level for finding in found] == ["error"] * 5
        for path in (*damaged, folder / "exports" / "labels.jsonl", scores):
            assert any(str(path) in finding.what for finding in found)
        assert campaign.scores(2) is None
        scores.unlink()
        assert [f.level for f in campaign.doctor() if str(scores) in f.what] == ["note"]
    assert command("doctor", folder).exit_code == 4


def test_doctor_reads_from_the_disk_what_is_in_memory(folder):
    with Campaign.open(folder) as campaign:
        raw = sqlite3.connect(folder / "labels.db")
        raw.execute("UPDATE round SET record = '{}' WHERE id = 1")
        raw.commit()
        raw.close()
        (found,) = examine(campaign, fix=True)
        assert "round 1 is not the one that was written" in found.what
        assert "--restore" in found.fix


def test_doctor_restore_names_the_folder_of_the_replaced_files(folder):
    (folder / "labels.db").write_bytes(b"coffee")
    output = command("doctor", folder, "--restore")
    assert output.exit_code == 0, output.output
    (replaced,) = folder.glob("damaged-*")
    assert f"The earlier files are in {replaced}." in output.output.replace("\n", "")


@pytest.mark.parametrize("name", RESTORE_FAILPOINTS)
def test_an_interrupted_restore_is_reported_and_can_be_repeated(template, quick, name):
    folder = quick / "campaign"
    shutil.copytree(template, folder)
    expected = contents(folder)
    copy = quick / "copy.db"
    shutil.copy(folder / "labels.db", copy)
    for left in ("backups", "adapters", "exports", "scores"):
        shutil.rmtree(folder / left)  # a campaign before its first training
    (folder / "labels.db").write_bytes(b"coffee")
    code = "import sys\nfrom starlearn.campaign.restore import restore\nrestore(*sys.argv[1:])"
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), VARIABLE: name}
    program = [sys.executable, "-c", code, str(folder), str(copy)]
    assert subprocess.run(program, env=environment, check=False).returncode == 137
    if name != "restore_renamed":
        with pytest.raises(CampaignCorruptError, match=r"damaged: .*--restore"):
            Campaign.open(folder)
        with pytest.raises(InputError, match=r"not empty|already"):
            Campaign.create(folder, POOL, make_learner(None))
        restore(folder, copy)
    assert contents(folder) == expected
    assert len(list(folder.glob("damaged-*/labels.db"))) == 1


def texts_of(path):
    """Return the places of texts of SQLite's rows in a file."""
    content = path.read_bytes()
    return [
        content.rindex(text)
        for text in (b"red", b"bob", b"odd", b'is"}', b"scoring", b"why")
        if text in content
    ]


def test_text_that_is_not_utf_8_is_damage_like_any_other(folder):
    path = folder / "labels.db"
    sound = path.read_bytes()
    places = texts_of(path)
    assert len(places) >= 3
    for place in places:
        path.write_bytes(sound[:place] + b"\xff" + sound[place + 1 :])
        with pytest.raises(CampaignCorruptError, match="--restore"):
            Campaign.open(folder)
        for backup in backups(folder)[1:]:
            backup.write_bytes(path.read_bytes())
        restore(folder)
        Campaign.open(folder).close()
        for aside in folder.glob("damaged-*"):
            shutil.rmtree(aside)


@pytest.mark.parametrize("seed", range(3))
def test_no_flipped_byte_on_any_page_ends_in_a_traceback(template, quick, seed):
    """Opening, doctor and restore give an error of starlearn, or the contents as they were."""
    folder = shutil.copytree(template, quick / "campaign")
    path, expected = folder / "labels.db", contents(folder)
    sound, draw = path.read_bytes(), random.Random(seed)
    assert restore(folder).n_events == len(expected[0])
    found = 0
    used = [place for place, byte in enumerate(sound) if byte]
    for page in range(0, len(sound), 4096):
        inside = [place for place in used if page <= place < page + 4096] or [page]
        for place in draw.choices(inside, k=3):
            damaged = bytearray(sound)
            damaged[place] ^= 1 << draw.randrange(8) if draw.random() < 0.5 else 0xFF
            path.write_bytes(damaged)
            try:
                assert contents(folder) == expected
            except StarlearnError:
                found += 1
            backup = quick / "backup.db"
            backup.write_bytes(damaged)
            try:
                restore(folder, backup)
                assert contents(folder) == expected
            except StarlearnError:
                pass
    assert found > 20


def test_a_campaign_of_the_version_before_opens_after_a_backup(quick):
    golden = Path(__file__).parents[1] / "golden" / "campaign"
    folder = shutil.copytree(golden, quick / "campaign")
    raw = sqlite3.connect(folder / "labels.db")
    (version,) = raw.execute("PRAGMA user_version").fetchone()
    n_events = raw.execute("SELECT count(*) FROM event").fetchone()[0]
    raw.close()
    assert version == 1
    with Campaign.open(folder) as campaign:
        assert len(events.events(campaign.store)) == n_events
        assert [found.state for found in rounds.rounds(campaign.store)]
        assert campaign.batch()
    raw = sqlite3.connect(folder / "backups" / "before-schema-2.db")
    assert raw.execute("PRAGMA user_version").fetchone() == (1,)
    raw.close()
    (folder / "labels.db").write_bytes(b"coffee")
    assert restore(folder).source.name == "labels-000000008.db"
    with Campaign.open(folder) as campaign:
        assert [f.what for f in campaign.doctor() if f.level == "error"] == [
            f.what for f in campaign.doctor() if "journal" in f.what
        ]


def test_the_journal_is_json_with_a_checksum_per_line(folder):
    lines = (folder / "exports" / "labels.jsonl").read_bytes().splitlines()
    head, *rows = map(json.loads, lines)
    assert head["events"] == len(rows)
    assert {row["campaign"] for row in rows} == {head["campaign"]}
