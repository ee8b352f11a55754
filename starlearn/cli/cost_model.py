"""Cost model: expected time and price of scoring a pool, before a machine is rented.

Every number of a plan is given by the user, measured with this package on a CPU, or assumed from
data sheets and list prices. The plan states which. No number was measured on a GPU.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

from starlearn.errors import InputError


@dataclass(frozen=True)
class Device:
    """The accelerator of a worker."""

    name: str
    flops: float
    """Peak of dense 16-bit products, in operations per second. Assumed: data sheet."""
    memory_gb: float
    price: float
    """US dollars per hour. Assumed: a rounded market price, which changes."""


DEVICES = {
    device.name: device
    for device in (
        Device("L4", 121e12, 24, 0.8),
        Device("A10G", 70e12, 24, 1.2),
        Device("A100-80", 312e12, 80, 2.5),
        Device("H100", 989e12, 80, 4.0),
        Device("H200", 989e12, 141, 5.0),
    )
}
UTILISATION = 0.25
"""Share of the peak that a forward pass with 4-bit weights reaches. Assumed."""
LOADED = 1e9
"""Bytes per second at which a worker reads a model from storage. Assumed."""
STORED = 500e6
"""Bytes per second that storage writes, for all workers together. Assumed."""
START = 9.0
"""CPU seconds until the workers have imported their libraries and received work. Measured on a CPU.
It takes longer where more processes start than there are cores."""
DRIVER, DRIVER_TOKEN = 6e-6, 0.04e-6
"""Seconds of the driver per item, and per token of an item: to read, check and write it to its
chunk. Measured on a CPU."""
PROMPT, TOKEN = 55e-6, 0.65e-6
"""Seconds of a worker per item, and per token, to make a prompt. Measured on a CPU."""
CHUNK = 8e-3
"""Seconds per chunk, besides its items: Ray's task and files. Measured on a CPU; it includes the
worker's part, so it is an upper bound for the driver."""
MERGE = 1.0e-6
"""Seconds per item to rank, mix and select. Measured on a CPU."""
TEXT_BYTES = 2
"""Bytes per token of the text in a waiting chunk. Measured: 1.7 to 2.6 per word."""
SCORE_BYTES = 95
"""Bytes per item of the scores in a chunk's files, with four choices. Measured."""
COLUMN_BYTES = 64
"""Bytes per item of the scores in the driver's columns, which are files."""
WAITING_BYTES = 600
"""Bytes of the driver's memory per waiting chunk."""


@dataclass(frozen=True)
class Job:
    """A pool to score."""

    items: int
    tokens: float
    """Mean length of a prompt in tokens."""
    passes: int
    """K; the base model's pass is added."""
    parameters: float
    """Number of parameters of the model."""
    chunk: int = 2048
    """Number of items that are scored at a time."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value) or value <= 0:
                raise InputError(f"Job({name}=...) must be a number above 0, got {value!r}.")


@dataclass(frozen=True)
class CostPlan:
    """The time of each step of a query, in seconds, and its price."""

    prepare: float
    """The driver splits the pool into chunks, before workers start."""
    start: float
    score: float
    """Scoring by the worker with the most chunks."""
    driver: float
    """The driver receives chunks, while workers score."""
    storage: float
    """Files are written, while workers score."""
    merge: float
    """Ranking, mixing and selecting."""
    work: float
    """Scoring of the whole pool by one worker."""
    workers: int
    price: float | None

    @property
    def seconds(self) -> float:
        """Total time."""
        during = max(self.score, self.driver, self.storage)
        return self.prepare + self.start + during + self.merge

    @property
    def money(self) -> float | None:
        """Price of all workers for the total time, in US dollars."""
        return None if self.price is None else self.price * self.workers * self.seconds / 3600

    @property
    def share(self) -> float:
        """Share of the workers' time that is scoring."""
        return self.work / (self.workers * self.seconds)

    @property
    def limit(self) -> str:
        """The step that takes most of the time that is not scoring."""
        rest = {
            "driver (preparing chunks)": self.prepare,
            "start of workers": self.start,
            "driver (receiving chunks)": self.driver,
            "storage": self.storage,
            "merge": self.merge,
            "number of chunks (some workers have fewer than others)": self.score
            - self.work / self.workers,
        }
        return max(rest, key=lambda name: rest[name])


