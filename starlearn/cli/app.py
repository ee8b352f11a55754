"""The command line: demo, run and the campaign's commands. Heavy imports happen when one runs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from starlearn.cli import (
    campaign_commands,
    exchange_commands,
    maintenance,
    plan,
    report_command,
    study_command,
)
from starlearn.cli.run_display import (
    Records,
    Watcher,
    closing_line,
    make_progress,
    rounds_kept,
    table_by_round,
)
from starlearn.console import make_console, told_plainly
from starlearn.errors import InputError, listed
from starlearn.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pick the prompts worth labelling, fine-tune in 4 bits, repeat.",
)

Strategy = StrEnum("Strategy", ["star", "random", "both"])
PoolKind = StrEnum("PoolKind", ["skewed", "homogeneous", "noisy", "steps"])
DatasetName = StrEnum("DatasetName", ["gsm8k", "boolq", "openbookqa"])
Quantization = StrEnum("Quantization", ["nf4", "fp4", "none"])
Measure = StrEnum("Measure", ["entropy", "predictive_entropy", "mutual_information"])

DEMO_ITEMS, DEMO_TEST = 1000, 200


def option(text: str, *names: str, least: int | None = None) -> Any:
    """Describe one option of a command."""
    return typer.Option(*names, help=text, min=least)


@dataclass(frozen=True)
class Data:
    """A pool with its labels, a test set, and the task: what both commands bring."""

    items: Sequence[Any]
    labels: Sequence[str]
    test_items: Sequence[Any]
    test_labels: Sequence[str]
    task: Any


@dataclass(frozen=True)
class Plan:
    """Every setting of a run; shown in its report."""

    model: str | None
    strategy: str
    rounds: int
    n_instances: int
    initial: int
    seed: int
    quantization: str
    r: int
    alpha: float
    dropout: float
    learning_rate: float
    epochs: int
    max_steps: int | None
    n_passes: int
    measure: str
    schedule: str | float
    sub_pool: int | None


def as_schedule(text: str) -> str | float:
    """Read a schedule from the command line; settings refuse what is neither word nor number."""
    try:
        return float(text)
    except ValueError:
        return text


def make_learner(plan: Plan, task: Any, strategy: str) -> Any:
    """Make the learner of one arm and check it; all arms share model, seed and settings."""
    from starlearn.learner.estimator import STARLearner
    from starlearn.learner.inputs import checked_parts
    from starlearn.settings import Acquisition, LoRA, Training

    learner = STARLearner(
        plan.model,
        task=task,
        quantization=plan.quantization,
        adapter=LoRA(r=plan.r, alpha=plan.alpha, dropout=plan.dropout),
        acquisition=Acquisition(
            strategy=strategy,
            measure=plan.measure,
            n_passes=plan.n_passes,
            schedule=plan.schedule,
        ),
        training=Training(
            epochs=plan.epochs, max_steps=plan.max_steps, learning_rate=plan.learning_rate
        ),
        random_state=plan.seed,
        verbose=False,
    )
    checked_parts(learner)
    return learner


def play(
    plan: Plan, data: Data, out: Path, more_settings: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Run all arms with progress bars, write the report, and print the table by round."""
    from starlearn.evaluate.run_report import write_report
    from starlearn.evaluate.simulate import simulate

    console = make_console()
    records: Records = {}
    with make_progress(console) as progress:
        for arm in ["star", "random"] if plan.strategy == "both" else [plan.strategy]:
            learner = make_learner(plan, data.task, arm)
            if not records:  # settings are found good before a folder is made or emptied
                prepare_folder(out, overwrite=overwrite)
            steps = 3 * plan.rounds + (2 if plan.initial else 0)
            records[arm] = simulate(
                learner,
                data.items,
                data.labels,
                data.test_items,
                data.test_labels,
                n_initial=plan.initial,
                n_instances=plan.n_instances,
                n_rounds=plan.rounds,
                random_state=plan.seed,
                sub_pool=plan.sub_pool,
                on_event=Watcher(progress, arm, plan.rounds, steps, out / "rounds.jsonl"),
            )
    write_report(out, records, {**asdict(plan), **more_settings})
    console.print(table_by_round(records))
    console.print(closing_line(records, out))


def prepare_folder(out: Path, *, overwrite: bool) -> None:
    """Make the folder of a run before any model work; an earlier run is not lost by chance."""
    rounds = out / "rounds.jsonl"
    if rounds.exists() and not overwrite:
        raise InputError(f"{out} already holds a run; give another --out, or add --overwrite")
    try:
        out.mkdir(parents=True, exist_ok=True)
        rounds.write_text("")
    except OSError as error:
        raise InputError(
            f"cannot write to {out} ({error.strerror}); give another folder with --out"
        ) from error


