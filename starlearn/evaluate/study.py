"""Running a study: what is finished is kept, what failed is recorded, the rest is run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from starlearn.errors import InputError
from starlearn.evaluate.run_log import append_line, mend, only_writer, read_lines
from starlearn.evaluate.runs import Record, Run, heading, play, runs_of, without_times
from starlearn.evaluate.study_file import Study

Note = Callable[[str], object]


@dataclass(frozen=True)
class Progress:
    """A study's runs beside the lines that are there."""

    runs: list[Run]
    finished: dict[str, Record]
    """Lines of this study's runs by key."""
    strangers: int
    """Lines of runs that this study does not have: other settings, or more seeds."""

    @property
    def missing(self) -> list[Run]:
        """Runs that have no line yet, or one that says that they failed."""
        return [run for run in self.runs if run.key not in self.finished]


def progress_of(study: Study, file: Path) -> Progress:
    """Compare a study with the lines of its file; a failed run counts as missing."""
    runs = list(runs_of(study))
    by_key = {run.key: run for run in runs}
    finished: dict[str, Record] = {}
    strangers = 0
    for line in read_lines(file):
        run = by_key.get(line["key"])
        if line.get("error"):
            continue
        if run is None or not run.same_defaults(line):
            strangers += 1
        else:
            finished.setdefault(line["key"], line)
    return Progress(runs, finished, strangers)


def file_of(study: Study, out: Path) -> Path:
    """Return where the lines of a study are kept."""
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
    """Run what is missing, and append a line as each run ends.

    Parameters
    ----------
    study : Study
    out : path
        Folder of the lines; made if it is not there.
    processes : int
        Runs at a time, each in a process of one thread.
    note : callable
        Told what the user should know.
    on_line : callable, optional
        Told each line that was written.
    play_run : callable
        Plays one run; another one in tests.

    Returns
    -------
    list of dict
        The lines that were added. One with an ``error`` is a run that failed; the next call
        tries it again.

    Raises
    ------
    CampaignLockedError
        When another process adds to the same lines.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = file_of(study, out)
    added = []
    with only_writer(file):
        mend(file, note)
        progress = progress_of(study, file)
        if progress.strangers:
            note(
                f"{progress.strangers} lines of {file} belong to other settings or other seeds; "
                "they stay, and are not mixed with this study."
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
    """Play runs here, or in processes of one thread each; yield each line as it is ready."""
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
            "A process of the study was killed, as happens when memory runs out. Finished runs "
            "are kept: type the command again with fewer --processes."
        ) from error


def attempted(run: Run, play_run: Callable[[Run], Record]) -> Record:
    """Play a run; a failure becomes a line too, so that one bad run does not end a study."""
    try:
        return play_run(run)
    except Exception as error:  # noqa: BLE001 - recorded with its type, told by the exit code
        return {**heading(run), "error": f"{type(error).__name__}: {error}"}


@dataclass(frozen=True)
class Expected:
    """How long the missing runs of a study will take, on one process."""

    by_task: dict[str, tuple[int, float]]
    """Missing runs of a task, and their seconds together."""
    measured: str
    """What it was estimated from."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(seconds for _, seconds in self.by_task.values())


def expected(progress: Progress, play_run: Callable[[Run], Record] = play) -> Expected:
    """Estimate what is left, from finished lines; a task that has none is tried out.

    A trial is the first round of the task's last arm; its seconds are scaled to all rounds.
    """
    seconds: dict[tuple[str, str], float] = {}
    lines = list(progress.finished.values())
    tried = []
    for task in dict.fromkeys(run.task.name for run in progress.missing):
        own = [line for line in lines if line["task"] == task]
        missing = [run for run in progress.missing if run.task.name == task]
        if not own:
            tried.append(task)
            mean = tried_out(missing[-1], play_run)
        else:
            mean = fmean(line["seconds"] for line in own)
        for run in missing:
            same = [line["seconds"] for line in own if line["arm"] == run.arm]
            seconds[run.key, task] = fmean(same) if same else mean
    by_task: dict[str, tuple[int, float]] = {}
    for (_, task), one in seconds.items():
        n, total = by_task.get(task, (0, 0.0))
        by_task[task] = (n + 1, total + one)
    how = f"{len(lines)} finished runs" if lines else ""
    if tried:
        how += (" and " if how else "") + f"one round tried out on {', '.join(tried)}"
    return Expected(by_task, how)


def tried_out(run: Run, play_run: Callable[[Run], Record]) -> float:
    """Return the seconds of a run, scaled up from one round of it."""
    rounds = run.settings.n_rounds
    short = replace(run, settings=run.settings.model_copy(update={"n_rounds": 1}))
    first, second = play_run(short)["rounds"]
    fixed = [float(r["seconds_teach"] + r["seconds_score"]) for r in (first, second)]
    return float(fixed[0] + rounds * (fixed[1] + second["seconds_query"]))


def verified(progress: Progress, play_run: Callable[[Run], Record] = play) -> tuple[Run, list[str]]:
    """Play the quickest finished run of the study's last arm again, or of all where it has none.

    Returns
    -------
    run : Run
    differences : list of str
        Names of what is not as in its line, but for times; none says that what is computed today
        may stand beside what was computed then.

    Raises
    ------
    InputError
        When no run has finished.
    """
    if not progress.finished:
        raise InputError("no run of this study has finished, so there is none to verify")
    lines = list(progress.finished.values())
    last = [line for line in lines if line["arm"] == progress.runs[-1].arm]
    line = min(last or lines, key=lambda one: float(one["seconds"]))
    run = next(run for run in progress.runs if run.key == line["key"])
    before, now = without_times(line), without_times(play_run(run))
    differences = [name for name in before if name != "rounds" and before[name] != now.get(name)]
    for number, (old, new) in enumerate(zip(before["rounds"], now["rounds"], strict=True)):
        differences += [f"round {number}: {name}" for name in old if old[name] != new.get(name)]
    return run, differences


def failures(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which lines are failed runs, and why."""
    return [
        f"{line['task']}, {line['arm']}, seed {line['seed']}: {line['error']}"
        for line in lines
        if line.get("error")
    ]
