"""A learner's metrics in trackers and on the terminal."""

import json
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from starlearn import progress
from starlearn.errors import InputError, MissingDependencyError, UntrustedFileError
from starlearn.learner.estimator import STARLearner
from starlearn.progress import TRACKERS
from starlearn.query.budget import Budget
from starlearn.train import trackers

FIGURES = {"labels", "loss", "steps", "training_seconds", "mean_uncertainty", "max_uncertainty"}
MORE = {"base_weight", "mean_base_uncertainty", "asked", "query_seconds"}


def two_rounds(learner: STARLearner, labelled: tuple[list, list], pool: list[str]) -> STARLearner:
    learner.fit(*labelled)
    learner.query(pool, 2)
    learner.teach(pool[:1], ["red"])
    return learner.record(accuracy=0.75)


def expected(learner: STARLearner) -> dict[tuple[str, int], float]:
    """Return the metrics that a tracker must receive, from the learner's own record."""
    found = {}
    for t, record in enumerate(learner.rounds_):
        ours = {"labels": "n_labels", "loss": "train_loss", "steps": "steps"}
        found |= {(theirs, t): float(record[name]) for theirs, name in ours.items()}
        if "query" in record:
            query = {"mean_uncertainty": "mean_full", "max_uncertainty": "max_full"}
            found |= {(theirs, t): record["query"][name] for theirs, name in query.items()}
    return found


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, dict]]:
    """Replace all four integrations, and return what they receive."""
    received: list[tuple[str, int, dict]] = []

    def integrations(name: str) -> list[Any]:
        class Integration:
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                received.append((f"{name} begins", state.global_step, args.to_dict()))

            def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
                received.append((name, state.global_step, logs))

            def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                received.append((f"{name} ends", state.global_step, {}))

        return [Integration]

    monkeypatch.setattr(trackers, "get_reporting_integration_callbacks", integrations)
    spec = types.SimpleNamespace(origin="somewhere")
    monkeypatch.setattr(progress, "find_spec", lambda _: spec)
    return received


def test_each_tracker_receives_each_round(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    pool: list[str],
    recorded: list[tuple[str, int, dict]],
) -> None:
    learner = make_learner(report_to=TRACKERS)
    learner.set_params(acquisition__schedule=0.5)  # with 0 the base model is not run
    two_rounds(learner, labelled, pool)
    for name in TRACKERS:
        received = [(t, logs) for who, t, logs in recorded if who == name]
        assert [t for t, _ in received] == [0, 0, 1, 1]
        values = {(key, t): value for t, logs in received for key, value in logs.items()}
        assert expected(learner).items() <= values.items()
        assert values["eval_accuracy", 1] == 0.75
        assert {key for key, _ in values} == FIGURES | MORE | {"eval_accuracy"}
        assert all(type(value) is float for value in values.values())
    assert not any(who.endswith("ends") for who, _, _ in recorded)
    learner.fit(*labelled)  # another run
    assert [who for who, _, _ in recorded].count("wandb ends") == 1
    assert [who for who, _, _ in recorded].count("wandb begins") == 2


def test_trackers_receive_the_cost_of_a_batch(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    pool: list[str],
    recorded: list[tuple[str, int, dict]],
) -> None:
    learner = make_learner(report_to="wandb").fit(*labelled)
    priced = [{"text": text, "price": 1.5 + 0.25 * i} for i, text in enumerate(pool)]
    _, batch = learner.query(priced, 4, budget=Budget(20.0, cost="price"))
    bill = sum(item["price"] for item in batch)
    assert learner.rounds_[-1]["query"]["cost"] == pytest.approx(bill)
    assert recorded[-1][2]["cost"] == pytest.approx(bill)


def test_after_a_failed_fit_the_next_metrics_open_a_run(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    recorded: list[tuple[str, int, dict]],
) -> None:
    learner = make_learner(report_to="wandb").fit(*labelled)

    def fails(progress: Any) -> None:
        raise RuntimeError("enough")

    learner.set_params(callbacks=[fails])
    with pytest.raises(RuntimeError, match="enough"):
        learner.fit(*labelled)
    learner.set_params(callbacks=None).record(accuracy=0.5)
    runs = [who for who, _, _ in recorded]
    assert runs.count("wandb ends") == 1
    assert runs.count("wandb begins") == 3  # of the first fit, of the failed one, and after it
    assert runs[-2:] == ["wandb begins", "wandb"]


def test_trackers_receive_settings_and_no_text(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    pool: list[str],
    recorded: list[tuple[str, int, dict]],
) -> None:
    two_rounds(make_learner(report_to="mlflow"), labelled, pool)
    settings = recorded[0][2]
    assert settings["adapter/r"] == 4
    assert settings["acquisition/n_passes"] == 3
    assert settings["training/learning_rate"] == 5e-3
    text = json.dumps([logs for _, _, logs in recorded])
    assert not any(f" {word}" in text for word in [*labelled[0], *pool, "Answer", "blue"])


def test_there_are_no_trackers_by_default(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    pool: list[str],
    recorded: list[tuple[str, int, dict]],
    tmp_path: Path,
) -> None:
    for report_to in ((), "none", None):
        two_rounds(make_learner(report_to=report_to), labelled, pool)
    learner = make_learner(report_to=["wandb"]).fit(*labelled)
    count = len(recorded)
    learner.save(tmp_path / "saved")
    again = STARLearner.load(tmp_path / "saved")
    assert tuple(again.report_to) == ()
    again.teach(pool[:1], ["red"])
    assert len(recorded) == count == 2
    parameters = json.loads((tmp_path / "saved" / "starlearn.json").read_text())["parameters"]
    from starlearn.export.saving import parameters_from_json

    with pytest.raises(UntrustedFileError, match="report_to"):
        parameters_from_json({**parameters, "report_to": ["wandb"]}, "a file")


