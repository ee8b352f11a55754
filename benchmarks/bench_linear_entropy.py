"""Time and memory of entropy from hidden states: our routes against what else there is.

    python benchmarks/bench_linear_entropy.py --shapes cpu --threads 1
    python benchmarks/bench_linear_entropy.py --shapes gpu --device cuda
    python benchmarks/bench_linear_entropy.py --write-table

Contenders take turns within a run, so that a busy machine slows all of them; compare within a run.
With one thread on a CPU the clock is the process's own CPU time, which other processes hardly move.
Each row has the quartiles of the time, the peak of memory besides inputs, and the share of the
rate of `torch.mm`, `product`, measured in the same run. Rows are appended to a CSV file.
`--write-table` measures nothing: it makes the table that route="auto" reads from those rows.
"""

import argparse
import csv
import datetime
import importlib.metadata
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from starlearn_kernels import linear_entropy
from starlearn_kernels.routes import TABLE, write_table
from torch import Tensor

# name: (K, N, D, V)
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "cpu": [(1, 2048, 512, 32000), (4, 2048, 512, 32000)],
    "cpu-large": [(1, 8192, 64, 128256), (4, 8192, 64, 128256)],
    "gpu": [(1, 8192, 4096, 32000), (1, 8192, 2048, 151936), (3, 8192, 4096, 32000),
            (8, 8192, 4096, 128256), (8, 2048, 2048, 151936), (1, 8192, 4096, 131072)],
    "tiny": [(1, 64, 32, 500), (3, 64, 32, 500)],
}  # fmt: skip
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIELDS = [
    "time", "device_type", "device", "python", "torch", "triton", "threads", "dtype",
    "K", "N", "D", "V", "contender", "workspace_mb", "repeats", "clock",
    "ms_quartile_1", "ms_median", "ms_quartile_3",
    "ratio_to_eager", "share_of_product_rate", "peak_extra_mb", "note",
]  # fmt: skip
Contender = Callable[[Tensor, Tensor], object]


def eager(hidden: Tensor, weight: Tensor) -> object:
    """The entropies alone, as one writes them: the lean baseline."""
    logp = torch.log_softmax((hidden @ weight.T).float(), -1)  # [K, N, V]
    p = logp.exp()
    entropy = -(p * logp).sum(-1)
    if len(hidden) == 1:
        return entropy
    mean = p.mean(0)  # [N, V]
    predictive = -torch.special.xlogy(mean, mean).sum(-1)
    return entropy, predictive, predictive - entropy.mean(0)


def eager_all(hidden: Tensor, weight: Tensor) -> object:
    """Every statistic that `linear_entropy` gives."""
    logits = (hidden @ weight.T).float()  # [K, N, V]
    logp = torch.log_softmax(logits, -1)
    p = logp.exp()
    pair = logits.topk(2).values
    entropy = -(p * logp).sum(-1)
    mean = p.mean(0)
    predictive = -torch.special.xlogy(mean, mean).sum(-1)
    return (
        entropy, logits.logsumexp(-1), p.amax(-1), pair[..., 0] - pair[..., 1],
        predictive, predictive - entropy.mean(0),
    )  # fmt: skip


