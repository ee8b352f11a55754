"""What scoring a pool will take in time and money, before a machine is rented: a cost model.

Every figure of a plan is one of three kinds, and says which: given by the user, measured with this
package on a CPU, or assumed (data sheets and list prices). Nothing here was measured on a GPU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from starlearn.errors import InputError


@dataclass(frozen=True)
class Device:
    """What a worker computes on."""

    name: str
    flops: float
    """Peak of dense 16-bit products, in floating-point operations a second. Assumed: data sheet."""
    memory_gb: float
    price: float
    """US dollars an hour. Assumed: a round figure of the market, which moves."""


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
"""Share of the peak that 4-bit weights leave in a forward pass. Assumed."""
LOADED = 1e9
"""Bytes a second at which a worker reads a model from storage. Assumed."""
STORED = 500e6
"""Bytes a second that storage takes, all workers together. Assumed."""
START = 9.0
"""Seconds of CPU until workers have imported what they need and the driver has handed work out.
Measured on a CPU; where more processes start than there are cores, each waits for its turn."""
DRIVER, DRIVER_TOKEN = 6e-6, 0.04e-6
"""Seconds of the driver for an item, and for a token of it: to read and check it, to name its
chunk, and to leave it there. Measured on a CPU."""
PROMPT, TOKEN = 55e-6, 0.65e-6
"""Seconds of a worker to make an item a prompt, and for a token of it. Measured on a CPU."""
CHUNK = 8e-3
"""Seconds for a chunk besides its items: Ray's task and its files. Measured on a CPU, with the
worker's part in it: an upper bound for the driver."""
MERGE = 1.0e-6
"""Seconds to rank, mix and choose, for an item. Measured on a CPU."""
TEXT_BYTES = 2
"""Bytes of a token of an item's text in a chunk that waits. Measured: 1.7 to 2.6 a word."""
SCORE_BYTES = 95
"""Bytes of an item's scores in the files of its chunk, four choices. Measured."""
COLUMN_BYTES = 64
"""Bytes of an item's scores in the driver's columns, which lie in files."""
WAITING_BYTES = 600
"""Bytes of the driver's memory for a chunk that waits."""


@dataclass(frozen=True)
class Job:
    """A pool to score.

    Parameters
    ----------
    items : int
        m.
    tokens : float
        Mean length of a prompt.
    passes : int
        K; the base model's pass comes on top.
    parameters : float
        Of the model.
    chunk : int
        Items that are scored at a time.
    """

    items: int
    tokens: float
    passes: int
    parameters: float
    chunk: int = 2048

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value) or value <= 0:
                raise InputError(f"Job({name}=...) must be a number above 0, got {value!r}.")


@dataclass(frozen=True)
class CostPlan:
    """Where the time of a query goes, in seconds, and what it costs."""

    prepare: float
    """The driver reads the pool and cuts it into chunks, before workers start."""
    start: float
    score: float
    """Workers score: as long as the one with most chunks takes."""
    driver: float
    """The driver takes chunks in, while workers score."""
    storage: float
    """Files are written, while workers score."""
    merge: float
    """Ranking, mixing, choosing."""
    work: float
    """Scoring alone, by one worker."""
    workers: int
    price: float | None

    @property
    def seconds(self) -> float:
        """All of it."""
        during = max(self.score, self.driver, self.storage)
        return self.prepare + self.start + during + self.merge

    @property
    def money(self) -> float | None:
        """US dollars for all workers over the whole time."""
        return None if self.price is None else self.price * self.workers * self.seconds / 3600

    @property
    def share(self) -> float:
        """Share of their rented time in which workers score."""
        return self.work / (self.workers * self.seconds)

    @property
    def limit(self) -> str:
        """What most of the rest of the time goes to."""
        rest = {
            "driver (preparing chunks)": self.prepare,
            "start of workers": self.start,
            "driver (taking chunks in)": self.driver,
            "storage": self.storage,
            "merge": self.merge,
            "number of chunks (some workers have none, or one less)": self.score
            - self.work / self.workers,
        }
        return max(rest, key=lambda name: rest[name])


