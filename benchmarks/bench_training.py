"""Time and memory of a round's training: STARLearner.fit against plain Trainer with peft.

    python benchmarks/bench_training.py --steps 60 --repeats 5
    python benchmarks/bench_training.py --model FOLDER

Both start from a loaded 4-bit base model and end with a trained adapter. Before any time counts
they must end with the same weights: with the penalty on B off, and the same seeds, both do the same
steps. Tokens are made by starlearn inside its own time; the plain code gets them for nothing.
Peaks of memory come from a process of each contender's own.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import (
    COMMON,
    RESULTS,
    SPREAD,
    Contender,
    clock_of,
    common,
    parser_of,
    quartiles,
    ratio,
    spread_columns,
    take_turns,
    watched_memory,
    write_row,
)
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from starlearn import ChoiceTask, LoRA, STARLearner, Training
from starlearn.embedded.location import model_folder
from starlearn.embedded.pools import make_pool
from starlearn.learner.base_models import base_of
from starlearn.learner.session import session_of
from starlearn.randomness import derived_seed
from starlearn.train.batches import Example

FIELDS = [
    *COMMON, "clock", "model", "parameters", "quantization", "dtype", "labels", "batch_size",
    "steps", "r", "contender", "repeats", *(f"ms_per_step_{name}" for name in SPREAD),
    "wall_ms_per_step_median", "time_of_plain", "peak_anonymous_mb", "peak_extra_mb",
    "largest_difference", "note",
]  # fmt: skip


class Ours:
    """STARLearner.fit on the embedded skewed pool."""

    def __init__(self, args: argparse.Namespace) -> None:
        data = make_pool("skewed", args.labels, 10, random_state=args.seed)
        self.items, self.labels = data.items, data.labels
        self.learner = STARLearner(
            args.model,
            task=ChoiceTask(data.prompt, choices=data.choices),
            quantization=args.quantization,
            adapter=LoRA(r=args.r, alpha=2 * args.r),
            training=Training(
                learning_rate=1e-3, max_steps=args.steps, batch_size=args.batch_size,
                b_weight_decay=0.0,
            ),
            random_state=args.seed,
            verbose=False,
        )  # fmt: skip

    def train(self) -> dict[str, Tensor]:
        """Train one adapter; return its weights."""
        return self.learner.fit(self.items, self.labels).adapter_.state

    def examples(self) -> list[Example]:
        """Return the tokens that it trains on."""
        session = session_of(self.learner)
        labels = np.array(self.labels, dtype=object)
        return session.examples(session.parts.task.fill(self.items), labels)


class Plain:
    """The same with transformers and peft alone."""

    def __init__(
        self, args: argparse.Namespace, examples: Sequence[Example], seed: int, pad_id: int
    ) -> None:
        self.args, self.seed, self.pad_id = args, seed, pad_id
        self.examples = [(e.prompt, e.answer) for e in examples]
        cuda = torch.cuda.is_available()
        self.dtype = torch.bfloat16 if cuda else torch.float32
        quantization = None
        if args.quantization != "none":
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=args.quantization,
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=self.dtype,
            )
        self.model = AutoModelForCausalLM.from_pretrained(
            args.model or model_folder(),
            dtype=self.dtype,
            quantization_config=quantization,
            device_map={"": 0} if cuda else None,
            local_files_only=True,
        )
        self.model.requires_grad_(False)

    def collate(self, rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
        """Pad on the right; the prompt carries no loss."""
        length = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.full((len(rows), length), self.pad_id)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for row, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : end] = torch.tensor(answer)
            mask[row, :end] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def train(self) -> dict[str, Tensor]:
        """Train one adapter; return its weights."""
        torch.manual_seed(derived_seed(self.seed, "adapter"))
        config = LoraConfig(
            r=self.args.r,
            lora_alpha=2 * self.args.r,
            lora_dropout=0.1,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(self.model, config)
        order = derived_seed(self.seed, "order")
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=self.args.steps,
                per_device_train_batch_size=self.args.batch_size,
                learning_rate=1e-3,
                lr_scheduler_type="linear",
                optim="adamw_torch",
                seed=order,
                data_seed=order,
                use_cpu=self.dtype == torch.float32,
                dataloader_pin_memory=self.dtype != torch.float32,
                remove_unused_columns=False,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = Trainer(
                model=model,
                args=arguments,
                train_dataset=self.examples,
                data_collator=self.collate,
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        state = {n: t.detach().cpu().clone() for n, t in get_peft_model_state_dict(model).items()}
        self.model = model.unload()
        return state


def both(args: argparse.Namespace) -> tuple[Ours, Plain]:
    """Load both, with the same tokens and seeds."""
    ours = Ours(args)
    ours.train()
    plain = Plain(
        args,
        ours.examples(),
        derived_seed(ours.learner.seed_, "training", 0),
        base_of(ours.learner).backbone.pad_id,
    )
    return ours, plain


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Compare the weights of two adapters."""
    if one.keys() != other.keys():
        raise RuntimeError("the adapters have different layers")
    return max(float((one[n].float() - other[n].float()).abs().max()) for n in one)


