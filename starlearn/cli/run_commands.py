"""starlearn run and starlearn demo: a study with one task and one seed, shown round by round."""

import os
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starlearn.console import exit_on_error, make_console, plain
from starlearn.errors import InputError

if TYPE_CHECKING:
    from starlearn.evaluate.runs import Run

app = typer.Typer()

Strategy = StrEnum("Strategy", ["uncertainty", "random", "both"])
PoolKind = StrEnum("PoolKind", ["skewed", "homogeneous", "noisy", "steps"])
DatasetName = StrEnum("DatasetName", ["gsm8k", "boolq", "openbookqa"])
Quantization = StrEnum("Quantization", ["nf4", "fp4", "none"])
Measure = StrEnum("Measure", ["entropy", "predictive_entropy", "mutual_information", "bald"])

ARMS = {"uncertainty": ["default"], "random": ["random"], "both": ["default", "random"]}
ROUNDS_FILE = "rounds.jsonl"
Records = dict[str, list[dict[str, Any]]]


def option(text: str, *names: str, least: int | None = None) -> Any:
    """Describe one option of a command."""
    return typer.Option(*names, help=text, min=least)


@app.command()
def demo(
    rounds: Annotated[int, option("Rounds after the initial labels.", least=1)] = 5,
    n_instances: Annotated[int, option("Labels bought per round.", least=1)] = 50,
    seed: Annotated[int, option("Seed of pool, initial labels and training.", least=0)] = 0,
    pool: Annotated[PoolKind, option("Kind of the embedded pool.")] = PoolKind.skewed,
    out: Annotated[Path, option("Folder for the report; replaced.")] = Path("runs/demo"),
) -> None:
    """Compare the default query with random choice, on the embedded 4-bit model and a pool."""
    finished = FinishedRounds(out)
    with exit_on_error(finished.advice):
        task = {"name": pool.value, "source": "embedded", "pool": pool.value}
        settings = {
            "n_initial": n_instances,
            "n_instances": n_instances,
            "n_rounds": rounds,
            "adapter": {"r": 16, "alpha": 32, "dropout": 0.1},
            "acquisition": {"measure": "mutual_information", "n_passes": 3, "schedule": 0.0},
            "training": {"epochs": 1, "max_steps": 150, "learning_rate": 3e-3},
        }
        sizes = {"n_items": 1000, "n_test": 200}
        play_study(task | sizes, ARMS["both"], seed, settings, finished, overwrite=True)


