"""Peak memory of loading, training and querying on a GPU, against what docs/memory.md computes.

    python benchmarks/bench_gpu_memory.py --shapes Llama-3.2-1B Llama-3.1-8B

Models have random weights and the shapes of benchmarks/fitting.py, are written to a temporary
folder, and loaded, trained and queried by STARLearner. Every training step has 8 sequences of 256
tokens and every batch of a query is full. "allocated" is torch's peak of tensors, "reserved" what
its allocator took for them, "held" what is left afterwards, "context" what the process has without
torch. "computed" is benchmarks.fitting's number, "bare" the same without the assumed context and
margin. "ratio" is allocated / bare, "ratio_of_whole" (reserved + context) / computed.

Without a GPU a tiny model goes the same way, and all figures of memory stay blank.
"""

import argparse
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from fitting import CONTEXT, MARGIN, Shape, query_bytes, training_bytes, weight_bytes
from measuring import COMMON, RESULTS, common, parser_of, write_row
from random_models import BY_NAME, TINY, random_model

from starlearn import Acquisition, ChoiceTask, GenerationTask, LoRA, STARLearner, Training
from starlearn.embedded.grammar import WORDS
from starlearn.learner.base_models import base_of
from starlearn.learner.session import session_of

BATCH, LENGTH = 8, 256
"""Sequences of a training step, and tokens of every sequence here, answer included."""
PASSES = 4
"""K; with the lengths above it fills batches of 4096 padded tokens exactly."""
WRITTEN = 8
"""Tokens of a free-form answer."""
CHOICES = ["red", "blue"]
FIELDS = [
    *COMMON, "shape", "parameters", "what", "r", "tokens", "checkpointing", "seconds",
    "measured_allocated_gb", "measured_reserved_gb", "held_gb", "context_gb", "computed_gb",
    "bare_gb", "ratio", "ratio_of_whole", "note",
]  # fmt: skip


class Measured:
    """Seconds and, on a GPU, bytes of what was done."""

    def __init__(self) -> None:
        self.seconds = self.allocated = self.reserved = self.held = self.context = 0.0


@contextmanager
def measured() -> Iterator[Measured]:
    """Measure what is done inside, from an emptied cache on."""
    found, gpu = Measured(), torch.cuda.is_available()
    clear_device_cache(garbage_collection=True)
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    yield found
    if gpu:
        torch.cuda.synchronize()
    found.seconds = time.perf_counter() - began
    if gpu:
        free, total = torch.cuda.mem_get_info()
        found.allocated = torch.cuda.max_memory_allocated()
        found.reserved = torch.cuda.max_memory_reserved()
        found.held = torch.cuda.memory_allocated()
        found.context = total - free - torch.cuda.memory_reserved()


def columns(found: Measured, computed: float, bare: float) -> dict[str, Any]:
    """Turn bytes into GB and ratios; blank where nothing was measured."""
    row = {"seconds": f"{found.seconds:.2f}", "computed_gb": f"{computed / 1e9:.3f}"}
    row["bare_gb"] = f"{bare / 1e9:.3f}"
    if not found.allocated:
        return row
    row |= {
        "measured_allocated_gb": f"{found.allocated / 1e9:.3f}",
        "measured_reserved_gb": f"{found.reserved / 1e9:.3f}",
        "held_gb": f"{found.held / 1e9:.3f}",
        "context_gb": f"{found.context / 1e9:.3f}",
        "ratio": f"{found.allocated / bare:.3f}",
    }
    if computed != bare:
        row["ratio_of_whole"] = f"{(found.reserved + found.context) / computed:.3f}"
    return row


