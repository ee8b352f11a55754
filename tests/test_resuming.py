"""Interrupted trainings: what is kept, and that the rest gives the bits of a whole training."""

import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from starlearn.errors import StorageError, TrainingDivergedError
from starlearn.model.adapter import Adapter
from starlearn.model.backbone import Backbone
from starlearn.settings import LoRA, Training
from starlearn.train import checkpoints, resuming
from starlearn.train import trainer as trainer_module
from starlearn.train.batches import Example
from starlearn.train.checkpoints import kept_steps, read_checkpoint
from starlearn.train.trainer import train_adapter

EOS = 2
# 11 examples in batches of 4: an epoch of 3 steps, the last of them with 3 examples.
EXAMPLES = [Example([5 + i, 6, 7 + i], [8 + i % 3, EOS]) for i in range(11)]
LORA = LoRA(r=4, alpha=8, dropout=0.3)
SETTINGS = Training(epochs=3, batch_size=4, learning_rate=5e-3, scheduler="cosine", warmup_steps=2)
STEPS = 9


@pytest.fixture(scope="module")
def backbone(tiny_model: str) -> Backbone:
    return Backbone(tiny_model, "nf4", verbose=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "training.safetensors"


class Sends(TrainerCallback):
    """Callback that sends a signal to this process within a step, as Ctrl-C does."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            signal.raise_signal(self.number)


def trained(backbone: Backbone, file: Path | None = None, **changes: Any) -> tuple[Adapter, Any]:
    """Train with some arguments; `training` and `lora` can be among the changes."""
    arguments: dict[str, Any] = {"seed": 3, "checkpoint": file, **changes}
    lora, training = arguments.pop("lora", LORA), arguments.pop("training", SETTINGS)
    examples = arguments.pop("examples", EXAMPLES)
    return train_adapter(backbone, lora, training, examples, **arguments)


def interrupted(backbone: Backbone, file: Path, step: int, **changes: Any) -> None:
    """Interrupt a training in a step with Ctrl-C."""
    with pytest.raises(KeyboardInterrupt):
        trained(backbone, file, callbacks=[Sends(step)], **changes)


def resumed(backbone: Backbone, file: Path, step: int, **changes: Any) -> tuple[Adapter, Any]:
    with pytest.warns(UserWarning, match=f"continues at step {step} of"):
        return trained(backbone, file, **changes)


@pytest.mark.parametrize("step", [1, 3, 4, 6, 8, 9])  # an epoch ends with steps 3, 6 and 9
def test_a_training_interrupted_at_any_step_gives_the_bits_of_a_whole_one(
    backbone: Backbone, file: Path, step: int
) -> None:
    whole, record = trained(backbone)
    interrupted(backbone, file, step)
    assert kept_steps(file) == (step, STEPS)
    again, record_again = resumed(backbone, file, step)
    assert again.digest == whole.digest
    assert record_again == record


@pytest.mark.parametrize(
    "changes",
    [
        {"training": Training(max_steps=7, batch_size=2, gradient_accumulation=2)},
        {"training": Training(max_steps=7, batch_size=4, b_shrinkage=1.0, scheduler="constant")},
        {"training": Training(max_steps=7, batch_size=4, gradient_checkpointing=True)},
        {"lora": LoRA(r=4, alpha=8, dropout=0.0)},
    ],
    ids=["accumulated", "shrunk", "checkpointed", "no_dropout"],
)
def test_the_settings_of_a_training_do_not_matter_for_its_continuation(
    backbone: Backbone, file: Path, changes: dict[str, Any]
) -> None:
    whole, _ = trained(backbone, **changes)
    interrupted(backbone, file, 2, **changes)
    with pytest.warns(UserWarning, match="continues at step 2 of"):
        interrupted(backbone, file, 5, **changes)
    assert resumed(backbone, file, 5, **changes)[0].digest == whole.digest


def test_a_warm_start_continues_too(backbone: Backbone, file: Path) -> None:
    start, _ = trained(backbone, seed=1)
    whole, _ = trained(backbone, start=start)
    interrupted(backbone, file, 4, start=start)
    assert resumed(backbone, file, 4, start=start)[0].digest == whole.digest


def test_generators_that_others_use_continue_too(backbone: Backbone, file: Path) -> None:
    drawn: dict[int, float] = {}

    class Draws(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            drawn[state.global_step] = float(np.random.random())  # noqa: NPY002

    trained(backbone, callbacks=[Draws()])
    whole = dict(drawn)
    with pytest.raises(KeyboardInterrupt):
        trained(backbone, file, callbacks=[Draws(), Sends(4)])
    drawn.clear()
    resumed(backbone, file, 4, callbacks=[Draws()])
    assert drawn == {step: value for step, value in whole.items() if step >= 4}


def test_progress_continues_where_it_was(backbone: Backbone, file: Path) -> None:
    interrupted(backbone, file, 4)
    seen: list[tuple[int, int]] = []
    resumed(
        backbone, file, 4, callbacks=[lambda progress: seen.append((progress.done, progress.total))]
    )
    assert seen == [(done, STEPS) for done in range(4, STEPS + 1)]


def test_steps_are_kept_at_intervals(
    backbone: Backbone, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def write(path: Path, checkpoint: Any) -> None:
        written.append(checkpoint.steps)
        checkpoints.write_checkpoint(path, checkpoint)

    monkeypatch.setattr(resuming, "write_checkpoint", write)
    trained(backbone, file)
    assert not written  # a short training keeps nothing while nobody interrupts it
    monkeypatch.setattr(resuming, "INTERVAL", 0.0)
    monkeypatch.setattr(resuming, "SHARE", 0)
    whole, _ = trained(backbone, file)
    assert written == list(range(1, STEPS))
    assert kept_steps(file) == (STEPS - 1, STEPS)
    assert resumed(backbone, file, STEPS - 1)[0].digest == whole.digest


def test_a_checkpoint_takes_a_small_share_of_the_time(
    backbone: Backbone, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    written = []

    class Hour(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            now[0] += 400.0

    def slow(path: Path, checkpoint: Any) -> None:
        written.append(checkpoint.steps)
        now[0] += 50.0  # 20 times as much is 1000 seconds: three steps

    monkeypatch.setattr(resuming.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(resuming, "write_checkpoint", slow)
    trained(backbone, file, callbacks=[Hour()])
    assert written == [1, 4, 7]


def test_a_second_ctrl_c_stops_at_once(backbone: Backbone, file: Path) -> None:
    class Twice(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
                pytest.fail("the step went on")

    with pytest.raises(KeyboardInterrupt):
        trained(backbone, file, callbacks=[Twice()])
    assert kept_steps(file) is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sigterm_goes_to_the_handler_of_the_program_after_the_step(
    backbone: Backbone, file: Path
) -> None:
    def stop(*_: object) -> None:
        raise SystemExit(99)

    earlier = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(SystemExit, match="99"):
            trained(backbone, file, callbacks=[Sends(2, signal.SIGTERM)])
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert kept_steps(file) == (2, STEPS)


def test_a_signal_that_the_program_ignores_stays_ignored(backbone: Backbone, file: Path) -> None:
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        trained(backbone, file, callbacks=[Sends(2)])
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, earlier)


def test_without_a_file_ctrl_c_stops_at_once(backbone: Backbone) -> None:
    steps = []

    class Counts(Sends):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            steps.append(state.global_step)

    with pytest.raises(KeyboardInterrupt):
        trained(backbone, callbacks=[Counts(2)])
    assert steps == [1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"examples": EXAMPLES[:-1]}, "task or labels"),
        ({"seed": 4}, "seed"),
        ({"lora": LoRA(r=4, alpha=8, dropout=0.2)}, "settings of the adapter"),
        ({"training": Training(epochs=2, batch_size=4)}, "settings of the training"),
    ],
)
def test_steps_of_another_training_are_removed_with_a_note(
    backbone: Backbone, file: Path, changes: dict[str, Any], reason: str
) -> None:
    interrupted(backbone, file, 4)
    with pytest.warns(UserWarning, match=rf"have changed since: {reason}\. .*starts at step 0"):
        other, _ = trained(backbone, file, **changes)
    assert not file.exists()
    assert other.digest == trained(backbone, **changes)[0].digest


def test_steps_on_another_base_model_are_removed(
    backbone: Backbone, tiny_model: str, file: Path
) -> None:
    interrupted(backbone, file, 4)
    with pytest.warns(UserWarning, match="base model, device or versions"):
        trained(Backbone(tiny_model, "none", verbose=False), file)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "link", "json"])
def test_a_damaged_file_is_removed_with_a_note(
    backbone: Backbone, file: Path, tmp_path: Path, damage: str
) -> None:
    interrupted(backbone, file, 4)
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "link":
        other = file.rename(tmp_path / "elsewhere")
        file.symlink_to(other)
    else:
        file.write_bytes(content.replace(b'\\"steps\\": 4', b'\\"steps\\": 3'))
        assert file.read_bytes() != content
    with pytest.warns(UserWarning, match="cannot be used"):
        again, _ = trained(backbone, file)
    assert again.digest == trained(backbone)[0].digest
    assert not file.is_symlink()
    if damage == "link":
        assert other.read_bytes() == content  # nothing is removed through a link


def test_a_kill_while_a_checkpoint_is_written_leaves_the_old_one(
    backbone: Backbone, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(backbone, file, 2)

    def killed(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half of it")
        os._exit(137)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(checkpoints, "save_file", killed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trained(backbone, file, callbacks=[Sends(5)])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 137
    assert kept_steps(file) == (2, STEPS)
    assert {path.name for path in file.parent.iterdir()} == {file.name, f".{file.name}.new"}
    interrupted_again = resumed(backbone, file, 2)[0]
    assert interrupted_again.digest == trained(backbone)[0].digest
    checkpoints.remove_checkpoint(file)
    assert list(file.parent.iterdir()) == []


def test_a_full_disk_ends_no_training(
    backbone: Backbone, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr(resuming, "INTERVAL", 0.0)
    monkeypatch.setattr(resuming, "SHARE", 0)
    monkeypatch.setattr(checkpoints, "require_space", full)
    with pytest.warns(UserWarning, match=r"first \d of 9 steps .* not be kept.* disk is full"):
        again, _ = trained(backbone, file)
    assert not file.exists()
    assert again.digest == trained(backbone)[0].digest


def test_a_diverging_training_keeps_no_steps(backbone: Backbone, file: Path) -> None:
    class Breaks(Sends):
        def on_step_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            if state.global_step == 5:
                for parameter in named["model"].parameters():
                    if parameter.requires_grad:
                        parameter.data.fill_(float("nan"))

    interrupted(backbone, file, 4)
    with (
        pytest.warns(UserWarning, match="continues at step 4"),
        pytest.raises(TrainingDivergedError),
    ):
        trained(backbone, file, callbacks=[Breaks(0)])
    assert not file.exists()


def test_smaller_batches_after_memory_ran_out_are_kept(
    backbone: Backbone, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Any, model: Any, inputs: Any, *arguments: Any) -> Any:
        if len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("no memory")
        return real(self, model, inputs, *arguments)

    real = trainer_module._AdapterTrainer.training_step
    monkeypatch.setattr(trainer_module._AdapterTrainer, "training_step", step)
    with pytest.warns(UserWarning, match="Memory ran out"):
        whole, _ = trained(backbone)
    with (
        pytest.warns(UserWarning, match="Memory ran out"),
        pytest.raises(KeyboardInterrupt),
    ):
        trained(backbone, file, callbacks=[Sends(5)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        again, _ = trained(backbone, file)
    assert again.digest == whole.digest
    assert ["continues at step 5" in str(warning.message) for warning in caught] == [True]


def test_the_file_is_private_and_holds_no_pickle(backbone: Backbone, file: Path) -> None:
    before = os.umask(0)
    try:
        interrupted(backbone, file, 4)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    found = read_checkpoint(file)
    assert found is not None
    size = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + size])
    assert set(header) - {"__metadata__"} == set(found.tensors)
    assert len(found.losses) == found.steps == 4


def test_training_in_another_thread_keeps_its_steps_at_intervals(
    backbone: Backbone, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(resuming, "INTERVAL", 0.0)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(trained, backbone, file).result()
    assert kept_steps(file) is not None
