"""Time of a start: ``import starlearn`` and ``starlearn --help`` in fresh processes.

    python benchmarks/bench_import.py

Contenders take turns with an empty Python process; `ms_over_python` is what starlearn adds to it.
Where a goal of half a second is missed, the heaviest imports are printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measuring import COMMON, RESULTS, SPREAD, common, parser_of, spread_columns, write_row

GOAL = 0.5
PROGRAMS = {
    "python": ["-c", "pass"],
    "import starlearn": ["-c", "import starlearn"],
    "starlearn --help": ["-c", "from starlearn.cli.app import app; app()", "--help"],
    "import STARLearner": ["-c", "from starlearn import STARLearner"],
}
"""The last one has no goal: it is what the first use of the learner costs."""
FIELDS = [
    *COMMON, "command", "repeats", "clock", *(f"ms_{name}" for name in SPREAD), "cpu_ms_median",
    "ms_over_python", "goal_ms", "met", "note",
]  # fmt: skip


def start(arguments: list[str]) -> tuple[float, float]:
    """Return wall and CPU seconds of one process."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system
    return wall, cpu - before.children_user - before.children_system


def heaviest_imports(arguments: list[str], n: int) -> list[str]:
    """Return the imports with the largest times of their own, in microseconds."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")][1:]
    parts = [line.removeprefix("import time:").split("|") for line in lines]
    largest = sorted(parts, key=lambda part: -int(part[1]))[:n]
    return [f"{int(own):>8} {int(total):>9} {name.strip()}" for own, total, name in largest]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--imports", type=int, default=20, help="how many to list")
    parser.add_argument("--always-list", action="store_true", help="also when the goals are met")
    parser.add_argument("--out", type=Path, default=RESULTS / "import.csv")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse(arguments)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
    for program in PROGRAMS.values():
        start(program)  # compiled files and the disk's cache
    for _ in range(args.repeats):
        for name, program in PROGRAMS.items():
            times[name].append(start(program))
    empty = [wall for wall, _ in times["python"]]
    for name, taken in times.items():
        wall = [seconds for seconds, _ in taken]
        over = [one - other for one, other in zip(wall, empty, strict=True)]
        has_goal = name in ("import starlearn", "starlearn --help")
        met = statistics.median(wall) < GOAL
        row = common("cpu") | {
            "command": name,
            "repeats": len(wall),
            "clock": "wall",
            "cpu_ms_median": f"{statistics.median(cpu for _, cpu in taken) * 1e3:.1f}",
            "ms_over_python": f"{statistics.median(over) * 1e3:.1f}",
            "goal_ms": GOAL * 1e3 if has_goal else "",
            "met": met if has_goal else "",
        }
        row |= spread_columns("ms", [1e3 * seconds for seconds in wall], 1)
        write_row(args.out, FIELDS, row)
        if has_goal and (args.always_list or not met):
            print("     own     total import (microseconds)")
            print(*heaviest_imports(PROGRAMS[name], args.imports), sep="\n")


if __name__ == "__main__":
    main()
