"""Results of finished runs: by task, arm and seed, and the comparisons between arms."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.errors import InputError
from starlearn.evaluate.arms import ARMS
from starlearn.evaluate.run_log import read_lines
from starlearn.evaluate.statistics import Contrast, aulc, contrast, holm

Record = dict[str, Any]

REFERENCE, RIVAL = "random", "plain_entropy"
"""Random choice, and the simplest strategy that uses the model: each arm is compared with both."""
STAR = "star_entropy"
"""STAR's mix as implemented here; other arms leave out one of its parts each."""
PRIMARY = ((STAR, REFERENCE), (STAR, RIVAL))
"""The contrasts named before the first run, corrected together over all tasks."""


@dataclass(frozen=True)
class TaskResults:
    """Finished runs of a task that differ only in arm and seed, and so can be compared."""

    name: str
    protocol: str
    """Hash of everything that the runs share."""
    runs: Mapping[str, Mapping[int, Record]]
    """By arm and seed."""

    @property
    def areas(self) -> dict[str, dict[int, float]]:
        """AULC by arm and seed, not rounded, because the exact tests need exact ties."""
        return {
            arm: {seed: aulc(run["rounds"]) for seed, run in by_seed.items()}
            for arm, by_seed in self.runs.items()
        }

    @property
    def arms(self) -> list[str]:
        """Arms with runs, in the order of the table of arms."""
        order = list(ARMS)
        return sorted(self.runs, key=lambda arm: order.index(arm) if arm in order else len(order))

    def n_labels(self) -> list[int]:
        """Return the number of labels after each round."""
        run = next(iter(next(iter(self.runs.values())).values()))
        return [int(record["n_labels"]) for record in run["rounds"]]

    def by_round(self, arm: str, name: str) -> NDArray[np.float64]:
        """Return a metric of all runs of an arm, [seeds, rounds]; NaN where it is missing."""
        rows = [[r.get(name) for r in run["rounds"]] for run in self._of(arm)]
        return np.array(rows, dtype=np.float64)

    def last_bins(self, arm: str) -> dict[str, NDArray[np.float64]]:
        """Return the reliability bins after the last round, summed over the seeds."""
        found = [run["rounds"][-1]["reliability"] for run in self._of(arm)]
        return {name: np.sum([bins[name] for bins in found], axis=0) for name in found[0]}

    def correlations(self, arm: str) -> NDArray[np.float64]:
        """Return the mean Spearman matrix of the scores by round, [R + 1, R + 1], base first."""
        matrices = np.array([run["spearman_rounds"] for run in self._of(arm)], dtype=np.float64)
        known = ~np.isnan(matrices)
        return np.where(known, matrices, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)

    def mix(self, arm: str) -> dict[str, NDArray[np.float64]]:
        """Return the share of each skill in the batches by round, [rounds]; else of each class."""
        runs = self._of(arm)
        kind = "skill_mix" if "skill_mix" in runs[0]["rounds"][0] else "class_mix"
        counts: dict[str, NDArray[np.float64]] = {}
        for run in runs:
            for number, record in enumerate(run["rounds"]):
                for name, count in record[kind].items():
                    counts.setdefault(name, np.zeros(len(run["rounds"])))[number] += count
        total = np.sum(list(counts.values()), axis=0) if counts else 1.0
        return {name: counts[name] / total for name in sorted(counts)}

    def contrasts(self, against: str = REFERENCE) -> list[Contrast]:
        """Compare every arm with another one, over their common seeds."""
        found = (contrast(self.name, arm, against, self.areas) for arm in self.arms)
        return [one for one in found if one is not None and one.arm != against]

    def _of(self, arm: str) -> list[Record]:
        if arm not in self.runs:
            raise InputError(f"{self.name}: no finished run of {arm!r}")
        return [self.runs[arm][seed] for seed in sorted(self.runs[arm])]


def read_results(folder: Path) -> list[TaskResults]:
    """Read all lines of a folder, without failed runs and runs of tuning studies."""
    files = sorted(folder.glob("*.jsonl"))
    lines = [line for file in files for line in read_lines(file)]
    return grouped(lines, str(folder))


def grouped(lines: Iterable[Record], where: str = "the lines") -> list[TaskResults]:
    """Group lines by task. Of several lines of the same run, the first one counts.

    Lines with different defaults of the settings are different tasks, just as
    :func:`starlearn.evaluate.study.progress_of` does not mix them. A line whose arm sets the
    parameters that differ belongs to every such task.
    """
    kept = [
        (line, _unchanged(line))
        for line in lines
        if not line.get("error") and line["purpose"] == "report"
    ]
    found: dict[tuple[str, str], list[_Group]] = {}
    for line, left in kept:
        groups = found.setdefault((line["task"], line["protocol"]), [])
        group = next((group for group in groups if group.takes(left)), None)
        if group is None:
            groups.append(group := _Group())
        group.parameters |= left
    for line, left in kept:
        for group in found[line["task"], line["protocol"]]:
            if group.takes(left):
                group.runs.setdefault(line["arm"], {}).setdefault(line["seed"], line)
    if not found:
        raise InputError(f"{where}: no finished run to report; run a study with --out first")
    results = []
    for (name, protocol), groups in found.items():
        several = len(groups) > 1 or sum(other == name for other, _ in found) > 1
        for number, group in enumerate(groups, 1):
            which = protocol[:4] if len(groups) == 1 else f"{protocol[:4]}, defaults {number}"
            title = f"{name} ({which})" if several else name
            results.append(TaskResults(title, protocol, group.runs))
    return results


@dataclass
class _Group:
    """Lines that can be compared."""

    parameters: dict[tuple[str, str], Any] = field(default_factory=dict)
    """Parameters of the learner, by part and name, that the arm does not set."""
    runs: dict[str, dict[int, Record]] = field(default_factory=dict)

    def takes(self, parameters: Mapping[tuple[str, str], Any]) -> bool:
        return all(self.parameters.get(key, value) == value for key, value in parameters.items())


def _unchanged(line: Record) -> dict[tuple[str, str], Any]:
    """Return the parameters of a run that its arm does not set."""
    changes = line["settings"]["changes"]
    return {
        (part, name): value
        for part, values in line["parameters"].items()
        for name, value in values.items()
        if name not in changes[part]
    }


@dataclass(frozen=True)
class Primary:
    """A contrast named before the first run, with its corrected p-value."""

    contrast: Contrast
    p_holm: float


def primary_contrasts(results: Sequence[TaskResults]) -> list[Primary]:
    """Compute the primary contrasts of all tasks, corrected together after Holm."""
    found = [
        one
        for task in results
        for arm, against in PRIMARY
        if (one := contrast(task.name, arm, against, task.areas)) is not None
    ]
    adjusted = holm([one.p for one in found])
    return [Primary(one, p) for one, p in zip(found, adjusted, strict=True)]
