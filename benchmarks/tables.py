"""The tables of docs/performance/, from the rows that the benchmarks have written.

python benchmarks/tables.py
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from measuring import RESULTS

QUERY = {
    "contender": "settings",
    "ms_per_item_median": "ms an item",
    "quartiles": "quartiles",
    "ratio_to_naive": "x naive",
    "ratio_to_strong": "x strong",
    "cost_in_one_passes": "in one-pass queries",
}


def table(frame: pd.DataFrame, columns: dict[str, str] | Sequence[str]) -> str:
    """Lay out some columns of a frame, with other names where a dict gives them."""
    names = columns if isinstance(columns, dict) else {name: name for name in columns}
    lines: list[Iterable[str]] = [names.values(), ["---"] * len(names)]
    lines += frame[list(names)].fillna("").astype(str).to_numpy().tolist()
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read(name: str, folder: Path = RESULTS) -> pd.DataFrame:
    """Read the rows of one benchmark as text."""
    return pd.read_csv(folder / f"{name}.csv", dtype=str)


def query() -> None:
    """Print the times of queries: one table per task, K and round."""
    rows = read("query")
    rows["quartiles"] = rows["ms_per_item_quartile_1"] + " to " + rows["ms_per_item_quartile_3"]
    groups = ["task", "K_asked", "round"]
    # A one-pass query has K = 1 in its row; it belongs to the K of the rows around it.
    rows["K_asked"] = rows["K"].where(rows["contender"] != "one-pass").bfill()
    for key, part in rows.groupby(groups, sort=False):
        first = part.iloc[0]
        print(
            f"\n{key}: {first['model']}, {first['items']} items ({first['distinct_items']} "
            f"different), {first['tokens_mean']} prompt tokens, {first['answer_tokens_mean']} "
            f"answer tokens, n {first['n']}, {first['repeats']} rounds\n"
        )
        print(table(part, QUERY))


def agreement() -> None:
    """Print the effect of options: one table per task and measure, with K side by side."""
    rows = read("query_agreement")
    rows["rho, overlap"] = rows["rho"].fillna("") + ", " + rows["overlap"]
    for key, part in rows.groupby(["task", "measure", "n"], sort=False):
        wide = part.pivot_table(
            index="contender", columns="K", values="rho, overlap", aggfunc="last", sort=False
        ).reset_index()
        print(f"\n{key}: {part.iloc[0]['model']}, {part.iloc[0]['items']} items\n")
        print(table(wide, list(wide.columns)))


def budget() -> None:
    """Print times by token budget, relative to the default budget."""
    rows = read("query_budget")
    rows["task"] += " (" + rows["items"] + " items)"
    for stage, part in rows.groupby("stage", sort=False):
        wide = part.pivot_table(
            index="task", columns="budget", values="time_of_default_budget", aggfunc="last",
            sort=False,
        ).reset_index()  # fmt: skip
        print(f"\n{stage}\n")
        print(table(wide, list(wide.columns)))


def others() -> None:
    """Print the rows of scaling, training and start-up."""
    shown = {
        "scaling": "model varied m L K V task s_median us_per_item peak_anonymous_mb "
        "extra_anonymous_mb peak_rss_mb scores_on_disk_mb slope_s intercept_s r_squared",
        "training": "model contender labels batch_size steps r ms_per_step_median "
        "ms_per_step_quartile_1 ms_per_step_quartile_3 time_of_plain peak_anonymous_mb "
        "peak_extra_mb largest_difference",
        "import": "command ms_quartile_1 ms_median ms_quartile_3 cpu_ms_median ms_over_python "
        "goal_ms met",
    }
    for name, columns in shown.items():
        print(f"\n{name}\n")
        print(table(read(name), columns.split()))


if __name__ == "__main__":
    query()
    agreement()
    budget()
    others()