def file_data(
    train: Path | None,
    test: Path | None,
    text_field: str,
    label_field: str,
    prompt: str,
    max_new_tokens: int | None,
    answer_pattern: str | None,
) -> Data:
    """Read a pool and a test set of the user's own, and make their task."""
    from starlearn.data.readers import load_labelled
    from starlearn.tasks import ChoiceTask, GenerationTask

    if train is None or test is None:
        raise InputError("give --train FILE and --test FILE, or --dataset NAME")
    items, labels = load_labelled(train, text_field, label_field)
    test_items, test_labels = load_labelled(test, text_field, label_field)
    prompt = prompt.replace("\\n", "\n")
    if max_new_tokens is not None:
        task: Any = GenerationTask(prompt, max_new_tokens, answer_pattern)
    elif answer_pattern is not None:
        raise InputError("--answer-pattern is for free-form answers; add --max-new-tokens N")
    else:
        task = ChoiceTask(prompt, choices=choices_of(labels, test_labels))
    task.check()
    return Data(items, labels, test_items, test_labels, task)


def choices_of(labels: Sequence[str], test_labels: Sequence[str]) -> list[str]:
    """Return the closed set of labels, and refuse spellings that would split a class in two."""
    choices = sorted(set(labels))
    by_spelling: dict[str, list[str]] = {}
    for label in choices:
        by_spelling.setdefault(label.casefold(), []).append(label)
    twins = [" and ".join(map(repr, forms)) for forms in by_spelling.values() if len(forms) > 1]
    if twins:
        raise InputError(f"labels that differ only in case: {listed(twins)}; spell them one way")
    unknown = [repr(label) for label in sorted(set(test_labels) - set(choices))]
    if unknown:
        raise InputError(
            f"labels of the test file that the training file lacks: {listed(unknown)}; remove "
            "these test rows, or for free-form answers add --max-new-tokens N"
        )
    return choices


def benchmark_data(name: str, folder: Path | None, max_new_tokens: int | None) -> Data:
    """Load one of the paper's data sets."""
    from starlearn.evaluate.benchmarks import load_benchmark

    found = load_benchmark(name, folder)
    if max_new_tokens is not None:
        if name != "gsm8k":
            raise InputError(f"--max-new-tokens is for free-form answers; {name} has none")
        found.task.set_params(max_new_tokens=max_new_tokens)
    return Data(
        found.train_items, found.train_labels, found.test_items, found.test_labels, found.task
    )


def cut_down(data: Data, max_chars: int | None, n_test: int | None, seed: int) -> Data:
    """Leave out long rows of pool and test set, and draw the test rows to score, all by request."""
    import numpy as np

    def short(items: Sequence[Any], labels: Sequence[str]) -> list[int]:
        texts = [item if isinstance(item, str) else "".join(item.values()) for item in items]
        lengths = [len(text) + len(label) for text, label in zip(texts, labels, strict=True)]
        return [row for row, n in enumerate(lengths) if max_chars is None or n <= max_chars]

    rows, test_rows = short(data.items, data.labels), short(data.test_items, data.test_labels)
    if not rows or not test_rows:
        raise InputError(f"no row of at most {max_chars} characters; raise --max-chars")
    if n_test is not None and n_test < len(test_rows):
        drawn = np.random.default_rng([seed, 2]).choice(len(test_rows), n_test, replace=False)
        test_rows = [test_rows[i] for i in sorted(drawn)]
    return Data(
        [data.items[i] for i in rows],
        [data.labels[i] for i in rows],
        [data.test_items[i] for i in test_rows],
        [data.test_labels[i] for i in test_rows],
        data.task,
    )


