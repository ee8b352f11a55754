"""Training of one adapter on the labelled set with transformers' Trainer."""

import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from sklearn.base import clone
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from starlearn.errors import InputError, OutOfMemoryError, TrainingDivergedError, listed
from starlearn.model.adapter import (
    Adapter,
    adapter_state,
    attach_fresh,
    check_base,
    detach,
    load_state,
)
from starlearn.model.backbone import Backbone
from starlearn.model.memory import ran_out
from starlearn.model.processes import ProcessGroup, SynchronizedBlock, processes
from starlearn.progress import report_progress, trainer_callbacks
from starlearn.randomness import derived_seed, isolated_generators
from starlearn.settings import LoRA, Training
from starlearn.train.batches import (
    ALL_TOKENS,
    Collator,
    Example,
    check_divisible,
    determining,
    layout,
    whole_batches,
)
from starlearn.train.regularization import b_decay, parameter_groups, schedule_name
from starlearn.train.resuming import KeptSteps, StepKeeper


@dataclass(frozen=True)
class TrainingRecord:
    """Outcome of a training."""

    steps: int
    loss: float
    """Mean over the last tenth of the steps, in nats per answer token."""


def train_adapter(
    backbone: Backbone,
    lora: LoRA,
    training: Training,
    examples: Sequence[Example],
    *,
    seed: int,
    start: Adapter | None = None,
    verbose: int = False,
    callbacks: Sequence[Any] = (),
    checkpoint: Path | None = None,
) -> tuple[Adapter, TrainingRecord]:
    """Train an adapter and leave it active on the backbone.

    The seed decides the initial A, the order of the examples and the dropout. `start` are weights
    to continue from. When the loss or a weight becomes NaN or infinite, the backbone has no adapter
    afterwards, and earlier adapters do not change.

    `accelerate launch` can start a program as P processes. Each of them then computes its part of
    every batch, and gradients are summed once per step. The examples of a step, their order and the
    loss are those of one process. Without dropout the adapter is also the same, up to rounding.
    With dropout each process draws its own masks, so the adapter is another random one.

    When memory runs out, the training starts again with smaller batches and more gradient
    accumulation, so that a step sees the same examples. A warning says so, because other batches
    draw other dropout masks.

    In the file `checkpoint` the finished steps are kept every five minutes, and at Ctrl-C or
    SIGTERM, which then act at the end of the current step. The same training continues from it, on
    a CPU with the same bits. The caller removes the file after the adapter is stored. Of several
    processes none keeps its steps.
    """
    if start is not None:
        check_base(backbone, start)
        check_same_form(lora, start)
    group = processes()
    facts = partial(determining, backbone, lora, training, examples, seed, start)
    group.agree(
        lambda: [*facts().values()],
        "Use STARLearner(random_state=...), and the same labels in all of them.",
    )
    kept = None
    if checkpoint is not None and group.count == 1:
        kept = KeptSteps(checkpoint, facts())
        training = kept.with_layout(training)
    while True:
        try:
            return _trained(
                group, backbone, lora, training, examples, seed, start, verbose, callbacks, kept
            )
        except TrainingDivergedError:
            if kept is not None:
                kept.remove()  # the steps that follow would diverge again
            raise
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            longest = max(range(len(examples)), key=lambda i: examples[i].length)
            length = examples[longest].length
        # After the handler, because the error's frames hold the failed batch in memory.
        clear_device_cache(garbage_collection=True)
        largest = -(-layout(training, group.count)[0] // group.count)
        if largest == 1:
            raise OutOfMemoryError(longest, length, 1, while_training=True)
        training = with_smaller_batches(training, largest)
        if kept is not None:
            kept.remove()


def with_smaller_batches(training: Training, largest: int) -> Training:
    """Return settings with the same examples per step, at most half of `largest` at a time."""
    effective = training.batch_size * training.gradient_accumulation
    sizes = [n for n in range(1, largest // 2 + 1) if effective % n == 0]
    smaller: Training = clone(training)
    smaller.set_params(batch_size=sizes[-1], gradient_accumulation=effective // sizes[-1])
    warnings.warn(
        f"Memory ran out while training on {largest} items at a time. The training "
        f"starts again with Training(batch_size={smaller.batch_size}, gradient_accumulation="
        f"{smaller.gradient_accumulation}).",
        UserWarning,
        stacklevel=2,
    )
    return smaller


def _trained(
    group: ProcessGroup,
    backbone: Backbone,
    lora: LoRA,
    training: Training,
    examples: Sequence[Example],
    seed: int,
    start: Adapter | None,
    verbose: int,
    callbacks: Sequence[Any],
    kept: KeptSteps | None,
) -> tuple[Adapter, TrainingRecord]:
    """Train the same adapter in all processes of the program, or fail in all of them."""
    with SynchronizedBlock(group) as block, backbone.alone():
        model = attach_fresh(backbone, lora, seed=derived_seed(seed, "adapter"))
        try:
            if start is not None:
                load_state(model, start.state)
            with (
                tempfile.TemporaryDirectory(prefix="starlearn-") as scratch,
                isolated_generators(derived_seed(seed, "training")),
                tqdm(desc="training", unit="step", disable=not (verbose and group.main)) as bar,
            ):
                losses: list[float] = []
                keeper = None if kept is None else StepKeeper(kept, training, bar, losses)
                trainer = _AdapterTrainer(
                    training=training,
                    bar=bar,
                    block=block,
                    losses=losses,
                    model=model,
                    args=_arguments(training, backbone, seed, scratch, group),
                    train_dataset=list(examples),
                    data_collator=Collator(backbone.pad_id, group),
                    callbacks=[
                        *filter(None, [keeper]),  # first, so that all others see its state
                        *trainer_callbacks(callbacks),
                        _Steps(callbacks if group.main else ()),
                    ],
                )
                check_divisible(trainer, group)
                trainer.remove_callback(PrinterCallback)  # the bar shows the progress
                if verbose > 1 and group.main:
                    trainer.add_callback(_Lines(bar, losses))
                model.train()
                with _checkpointing(model, training.gradient_checkpointing):
                    if keeper is None:
                        trainer.train()
                    else:
                        keeper.train(trainer, Path(scratch))
            adapter = Adapter.of(lora, backbone.fingerprint, adapter_state(model))
        except BaseException:
            # On Ctrl-C too: a partly trained adapter must never answer.
            detach(backbone)
            raise
        model.eval()
        backbone.active = adapter
    group.agree(lambda: [adapter.digest], "Use GPUs of one kind.")
    last = losses[-max(1, len(losses) // 10) :]
    return adapter, TrainingRecord(len(losses), sum(last) / len(last))


def check_same_form(lora: LoRA, start: Adapter) -> None:
    """Raise InputError when a warm start would change the adapter's rank, scale or targets."""
    wanted = Adapter.of(lora, start.base, start.state)
    for name in ("r", "alpha", "target_modules"):
        before, now = getattr(start, name), getattr(wanted, name)
        if before != now:
            raise InputError(
                f"A warm start continues the previous adapter, which has {name}={before!r}, but "
                f"LoRA has {name}={now!r}. Restore the old value, or set warm_start=False."
            )


def check_lengths(examples: Sequence[Example], context: int) -> None:
    """Raise InputError for labelled items whose prompt and answer exceed the model's context."""
    rows = [f"row {row}: {e.length} tokens" for row, e in enumerate(examples) if e.length > context]
    if rows:
        raise InputError(
            f"{len(rows)} of {len(examples)} labelled items are longer than the model's context "
            f"of {context} tokens: {listed(rows)}. Shorten or remove them."
        )


@contextmanager
def _checkpointing(model: Any, wanted: bool) -> Iterator[None]:
    """Recompute activations in the backward pass inside this context."""
    if not wanted:
        yield
        return
    inner = model.get_base_model()
    inner.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        inner.activation_checkpointing_disable()


class _Steps(TrainerCallback):
    """Callback that passes the number of finished optimiser steps to functions."""

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self.callbacks = callbacks

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        report_progress(self.callbacks, "training", state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        report_progress(self.callbacks, "training", state.global_step, state.max_steps)


class _Lines(TrainerCallback):
    """Callback that writes the loss of every step above the progress bar."""

    def __init__(self, bar: Any, losses: list[float]) -> None:
        self.bar, self.losses = bar, losses

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        rate = named["lr_scheduler"].get_last_lr()[0]
        self.bar.write(
            f"step {state.global_step} of {state.max_steps}: loss {self.losses[-1]:.4f}, "
            f"learning rate {rate:.2e}",
            file=self.bar.fp,
        )


class _AdapterTrainer(Trainer):
    """Trainer with the penalty on B that stops at the first loss that is not finite."""

    def __init__(
        self,
        training: Training,
        bar: Any,
        block: SynchronizedBlock,
        losses: list[float],
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.training = training
        self.bar = bar
        self.block = block
        self.losses = losses
        self.step_loss = 0.0

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # Evaluation mode keeps accelerate from using DistributedDataParallel, which waits forever
        # in the backward pass if another process fails, and needs a gradient of every parameter.
        # Summing once per step is enough, because an adapter has few gradients.
        self.accelerator.prepare_model = partial(
            self.accelerator.prepare_model, evaluation_mode=True
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        # Overridden in place of create_optimizer_and_scheduler, which transformers 5 does not call.
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model or self.model, decay=0.0), lr=self.training.learning_rate
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        # The number of steps, on which the schedule and the shrinkage depend, is known only here.
        self.bar.reset(total=num_training_steps)
        on_b = self.optimizer.param_groups[0]
        on_b["weight_decay"] = b_decay(self.training, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def get_train_dataloader(self) -> Any:
        return whole_batches(super().get_train_dataloader())

    def get_batch_samples(self, *arguments: Any) -> tuple[list[Any], int]:
        batches, _ = super().get_batch_samples(*arguments)
        return batches, sum(batch.pop(ALL_TOKENS) for batch in batches)

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        loss: Tensor = super().training_step(*arguments, **named)
        self.step_loss += float(loss)  # already divided by the number of tokens of the whole step
        if self.accelerator.sync_gradients:
            self._end_step()
            self.bar.update(1)
        return loss

    def _end_step(self) -> None:
        value, self.step_loss = self.block.sum(self.step_loss), 0.0
        # Trainer itself continues after NaN, and reports a loss of 0.0 with NaN weights.
        if not math.isfinite(value) or (value == 0.0 and not self.losses):
            raise TrainingDivergedError(
                f"The loss became {value} in step {self.state.global_step + 1} at a learning rate "
                f"of {self.training.learning_rate:g}. The adapter was not kept, and the learner "
                "did not change. Lower Training(learning_rate=...), or add warmup_steps."
            )
        self.losses.append(value)
        self.block.sum_gradients([p for p in self.model.parameters() if p.requires_grad])

    def _load_from_checkpoint(self, *_: Any, **__: Any) -> None:
        """Load nothing: `StepKeeper` restores weights and optimiser."""

    def store_flos(self) -> None:
        """Skip counting of operations, for which the processes would wait for each other."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Return 0 instead of counting operations over all parameters in every step."""
        return 0


def _arguments(
    training: Training, backbone: Backbone, seed: int, folder: str, group: ProcessGroup
) -> TrainingArguments:
    on_cpu = backbone.device.type == "cpu"
    at_once, accumulation = layout(training, group.count)
    order = derived_seed(seed, "order")
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=training.epochs,
        max_steps=-1 if training.max_steps is None else training.max_steps,
        per_device_train_batch_size=at_once,  # of all processes: see whole_batches
        gradient_accumulation_steps=accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type=schedule_name(training),
        warmup_steps=training.warmup_steps,
        max_grad_norm=training.max_grad_norm,
        # Seed of dropout. It differs between processes, so that their noise averages out.
        seed=derived_seed(order, group.index) if group.index else order,
        data_seed=order,
        average_tokens_across_devices=False,  # see ALL_TOKENS
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    arguments.mixed_precision = "no"  # a launcher's own setting would change the numbers
    return on_one_device(arguments)


def on_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Keep Trainer from using nn.DataParallel, its default with several GPUs.

    A 4-bit model cannot be replicated in this way, and the batch would grow with the GPUs.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
