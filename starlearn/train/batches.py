"""Batches of a training: examples, padding, and the shares of several processes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor

from starlearn.errors import InputError
from starlearn.model.adapter import Adapter
from starlearn.model.backbone import Backbone
from starlearn.model.processes import ProcessGroup
from starlearn.settings import LoRA, Training

IGNORED = -100
"""Label of positions without loss: the prompt and the padding."""
ALL_TOKENS = "all_tokens"
"""Key of a batch for the number of tokens with loss in all processes together."""


@dataclass(frozen=True)
class Example:
    """Tokens of one labelled item."""

    prompt: list[int]
    answer: list[int]
    """Answer with the end of sequence."""
    counts: bool = True
    """Whether the answer has a loss."""

    @property
    def length(self) -> int:
        """T, the number of tokens of prompt and answer."""
        return len(self.prompt) + len(self.answer)

    @property
    def predicted(self) -> int:
        """Number of tokens with loss; the first token of a sequence is not predicted."""
        return min(len(self.answer), self.length - 1)


def layout(training: Training, n_processes: int) -> tuple[int, int]:
    """Return how many examples P processes compute at a time, and how many such batches per step.

    A step sees `batch_size * gradient_accumulation` examples, as in one process. No process
    computes more than `batch_size` of them at a time.
    """
    effective = int(training.batch_size * training.gradient_accumulation)
    most = min(int(training.batch_size) * n_processes, effective)
    at_once = next(n for n in range(most, 0, -1) if effective % n == 0)
    return at_once, effective // at_once


def share(examples: Sequence[Example], group: ProcessGroup) -> Sequence[Example]:
    """Return this process's part of a batch; an example without loss if the part is empty."""
    if group.count == 1:
        return examples
    return examples[group.index :: group.count] or [replace(examples[0], counts=False)]


class Collator:
    """Collator that pads on the right, with loss on the answer and the end of sequence only."""

    def __init__(self, pad_id: int, group: ProcessGroup | None = None) -> None:
        self.pad_id = pad_id
        self.group = group or ProcessGroup()

    def __call__(self, batch: Sequence[Example]) -> dict[str, Tensor | int]:
        examples = share(batch, self.group)
        length = max(e.length for e in examples)
        ids = torch.full((len(examples), length), self.pad_id)  # [B, T]
        labels = torch.full((len(examples), length), IGNORED)  # [B, T]
        mask = torch.zeros((len(examples), length), dtype=torch.long)  # [B, T]
        for row, example in enumerate(examples):
            tokens = [*example.prompt, *example.answer]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            if example.counts:
                labels[row, len(example.prompt) : len(tokens)] = torch.tensor(example.answer)
        count = sum(example.predicted for example in batch)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, ALL_TOKENS: count}


def whole_batches(loader: Any) -> Any:
    """Give each process whole batches in the order of one process; the collator splits them.

    By default accelerate deals out batches in turns and fills the last batch of an epoch with
    examples of the first. A step would then see other examples than in one process.
    """
    if isinstance(loader.batch_sampler, BatchSamplerShard):
        loader.batch_sampler.num_processes, loader.batch_sampler.process_index = 1, 0
        loader.batch_sampler.even_batches = False
        loader.rng_types = None  # the order comes from a seed, so it needs no synchronisation
    return loader


def determining(
    backbone: Backbone,
    lora: LoRA,
    training: Training,
    examples: Sequence[Example],
    seed: int,
    start: Adapter | None,
) -> dict[str, str]:
    """Return all that determines an adapter, by the name of each part."""
    data = repr([(e.prompt, e.answer) for e in examples]).encode()
    return {
        # accelerate draws the order of the examples.
        "base model, device or versions": f"{backbone.numerics} accelerate {version('accelerate')}",
        "settings of the adapter": repr(lora.get_params()),
        "settings of the training": repr(training.get_params()),
        "task or labels": blake2b(data).hexdigest(),
        "seed": str(seed),
        "adapter to start from": "" if start is None else start.digest,
    }


def check_divisible(trainer: Any, group: ProcessGroup) -> None:
    """Raise InputError for a model whose loss several processes cannot sum."""
    if group.count > 1 and not trainer.model_accepts_loss_kwargs:
        raise InputError(
            "The loss of this model is a mean over a batch, which cannot be computed from the "
            "parts of several processes. Train in one process, without accelerate launch."
        )