class Subject:
    """A learner on a random model of one shape, with prompts of the wanted lengths."""

    def __init__(self, args: argparse.Namespace, shape: Shape) -> None:
        self.args, self.shape = args, shape
        self.random = np.random.default_rng(0)
        self.words = [word for word in WORDS if word.isalpha() and word not in CHOICES]
        self.learner = STARLearner(
            random_model(shape.name),
            task=ChoiceTask("{text}", choices=CHOICES),
            adapter=LoRA(r=args.r),
            training=Training(max_steps=args.steps, batch_size=BATCH),
            random_state=0,
            verbose=False,
        )

    def prompts(self, count: int, length: int) -> list[str]:
        """Return distinct texts of `length` tokens: one token per word, and one before them."""
        texts = [" ".join(self.random.choice(self.words, length - 1)) for _ in range(count)]
        session = session_of(self.learner)
        _, tokens = session.tree_and_prompts(session.parts.task.fill(texts))
        if {len(ids) for ids in tokens} != {length}:
            raise RuntimeError(f"prompts have other lengths than {length} tokens")
        return texts

    def load(self) -> dict[str, Any]:
        """Load and quantise the weights."""
        with measured() as found:
            _ = base_of(self.learner).backbone.model
        computed = weight_bytes(self.shape)
        return {"what": "weights", **columns(found, computed, computed)}

    def train(self, checkpointing: bool) -> dict[str, Any]:
        """Train an adapter; an answer is a word and the end of sequence."""
        texts = self.prompts(self.args.steps * BATCH, LENGTH - 2)
        labels = [CHOICES[i % 2] for i in range(len(texts))]
        self.learner.set_params(training__gradient_checkpointing=checkpointing)
        with measured() as found, warnings.catch_warnings():
            warnings.filterwarnings("error", message="Memory ran out")  # or it was a smaller batch
            self.learner.fit(texts, labels)
        tokens = BATCH * LENGTH
        computed = training_bytes(self.shape, self.args.r, tokens, checkpointing=checkpointing)
        return {
            "what": "training", "r": self.args.r, "tokens": tokens, "checkpointing": checkpointing,
            **columns(found, computed, (computed - CONTEXT) / MARGIN),
        }  # fmt: skip

    def query(self, written: int, tokens: int) -> dict[str, Any]:
        """Choose items of a pool that fills batches of `tokens`, by choices or free text."""
        learner = self.learner
        if not hasattr(learner, "adapter_"):
            raise RuntimeError("there is no adapter to query with")
        task: Any = ChoiceTask("{text}", choices=CHOICES)
        if written:
            task = GenerationTask("{text}", max_new_tokens=written)
        acquisition = Acquisition(measure="entropy", n_passes=PASSES, max_batch_tokens=tokens)
        learner.set_params(task=task, acquisition=acquisition)
        texts = self.prompts(tokens // LENGTH, LENGTH - written)
        with measured() as found:
            learner.query(texts, n_instances=4)
        fitted = base_of(learner).backbone.budget.tokens
        computed = query_bytes(self.shape, self.args.r, tokens)
        return {
            "what": f"query, {'free-form' if written else 'choices'}",
            "r": self.args.r,
            "tokens": tokens,
            "note": f"batches of {fitted}" if fitted < tokens else "",
            **columns(found, computed, (computed - CONTEXT) / MARGIN),
        }

    def parts(self) -> Iterator[Callable[[], dict[str, Any]]]:
        """Go through everything that is measured, in order."""
        yield self.load
        for checkpointing in (False, True):
            yield partial(self.train, checkpointing)
        for tokens in self.args.tokens:
            for written in (0, WRITTEN):
                yield partial(self.query, written, tokens)


def attempted(act: Callable[[], Any]) -> Any:
    """Return the result of a function, or None after printing the traceback of its error."""
    try:
        return act()
    except Exception:  # noqa: BLE001 (whatever it is, what was measured and what follows counts)
        traceback.print_exc()
        return None


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    usual = "Llama-3.2-1B" if torch.cuda.is_available() else TINY.name
    parser.add_argument("--shapes", nargs="+", choices=list(BY_NAME), default=[usual])
    parser.add_argument("--r", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="training steps")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[4096, 65536], help="of a query's batches"
    )
    parser.add_argument("--out", type=Path, help="results/gpu_memory.csv; nowhere without a GPU")
    return parser.parse_args(arguments)


def measure_shape(args: argparse.Namespace, shape: Shape) -> int:
    """Measure one shape and write its rows; return how many parts failed."""
    gpu = torch.cuda.is_available()
    began = time.perf_counter()
    subject = attempted(partial(Subject, args, shape))
    if subject is None:
        return 1
    print(f"{shape.name}: written in {time.perf_counter() - began:.1f} s", flush=True)
    failed = 0
    for part in subject.parts():
        row = attempted(part)
        if row is None:
            failed += 1
            continue
        row |= common("cuda" if gpu else "cpu")
        row |= {"shape": shape.name, "parameters": shape.parameters}
        if gpu or args.out:
            write_row(args.out or RESULTS / "gpu_memory.csv", FIELDS, row)
        else:
            print(row)
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Measure all shapes; return the exit status."""
    args = parse(arguments)
    failed = [measure_shape(args, BY_NAME[name]) for name in args.shapes]
    return 1 if any(failed) else 0


if __name__ == "__main__":
    raise SystemExit(main())
