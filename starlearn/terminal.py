"""What the command line prints: bars, lines, the table by round, and errors without a traceback."""

import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from starlearn.errors import (
    InputError,
    ModelMismatchError,
    NotFiniteError,
    StarlearnError,
    TrainingDivergedError,
    UntrustedFileError,
)

Records = dict[str, list[dict[str, Any]]]


def make_console(*, stderr: bool = False) -> Any:
    """Make a console that prints text as it is: no markup, no emoji codes, no highlighting."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def plain(text: str) -> str:
    r"""Spell out control and bidirectional characters, so that no text can steer the terminal.

    Examples
    --------
    >>> print(plain("red \x1b[31m text"))
    red \x1b[31m text
    """
    return "".join(
        character
        if character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        else character.encode("unicode_escape").decode()
        for character in text
    )


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
        from starlearn.evaluate.report import append_round

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
    from starlearn.evaluate.report import aulc

    areas = ", ".join(f"{arm} {aulc(rounds):.3f}" for arm, rounds in records.items())
    caution = " (one seed: a look, not evidence)" if len(records) > 1 else ""
    return plain(f"Area under the learning curve: {areas}{caution}. Open {out / 'report.html'}")


@contextmanager
def told_plainly(out: Path) -> Iterator[None]:
    """Turn our own errors into one message and an exit code, and Ctrl-C into what is kept."""
    try:
        yield
    except StarlearnError as error:
        make_console(stderr=True).print(f"Error: {plain(str(error))}")
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt:
        kept = f"Stopped. Rounds that had ended are in {out / 'rounds.jsonl'}"
        make_console(stderr=True).print(plain(kept))
        raise typer.Exit(130) from None


def exit_code(error: StarlearnError) -> int:
    """Return 2 for bad input, 5 for a model that cannot be used or trained, 1 otherwise."""
    if isinstance(error, InputError):
        return 2
    of_the_model = (
        ModelMismatchError,
        NotFiniteError,
        TrainingDivergedError,
        UntrustedFileError,
    )
    return 5 if isinstance(error, of_the_model) else 1
