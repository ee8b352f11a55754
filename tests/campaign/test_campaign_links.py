"""Links, pipes and stored names inside a campaign folder lead to nothing outside of it."""

import json
import os
import shutil
import sqlite3

import pytest

from starlearn.campaign import rounds
from starlearn.campaign.campaign import Campaign
from starlearn.errors import InputError, StarlearnError, UntrustedFileError
from starlearn.query.score_store import ScoreStore

PLACES = (
    *("labels.db", "labels.db-journal", "pool.parquet", ".lock", ".labels.db.restored"),
    *("adapters", "scores", "scores/cache", "scores/cache/scores.sqlite", "backups", "exports"),
    *("training.safetensors", ".pool.parquet.new", ".training.safetensors.new"),
    *("scores/round-0001.parquet", "exports/labels.jsonl", "backups/labels-000000001.db"),
)


@pytest.fixture
def folder(make_campaign):
    campaign = make_campaign()
    campaign.label(campaign.query(2)[0], "red")
    campaign.backup()
    campaign.close()
    return campaign.folder


def outside(tmp_path):
    """Return a folder of somebody else, and everything in it."""
    folder = tmp_path / "outside"
    folder.mkdir(exist_ok=True)
    return folder, {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe"])
def test_what_is_no_file_or_folder_of_its_own_is_refused(folder, tmp_path, place, kind):
    path, (target, before) = folder / place, outside(tmp_path)
    if path.exists():
        destination = shutil.move(path, target / path.name)
        before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    else:
        destination = target / "nothing"
    path.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(destination if kind == "link" else target / "nothing")
    with pytest.raises(StarlearnError) as raised:
        Campaign.open(folder)
    assert isinstance(raised.value, UntrustedFileError) or "labels.db" in place
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


def test_a_link_that_appears_while_a_campaign_is_open_is_refused(folder, tmp_path):
    target, _ = outside(tmp_path)
    with Campaign.open(folder) as campaign:
        shutil.rmtree(campaign.paths.scores)
        campaign.paths.scores.symlink_to(target)
        with pytest.raises(UntrustedFileError, match="symbolic link"):
            campaign.learner()
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["scores.sqlite", "scores.sqlite-journal"])
def test_a_link_to_another_database_is_not_used_as_a_cache(tmp_path, name):
    other = tmp_path / "other.sqlite"
    raw = sqlite3.connect(other)
    raw.execute("CREATE TABLE precious (id)")
    raw.commit()
    raw.close()
    before = other.read_bytes()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / name).symlink_to(other)
    with pytest.raises(InputError, match=r"cache_dir=.*symbolic link"):
        ScoreStore(cache)
    assert other.read_bytes() == before


def test_a_stored_cache_folder_is_not_written(folder, tmp_path):
    target, _ = outside(tmp_path)
    with Campaign.open(folder) as campaign:
        with pytest.raises(InputError, match=r"cache_dir cannot be set.*its own folder"):
            campaign.set_params(cache_dir=str(target))
        settings = json.loads(campaign.meta["learner"])
        with campaign.store.transaction():
            campaign.store.set_meta(learner=json.dumps({**settings, "cache_dir": str(target)}))
    with Campaign.open(folder) as campaign:
        assert campaign.learner().cache_dir == str(campaign.paths.cache)
        campaign.label(campaign.batch()[1], "red")
        campaign.teach()
        campaign.query(2)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("named", ["folder", "address"])
def test_a_stored_engine_outside_of_the_campaign_is_not_used(folder, tmp_path, named):
    target, _ = outside(tmp_path)
    value = str(target) if named == "folder" else "ray://elsewhere:10001"
    engine = {"workers": 1, "gpus": 0, "address": None, "folder": None, named: value}
    with Campaign.open(folder) as campaign:
        campaign.label(campaign.batch()[1], "red")
        campaign.teach()
        found = rounds.begin(campaign.store, 2, {})
        rounds.change(campaign.store, found.id, record={"engine": engine})
        with pytest.raises(InputError, match=r"outside of .*name them again"):
            campaign.resume()
        assert len(campaign.query(2)) == 2
    assert list(target.iterdir()) == []
