"""starlearn study: run a study of tasks, arms and seeds, or report a finished one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starlearn.console import exit_on_error, make_console, plain
from starlearn.errors import InputError, listed

if TYPE_CHECKING:
    from starlearn.evaluate.study import StudyProgress

app = typer.Typer()


@app.command()
def study(
    file: Annotated[
        Path | None, typer.Argument(help="The study, a TOML file.", show_default=False)
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the results: one line per finished run, added to.")
    ] = Path("runs/study"),
    processes: Annotated[
        int, typer.Option(help="Number of runs at a time, one thread each.", min=1, max=1024)
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the missing runs and their expected time.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Play one finished run again, and compare it to its line."),
    ] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Value of ${NAME} in the study, before the environment; can be repeated.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write study.html, .md and .png for this folder."),
    ] = None,
) -> None:
    """Measure whether a strategy saves labels: every arm of every task with every seed.

    Interrupted with Ctrl-C? Run the same command again to resume. Runs with changed settings are
    not mixed with earlier ones. Exit code 1: some runs failed. After an update, --verify checks
    that new runs are comparable with the finished ones.
    """
    advice = f"Finished runs are kept in {out}: run the same command again to resume."
    with exit_on_error(lambda: advice):
        if (file is None) == (report is None):
            raise InputError("give either a study to run (STUDY.toml), or --report FOLDER")
        if report is not None:
            from starlearn.evaluate.study_report import write_study_report

            make_console().print(plain(f"Open {write_study_report(report)}"))
        elif file is not None:
            _run(file, out, processes, dry_run, verify, name_folders(where or []))


def _run(
    file: Path, out: Path, processes: int, dry_run: bool, verify: bool, where: dict[str, str]
) -> None:
    from starlearn.evaluate.study import failures, file_of, progress_of, run_study
    from starlearn.evaluate.study_file import read_study
    from starlearn.evaluate.study_tasks import load_task

    found = read_study(file, where)
    console = make_console()
    progress = progress_of(found, file_of(found, out))
    done, total = len(progress.finished), len(progress.runs)
    console.print(plain(f"{found.name}: {done} of {total} runs are finished in {out}"))
    for task in found.tasks:
        if leaks := load_task(task, found.seeds.first).leaks:
            console.print(plain(f"Note: task {task.name}: {leaks}"))
    if dry_run:
        _show_expected(progress, processes)
        return
    if verify:
        _verify(progress)
        return

    def show(line: dict[str, Any]) -> None:
        nonlocal done
        done += not line.get("error")
        outcome = line.get("error") or f"AULC {line['aulc']:.4f}, {line['seconds']:.0f} s"
        console.print(
            plain(f"{done}/{total}  {line['task']}  {line['arm']}  seed {line['seed']}  {outcome}")
        )

    def note(text: str) -> None:
        console.print(plain(f"Note: {text}"))

    if failed := failures(run_study(found, out, processes=processes, note=note, on_line=show)):
        console.print(plain(f"{len(failed)} runs failed. The same command tries them again:"))
        for line in failed[:20]:
            console.print(plain(f"  {line}"))
        raise typer.Exit(1)
    console.print(plain(f"All {total} runs are finished. Next: starlearn study --report {out}"))


def _verify(progress: "StudyProgress") -> None:
    from starlearn.evaluate.study import verified

    run, differences = verified(progress)
    name = f"{run.task.name}, {run.arm}, seed {run.seed}"
    if differences:
        raise InputError(
            f"{name}: played again, it differs in {listed(differences)}. Another machine, another "
            "version or changed code computes other numbers: do not add to these lines; use "
            "another --out."
        )
    make_console().print(plain(f"{name}: played again, it is the same, except for its times."))


def _show_expected(progress: "StudyProgress", processes: int) -> None:
    from starlearn.evaluate.study import expected

    console = make_console()
    for run in progress.missing:
        console.print(plain(f"{run.key}  {run.task.name}  {run.arm}  seed {run.seed}"))
    found = expected(progress)
    for task, (n, seconds) in found.by_task.items():
        console.print(plain(f"{task}: {n} runs, {seconds / n:.0f} s each"))
    hours = found.seconds / processes / 3600
    console.print(
        plain(
            f"{len(progress.missing)} runs to go: about {hours:.1f} h on {processes} "
            f"process{'es' if processes > 1 else ''} (from {found.measured or 'no run'})"
        )
    )


def name_folders(pairs: list[str]) -> dict[str, str]:
    """Return the folders of NAME=FOLDER pairs by name; raise InputError for another text."""
    parts = [text.partition("=") for text in pairs]
    wrong = [text for text, (_, _, folder) in zip(pairs, parts, strict=True) if not folder]
    if wrong:
        raise InputError(f"--where takes NAME=FOLDER, got {wrong[0]!r}")
    return {name: folder for name, _, folder in parts}
