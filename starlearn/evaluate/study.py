"""Running a study: finished runs are kept, failed runs are recorded, missing runs are played."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from starlearn.errors import InputError
from starlearn.evaluate.run_log import append_line, only_writer, read_lines, repair
from starlearn.evaluate.runs import Record, Run, heading, play, runs_of, without_times
from starlearn.evaluate.study_file import Study

Note = Callable[[str], object]


@dataclass(frozen=True)
class StudyProgress:
    """The runs of a study, and the lines of those that have finished."""

    runs: list[Run]
    finished: dict[str, Record]
    """Lines of finished runs by key."""
    n_others: int
    """Number of lines of runs that are not in this study: other settings or other seeds."""

    @property
    def missing(self) -> list[Run]:
        """Runs without a line, and failed runs."""
        return [run for run in self.runs if run.key not in self.finished]


def progress_of(study: Study, file: Path) -> StudyProgress:
    """Compare a study with the lines of its file. A failed run counts as missing."""
    runs = list(runs_of(study))
    by_key = {run.key: run for run in runs}
    finished: dict[str, Record] = {}
    n_others = 0
    for line in read_lines(file):
        run = by_key.get(line["key"])
        if line.get("error"):
            continue
        if run is None or not run.same_defaults(line):
            n_others += 1
        else:
            finished.setdefault(line["key"], line)
    return StudyProgress(runs, finished, n_others)


def file_of(study: Study, out: Path) -> Path:
    """Return the path of a study's lines."""
    return out / f"{study.name}.jsonl"


def run_study(
    study: Study,
    out: Path,
    *,
    processes: int = 1,
    note: Note = print,
    on_line: Callable[[Record], object] | None = None,
    play_run: Callable[[Run], Record] = play,
) -> list[Record]:
    """Play the missing runs, append a line to a file in `out` after each, and return the lines.

    A line with an ``error`` is a failed run, which the next call plays again. `processes` runs are
    played at a time, each in a process with one thread. `note` is called with each message for the
    user, `on_line` with each line after it is written. Tests replace `play_run`.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = file_of(study, out)
    added = []
    with only_writer(file):
        repair(file, note)
        progress = progress_of(study, file)
        if progress.n_others:
            note(
                f"{progress.n_others} lines of {file} belong to other settings or other seeds. "
                "They are kept, and are not mixed with this study."
            )
        for line in played(progress.missing, processes, play_run):
            append_line(file, line)
            added.append(line)
            if on_line is not None:
                on_line(line)
    return added


def played(
    runs: Sequence[Run], processes: int, play_run: Callable[[Run], Record]
) -> Iterator[Record]:
    """Play runs in this process, or in several with one thread each; yield lines as they end."""
    if processes == 1 or len(runs) < 2:
        for run in runs:
            yield attempted(run, play_run)
        return
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    with parallel_config(backend="loky", inner_max_num_threads=1):
        parallel = Parallel(n_jobs=processes, return_as="generator_unordered", batch_size=1)
    try:
        yield from parallel(delayed(attempted)(run, play_run) for run in runs)
    except TerminatedWorkerError as error:
        raise InputError(
            "A process of the study was killed, probably for lack of memory. Finished runs are "
            "kept: run the command again with fewer --processes."
        ) from error


def attempted(run: Run, play_run: Callable[[Run], Record]) -> Record:
    """Play a run. An error becomes a line, so that one failed run does not end the study."""
    try:
        return play_run(run)
    except Exception as error:  # noqa: BLE001 - the line and the exit code report it
        return {**heading(run), "error": f"{type(error).__name__}: {error}"}


@dataclass(frozen=True)
class Expected:
    """Expected time of the missing runs of a study, in one process."""

    by_task: dict[str, tuple[int, float]]
    """Number of missing runs per task, and their total seconds."""
    measured: str
    """Source of the estimate."""

    @property
    def seconds(self) -> float:
        """Total over all tasks."""
        return sum(seconds for _, seconds in self.by_task.values())


def expected(progress: StudyProgress, play_run: Callable[[Run], Record] = play) -> Expected:
    """Estimate the time of the missing runs from the finished ones.

    For a task without a finished run, one round of its last arm is played and scaled to all rounds.
    """
    lines = list(progress.finished.values())
    by_task: dict[str, tuple[int, float]] = {}
    tried = []
    for task in dict.fromkeys(run.task.name for run in progress.missing):
        missing = [run for run in progress.missing if run.task.name == task]
        own = [line for line in lines if line["task"] == task]
        if own:
            mean = fmean(line["seconds"] for line in own)
        else:
            tried.append(task)
            mean = one_round_scaled(missing[-1], play_run)
        total = 0.0
        for run in missing:
            same = [line["seconds"] for line in own if line["arm"] == run.arm]
            total += fmean(same) if same else mean
        by_task[task] = (len(missing), total)
    how = f"{len(lines)} finished runs" if lines else ""
    if tried:
        how += (" and " if how else "") + f"one round played on {', '.join(tried)}"
    return Expected(by_task, how)


def one_round_scaled(run: Run, play_run: Callable[[Run], Record]) -> float:
    """Return the expected seconds of a run, scaled from one round of it."""
    rounds = run.settings.n_rounds
    short = replace(run, settings=run.settings.model_copy(update={"n_rounds": 1}))
    first, second = play_run(short)["rounds"]
    fixed = [float(r["seconds_teach"] + r["seconds_score"]) for r in (first, second)]
    return float(fixed[0] + rounds * (fixed[1] + second["seconds_query"]))


def verified(
    progress: StudyProgress, play_run: Callable[[Run], Record] = play
) -> tuple[Run, list[str]]:
    """Play a finished run again: the quickest of the last arm, or of all arms where it has none.

    Return the run, and the keys whose values differ from its line, except times. Without a
    difference, new lines can be compared with the existing ones.
    """
    if not progress.finished:
        raise InputError("no run of this study has finished, so there is nothing to verify")
    lines = list(progress.finished.values())
    last = [line for line in lines if line["arm"] == progress.runs[-1].arm]
    line = min(last or lines, key=lambda one: float(one["seconds"]))
    run = next(run for run in progress.runs if run.key == line["key"])
    before, now = without_times(line), without_times(play_run(run))
    # `StudyProgress` has compared the parameters, without those that no longer exist.
    compared = [name for name in before if name not in ("rounds", "parameters")]
    differences = [name for name in compared if before[name] != now.get(name)]
    for number, (old, new) in enumerate(zip(before["rounds"], now["rounds"], strict=True)):
        # Lines of earlier versions have the base model's mean even where it was not used.
        unused = {"mean_base"} if not old.get("lambda") and new.get("mean_base") is None else set()
        differences += [
            f"round {number}: {name}"
            for name in old
            if name not in unused and old[name] != new.get(name)
        ]
    return run, differences


def failures(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one message per failed run, with its error."""
    return [
        f"{line['task']}, {line['arm']}, seed {line['seed']}: {line['error']}"
        for line in lines
        if line.get("error")
    ]
