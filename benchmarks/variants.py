"""Tuning runs as rows: collects the finished lines of studies/variants.toml and prints their table.

starlearn study benchmarks/studies/variants.toml --out runs/variants
python benchmarks/variants.py runs/variants
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from measuring import parser_of
from tables import table

from starlearn.evaluate.run_log import read_lines

ROWS = Path(__file__).parent / "results" / "variants.csv"
TASKS = ["skewed", "homogeneous", "noisy", "steps"]
RUN = ["task", "arm", "seed"]


def collected(folders: Sequence[Path], file: Path = ROWS) -> pd.DataFrame:
    """Return the rows of the file and of all finished lines; a run that is in both counts once."""
    files = [file for folder in folders for file in sorted(folder.glob("*.jsonl"))]
    lines = [line for name in files for line in read_lines(name)]
    new = pd.DataFrame(
        {
            **{name: line[name] for name in (*RUN, "key", "aulc")},
            "final_accuracy": round(line["rounds"][-1]["accuracy"], 6),
            "cpu_seconds": line["cpu_seconds"],
        }
        for line in lines
        if not line.get("error") and line["purpose"] == "tuning"
    )
    old = pd.read_csv(file) if file.exists() else new
    rows = pd.concat([old, new]).drop_duplicates("key")
    order = dict(zip(TASKS, range(len(TASKS)), strict=True))
    return rows.sort_values(
        ["task", "seed", "arm"],
        key=lambda column: column.replace(order) if column.name == "task" else column,
    ).reset_index(drop=True)


def differences(rows: pd.DataFrame, against: str = "random") -> pd.DataFrame:
    """Return each arm's mean difference of AULC to another over paired seeds, and their number."""
    wide = rows.pivot_table(index=["task", "seed"], columns="arm", values="aulc")
    paired = wide.drop(columns=against).sub(wide[against], axis=0).groupby("task")
    mean, count = paired.mean().T, paired.count().T
    text = mean.map("{:+.3f}".format) + " (" + count.astype(str) + ")"
    return text.where(count > 0, "")[[task for task in TASKS if task in text]]


def main() -> None:
    """Write the rows, and print them against random choice and against plain uncertainty."""
    parser = parser_of(__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    rows = collected(parser.parse_args().folders)
    rows.to_csv(ROWS, index=False)
    for against in ("random", "plain_entropy"):
        print(f"\nAULC minus {against} (seeds)\n")
        found = differences(rows, against).reset_index()
        print(table(found, list(found.columns)))


if __name__ == "__main__":
    main()