def peak_of(args: argparse.Namespace, name: str) -> dict[str, object]:
    """Return the peak of memory during one training, from a process of its own."""
    if torch.cuda.is_available() or not Path("/proc/self/status").exists():
        return {}
    command = [sys.executable, __file__, "--peak", name]
    for option in ("steps", "labels", "batch_size", "r", "seed", "threads", "quantization"):
        command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    command += ["--model", str(args.model)] if args.model else []
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    before, peak = map(float, result.stdout.split()[-2:])
    return {"peak_anonymous_mb": f"{peak:.1f}", "peak_extra_mb": f"{peak - before:.1f}"}


def print_peak(args: argparse.Namespace) -> None:
    """Print anonymous memory before and at the peak of one training, in MB."""
    ours = Ours(args)
    contender: Any = ours
    if args.peak == "plain":  # starlearn makes tokens only, and loads no model
        contender = Plain(args, ours.examples(), 0, base_of(ours.learner).backbone.pad_id)
    else:
        _ = base_of(ours.learner).backbone.model
    with watched_memory(0.002) as memory:
        contender.train()
    print(memory.before, memory.peak)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; without arguments a small run."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", help="folder; the model in the package without it")
    parser.add_argument("--quantization", choices=("nf4", "fp4", "none"), default="nf4")
    parser.add_argument("--labels", type=int, default=120)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--r", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", choices=("ours", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "training.csv")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    if args.peak:
        print_peak(args)
        return
    ours, plain = both(args)
    difference = largest_difference(ours.train(), plain.train())
    if not difference <= args.tolerance:
        raise RuntimeError(
            f"the weights differ by {difference:.1e} after {args.steps} steps; times of unequal "
            "work mean nothing"
        )
    backbone = base_of(ours.learner).backbone
    device = backbone.device.type
    times = take_turns(
        {
            "plain": Contender(plain.train, args.steps),
            "starlearn": Contender(ours.train, args.steps),
        },
        args.repeats,
        device,
    )
    clock = clock_of(device)
    for name, taken in times.items():
        row = common(device) | {
            "clock": clock,
            "model": Path(args.model).name if args.model else "embedded",
            "parameters": plain.model.num_parameters(),
            "quantization": args.quantization,
            "dtype": str(plain.dtype).removeprefix("torch."),
            "labels": args.labels,
            "batch_size": args.batch_size,
            "steps": args.steps,
            "r": args.r,
            "contender": name,
            "repeats": args.repeats,
            "wall_ms_per_step_median": f"{quartiles(taken.wall)[1] * 1e3:.2f}",
            "time_of_plain": f"{1 / ratio(taken.by(clock), times['plain'].by(clock)):.3f}",
            "largest_difference": f"{difference:.1e}",
        }
        row |= spread_columns("ms_per_step", [1e3 * v for v in taken.by(clock)], 2)
        row |= peak_of(args, "ours" if name == "starlearn" else "plain")
        write_row(args.out, FIELDS, row)


if __name__ == "__main__":
    main()
