"""A campaign whose scoring is done by workers: the batch and the scores of one process."""

import sys

import pytest
from typer.testing import CliRunner

from starlearn.campaign import batch_scores
from starlearn.cli.app import app
from starlearn.distributed.cluster import RayEngine
from starlearn.errors import MissingDependencyError, WorkerError
from starlearn.settings import Acquisition


def query(campaign, *options):
    return CliRunner().invoke(app, ["query", str(campaign.folder), "-n", "3", *options])


@pytest.mark.parametrize("where", ["python", "command line"])
def test_workers_give_the_batch_and_the_scores_of_one_process(
    make_campaign, in_place_of_ray, where
) -> None:
    settings = Acquisition(n_passes=2, chunk_size=5)
    alone = make_campaign(name="alone", acquisition=settings)
    shared = make_campaign(name="shared", acquisition=settings)
    for turn in range(2):
        expected = alone.query(3)
        in_place_of_ray.clear()
        if where == "python":
            shared.query(3, engine=RayEngine(workers=3))
            loaded = "model" in vars(shared.learner()._engine().backbone)
            assert loaded == (turn > 0), "this process needs no weights until it trains"
        else:
            result = query(shared, "--engine", "ray", "--workers", "3")
            assert result.exit_code == 0, result.output
        assert in_place_of_ray, "every round has chunks of its own"
        assert len(in_place_of_ray) == len(set(in_place_of_ray)), "scores are read, not made again"
        assert shared.batch() == expected
        number = alone.status().round
        assert alone.scores(number).equals(shared.scores(number))
        for campaign in (alone, shared):
            for item in expected:
                campaign.label(item.id, "red")
            campaign.teach()


@pytest.mark.parametrize("options", [["--address", "auto"], ["--gpus", "1"]])
def test_settings_of_an_engine_need_one(make_campaign, options) -> None:
    result = query(make_campaign(), *options)
    assert result.exit_code != 0
    assert "--engine ray" in result.output


def interrupted(_: str) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_query_goes_on_with_its_engine(
    make_campaign, in_place_of_ray, monkeypatch
) -> None:
    campaign = make_campaign(acquisition=Acquisition(n_passes=2, chunk_size=5))
    engine = RayEngine(workers=3, folder=campaign.folder / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(batch_scores, "failpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            campaign.query(3, engine=engine)
    assert campaign.status().next.startswith("starlearn resume")
    finished = list(in_place_of_ray)
    lost = next((campaign.folder / "elsewhere").rglob(f"{finished[1]}.parquet"))
    lost.unlink()
    campaign.resume()
    assert in_place_of_ray == [*finished, lost.stem], "one was lost, the others were read"
    assert len(campaign.batch()) == 3


def test_a_failed_query_names_the_command_with_its_engine(
    make_campaign, in_place_of_ray, monkeypatch
) -> None:
    def failing(*_):
        raise WorkerError("a worker that is gone")

    campaign = make_campaign()
    with monkeypatch.context() as patch:
        patch.setattr(batch_scores, "choose", failing)
        with pytest.raises(WorkerError):
            campaign.query(3, engine=RayEngine(workers=3, gpus=0.5))
        following = campaign.status().next
        assert following.endswith("-n 3 --engine ray --workers 3 --gpus 0.5")
        with pytest.raises(WorkerError):
            campaign.query(3)
        assert campaign.status().next.endswith("-n 3")


def test_an_engine_that_is_not_installed_leaves_no_round(make_campaign, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    campaign = make_campaign()
    with pytest.raises(MissingDependencyError, match=r"starlearn\[ray\]"):
        campaign.query(3, engine="ray")
    assert campaign.status().state is None