def test_a_tracker_that_fails_does_not_stop_the_training(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    recorded: list[tuple[str, int, dict]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from starlearn.train import trackers

    (integration,) = trackers.get_reporting_integration_callbacks("wandb")

    def fails(*_: Any, **__: Any) -> None:
        raise ConnectionError("the server is away")

    integration.on_log = fails
    monkeypatch.setattr(trackers, "get_reporting_integration_callbacks", lambda _: [integration])
    with pytest.warns(UserWarning, match="metrics of round 0: the server is away"):
        learner = make_learner(report_to="wandb").fit(*labelled)
    assert learner.rounds_[0]["n_labels"] == len(labelled[0])


def test_unusable_trackers_are_refused_before_the_training(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for report_to in ("all", ["tensorboard", "comet"], 3, iter(["wandb"])):
        with pytest.raises(InputError, match="report_to"):
            make_learner(report_to=report_to).fit(*labelled)
    monkeypatch.setattr(progress, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match="pip install trackio"):
        make_learner(report_to="trackio").fit(*labelled)
    folder = types.SimpleNamespace(origin=None)  # the folder wandb/ that wandb itself creates
    monkeypatch.setattr(progress, "find_spec", lambda _: folder)
    with pytest.raises(MissingDependencyError, match="pip install wandb"):
        make_learner(report_to="wandb").fit(*labelled)


def test_metrics_that_are_not_finite_numbers_are_refused(
    make_learner: Callable[..., STARLearner], labelled: tuple[list, list]
) -> None:
    learner = make_learner().fit(*labelled)
    wrong = [{"accuracy": value} for value in (float("nan"), "high", 10**400)]
    # Names that the record itself uses, now or later.
    wrong += [{name: 0.1} for name in ("train_loss", "query", "temperature", "recorded")]
    before = learner.predict_proba(labelled[0]).tolist(), dict(learner.rounds_[-1])
    for figures in wrong:
        with pytest.raises(InputError, match=r"record\(|measured or set"):
            learner.record(**figures)
    assert before == (learner.predict_proba(labelled[0]).tolist(), learner.rounds_[-1])
    assert learner.record(accuracy=0.5).record(accuracy=0.6).rounds_[-1]["accuracy"] == 0.6


def test_ctrl_c_during_logging_undoes_the_round(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    recorded: list[tuple[str, int, dict]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = make_learner(report_to="wandb").fit(*labelled)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(learner._trackers, "log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learner.teach(["night sky"], ["blue"])
    assert (len(learner.X_training), len(learner.rounds_)) == (8, 1)


def test_real_tensorboard(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    pool: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    learner = two_rounds(make_learner(report_to="tensorboard"), labelled, pool)
    events = accumulators.EventAccumulator(str(tmp_path / "runs")).Reload()
    values = {
        (tag.removeprefix("train/"), event.step): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }
    for key, value in expected(learner).items():
        assert values[key] == pytest.approx(value, rel=1e-6)  # it keeps float32
    assert values["eval/accuracy", 1] == 0.75
    text = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    assert json.loads(text)["adapter/r"] == 4


def test_real_mlflow(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    pool: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    learner = two_rounds(make_learner(report_to="mlflow"), labelled, pool)
    learner._end_report()
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert run.data.params["adapter/r"] == "4"
    for (name, t), value in expected(learner).items():
        (found,) = [
            m.value for m in client.get_metric_history(run.info.run_id, name) if m.step == t
        ]
        assert found == value
    assert run.data.metrics["eval_accuracy"] == 0.75


def test_real_wandb(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    pool: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    learner = two_rounds(make_learner(report_to="wandb"), labelled, pool)
    summary = dict(wandb.run.summary)
    assert dict(wandb.run.config)["adapter/r"] == 4
    learner._end_report()
    assert wandb.run is None
    assert summary["train/labels"] == len(labelled[0]) + 1
    assert summary["train/loss"] == learner.rounds_[1]["train_loss"]
    assert summary["eval/accuracy"] == 0.75
    assert summary["train/global_step"] == 1
    assert len(list(tmp_path.rglob("offline-run-*/*.wandb"))) == 1


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_verbose_0_prints_nothing(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    pool: list[str],
    quantization: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """From loading to merging. Tests cannot open a socket, so there is no network access either."""
    logger = logging.getLogger("starlearn")
    assert any(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    capfd.readouterr()
    learner = make_learner(verbose=0, quantization=quantization)
    learner = two_rounds(learner, labelled, pool)
    learner.predict(pool)
    learner.transform(pool)
    learner.save(tmp_path / "saved")
    learner.merge(tmp_path / "merged")
    learner.write_hub_folder(tmp_path / "hub")
    STARLearner.load(tmp_path / "saved").predict(pool)
    sys.stdout.flush()
    assert capfd.readouterr() == ("", "")


def test_levels_of_verbosity(
    make_learner: Callable[..., STARLearner],
    labelled: tuple[list, list],
    pool: list[str],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    capfd.readouterr()
    for verbose in (1, 2):
        learner = make_learner(verbose=verbose).fit(*labelled)
        out, err = capfd.readouterr()
        assert out == ""
        assert "training" in err
        assert ("step 4 of 4: loss" in err) == (verbose == 2)
    with caplog.at_level(logging.INFO, logger="starlearn"):
        learner.query(pool, 2)
        learner.teach(pool[:1], ["red"])
    assert [record.message.partition(",")[0] for record in caplog.records] == [
        f"round 0: chose 2 of {len(pool)} items",
        f"round 1: trained on {len(labelled[0]) + 1} labels",
    ]
