"""Helpers of the benchmarks: contenders in turns, quartiles, memory, and rows in a CSV file."""

import argparse
import csv
import datetime
import gc
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_linear_entropy import device_name, kilobytes, version

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("starlearn", "torch", "transformers", "peft", "bitsandbytes")
COMMON = ["time", "device", "python", *PACKAGES, "threads"]
SPREAD = ["quartile_1", "median", "quartile_3"]
NOT_SHOWN = {*COMMON, "model", "parameters", "quantization", "dtype", "accuracy", "clock"}


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """Return a parser of the command line whose description is the first line of a docstring."""
    return argparse.ArgumentParser(description=(text or "").splitlines()[0])


def nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Contender:
    """Something to time, with what has to be put in place before, which is not timed."""

    run: Callable[[], object]
    n_units: int
    """Items or steps that one run works through; times are divided by it."""
    prepare: Callable[[], object] = nothing


@dataclass(frozen=True)
class Times:
    """Seconds per unit of one contender, one entry a round."""

    cpu: list[float]
    """Of the process, all threads together."""
    wall: list[float]

    def by(self, clock: str) -> list[float]:
        """Return the times of the clock that counts."""
        return self.cpu if clock == "cpu" else self.wall


def clock_of(device: str) -> str:
    """Process time with one thread on a CPU, where other processes hardly move it."""
    return "cpu" if device == "cpu" and torch.get_num_threads() == 1 else "wall"


def take_turns(
    contenders: Mapping[str, Contender], repeats: int, device: str = "cpu"
) -> dict[str, Times]:
    """Run all contenders once a round, so that a busy machine slows all of them."""
    found = {name: Times([], []) for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            contender.prepare()
            gc.collect()
            _wait(device)
            cpu, wall = time.process_time(), time.perf_counter()
            contender.run()
            _wait(device)
            found[name].cpu.append((time.process_time() - cpu) / contender.n_units)
            found[name].wall.append((time.perf_counter() - wall) / contender.n_units)
    return found


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def quartiles(values: Sequence[float]) -> list[float]:
    """Return both quartiles with the median between them."""
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def spread_columns(prefix: str, values: Sequence[float], digits: int) -> dict[str, str]:
    """Return the quartiles as columns of a row: "PREFIX_quartile_1", "PREFIX_median", ..."""
    found = zip(SPREAD, quartiles(values), strict=True)
    return {f"{prefix}_{name}": f"{value:.{digits}f}" for name, value in found}


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median over rounds of others / values: how many times faster `values` is."""
    return statistics.median(other / value for value, other in zip(values, others, strict=True))


class AnonymousPeak:
    """The largest anonymous memory of this process while it is watched, in MB."""

    def __init__(self) -> None:
        self.before = self.peak = kilobytes("RssAnon") * 1024 / 1e6

    def look(self) -> None:
        """Look once."""
        self.peak = max(self.peak, kilobytes("RssAnon") * 1024 / 1e6)


@contextmanager
def watched_memory(interval: float = 0.01) -> Iterator[AnonymousPeak]:
    """Look at the anonymous memory every few milliseconds; pages of mapped files do not count."""
    gc.collect()
    peak, ended = AnonymousPeak(), threading.Event()

    def watch() -> None:
        while not ended.wait(interval):
            peak.look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        peak.look()


def common(device: str) -> dict[str, object]:
    """Return when, where and with what versions a row came about."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "time": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": device_name(device),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "threads": torch.get_num_threads(),
    }


def measure_seeds(
    text: str | None, path: Path, rows_of: Callable[[int], Iterable[Mapping[str, object]]]
) -> None:
    """Replace a CSV file by the rows of every seed that the command line names, and print them."""
    parser = parser_of(text)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first", type=int, default=1000, help="first seed")
    options = parser.parse_args()
    writer = None
    with path.open("w", encoding="utf-8", newline="") as file:
        for seed in range(options.first, options.first + options.seeds):
            for row in rows_of(seed):
                if writer is None:
                    writer = csv.DictWriter(file, row, lineterminator="\n")
                    writer.writeheader()
                writer.writerow(row)
                file.flush()
                print(*row.values())


def write_row(path: Path, fields: Sequence[str], row: Mapping[str, object]) -> None:
    """Append a row to a CSV file, and print most of it."""
    shown = [name for name in fields if name not in NOT_SHOWN and row.get(name) not in (None, "")]
    print(", ".join(f"{name} {row[name]}" for name in shown), flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    if not new:
        with path.open(newline="", encoding="utf-8") as file:
            if next(csv.reader(file)) != list(fields):
                raise ValueError(f"{path} has other columns; move it away, or give another --out")
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        writer.writerow(row)
