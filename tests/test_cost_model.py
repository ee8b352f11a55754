"""The cost model: arithmetic that holds whatever the figures, and a command that names them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from starlearn.cli import cost_model
from starlearn.cli.app import app
from starlearn.cli.cost_model import DEVICES, Job, measured_rate, plan, stops_scaling
from starlearn.errors import InputError

jobs = st.builds(
    Job,
    items=st.integers(1, 10**9),
    tokens=st.floats(1, 4096),
    passes=st.integers(1, 32),
    parameters=st.floats(1e6, 1e11),
    chunk=st.integers(1, 10**5),
)


@given(jobs, st.floats(1, 1e7), st.integers(1, 1000))
def test_more_workers_never_take_longer_and_never_scale_better_than_evenly(
    job: Job, rate: float, workers: int
) -> None:
    one, many = plan(job, rate), plan(job, rate, workers)
    assert many.seconds <= one.seconds
    assert many.score * workers >= one.score * (1 - 1e-9)
    assert many.share <= one.share + 1e-9
    assert 0 <= many.share <= 1


@given(jobs, st.floats(1, 1e7))
def test_half_of_the_time_is_scoring_up_to_the_limit_and_less_beyond(job: Job, rate: float) -> None:
    limit = stops_scaling(job, rate)
    assert plan(job, rate, limit).share >= 0.5 or limit == 1
    if limit < 100_000:
        assert plan(job, rate, limit + 1).share < 0.5


@given(jobs, st.floats(1, 1e7))
def test_a_plan_for_one_process_is_what_a_measured_rate_says(job: Job, rate: float) -> None:
    per_second = rate / (job.tokens * (job.passes + 1))
    assert math.isclose(measured_rate(per_second, job.tokens, job.passes), rate)
    found = plan(job, rate, distributed=False)
    prompts = job.items * (cost_model.PROMPT + job.tokens * cost_model.TOKEN)
    assert math.isclose(found.score, job.items / per_second + prompts)


@given(jobs, st.floats(1, 1e7), st.integers(1, 1000))
def test_terms_add_up_and_each_is_what_its_figures_say(job: Job, rate: float, workers: int) -> None:
    found = plan(job, rate, workers)
    chunks = -(-job.items // job.chunk)
    assert found.driver == pytest.approx(chunks * cost_model.CHUNK)
    assert found.merge == pytest.approx(job.items * cost_model.MERGE)
    assert found.prepare == pytest.approx(
        job.items * (cost_model.DRIVER + job.tokens * cost_model.DRIVER_TOKEN)
    )
    during = max(found.score, found.driver, found.storage)
    assert found.seconds == found.prepare + found.start + during + found.merge
    # The worker with most chunks: no fewer than an even share, and at most a chunk more.
    each = found.work / job.items
    assert found.work / workers <= found.score * (1 + 1e-9)
    assert found.score <= (found.work / workers + job.chunk * each) * (1 + 1e-9)


@given(jobs, st.floats(1, 1e7), st.integers(1, 100), st.integers(2, 9))
def test_terms_of_the_driver_and_of_storage_grow_with_the_pool_and_not_with_workers(
    job: Job, rate: float, workers: int, times: int
) -> None:
    more = Job(**{**vars(job), "items": job.items * times})
    one, larger = plan(job, rate, workers), plan(more, rate, workers)
    for name in ("prepare", "storage", "merge"):
        assert getattr(larger, name) == pytest.approx(times * getattr(one, name))
        assert getattr(plan(job, rate, workers + 1), name) == getattr(one, name)
    assert larger.start == one.start
    assert larger.driver <= times * one.driver * (1 + 1e-9)


def test_money_is_that_of_all_workers_for_the_whole_time() -> None:
    found = plan(Job(10**6, 100, 3, 1e9), 1e5, 4, price=2)
    assert found.money == pytest.approx(4 * 2 * found.seconds / 3600)
    assert plan(Job(10**6, 100, 3, 1e9), 1e5, 4).money is None


def test_the_driver_is_the_bottleneck_of_a_thousand_gpus() -> None:
    job = Job(10**9, 64, 1, 1e9)
    found = plan(job, cost_model.tokens_per_second(job, DEVICES["H100"]), 1000)
    assert found.limit == "driver (preparing chunks)"
    assert found.share < 0.5


@pytest.mark.parametrize("wrong", [{"items": 0}, {"tokens": -1}, {"parameters": math.inf}])
def test_impossible_jobs_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="above 0"):
        Job(**{"items": 1, "tokens": 1, "passes": 1, "parameters": 1, **wrong})  # type: ignore[arg-type]


def call(*options: str) -> str:
    result = CliRunner().invoke(app, ["plan", *options])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_the_command_prints_its_assumptions() -> None:
    text = call("--items", "1e6", "--workers", "8", "--scaling")
    assert "1,000,000 items on 8 workers" in text
    assert "ASSUMED, 25% of A100-80's 312 TFLOP/s" in text
    assert "not measured on a GPU" in text
    assert "US dollars per hour: ASSUMED" in text
    assert "1,000,000,000 1,000" in text
    given = call("--items", "1e6", "--rate", "5000", "--price", "3")
    assert "5,000 tokens per second on a worker: given" in given
    assert "3 US dollars per hour: given" in given


@pytest.mark.parametrize("options", [["--device", "abacus"], ["--items", "0"], ["--rate", "-1"]])
def test_the_command_refuses_what_cannot_be(options: list[str]) -> None:
    result = CliRunner().invoke(app, ["plan", "--items", "5", *options])
    assert result.exit_code != 0
    assert "Traceback" not in result.output