def show_version(asked: bool) -> None:
    """Print the version and stop."""
    if asked:
        typer.echo(f"starlearn {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Pick the prompts worth labelling, fine-tune in 4 bits, repeat."""


@app.command()
def demo(
    rounds: Annotated[int, option("Rounds after the initial labels.", least=1)] = 5,
    n_instances: Annotated[int, option("Labels bought in a round.", least=1)] = 50,
    seed: Annotated[int, option("Decides pool, initial labels and training.", least=0)] = 0,
    pool: Annotated[PoolKind, option("Which of the embedded pools.")] = PoolKind.skewed,
    out: Annotated[Path, option("Folder for the report; replaced.")] = Path("runs/demo"),
) -> None:
    """Watch the default query beside random choice, on the embedded 4-bit model and a pool."""
    with told_plainly(rounds_kept(out)):
        from starlearn.embedded.pools import make_pool
        from starlearn.tasks import ChoiceTask, GenerationTask

        made = make_pool(pool.value, DEMO_ITEMS, DEMO_TEST, random_state=seed)
        task: Any = ChoiceTask(made.prompt, made.choices)
        if made.choices is None:
            task = GenerationTask(made.prompt, 32, made.answer_pattern)
        plan = Plan(
            model=None,
            strategy="both",
            rounds=rounds,
            n_instances=n_instances,
            initial=n_instances,
            seed=seed,
            quantization="nf4",
            r=16,
            alpha=32,
            dropout=0.1,
            learning_rate=3e-3,
            epochs=1,
            max_steps=150,
            n_passes=3,
            measure="mutual_information",
            schedule=0.0,
            sub_pool=None,
        )
        data = Data(made.items, made.labels, made.test_items, made.test_labels, task)
        sizes = {"pool items": DEMO_ITEMS, "test items": DEMO_TEST}
        play(plan, data, out, {"pool": pool.value, **sizes}, overwrite=True)


@app.command()
def run(
    model: Annotated[str, option("Folder or hub id of the base model.")],
    out: Annotated[Path, option("Folder for the report.")],
    train: Annotated[Path | None, option("Pool with labels: .jsonl or .csv.")] = None,
    test: Annotated[Path | None, option("Test set: .jsonl or .csv.")] = None,
    text_field: Annotated[str, option("Field or column of the text.")] = "text",
    label_field: Annotated[str, option("Field or column of the label.")] = "label",
    prompt: Annotated[str, option("Template; \\n is a line break.")] = "{text}\\nAnswer:",
    dataset: Annotated[DatasetName | None, option("One of the paper's data sets.")] = None,
    data: Annotated[Path | None, option("Its folder; without it, the hub.")] = None,
    strategy: Annotated[Strategy, option("How to choose.")] = Strategy.star,
    rounds: Annotated[int, option("Rounds after the initial labels.", least=1)] = 5,
    n_instances: Annotated[int, option("Labels bought in a round.", least=1)] = 50,
    initial: Annotated[
        int | None, option("Random labels before; default: n-instances.", least=0)
    ] = None,
    seed: Annotated[int, option("Decides every draw.", least=0)] = 0,
    quantization: Annotated[Quantization, option("Weights of the base.")] = Quantization.nf4,
    r: Annotated[int, option("Rank of the adapter.", "--r", least=1)] = 64,
    alpha: Annotated[float, option("The adapter is scaled by alpha / r.")] = 16,
    dropout: Annotated[float, option("Dropout on A.")] = 0.1,
    learning_rate: Annotated[float, option("Peak learning rate.")] = 1.5e-4,
    epochs: Annotated[int, option("Passes over the labels.", least=1)] = 3,
    max_steps: Annotated[int | None, option("Fixed steps instead of epochs.", least=1)] = None,
    n_passes: Annotated[int, option("Monte-Carlo dropout passes.", least=1)] = 3,
    measure: Annotated[Measure, option("What uncertainty is.")] = Measure.mutual_information,
    schedule: Annotated[
        str, option("Share of the base model: published, or a number from 0 to 1.")
    ] = "0",
    sub_pool: Annotated[int | None, option("Score so many random items a round.", least=1)] = None,
    n_test: Annotated[int | None, option("Score so many random test rows.", least=1)] = None,
    max_chars: Annotated[int | None, option("Leave longer rows out.", least=1)] = None,
    max_new_tokens: Annotated[
        int | None, option("Labels are texts to write, of at most so many tokens.", least=1)
    ] = None,
    answer_pattern: Annotated[
        str | None, option("Regular expression of the final answer in a text.")
    ] = None,
    overwrite: Annotated[bool, option("Replace the run in --out.", "--overwrite")] = False,
) -> None:
    """Run the loop on labelled data: the learner gets a label only when it is bought.

    Labels in the file are the answers word for word, and the names of all classes are known from
    the start. With --max-new-tokens they are free-form answers instead.
    """
    with told_plainly(rounds_kept(out)):
        if dataset is not None and (train or test):
            raise InputError("give --dataset or --train and --test, not both")
        if dataset is not None:
            found = benchmark_data(dataset.value, data, max_new_tokens)
        else:
            found = file_data(
                train, test, text_field, label_field, prompt, max_new_tokens, answer_pattern
            )
        found = cut_down(found, max_chars, n_test, seed)
        plan = Plan(
            model=model,
            strategy=strategy.value,
            rounds=rounds,
            n_instances=n_instances,
            initial=n_instances if initial is None else initial,
            seed=seed,
            quantization=quantization.value,
            r=r,
            alpha=alpha,
            dropout=dropout,
            learning_rate=learning_rate,
            epochs=epochs,
            max_steps=max_steps,
            n_passes=n_passes,
            measure=measure.value,
            schedule=as_schedule(schedule),
            sub_pool=sub_pool,
        )
        source = {"train": train, "test": test} if dataset is None else {"data set": dataset.value}
        sizes = {"pool items": len(found.items), "test items": len(found.test_items)}
        settings = {**source, "prompt": found.task.prompt, **sizes}
        play(plan, found, out, settings, overwrite=overwrite)


app.add_typer(campaign_commands.app)
app.add_typer(exchange_commands.app)
app.add_typer(maintenance.app)
app.add_typer(report_command.app)
app.add_typer(study_command.app)
app.add_typer(plan.app)