@app.command()
def run(
    model: Annotated[str, option("Folder or hub id of the base model.")],
    out: Annotated[Path, option("Folder for the report.")],
    train: Annotated[Path | None, option("Pool: .jsonl, .csv, .parquet or Dataset.")] = None,
    test: Annotated[Path | None, option("Test set, in the same formats.")] = None,
    text_field: Annotated[str, option("Field or column of the text.")] = "text",
    label_field: Annotated[str, option("Field or column of the label.")] = "label",
    prompt: Annotated[str, option("Template; \\n is a line break.")] = "{text}\\nAnswer:",
    chat: Annotated[bool, option("Use the model's chat template.", "--chat")] = False,
    system: Annotated[str | None, option("System message, with --chat.")] = None,
    dataset: Annotated[DatasetName | None, option("One of the paper's data sets.")] = None,
    data: Annotated[Path | None, option("Folder of the data set; by default the hub.")] = None,
    strategy: Annotated[
        Strategy, option("How to select: by the model, at random, or both for comparison.")
    ] = Strategy.uncertainty,
    rounds: Annotated[int, option("Rounds after the initial labels.", least=1)] = 5,
    n_instances: Annotated[int, option("Labels bought per round.", least=1)] = 50,
    initial: Annotated[
        int | None, option("Initial random labels; default: n-instances.", least=0)
    ] = None,
    seed: Annotated[int, option("Seed of every draw.", least=0)] = 0,
    quantization: Annotated[Quantization, option("Weights of the base.")] = Quantization.nf4,
    r: Annotated[int, option("Rank of the adapter.", "--r", least=1)] = 64,
    alpha: Annotated[float, option("The adapter is scaled by alpha / r.")] = 16,
    dropout: Annotated[float, option("Dropout on A.")] = 0.1,
    learning_rate: Annotated[float, option("Peak learning rate.")] = 1.5e-4,
    epochs: Annotated[int, option("Passes over the labels.", least=1)] = 3,
    max_steps: Annotated[int | None, option("Fixed steps instead of epochs.", least=1)] = None,
    n_passes: Annotated[int, option("Monte-Carlo dropout passes.", least=1)] = 3,
    measure: Annotated[Measure, option("Measure of uncertainty.")] = Measure.mutual_information,
    schedule: Annotated[
        str, option("Weight of the base model: published, or a number from 0 to 1.")
    ] = "0",
    sub_pool: Annotated[
        int | None, option("Score only this many random items per round.", least=1)
    ] = None,
    n_test: Annotated[int | None, option("Use only this many random test rows.", least=1)] = None,
    max_chars: Annotated[int | None, option("Leave out longer rows.", least=1)] = None,
    max_new_tokens: Annotated[
        int | None, option("Labels are free-form answers of at most this many tokens.", least=1)
    ] = None,
    answer_pattern: Annotated[
        str | None, option("Regular expression of the final answer in a free-form answer.")
    ] = None,
    overwrite: Annotated[bool, option("Replace the run in --out.", "--overwrite")] = False,
) -> None:
    """Simulate active learning on labelled data: a label is used only when it is bought.

    Labels in the files are the exact answers, and all classes are known from the start. With
    --max-new-tokens the labels are free-form answers instead.
    """
    finished = FinishedRounds(out)
    with exit_on_error(finished.advice):
        task: dict[str, Any] = {"max_new_tokens": max_new_tokens, "answer_pattern": answer_pattern}
        task |= {"n_test": n_test, "max_chars": max_chars, "chat": chat, "system": system}
        if dataset is not None:
            if train or test:
                raise InputError("give --dataset or --train and --test, not both")
            task |= {"name": dataset.value, "source": "benchmark", "dataset": dataset.value}
            task["folder"] = None if data is None else str(data)
        elif train is None or test is None:
            raise InputError("give --train FILE and --test FILE, or --dataset NAME")
        else:
            task |= {"name": "files", "source": "files", "folder": "."}
            task |= {"train": str(train), "test": str(test), "prompt": prompt.replace("\\n", "\n")}
            task |= {"text_field": text_field, "label_field": label_field}
        settings = {
            "model": model,
            "quantization": quantization.value,
            "n_initial": n_instances if initial is None else initial,
            "n_instances": n_instances,
            "n_rounds": rounds,
            "sub_pool": sub_pool,
            "adapter": {"r": r, "alpha": alpha, "dropout": dropout},
            "acquisition": {
                "measure": measure.value,
                "n_passes": n_passes,
                "schedule": as_schedule(schedule),
            },
            "training": {"epochs": epochs, "max_steps": max_steps, "learning_rate": learning_rate},
        }
        play_study(task, ARMS[strategy.value], seed, settings, finished, overwrite=overwrite)


def as_schedule(text: str) -> str | float:
    """Return a schedule as a number where it is one, else as a name."""
    try:
        return float(text)
    except ValueError:
        return text


