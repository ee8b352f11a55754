"""starlearn study: run a study of tasks, arms and seeds, or report one that has run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starlearn.console import make_console, plain, told_plainly
from starlearn.errors import InputError, listed

if TYPE_CHECKING:
    from starlearn.evaluate.study import Progress

app = typer.Typer()


@app.command()
def study(
    file: Annotated[
        Path | None, typer.Argument(help="The study, a TOML file.", show_default=False)
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the lines, one a finished run; kept and added to.")
    ] = Path("runs/study"),
    processes: Annotated[
        int, typer.Option(help="Runs at a time, one thread each.", min=1, max=1024)
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run, and how long it takes.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Play one finished run again, and compare it to its line."),
    ] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="What ${NAME} in the study stands for; repeat it. Else the environment's.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write study.html, .md and .png from the lines here."),
    ] = None,
) -> None:
    """Ask whether choosing saves labels: every arm of every task with every seed, resumable.

    Stopped with Ctrl-C, it goes on where it was when the same command is typed again. A changed
    setting starts runs of its own; nothing is mixed. Exit code 1: some runs failed.
    After an update, --verify tells whether new runs may stand beside the old ones.
    """
    kept = f"Finished runs are kept in {out}: type the same command again to go on."
    with told_plainly(lambda: kept):
        if (file is None) == (report is None):
            raise InputError("give a study to run (STUDY.toml), or --report FOLDER; one of them")
        if report is not None:
            _report(report)
        elif file is not None:
            _run(file, out, processes, dry_run, verify, places(where or []))


def _report(folder: Path) -> None:
    from starlearn.evaluate.study_report import write_study_report

    make_console().print(plain(f"Open {write_study_report(folder)}"))


def _run(
    file: Path, out: Path, processes: int, dry_run: bool, verify: bool, where: dict[str, str]
) -> None:
    from starlearn.evaluate.study import failures, file_of, progress_of, run_study
    from starlearn.evaluate.study_file import read_study

    found = read_study(file, where)
    console = make_console()
    progress = progress_of(found, file_of(found, out))
    done, total = len(progress.finished), len(progress.runs)
    console.print(plain(f"{found.name}: {done} of {total} runs are finished in {out}"))
    if dry_run:
        _foretell(progress, processes)
        return
    if verify:
        _verify(progress)
        return

    def tell(line: dict[str, Any]) -> None:
        nonlocal done
        done += not line.get("error")
        outcome = line.get("error") or f"AULC {line['aulc']:.4f}, {line['seconds']:.0f} s"
        console.print(
            plain(f"{done}/{total}  {line['task']}  {line['arm']}  seed {line['seed']}  {outcome}")
        )

    def note(text: str) -> None:
        console.print(plain(f"Note: {text}"))

    failed = failures(run_study(found, out, processes=processes, note=note, on_line=tell))
    if failed:
        console.print(plain(f"{len(failed)} runs failed; the same command tries them again:"))
        for line in failed[:20]:
            console.print(plain(f"  {line}"))
        raise typer.Exit(1)
    console.print(plain(f"All {total} runs are there. Next: starlearn study --report {out}"))


def _verify(progress: "Progress") -> None:
    from starlearn.evaluate.study import verified

    run, differences = verified(progress)
    name = f"{run.task.name}, {run.arm}, seed {run.seed}"
    if differences:
        raise InputError(
            f"{name}: played again it differs in {listed(differences)}. Another machine, another "
            "version or changed code computes other numbers: do not add to these lines; give "
            "another --out."
        )
    make_console().print(plain(f"{name}: played again it is the same, but for its times."))


def _foretell(progress: "Progress", processes: int) -> None:
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
            f"process{'es' if processes > 1 else ''} (from {found.measured or 'nothing to run'})"
        )
    )


def places(given: list[str]) -> dict[str, str]:
    """Read NAME=FOLDER pairs; raise InputError for one that is none."""
    pairs = [text.partition("=") for text in given]
    wrong = [text for text, (_, _, place) in zip(given, pairs, strict=True) if not place]
    if wrong:
        raise InputError(f"--where takes NAME=FOLDER, got {wrong[0]!r}")
    return {name: place for name, _, place in pairs}
