"""Training: what carries loss, what is penalised, what happens when it diverges."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from starlearn.errors import (
    InputError,
    ModelMismatchError,
    OutOfMemoryError,
    TrainingDivergedError,
)
from starlearn.model.adapter import attach_fresh
from starlearn.model.backbone import Backbone
from starlearn.settings import Acquisition, LoRA, Training
from starlearn.train import trainer as trainer_module
from starlearn.train.batches import IGNORED, Collator, Example
from starlearn.train.regularization import b_decay, learning_rates, parameter_groups
from starlearn.train.trainer import check_lengths, train_adapter

EOS = 2
EXAMPLES = [Example([5, 6, 7], [8, EOS]), Example([9, 10], [11, 12, EOS])] * 4
LORA = LoRA(r=4, alpha=8, dropout=0.1)
SHORT = Training(max_steps=4, batch_size=4, learning_rate=5e-3)


@pytest.fixture
def backbone(tiny_model: str) -> Backbone:
    return Backbone(tiny_model, "nf4", verbose=False)


def test_only_the_answer_and_its_end_carry_loss() -> None:
    batch = Collator(pad_id=0)(EXAMPLES[:2])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, EOS], [9, 10, 11, 12, EOS]]
    kept = batch["labels"] != IGNORED
    assert kept.tolist() == [[False] * 3 + [True] * 2, [False] * 2 + [True] * 3]
    assert batch["labels"][kept].tolist() == [8, EOS, 11, 12, EOS]


def test_decay_is_on_b_alone(backbone: Backbone) -> None:
    model = attach_fresh(backbone, LORA, seed=0)
    on_b, on_a = parameter_groups(model, 0.5)
    assert (on_b["weight_decay"], on_a["weight_decay"]) == (0.5, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split(".")[-3] for p in on_b["params"]} == {"lora_B"}
    assert {names[id(p)].split(".")[-3] for p in on_a["params"]} == {"lora_A"}


def test_shrinkage_is_what_it_says() -> None:
    training = Training(learning_rate=2e-3, b_shrinkage=0.7, warmup_steps=3)
    rates = learning_rates(training, 50)
    assert np.prod(1 - rates * b_decay(training, 50)) == pytest.approx(np.exp(-0.7))
    # Linear from the peak to zero: half the rectangle.
    flat = replace_settings(training, warmup_steps=0)
    assert learning_rates(flat, 50).sum() == pytest.approx(2e-3 * 51 / 2)
    assert b_decay(Training(b_weight_decay=0.5), 50) == 0.5
    assert b_decay(replace_settings(training, b_shrinkage=0.0), 50) == 0.0


@given(st.floats(0.01, 20), st.integers(1, 60), st.sampled_from(["linear", "cosine", "constant"]))
def test_no_shrinkage_turns_b_round(shrinkage: float, n_steps: int, scheduler: str) -> None:
    training = Training(learning_rate=1e-3, scheduler=scheduler, b_shrinkage=shrinkage)
    factors = 1 - learning_rates(training, n_steps) * b_decay(training, n_steps)
    assert (factors > 0).all()
    assert -np.log(factors).sum() == pytest.approx(shrinkage, rel=1e-5)


def test_a_constant_schedule_warms_up() -> None:
    training = Training(learning_rate=1.0, scheduler="constant", warmup_steps=4, b_weight_decay=0)
    assert learning_rates(training, 6).tolist() == [0, 0.25, 0.5, 0.75, 1, 1]


def replace_settings(training: Training, **changes: Any) -> Training:
    return Training(**{**training.get_params(), **changes})


def norm_of_b(adapter: Any) -> float:
    return sum(float(t.norm()) for n, t in adapter.state.items() if "lora_B" in n)


def test_a_strong_penalty_keeps_b_small(backbone: Backbone) -> None:
    free, _ = train_adapter(
        backbone, LORA, replace_settings(SHORT, b_weight_decay=0.0, max_steps=20), EXAMPLES, seed=0
    )
    held, _ = train_adapter(
        backbone, LORA, replace_settings(SHORT, b_shrinkage=20.0, max_steps=20), EXAMPLES, seed=0
    )
    assert 0 < norm_of_b(held) < 0.7 * norm_of_b(free)


def test_steps_follow_from_the_labelled_set_not_from_elsewhere(backbone: Backbone) -> None:
    by_epochs = Training(epochs=2, batch_size=3, learning_rate=1e-3)
    assert train_adapter(backbone, LORA, by_epochs, EXAMPLES, seed=0)[1].steps == 2 * 3
    assert train_adapter(backbone, LORA, SHORT, EXAMPLES[:1], seed=0)[1].steps == 4


def test_training_learns(backbone: Backbone) -> None:
    _, first = train_adapter(backbone, LORA, SHORT, EXAMPLES, seed=0)
    longer = replace_settings(SHORT, max_steps=60)
    _, last = train_adapter(backbone, LORA, longer, EXAMPLES, seed=0)
    assert last.loss < 0.5 * first.loss


def test_accumulated_batches_are_one_large_batch(backbone: Backbone) -> None:
    settings = {"max_steps": 2, "learning_rate": 1e-9}
    without_dropout = LoRA(r=4, alpha=8, dropout=0.0)
    losses = [
        train_adapter(
            backbone,
            without_dropout,
            Training(**settings, batch_size=8 // n, gradient_accumulation=n),
            EXAMPLES,
            seed=0,
        )[1].loss
        for n in (1, 2, 4)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


def test_warm_start_needs_an_adapter_of_the_same_form(backbone: Backbone) -> None:
    start, _ = train_adapter(backbone, LORA, SHORT, EXAMPLES, seed=0)
    for lora in (LoRA(r=8, alpha=8), LoRA(r=4, alpha=16), LoRA(r=4, alpha=8, target_modules=["q"])):
        with pytest.raises(InputError, match="warm_start=False"):
            train_adapter(backbone, lora, SHORT, EXAMPLES, seed=0, start=start)


def test_a_penalty_that_would_turn_b_round_is_refused() -> None:
    with pytest.raises(InputError, match="b_shrinkage sets"):
        Training(learning_rate=0.1, b_weight_decay=10).check()


def test_checkpointing_changes_memory_not_results(backbone: Backbone) -> None:
    plain, _ = train_adapter(backbone, LORA, SHORT, EXAMPLES, seed=0)
    saved, _ = train_adapter(
        backbone, LORA, replace_settings(SHORT, gradient_checkpointing=True), EXAMPLES, seed=0
    )
    for name, tensor in plain.state.items():
        assert torch.allclose(tensor, saved.state[name], atol=1e-5), name


def test_warm_start_needs_the_same_base_model(backbone: Backbone, tiny_model: str) -> None:
    start, _ = train_adapter(backbone, LORA, SHORT, EXAMPLES, seed=0)
    other = Backbone(tiny_model, "none", verbose=False)
    with pytest.raises(ModelMismatchError, match="another base model"):
        train_adapter(other, LORA, SHORT, EXAMPLES, seed=0, start=start)


def test_several_gpus_do_not_change_the_batch(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    arguments = TrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=4)
    arguments._n_gpu = 3  # as Trainer would see them; this test needs no GPU
    assert arguments.train_batch_size == 12
    assert trainer_module.on_one_device(arguments).train_batch_size == 4


def test_global_generators_are_left_alone(backbone: Backbone) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train_adapter(backbone, LORA, SHORT, EXAMPLES, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_loss_that_is_not_finite_stops_the_training(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    # Trainer itself continues after NaN, and reports a loss of 0.0 with NaN weights.
    def broken(self: Any, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
        return sum(p.sum() for p in model.parameters() if p.requires_grad) * 0 + value

    monkeypatch.setattr(trainer_module._AdapterTrainer, "compute_loss", broken)
    with pytest.raises(TrainingDivergedError, match=r"step 1 .*learning_rate"):
        train_adapter(backbone, LORA, SHORT, EXAMPLES, seed=0)
    assert backbone.active is None
    assert backbone.peft_model is None


def test_weights_that_are_not_finite_are_not_kept(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer_module._AdapterTrainer.train

    def poisoned(self: Any) -> Any:
        result = original(self)
        with torch.no_grad():
            next(p for p in self.model.parameters() if p.requires_grad).fill_(float("nan"))
        return result

    monkeypatch.setattr(trainer_module._AdapterTrainer, "train", poisoned)
    with pytest.raises(TrainingDivergedError, match="adapter was not kept"):
        train_adapter(backbone, LORA, SHORT, EXAMPLES, seed=0)


def memory_for(monkeypatch: pytest.MonkeyPatch, n_items: int) -> list[int]:
    """Make steps of more than `n_items` items run out of memory; return the sizes of all steps."""
    original = trainer_module._AdapterTrainer.training_step
    sizes: list[int] = []

    def step(self: Any, model: Any, inputs: Any, *arguments: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > n_items:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(self, model, inputs, *arguments)

    monkeypatch.setattr(trainer_module._AdapterTrainer, "training_step", step)
    return sizes


def test_running_out_of_memory_makes_batches_smaller_and_keeps_the_steps(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = memory_for(monkeypatch, 2)
    training = Training(max_steps=3, batch_size=8, gradient_accumulation=1, learning_rate=5e-3)
    with pytest.warns(UserWarning, match=r"starts again with Training\(batch_size=") as warned:
        adapter, record = train_adapter(backbone, LORA, training, EXAMPLES, seed=0)
    assert len(warned) == 2
    assert "batch_size=2, gradient_accumulation=4" in str(warned[1].message)
    assert record.steps == 3
    assert sizes == [8, 4, *[2] * 12]
    assert training.batch_size == 8
    plain, _ = train_adapter(
        backbone, LORA, replace_settings(training, batch_size=2, gradient_accumulation=4),
        EXAMPLES, seed=0,
    )  # fmt: skip
    assert all(torch.equal(plain.state[name], adapter.state[name]) for name in plain.state)


def test_an_odd_batch_is_divided_into_equal_parts() -> None:
    with pytest.warns(UserWarning, match="Memory ran out"):
        smaller = trainer_module.with_smaller_batches(
            Training(batch_size=9, gradient_accumulation=5), 9
        )
    assert (smaller.batch_size, smaller.gradient_accumulation) == (3, 15)


def test_a_training_that_does_not_fit_leaves_the_learner_unchanged(
    make_learner: Any, labelled: Any, pool: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner().fit(*labelled)
    before = learner.predict_proba(pool)
    memory_for(monkeypatch, 0)
    with (
        pytest.warns(UserWarning, match="Memory ran out while training"),
        pytest.raises(OutOfMemoryError, match=r"longest is row 7 .*gradient_checkpointing=True"),
    ):
        learner.teach(["the sky is very big"], ["blue"])
    assert len(learner.X_training) == len(labelled[0])
    assert np.array_equal(learner.predict_proba(pool), before)


def test_labelled_items_longer_than_the_context_are_named() -> None:
    with pytest.raises(InputError, match=r"row 1: 6 tokens"):
        check_lengths([EXAMPLES[0], replace(EXAMPLES[0], prompt=[5] * 4)], context=5)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (LoRA(r=0), "r"),
        (LoRA(r=1.5), "r"),  # type: ignore[arg-type]
        (LoRA(dropout=1.0), "dropout"),
        (Training(learning_rate=0), "learning_rate"),
        (Training(max_steps=0), "max_steps"),
        (Training(scheduler="lineer"), "scheduler"),
        (Training(b_shrinkage=-1), "b_shrinkage"),
        (Acquisition(schedule=["a"]), "schedule"),  # type: ignore[list-item]
        (Acquisition(schedule=[[0.5]]), "schedule"),  # type: ignore[list-item]
    ],
)
def test_settings_that_cannot_be_used_are_named(settings: Any, name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' parameter of"):
        settings.check()