def tokens_per_second(job: Job, device: Device) -> float:
    """Return the assumed tokens per second of one pass on a device: 2 operations per weight."""
    return device.flops * UTILISATION / (2 * job.parameters)


def plan(
    job: Job,
    rate: float,
    workers: int = 1,
    *,
    price: float | None = None,
    distributed: bool = True,
) -> CostPlan:
    """Return the expected time and price of a query.

    `rate` is in tokens per second of one pass on one worker, assumed (:func:`tokens_per_second`)
    or measured (:func:`measured_rate`). `price` is in US dollars per hour of one worker. Without
    `distributed` one process scores the chunks, instead of the workers of a cluster.
    """
    if workers < 1 or not rate > 0:
        raise InputError(f"workers must be at least 1 and rate above 0, got {workers} and {rate}.")
    chunks = math.ceil(job.items / job.chunk)
    item = PROMPT + job.tokens * (TOKEN + (job.passes + 1) / rate)
    work, prepare = job.items * item, job.items * (DRIVER + job.tokens * DRIVER_TOKEN)
    if not distributed:
        return CostPlan(prepare, 0, work, 0, 0, job.items * MERGE, work, 1, price)
    in_turn = math.ceil(chunks / workers) * min(job.chunk, job.items)
    written = job.items * (TEXT_BYTES * job.tokens + SCORE_BYTES)
    return CostPlan(
        prepare=prepare,
        start=START + job.parameters * 0.55 / LOADED,
        score=min(in_turn, job.items) * item,
        driver=chunks * CHUNK,
        storage=written / STORED,
        merge=job.items * MERGE,
        work=work,
        workers=workers,
        price=price,
    )


def measured_rate(items_per_second: float, tokens: float, passes: int) -> float:
    """Return tokens per second of one pass, from the items per second of `learner.estimate`."""
    return items_per_second * tokens * (passes + 1)


def stops_scaling(job: Job, rate: float) -> int:
    """Return the largest number of workers, to 100,000, that still score in half of their time."""
    return 1 + bisect_left(range(2, 100_001), True, key=lambda n: plan(job, rate, n).share < 0.5)


def assumptions(job: Job, device: Device | None, rate: float, price: float | None) -> list[str]:
    """Return the assumptions of a plan, one line each."""
    lines = [
        f"one pass computes {rate:,.0f} tokens per second on a worker: "
        + (
            "given"
            if device is None
            else f"ASSUMED, {UTILISATION:.0%} of {device.name}'s {device.flops / 1e12:.0f} TFLOP/s "
            f"(data sheet) at 2 x {job.parameters:,.0f} operations per token; not measured on a GPU"
        ),
        f"an item needs {job.passes} passes and one of the base model, {job.tokens:g} tokens each",
        f"the driver needs {DRIVER * 1e6:.0f} us per item, {DRIVER_TOKEN * 1e6:.2f} us per token "
        f"and {CHUNK * 1e3:.0f} ms per chunk of {job.chunk}; merging takes {MERGE * 1e6:.1f} us "
        "per item: measured on a CPU",
        f"workers make prompts in {PROMPT * 1e6:.0f} us per item and {TOKEN * 1e6:.2f} us per "
        "token: measured on a CPU",
        f"workers start in {START:.0f} s (measured on a CPU) and read 0.55 bytes per weight at "
        f"{LOADED / 1e9:.0f} GB/s; storage writes {STORED / 1e6:.0f} MB/s: ASSUMED",
        f"the driver holds {COLUMN_BYTES * job.items / 1e9:,.1f} GB of columns in temporary files "
        f"and {WAITING_BYTES * math.ceil(job.items / job.chunk) / 1e6:,.0f} MB of waiting chunks "
        "in memory",
    ]
    if price is not None:
        kind = "given" if device is None or price != device.price else "ASSUMED"
        lines.append(f"a worker costs {price:g} US dollars per hour: {kind}")
    if device is not None and job.parameters * 0.55 > device.memory_gb * 1e9:
        lines.append(f"WARNING: the weights alone do not fit into {device.memory_gb:.0f} GB")
    return lines