class FinishedRounds:
    """File of the finished rounds. It is made with the first one, so a refused run leaves none."""

    def __init__(self, out: Path) -> None:
        self.out, self.file = out, out / ROUNDS_FILE
        self.made: list[Path] | None = None
        """Folders that were made for the file; None before the first round."""

    def check(self, *, overwrite: bool) -> None:
        """Raise InputError where the file has rounds already, or the folder cannot be written."""
        if self.file.exists() and self.file.stat().st_size and not overwrite:
            raise InputError(f"{self.out} already has a run; use another --out, or add --overwrite")
        nearest = next(one for one in (self.out, *self.out.parents) if one.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(
                f"cannot write to {self.out} ({nearest} is not a folder that you can write to); "
                "use another folder with --out"
            )

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a round; the first one replaces the rounds of an earlier run."""
        from starlearn.evaluate.run_log import append_line

        if self.made is None:
            self.made = [one for one in (self.out, *self.out.parents) if not one.exists()]
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                self.file.write_text("")
            except OSError as error:
                raise InputError(
                    f"cannot write to {self.out} ({error.strerror}); use another folder with --out"
                ) from error
        append_line(self.file, record)

    def remove(self) -> None:
        """Remove the rounds of this run, and the folders that were made for them."""
        if self.made is None:
            return
        self.file.unlink(missing_ok=True)
        with suppress(OSError):  # another program's files stay
            for folder in self.made:
                folder.rmdir()
        self.made = None

    def advice(self) -> str:
        """Return which results are kept."""
        if self.made is None:
            return "No round was finished, and nothing was written."
        return f"Finished rounds are in {self.file}"


def play_study(
    task: Mapping[str, Any],
    arms: list[str],
    seed: int,
    settings: Mapping[str, Any],
    finished: FinishedRounds,
    *,
    overwrite: bool,
) -> None:
    """Play all arms of one task and one seed; write the report, and print the table by round."""
    from starlearn.evaluate.run_report import write_report
    from starlearn.evaluate.runs import play, require_usable, runs_of
    from starlearn.evaluate.statistics import aulc
    from starlearn.evaluate.study_file import FIRST_TUNING_SEED, Study
    from starlearn.evaluate.study_tasks import load_task
    from starlearn.storage.toml_settings import checked_settings

    values = {
        "name": "run",
        "purpose": "report" if seed < FIRST_TUNING_SEED else "tuning",
        "arms": arms,
        "seeds": {"first": seed, "count": 1},
        "settings": {**settings, "n_probe": 0},
        "tasks": [task],
    }
    study = checked_settings(Study, values, "The options")
    finished.check(overwrite=overwrite)
    runs = list(runs_of(study))
    for one in runs:
        require_usable(one)
    console = make_console()
    leaks = load_task(study.tasks[0], seed).leaks
    if leaks:
        console.print(plain(f"Note: {leaks}. The rounds also have the accuracy without them."))
    records: Records = {}
    with make_progress(console) as progress:
        for one in runs:
            records[one.arm] = []
            try:
                play(one, Watcher(progress, one, records[one.arm], finished), threads=None)
            except InputError:
                finished.remove()  # the corrected command finds an empty folder
                raise
    shown: dict[str, Any] = {"seed": seed}
    for name, value in {**task, **settings}.items():
        shown |= value if isinstance(value, dict) else {name: value}
    shown["leaks"] = leaks or "no test item is in the pool"
    write_report(finished.out, records, shown)
    console.print(table_by_round(records))
    areas = ", ".join(f"{arm} {aulc(rounds):.3f}" for arm, rounds in records.items())
    caution = " (one seed is not evidence)" if len(records) > 1 else ""
    report = finished.out / "report.html"
    console.print(plain(f"Area under the learning curve: {areas}{caution}. Open {report}"))


def make_progress(console: Any) -> Any:
    """Return progress bars, which are silent where the output is not a terminal."""
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
    """Listener to the rounds of one run, which moves its bar, and prints and saves each round.

    The records of the rounds are appended to `records`, and to the file of `finished` rounds.
    """

    def __init__(
        self, progress: Any, run: "Run", records: list[Any], finished: FinishedRounds
    ) -> None:
        self.progress, self.arm, self.records, self.finished = progress, run.arm, records, finished
        self.n_rounds = run.settings.n_rounds
        steps = 3 * self.n_rounds + (2 if run.settings.n_initial else 0)
        self.bar = progress.add_task(f"{self.arm}: loading the model", total=steps)
        self.done = 0

    def __call__(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Show or save one event of `starlearn.evaluate.simulate.simulate`."""
        if kind == "step":
            text = f"{self.arm}: round {payload['round']} of {self.n_rounds}, {payload['step']}"
            self.progress.update(self.bar, description=text, completed=self.done)
            self.done += 1
            return
        self.records.append(payload)
        self.finished.append({"arm": self.arm, **payload})
        self.progress.update(self.bar, completed=self.done)
        self.progress.console.print(
            f"{self.arm:>7}  round {payload['round']}  labels {payload['n_labels']}  "
            f"accuracy {payload['accuracy']:.3f}"
        )


def table_by_round(records: Records) -> Any:
    """Return a table of each round: accuracy per arm, weight of the base model, and seconds."""
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
