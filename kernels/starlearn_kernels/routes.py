"""Choice of a route: the fastest one in the nearest row of a table of measured shapes.

`benchmarks/bench_linear_entropy.py --write-table` writes the table, routes.csv, from its results.
Each row is for one kind of device. The choice depends on device, dtype, K, D and V only.
"""

import csv
import functools
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

ROUTES = ("reference", "torch", "triton-fused", "triton-chunk")
# Routes that `auto` may choose; the reference stores all logits.
BOUNDED = ROUTES[1:]
TABLE = Path(__file__).with_name("routes.csv")
# Most passes in the second look of route triton-fused.
MOST_PASSES = 64
# Least compute capability for which the kernels have tiles: Ampere.
OLDEST_CAPABILITY = 8


@dataclass(frozen=True)
class Row:
    """Fastest route at one measured shape."""

    device: str  # kind: cpu, cuda
    dtype: str
    passes: int
    width: int
    vocabulary: int
    route: str
    times: str  # of all routes, as text
    hardware: str

    def distance(self, dtype: torch.dtype, passes: int, width: int, vocabulary: int) -> float:
        """Return the distance to a shape: doublings of K, D and V, and much more for the dtype."""
        own = getattr(torch, self.dtype)
        pairs = ((self.passes, passes), (self.width, width), (self.vocabulary, vocabulary))
        doublings = sum(abs(math.log2(mine / other)) for mine, other in pairs)
        return doublings + 1e3 * (own.itemsize != dtype.itemsize) + 1e2 * (own != dtype)


@dataclass(frozen=True)
class Choice:
    """A route and the reason for it."""

    route: str
    reason: str


FIELDS = ("device", "dtype", "K", "D", "V", "route", "times", "hardware")
# Workspace of the results that count: the default of `linear_entropy`.
WORKSPACE_MB = 64


def write_table(measured: Path, path: Path = TABLE) -> int:
    """Write the fastest bounded route of every measured shape, and return the number of shapes.

    Of results with the same route and shape the largest N counts, and of these the last one.
    """
    shapes: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    with measured.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            # Concatenated files repeat the header, which is no contender's result.
            known_route = row["contender"] in BOUNDED and row["ms_median"]
            if not known_route or float(row["workspace_mb"]) != WORKSPACE_MB:
                continue
            shape = tuple(row[name] for name in ("device_type", "dtype", "K", "D", "V"))
            known = shapes.setdefault(shape, {}).get(row["contender"])
            if known is None or int(row["N"]) >= int(known["N"]):
                shapes[shape][row["contender"]] = row
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        for shape, routes in sorted(shapes.items()):
            ranked = sorted(routes.values(), key=lambda row: float(row["ms_median"]))
            times = ", ".join(
                f"{row['contender']} {row['ms_median']} ms at N = {row['N']}" for row in ranked
            )
            best = ranked[0]
            hardware = f"{best['device']}, torch {best['torch']}, {best['threads']} threads"
            writer.writerow([*shape, best["contender"], times, hardware])
    return len(shapes)


@functools.cache
def read_table(path: Path = TABLE) -> tuple[Row, ...]:
    """Read the rows of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(
            Row(
                line["device"],
                line["dtype"],
                int(line["K"]),
                int(line["D"]),
                int(line["V"]),
                line["route"],
                line["times"],
                line["hardware"],
            )
            for line in csv.DictReader(file)
        )


def choose_route(
    device: torch.device,
    dtype: torch.dtype,
    passes: int,
    width: int,
    vocabulary: int,
    *,
    hidden_dtype: torch.dtype | None = None,
) -> Choice:
    """Choose the route that was fastest at the nearest measured shape.

    Of the device only its kind counts. ``dtype`` is that of the weight, and ``hidden_dtype`` that
    of the hidden states if it is another one.
    """
    rows = [row for row in read_table() if row.device == device.type]
    if not rows:
        return Choice(
            "torch",
            f"the table has no row for {device.type}, because no route was measured there; to use "
            "the kernels, pass route='triton-fused' or 'triton-chunk'",
        )
    nearest = min(rows, key=lambda row: row.distance(dtype, passes, width, vocabulary))
    reason = (
        f"the fastest measured at K = {nearest.passes}, D = {nearest.width}, "
        f"V = {nearest.vocabulary}, {nearest.dtype} on {nearest.device}, the nearest row of the "
        f"table ({nearest.times}; {nearest.hardware})"
    )
    obstacle = _obstacle(nearest.route, device, passes, dtype, hidden_dtype or dtype)
    if obstacle:
        return Choice("torch", f"{nearest.route} is {reason}, but {obstacle}")
    return Choice(nearest.route, reason)


def _obstacle(
    route: str, device: torch.device, passes: int, dtype: torch.dtype, hidden_dtype: torch.dtype
) -> str | None:
    """Return why a Triton route cannot take a head, or None."""
    if not route.startswith("triton"):
        return None
    if find_spec("triton") is None:
        return "triton is not installed"
    if hidden_dtype != dtype:
        return f"it needs one dtype, and hidden is {hidden_dtype}, weight {dtype}"
    if passes > MOST_PASSES:
        return f"it takes at most {MOST_PASSES} passes"
    if device.type == "cuda" and torch.cuda.is_available():
        return _obstacle_on(device)
    return None


@functools.cache
def _obstacle_on(device: torch.device) -> str | None:
    """Return why Triton's kernels cannot run on a GPU, or None."""
    if torch.version.hip:
        return "it was made for CUDA, and this is ROCm"
    major, minor = torch.cuda.get_device_capability(device)
    if major < OLDEST_CAPABILITY:
        return f"it needs compute capability {OLDEST_CAPABILITY}, this GPU has {major}.{minor}"
    import triton

    try:
        # Builds Triton's helpers, which are C that includes Python.h.
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # noqa: BLE001 (route "torch" works without)
        return (
            f"Triton cannot start ({type(error).__name__}: {error}); it needs a C compiler (gcc or "
            "CC) and Python's headers (python3-dev)"
        )
    return None