def tokens_per_second(job: Job, device: Device) -> float:
    """Return the assumed rate of one device: tokens of one pass a second, 2 operations a weight."""
    return device.flops * UTILISATION / (2 * job.parameters)


def plan(
    job: Job,
    rate: float,
    workers: int = 1,
    *,
    price: float | None = None,
    distributed: bool = True,
    trained: bool = True,
) -> CostPlan:
    """Tell what a query of a pool will take.

    Parameters
    ----------
    job : Job
    rate : float
        Tokens of one pass that one worker computes in a second: assumed
        (:func:`tokens_per_second`) or measured (:func:`measured_rate`).
    workers : int
    price : float, optional
        US dollars an hour of one worker.
    distributed : bool
        Whether chunks go to workers of a cluster, or are scored in one process.
    trained : bool
        Whether there is an adapter; before it, the base model's pass is all.

    Returns
    -------
    CostPlan
    """
    if workers < 1 or not rate > 0:
        raise InputError(f"A plan needs workers and a rate above 0, got {workers} and {rate}.")
    chunks = math.ceil(job.items / job.chunk)
    passes = job.passes + 1 if trained else 1
    item = PROMPT + job.tokens * (TOKEN + passes / rate)
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
    """Turn what `learner.estimate` says of a fitted learner into tokens of one pass a second."""
    return items_per_second * tokens * (passes + 1)


def stops_scaling(job: Job, rate: float, most: int = 100_000) -> int:
    """Return how many workers there can be before more than half of the time is not scoring."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if plan(job, rate, middle).share >= 0.5:
            low = middle
        else:
            high = middle - 1
    return low


def table(job: Job, rate: float, workers: Sequence[int], items: Sequence[int]) -> list[CostPlan]:
    """Work out plans for other numbers of items and workers: all pairs, items first."""
    return [plan(replace(job, items=m), rate, count) for m in items for count in workers]


def assumptions(job: Job, device: Device | None, rate: float, price: float | None) -> list[str]:
    """Say, a line each, what a plan rests on."""
    lines = [
        f"one pass computes {rate:,.0f} tokens a second on a worker: "
        + (
            "given"
            if device is None
            else f"ASSUMED, {UTILISATION:.0%} of {device.name}'s {device.flops / 1e12:.0f} TFLOP/s "
            f"(data sheet) at 2 x {job.parameters:,.0f} operations a token; not measured on a GPU"
        ),
        f"an item takes {job.passes} passes and one of the base model, {job.tokens:g} tokens each",
        f"the driver takes {DRIVER * 1e6:.0f} us an item, {DRIVER_TOKEN * 1e6:.2f} us a token and "
        f"{CHUNK * 1e3:.0f} ms a chunk of {job.chunk}; merging {MERGE * 1e6:.1f} us an item: "
        "measured on a CPU",
        f"workers make prompts in {PROMPT * 1e6:.0f} us an item and {TOKEN * 1e6:.2f} us a token: "
        "measured on a CPU",
        f"workers start in {START:.0f} s (measured on a CPU) and read 0.55 bytes a weight at "
        f"{LOADED / 1e9:.0f} GB/s; storage takes {STORED / 1e6:.0f} MB/s: ASSUMED",
        f"the driver holds {COLUMN_BYTES * job.items / 1e9:,.1f} GB of columns in temporary files "
        f"and {WAITING_BYTES * math.ceil(job.items / job.chunk) / 1e6:,.0f} MB of waiting chunks "
        "in memory",
    ]
    if price is not None:
        kind = "given" if device is None or price != device.price else "ASSUMED"
        lines.append(f"a worker costs {price:g} US dollars an hour: {kind}")
    if device is not None and job.parameters * 0.55 > device.memory_gb * 1e9:
        lines.append(f"WARNING: the weights alone do not fit into {device.memory_gb:.0f} GB")
    return lines
