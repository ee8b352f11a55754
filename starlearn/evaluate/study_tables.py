"""The tables of a study as Markdown: the primary contrasts, and all arms of each task."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from starlearn.evaluate.arms import arm_title
from starlearn.evaluate.results import (
    REFERENCE,
    RIVAL,
    STAR,
    TaskResults,
    primary_contrasts,
)
from starlearn.evaluate.statistics import Contrast, ripl, speed_up


def row(task: TaskResults, arm: str) -> dict[str, Any]:
    """Return an arm's row of the table of a task: means over its seeds, after the last round."""
    areas = task.areas
    found: dict[str, Any] = {
        "arm": arm,
        "seeds": len(areas[arm]),
        "aulc": float(np.mean(list(areas[arm].values()))),
        "final": float(task.by_round(arm, "accuracy")[:, -1].mean()),
        "ripl": None,
        "speed_up": None,
    }
    for name in ("test_nll", "ece", "confidence_on_errors", "spearman_answer_length"):
        values = task.by_round(arm, name)[:, -1]
        values = values[~np.isnan(values)]
        found[name] = float(values.mean()) if len(values) else None
    seeds = sorted(set(areas[arm]) & set(areas.get(REFERENCE, {})))
    if seeds and arm != REFERENCE:
        own, other = (float(np.mean([areas[a][s] for s in seeds])) for a in (arm, REFERENCE))
        found["ripl"] = ripl(own, other)
        curves = []
        for one in (arm, REFERENCE):
            accuracy = task.by_round(one, "accuracy")[np.isin(sorted(areas[one]), seeds)]
            curves.append(list(zip(task.n_labels(), accuracy.mean(axis=0).tolist(), strict=True)))
        found["speed_up"] = speed_up(*curves)
    return found


def markdown(results: Sequence[TaskResults]) -> str:
    """Return all tables of a study, each with a heading."""
    parts = ["## Primary contrasts\n", _primary(results)]
    for task in results:
        balanced = set.intersection(*map(set, task.runs.values()))
        parts += [f"\n## {task.name}, {len(balanced)} seeds of all arms\n", _arms(task)]
    return "\n".join(parts) + "\n"


def _primary(results: Sequence[TaskResults]) -> str:
    lines = [
        [
            one.contrast.task,
            f"{arm_title(one.contrast.arm)} - {arm_title(one.contrast.against)}",
            len(one.contrast.seeds),
            f"{one.contrast.mean:+.4f}",
            f"{one.contrast.low:+.4f} to {one.contrast.high:+.4f}",
            f"{one.contrast.p:.2g}",
            f"{one.p_holm:.2g}",
            one.contrast.verdict,
        ]
        for one in primary_contrasts(results)
    ]
    heads = ["task", "contrast", "seeds", "AULC difference", "95 % interval", "p", "Holm"]
    return _table([*heads, "verdict"], lines)


def _arms(task: TaskResults) -> str:
    rivals = [other for other in (REFERENCE, RIVAL, STAR) if other in task.runs]
    against = [{one.arm: one for one in task.contrasts(other)} for other in rivals]
    lines = []
    for arm in task.arms:
        found = row(task, arm)
        lines.append(
            [
                arm_title(arm),
                found["seeds"],
                f"{found['aulc']:.4f}",
                *(_difference(differences.get(arm)) for differences in against),
                f"{found['final']:.3f}",
                _number(found["ripl"], "+.2f"),
                _number(found["speed_up"], ".2f"),
                _number(found["test_nll"], ".3f"),
                _number(found["ece"], ".3f"),
                _number(found["confidence_on_errors"], ".3f"),
            ]
        )
    minus = [f"minus {arm_title(other)} (95 %)" for other in rivals]
    heads = ["arm", "seeds", "AULC", *minus, "final", "RIPL", "speed-up"]
    return _table([*heads, "test NLL", "ECE", "confidence on errors"], lines)


def _difference(one: Contrast | None) -> str:
    return f"{one.mean:+.4f} ({one.low:+.4f} to {one.high:+.4f})" if one else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _table(heads: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |" for cells in rows
    )
