"""A training's batches: examples, how they are padded, and which part is whose."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from torch import Tensor

from starlearn.errors import InputError
from starlearn.model.adapter import Adapter
from starlearn.model.backbone import Backbone
from starlearn.model.processes import Processes
from starlearn.settings import LoRA, Training

IGNORED = -100
"""Label of positions that carry no loss: the prompt and the padding."""
ALL_TOKENS = "all_tokens"
"""Where a batch says how many tokens with loss the batches of all processes have together."""


@dataclass(frozen=True)
class Example:
    """One labelled item as tokens."""

    prompt: list[int]
    answer: list[int]
    """Ends with the end of sequence."""
    counts: bool = True
    """Whether the answer carries loss."""

    @property
    def length(self) -> int:
        """T, tokens of both."""
        return len(self.prompt) + len(self.answer)

    @property
    def predicted(self) -> int:
        """Tokens with loss: the first of a sequence is not predicted from anything."""
        return min(len(self.answer), self.length - 1)


def layout(training: Training, n_processes: int) -> tuple[int, int]:
    """Say how the examples of a step are computed by P processes.

    A step sees `batch_size * gradient_accumulation` examples, as with one process. No process
    computes more than `batch_size` at a time.

    Parameters
    ----------
    training : Training
    n_processes : int
        P.

    Returns
    -------
    at_once : int
        Examples that all processes compute at a time, together.
    accumulation : int
        How often, for one step.
    """
    effective = int(training.batch_size * training.gradient_accumulation)
    most = min(int(training.batch_size) * n_processes, effective)
    at_once = next(n for n in range(most, 0, -1) if effective % n == 0)
    return at_once, effective // at_once


def share(examples: Sequence[Example], processes: Processes) -> Sequence[Example]:
    """Return this process's part of a batch; where there is none, an example without loss."""
    if processes.count == 1:
        return examples
    return examples[processes.index :: processes.count] or [replace(examples[0], counts=False)]


class Collator:
    """Pads on the right; only the answer and the end of sequence carry loss."""

    def __init__(self, pad_id: int, processes: Processes | None = None) -> None:
        self.pad_id = pad_id
        self.processes = processes or Processes()

    def __call__(self, batch: Sequence[Example]) -> dict[str, Tensor | int]:
        examples = share(batch, self.processes)
        length = max(e.length for e in examples)
        ids = torch.full((len(examples), length), self.pad_id)
        labels = torch.full((len(examples), length), IGNORED)
        mask = torch.zeros((len(examples), length), dtype=torch.long)
        for row, example in enumerate(examples):
            tokens = [*example.prompt, *example.answer]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            if example.counts:
                labels[row, len(example.prompt) : len(tokens)] = torch.tensor(example.answer)
        count = sum(example.predicted for example in batch)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, ALL_TOKENS: count}


def whole_batches(loader: Any) -> Any:
    """Let a loader give whole batches to each process, in the order of one; the collator cuts them.

    accelerate would cut them otherwise: it deals out batches in turns, so that a step sees other
    examples, and fills the last one of an epoch up with examples of the first.
    """
    if isinstance(loader.batch_sampler, BatchSamplerShard):
        loader.batch_sampler.num_processes, loader.batch_sampler.process_index = 1, 0
        loader.batch_sampler.even_batches = False
        loader.rng_types = None  # the order comes from a seed; no need to ask the first process
    return loader


def agree(
    processes: Processes,
    backbone: Backbone,
    lora: LoRA,
    training: Training,
    examples: Sequence[Example],
    seed: int,
    start: Adapter | None,
) -> None:
    """Raise ModelMismatchError unless all processes are about to train the same."""

    def facts() -> list[Any]:
        data = blake2b(repr([(e.prompt, e.answer) for e in examples]).encode()).hexdigest()
        settings = [repr(part.get_params()) for part in (lora, training)]
        digest = None if start is None else start.digest
        return [backbone.numerics, *settings, data, seed, digest]

    processes.agree(facts, "Give STARLearner(random_state=...), and the same labels to all.")


def check_divisible(trainer: Any, processes: Processes) -> None:
    """Raise InputError for a model whose loss is a mean that cannot be put together from parts."""
    if processes.count > 1 and not trainer.model_accepts_loss_kwargs:
        raise InputError(
            "The loss of this model is a mean over a batch, which cannot be put together from the "
            "parts of several processes. Train in one process, without accelerate launch."
        )
