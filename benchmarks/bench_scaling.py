"""How time and memory of scoring grow with pool m, prompt L, passes K and vocabulary V.

    python benchmarks/bench_scaling.py
    python benchmarks/bench_scaling.py --vary m --sizes 10000 100000 1000000
    python benchmarks/bench_scaling.py --vary L K V

The model is a random Llama, made on the spot: of one layer, so that starlearn's own work counts, or
with --shape embedded of the shape of the model in the package. Each size runs in a process of its
own: a pool is streamed from a JSONL file, and scores are kept in a file. A line is fitted to
the medians; theory says that all four are straight. Anonymous memory is what the process itself
needs, at its peak during the query; the peak of all resident memory counts the pages of mapped
files too, which the system takes back when it wants them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_linear_entropy import kilobytes
from measuring import (
    COMMON,
    RESULTS,
    SPREAD,
    common,
    parser_of,
    quartiles,
    spread_columns,
    watched_memory,
    write_row,
)
from scipy.stats import linregress

from starlearn.learner.base_models import base_of
from starlearn.settings import PUBLISHED_ACQUISITION

SIZES = {
    "m": [500, 1000, 2000, 4000],
    "L": [16, 32, 64, 128, 256],
    "K": [1, 2, 4, 8, 16],
    "V": [500, 2000, 8000, 32000],
}
FIXED = {"m": 1000, "L": 16, "K": 3, "V": 500}
SHAPES = {
    "one layer": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    },
    "embedded": {
        "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 6,
    },
}  # fmt: skip
"""Of a random Llama: one that takes next to no time, and one like the model in the package."""
CHOICES = ["w0", "w1", "w2", "w3"]
FIELDS = [
    *COMMON, "clock", "model", "varied", "m", "L", "K", "V", "task", "repeats",
    *(f"s_{name}" for name in SPREAD), "wall_s_median", "us_per_item", "peak_anonymous_mb",
    "extra_anonymous_mb", "peak_rss_mb", "scores_on_disk_mb", "slope_s", "intercept_s",
    "r_squared", "note",
]  # fmt: skip


def build_model(folder: Path, shape: str, vocabulary: int, length: int) -> None:
    """Write a random Llama with a tokenizer of `vocabulary` words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = [*special.values(), *(f"w{number}" for number in range(vocabulary - len(special)))]
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        **SHAPES[shape],
        max_position_embeddings=length + 32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_pool(path: Path, m: int, length: int, vocabulary: int) -> None:
    """Write m prompts of `length` random words, all distinct, one JSON line each."""
    rng = np.random.default_rng(0)
    high = vocabulary - 4
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, m, 1000):
            rows = rng.integers(high, size=(min(1000, m - start), length))
            for row in rows:
                file.write(json.dumps({"text": " ".join(f"w{word}" for word in row)}) + "\n")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Score one pool in this process; return times, memory and sizes."""
    import torch

    from starlearn import Acquisition, ChoiceTask, GenerationTask, LoRA, Pool, STARLearner, Training
    from starlearn.query.score_store import ScoreStore

    torch.set_num_threads(args.threads)
    size = {name: getattr(args, name) for name in "mLKV"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool_file = folder / "pool.jsonl"
        write_pool(pool_file, size["m"], size["L"], size["V"])
        build_model(folder / "model", args.shape, size["V"], size["L"])
        task: Any = ChoiceTask("{text}", choices=CHOICES)
        if args.task == "free-form":
            task = GenerationTask("{text}", max_new_tokens=8)
        with pool_file.open(encoding="utf-8") as file:
            first = [json.loads(next(file)) for _ in range(8)]
        learner = STARLearner(
            folder / "model",
            task=task,
            adapter=LoRA(r=4),
            acquisition=Acquisition(**PUBLISHED_ACQUISITION, n_passes=size["K"]),
            training=Training(max_steps=1),
            random_state=0,
            cache_dir=folder / "scores",
            verbose=False,
        )
        learner.fit(first, CHOICES * 2)
        learner.query(first, n_instances=1)  # libraries load what they need
        cpu, wall = [], []
        # Turning JSON lines into a mapped file is datasets' own work, in blocks of 10 MB.
        pool = Pool(pool_file, cache_dir=folder / "arrow")
        with watched_memory() as memory:
            for repeat in range(args.repeats):
                base_of(learner).store = ScoreStore(folder / f"scores {repeat}")
                began, clock = time.perf_counter(), time.process_time()
                learner.query(pool, n_instances=min(50, size["m"]))
                cpu.append(time.process_time() - clock)
                wall.append(time.perf_counter() - began)
        on_disk = sum(file.stat().st_size for file in (folder / "scores 0").iterdir()) / 1e6
    return {
        "cpu": cpu, "wall": wall, "threads": torch.get_num_threads(), "on_disk": on_disk,
        "before": memory.before, "peak": memory.peak, "rss": kilobytes("VmHWM") * 1024 / 1e6,
    }  # fmt: skip


def run_alone(args: argparse.Namespace, size: dict[str, int]) -> dict[str, Any]:
    """Measure one size in a process of its own."""
    command = [sys.executable, __file__, "--one", "--task", args.task, "--shape", args.shape]
    command += ["--repeats", str(args.repeats), "--threads", str(args.threads)]
    for name, value in size.items():
        command += [f"--{name}", str(value)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{size}: {result.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(result.stdout.splitlines()[-1]))


def bench(args: argparse.Namespace, varied: str) -> None:
    """Measure all sizes of one letter, and fit a line."""
    xs, ys, largest = [], [], {}
    for value in args.sizes or SIZES[varied]:
        size = FIXED | {name: getattr(args, name) for name in "mLKV" if getattr(args, name)}
        size[varied] = value
        found = run_alone(args, size)
        spread = quartiles(found["cpu"])
        shown: dict[str, Any] = dict(size)
        row = common("cpu") | shown | {
            "threads": found["threads"],
            "clock": "cpu",
            "model": f"random, {args.shape}",
            "varied": varied,
            "task": args.task,
            "repeats": args.repeats,
            "wall_s_median": f"{quartiles(found['wall'])[1]:.3f}",
            "us_per_item": f"{spread[1] / size['m'] * 1e6:.1f}",
            "peak_anonymous_mb": f"{found['peak']:.1f}",
            "extra_anonymous_mb": f"{found['peak'] - found['before']:.1f}",
            "peak_rss_mb": f"{found['rss']:.1f}",
            "scores_on_disk_mb": f"{found['on_disk']:.1f}",
        }  # fmt: skip
        row |= spread_columns("s", found["cpu"], 3)
        xs.append(value)
        ys.append(spread[1])
        write_row(args.out, FIELDS, row)
        largest = row
    if len(xs) > 2:
        line = linregress(xs, ys)
        same = ("clock", "model", "varied", "task", "repeats", "threads")
        row = common("cpu") | {name: largest[name] for name in same}
        row |= {
            varied: f"{xs[0]} to {xs[-1]}",
            "slope_s": f"{line.slope:.3e}",
            "intercept_s": f"{line.intercept:.3e}",
            "r_squared": f"{line.rvalue**2:.5f}",
            "note": "line through the medians",
        }
        write_row(args.out, FIELDS, row)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; without arguments a small run over m."""
    parser = parser_of(__doc__)
    parser.add_argument("--vary", nargs="+", choices=list(SIZES), default=["m"])
    parser.add_argument("--sizes", type=int, nargs="+", help="of the one letter that is varied")
    for name, value in FIXED.items():
        parser.add_argument(f"--{name}", type=int, help=f"where it is not varied; {value}")
    parser.add_argument("--task", choices=("choices", "free-form"), default="choices")
    parser.add_argument("--shape", choices=list(SHAPES), default="one layer")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.csv")
    args = parser.parse_args(arguments)
    if args.sizes and len(args.vary) > 1:
        parser.error("--sizes goes with one letter of --vary")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse(arguments)
    if args.one:
        print(json.dumps(measure(args)))
        return
    for varied in args.vary:
        bench(args, varied)


if __name__ == "__main__":
    main()
