"""Training one adapter on the labelled set, with transformers' Trainer."""

import math
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
from starlearn.model.processes import Meeting, Processes, processes
from starlearn.progress import report_progress, trainer_callbacks
from starlearn.randomness import derived_seed, isolated_generators
from starlearn.settings import LoRA, Training
from starlearn.train.batches import (
    ALL_TOKENS,
    Collator,
    Example,
    agree,
    check_divisible,
    layout,
    whole_batches,
)
from starlearn.train.regularization import b_decay, parameter_groups, schedule_name


@dataclass(frozen=True)
class TrainingRecord:
    """What a training did."""

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
) -> tuple[Adapter, TrainingRecord]:
    """Train an adapter and leave it active on the backbone.

    Parameters
    ----------
    examples : sequence of Example, length N
    seed : int
        Decides the initial A, the order of the examples and the dropout.
    start : Adapter or None
        Continue from these weights; None starts fresh.
    callbacks : sequence
        Functions that are told the steps done, and instances of transformers.TrainerCallback.

    Raises
    ------
    ModelMismatchError
        When `start` was trained on another base model.
    TrainingDivergedError
        When the loss or a weight becomes NaN or infinite. The backbone is then without an
        adapter; earlier adapters are untouched.
    OutOfMemoryError
        When not even one item at a time can be trained on.
    WorkerError
        When another process of the program has failed.

    Notes
    -----
    In a program that `accelerate launch` has started as P processes each of them computes its part
    of every batch, and gradients are added up once a step: the examples of a step, their order and
    the loss are those of one process, and so is the adapter, but for rounding, where there is no
    dropout. With dropout each process draws its own, so that the adapter is another one of the
    same kind.

    Where memory runs out, the training begins anew with smaller batches and as much more gradient
    accumulation, so that a step sees the same examples; with a warning, because the dropout of
    another batch is another one.
    """
    if start is not None:
        check_base(backbone, start)
        check_same_form(lora, start)
    these = processes()
    agree(these, backbone, lora, training, examples, seed, start)
    while True:
        try:
            what = (backbone, lora, training, examples, seed, start, verbose, callbacks)
            return _together(these, *what)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            longest = max(range(len(examples)), key=lambda i: examples[i].length)
            length = examples[longest].length
        clear_device_cache(garbage_collection=True)
        largest = -(-layout(training, these.count)[0] // these.count)
        if largest == 1:
            raise OutOfMemoryError(longest, length, 1, while_training=True)
        training = with_smaller_batches(training, largest)


def with_smaller_batches(training: Training, largest: int) -> Training:
    """Return settings whose steps see as many examples, at most half of `largest` at a time."""
    effective = training.batch_size * training.gradient_accumulation
    sizes = [n for n in range(1, largest // 2 + 1) if effective % n == 0]
    smaller: Training = clone(training)
    smaller.set_params(batch_size=sizes[-1], gradient_accumulation=effective // sizes[-1])
    warnings.warn(
        f"Memory ran out while training on {largest} items at a time. The training "
        f"begins anew with Training(batch_size={smaller.batch_size}, gradient_accumulation="
        f"{smaller.gradient_accumulation}).",
        UserWarning,
        stacklevel=2,
    )
    return smaller


def _together(these: Processes, *what: Any) -> tuple[Adapter, TrainingRecord]:
    """Train in all processes of the program, or in none of them, to the same adapter."""
    with Meeting(these) as meeting, what[0].alone():
        adapter, record = _trained(meeting, *what)
    these.agree(lambda: [adapter.digest], "Use GPUs of one kind.")
    return adapter, record


def _trained(
    meeting: Meeting,
    backbone: Backbone,
    lora: LoRA,
    training: Training,
    examples: Sequence[Example],
    seed: int,
    start: Adapter | None,
    verbose: int,
    callbacks: Sequence[Any],
) -> tuple[Adapter, TrainingRecord]:
    main = meeting.processes.main
    told = callbacks if main else ()
    model = attach_fresh(backbone, lora, seed=derived_seed(seed, "adapter"))
    try:
        if start is not None:
            load_state(model, start.state)
        with (
            tempfile.TemporaryDirectory(prefix="starlearn-") as scratch,
            isolated_generators(derived_seed(seed, "training")),
            tqdm(desc="training", unit="step", disable=not (verbose and main)) as bar,
        ):
            trainer = _AdapterTrainer(
                training=training,
                bar=bar,
                meeting=meeting,
                model=model,
                args=_arguments(training, backbone, seed, scratch, meeting.processes),
                train_dataset=list(examples),
                data_collator=Collator(backbone.pad_id, meeting.processes),
                callbacks=[*trainer_callbacks(callbacks), _Steps(told)],
            )
            check_divisible(trainer, meeting.processes)
            trainer.remove_callback(PrinterCallback)  # the bar is enough
            if verbose > 1 and meeting.processes.main:
                trainer.add_callback(_Lines(bar, trainer.losses))
            model.train()
            with _checkpointing(model, training.gradient_checkpointing):
                trainer.train()
        adapter = Adapter.of(lora, backbone.fingerprint, adapter_state(model))
    except BaseException:
        # Ctrl-C too: a half-trained adapter must never answer.
        detach(backbone)
        raise
    model.eval()
    backbone.active = adapter
    last = trainer.losses[-max(1, len(trainer.losses) // 10) :]
    return adapter, TrainingRecord(int(trainer.state.global_step), sum(last) / len(last))


def check_same_form(lora: LoRA, start: Adapter) -> None:
    """Raise InputError for a warm start from an adapter of another rank, scale or target."""
    wanted = Adapter.of(lora, start.base, start.state)
    for name in ("r", "alpha", "target_modules"):
        before, now = getattr(start, name), getattr(wanted, name)
        if before != now:
            raise InputError(
                f"A warm start goes on with the previous adapter, which has {name}={before!r}; "
                f"LoRA now says {name}={now!r}. Set it back, or set warm_start=False."
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
    """Recompute activations in the backward pass, while this lasts."""
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
    """Tells functions how many optimiser steps are done."""

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self.callbacks = callbacks

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        report_progress(self.callbacks, "training", 0, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        report_progress(self.callbacks, "training", state.global_step, state.max_steps)


class _Lines(TrainerCallback):
    """Writes the loss of every step above the bar."""

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
    """Trainer with the penalty on B, and with a stop at the first loss that is not finite."""

    def __init__(self, training: Training, bar: Any, meeting: Meeting, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.training = training
        self.bar = bar
        self.meeting = meeting
        self.losses: list[float] = []
        self.step_loss = 0.0

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # No DistributedDataParallel: it waits in the backward pass, for ever if another process
        # fails there, and every parameter must get a gradient. Gradients are few here.
        self.accelerator.prepare_model = partial(
            self.accelerator.prepare_model, evaluation_mode=True
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        # Not create_optimizer_and_scheduler: transformers 5 no longer calls it.
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model or self.model, decay=0.0), lr=self.training.learning_rate
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        # Here the real number of steps is known, on which schedule and shrinkage depend.
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
        self.step_loss += float(loss)  # transformers has divided by the tokens of the whole step
        if self.accelerator.sync_gradients:
            self._end_step()
        self.bar.update(1 / self.args.gradient_accumulation_steps)
        return loss

    def _end_step(self) -> None:
        value, self.step_loss = self.meeting.total(self.step_loss), 0.0
        # Trainer itself goes on after NaN and reports a loss of 0.0 with NaN weights.
        if not math.isfinite(value) or (value == 0.0 and not self.losses):
            raise TrainingDivergedError(
                f"The loss became {value} in step {self.state.global_step + 1} at a learning rate "
                f"of {self.training.learning_rate:g}. Nothing was published, and the "
                "learner is what it was before. Lower Training(learning_rate=...), or add "
                "warmup_steps."
            )
        self.losses.append(value)
        self.meeting.add_up([p for p in self.model.parameters() if p.requires_grad])

    def store_flos(self) -> None:
        """Count no operations: nobody asks, and processes would have to meet for it."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Count none in a step either: counting goes through all parameters each time."""
        return 0


def _arguments(
    training: Training, backbone: Backbone, seed: int, folder: str, processes: Processes
) -> TrainingArguments:
    on_cpu = backbone.device.type == "cpu"
    at_once, accumulation = layout(training, processes.count)
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
        # Dropout; equal masks would make the processes' noise add up instead of averaging out.
        seed=derived_seed(order, processes.index) if processes.index else order,
        data_seed=order,
        average_tokens_across_devices=False,  # batches bring the number of all
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
    """Keep Trainer off nn.DataParallel, which it takes when it sees several GPUs.

    A 4-bit model cannot be replicated that way, and the batch would grow by their number.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