def in_chunks(hidden: Tensor, weight: Tensor) -> object:
    """Eager code in chunks of 512 logit rows, the usual fallback."""
    step = max(1, 512 // len(hidden))
    return [eager(hidden[:, at : at + step], weight) for at in range(0, hidden.shape[1], step)]


def product(hidden: Tensor, weight: Tensor) -> object:
    """The plain product, in parts that are thrown away."""
    # A CPU pays for fresh memory, a GPU for small products.
    columns = len(weight) if hidden.is_cuda else 4096
    flat = hidden.flatten(0, 1)  # [K * N, D]
    room = flat.new_empty(min(2048, len(flat)) * min(columns, len(weight)))
    for rows in flat.split(2048):
        for part in weight.split(columns):
            out = room[: len(rows) * len(part)].view(len(rows), len(part))
            torch.mm(rows, part.T, out=out)
    return room


def liger(hidden: Tensor, weight: Tensor) -> object:
    """Liger: log-probabilities only, no entropy."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    target = torch.zeros(hidden.shape[0] * hidden.shape[1], dtype=torch.long, device=hidden.device)
    return liger_fused_linear_cross_entropy(hidden.flatten(0, 1), weight, target)


def cut_cross_entropy(hidden: Tensor, weight: Tensor) -> object:
    """Apple: log-probabilities only, no entropy."""
    from cut_cross_entropy import linear_cross_entropy

    target = torch.zeros(hidden.shape[0] * hidden.shape[1], dtype=torch.long, device=hidden.device)
    return linear_cross_entropy(hidden.flatten(0, 1), weight, target, reduction="none")


def verl(hidden: Tensor, weight: Tensor) -> object:
    """verl: log-probability and entropy, one pass."""
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    target = torch.zeros(hidden.shape[0] * hidden.shape[1], dtype=torch.long, device=hidden.device)
    return linear_cross_entropy(hidden.flatten(0, 1), weight, target, 1.0, "none")


def contenders(device: str, workspace_mb: float) -> dict[str, Contender]:
    """Everything that may run on a device, by name; those that are not installed drop out later."""

    def route(name: str) -> Contender:
        return lambda h, w: linear_entropy(h, w, route=name, max_workspace_mb=workspace_mb)

    found: dict[str, Contender] = {
        "product": product,
        "eager": eager,
        "eager-all": eager_all,
        "eager-compiled": torch.compile(eager, dynamic=False),
        "eager-chunked": in_chunks,
        "torch": route("torch"),
    }
    if device != "cpu":
        names = ("triton-fused", "triton-chunk")
        found |= {name: route(name) for name in names}
        found |= {"liger": liger, "cut-cross-entropy": cut_cross_entropy, "verl": verl}
    return found


def make_inputs(args: argparse.Namespace, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    passes, rows, width, vocabulary = shape
    draw = torch.Generator(args.device).manual_seed(0)
    dtype = DTYPES[args.dtype]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device=args.device)

    hidden = normal(1, rows, width) + 0.3 * normal(passes, rows, width)
    weight = normal(vocabulary, width) * 3 / width**0.5
    return hidden.to(dtype), weight.to(dtype)


def clock_of(device: str) -> str:
    return "cpu" if device == "cpu" and torch.get_num_threads() == 1 else "wall"


def seconds(device: str, call: Callable[[], object]) -> float:
    now = time.process_time if clock_of(device) == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = now()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return now() - start


def peak_here(args: argparse.Namespace, run: Contender, hidden: Tensor, weight: Tensor) -> float:
    """Peak memory of one call besides what is there before it, in MB."""
    if args.device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(hidden, weight)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    run(hidden[:, :2], weight[:64].contiguous())  # libraries load what they need
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = kilobytes("VmRSS")
    run(hidden, weight)
    return (kilobytes("VmHWM") - before) * 1024 / 1e6


def kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def peak_of(args: argparse.Namespace, name: str, shape: tuple[int, ...]) -> str:
    """Peak memory in a process of its own: a CPU's heap remembers earlier calls."""
    if not Path("/proc/self/clear_refs").exists():
        return ""
    command = [sys.executable, __file__, "--peak", name, "--shape", ",".join(map(str, shape))]
    command += ["--device", args.device, "--dtype", args.dtype, "--threads", str(args.threads)]
    command += ["--workspace-mb", str(args.workspace_mb)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{float(result.stdout):.1f}" if result.returncode == 0 else ""


def bench_shape(args: argparse.Namespace, shape: tuple[int, ...]) -> None:
    hidden, weight = make_inputs(args, shape)
    times: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    running = contenders(args.device, args.workspace_mb)
    if args.only:
        running = {name: run for name, run in running.items() if name in args.only}
    for name, run in list(running.items()):
        try:
            run(hidden, weight)
        except Exception as error:  # noqa: BLE001 - whatever stops another library stops its row
            notes[name] = f"{type(error).__name__}: {error}".split("\n")[0][:160]
            del running[name]
    for _ in range(args.repeats):
        for name, run in running.items():
            taken = seconds(args.device, lambda r=run: r(hidden, weight))  # type: ignore[misc]
            times.setdefault(name, []).append(taken)
    for name, values in times.items():
        row = describe(args, shape, name, values, times)
        if args.device == "cpu":
            peak = peak_of(args, name, shape)
        else:
            peak = f"{peak_here(args, running[name], hidden, weight):.1f}"
        write_row(args, row | {"peak_extra_mb": peak})
    for name, note in notes.items():
        if not note.startswith("ModuleNotFoundError") or name.startswith(("triton", "torch")):
            write_row(args, common(args, shape) | {"contender": name, "note": note})


def describe(
    args: argparse.Namespace,
    shape: tuple[int, ...],
    name: str,
    values: list[float],
    times: dict[str, list[float]],
) -> dict[str, object]:
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3

    def ratio(other: str) -> str:
        # Round by round: both members of a pair met the same machine.
        pairs = zip(values, times.get(other, []), strict=False)
        found = [one / two for one, two in pairs]
        return f"{statistics.median(found):.3f}" if found else ""

    share = ratio("product")
    return common(args, shape) | {
        "contender": name,
        "repeats": len(values),
        "clock": clock_of(args.device),
        "ms_quartile_1": f"{quartiles[0] * 1e3:.2f}",
        "ms_median": f"{statistics.median(values) * 1e3:.2f}",
        "ms_quartile_3": f"{quartiles[2] * 1e3:.2f}",
        "ratio_to_eager": ratio("eager"),
        "share_of_product_rate": f"{1 / float(share):.3f}" if share else "",
    }


def common(args: argparse.Namespace, shape: tuple[int, ...]) -> dict[str, object]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "time": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device_type": torch.device(args.device).type,
        "device": device_name(args.device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "threads": torch.get_num_threads(),
        "dtype": args.dtype,
        **dict(zip("KNDV", shape, strict=True)),
        "workspace_mb": args.workspace_mb,
    }


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def device_name(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "cpu")


def write_row(args: argparse.Namespace, row: dict[str, object]) -> None:
    print({k: row[k] for k in FIELDS[8:] if row.get(k) not in (None, "")}, flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    new = not args.out.exists()
    with args.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workspace-mb", type=float, default=64)
    parser.add_argument("--only", nargs="*", help="contenders to run")
    results = Path(__file__).parent / "results" / "linear_entropy.csv"
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--write-table", action="store_true", help="make the table of routes")
    parser.add_argument("--table", type=Path, default=TABLE, help="where the table goes")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--shape", help="one shape K,N,D,V instead of a list")
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    args = parse()
    torch.set_num_threads(args.threads)
    if args.write_table:
        print(f"{write_table(args.out, args.table)} shapes in {args.table}")
    elif args.peak:
        shape = tuple(int(size) for size in args.shape.split(","))
        run = contenders(args.device, args.workspace_mb)[args.peak]
        print(peak_here(args, run, *make_inputs(args, shape)))
    else:
        shapes = SHAPES[args.shapes]
        if args.shape:
            shapes = [tuple(int(size) for size in args.shape.split(","))]
        for shape in shapes:
            bench_shape(args, shape)


if __name__ == "__main__":
    main()
