"""What `starlearn run` and `starlearn demo` print: progress bars, and the table by round."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlearn.console import plain

Records = dict[str, list[dict[str, Any]]]


def make_progress(console: Any) -> Any:
    """Make progress bars; where the output is no terminal they stay silent."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class Watcher:
    """Listens to the rounds of one arm: moves its bar, prints and saves each round as it ends.

    Parameters
    ----------
    progress : rich.progress.Progress
    arm : str
        Name of the arm.
    rounds, steps : int
        Rounds after the initial one, and steps (query, teach, score) of all rounds together.
    file : path
        JSON lines, one a round.
    """

    def __init__(self, progress: Any, arm: str, rounds: int, steps: int, file: Path) -> None:
        self.progress, self.arm, self.rounds, self.file = progress, arm, rounds, file
        self.done = 0
        self.bar = progress.add_task(f"{arm}: loading the model", total=steps)

    def __call__(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Take one event of `starlearn.evaluate.simulate.simulate`."""
        from starlearn.evaluate.run_report import append_round

        if kind == "step":
            text = f"{self.arm}: round {payload['round']} of {self.rounds}, {payload['step']}"
            self.progress.update(self.bar, description=text, completed=self.done)
            self.done += 1
            return
        append_round(self.file, {"arm": self.arm, **payload})
        self.progress.update(self.bar, completed=self.done)
        self.progress.console.print(
            f"{self.arm:>6}  round {payload['round']}  labels {payload['n_labels']}  "
            f"accuracy {payload['accuracy']:.3f}"
        )


def table_by_round(records: Records) -> Any:
    """Make the table by round: accuracy of each arm, seconds of a round, weight of the base."""
    from rich.table import Table

    table = Table(title="Test accuracy by round")
    for name in ("round", "labels", *records, "weight of base", "seconds"):
        table.add_column(name, justify="right")
    for row in zip(*records.values(), strict=True):
        weights = [record["lambda"] for record in row if record["lambda"] is not None]
        seconds = sum(
            record[f"seconds_{step}"] for record in row for step in ("query", "teach", "score")
        )
        table.add_row(
            str(row[0]["round"]),
            str(row[0]["n_labels"]),
            *(f"{record['accuracy']:.3f}" for record in row),
            f"{weights[0]:.2f}" if weights else "",
            f"{seconds:.1f}",
        )
    return table


def closing_line(records: Records, out: Path) -> str:
    """Say what the area under each learning curve is, and where the report lies."""
    from starlearn.evaluate.run_report import aulc

    areas = ", ".join(f"{arm} {aulc(rounds):.3f}" for arm, rounds in records.items())
    caution = " (one seed: a look, not evidence)" if len(records) > 1 else ""
    return plain(f"Area under the learning curve: {areas}{caution}. Open {out / 'report.html'}")


def rounds_kept(out: Path) -> Callable[[], str]:
    """Say where the rounds of a stopped run are."""
    return lambda: f"Rounds that had ended are in {out / 'rounds.jsonl'}"
