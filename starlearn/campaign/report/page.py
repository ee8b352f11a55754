"""The report's page: its contents by section, and the HTML made from them."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from typing import Any

from starlearn.campaign import events, rounds
from starlearn.campaign.campaign import BatchItem, Campaign
from starlearn.campaign.events import Event
from starlearn.campaign.report import figures
from starlearn.campaign.report.annotators import LabelCost, Prices, agreements, cost_until
from starlearn.campaign.report.evaluations import (
    Evaluation,
    answers_to,
    before_teaching,
    free_form_task,
)
from starlearn.campaign.rounds import Round
from starlearn.campaign.store import now
from starlearn.console import TOKEN, plain
from starlearn.evaluate.statistics import N_BINS, calibration_error, reliability, spearman
from starlearn.version import versions

LONGEST_TEXT = 240
MAX_ROWS = 200
"""Number of rows of a batch that are shown."""

Section = dict[str, Any]
Batches = Sequence[tuple[Round, list[BatchItem]]]


@dataclass(frozen=True)
class ReportOptions:
    """Prices and evaluations to show in a report."""

    prices: Prices = field(default_factory=Prices)
    test_name: str | None = None
    """Name of the test file."""
    tested: list[Evaluation] = field(default_factory=list)


def render(campaign: Campaign, options: ReportOptions) -> str:
    """Return the page as HTML; every text of the user is escaped."""
    from jinja2 import Environment, StrictUndefined

    folder = files("starlearn.campaign.report")
    style = folder.joinpath("page.css").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"short": short, "number": number, "time": duration}
    template = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    page = template.render(
        style=style,
        # The policy allows this style only, even if a text of the user were not escaped.
        style_hash=base64.b64encode(sha256(style.encode()).digest()).decode(),
        **contents(campaign, options),
    )
    return TOKEN.sub("hf_***", page)


def contents(campaign: Campaign, options: ReportOptions) -> Section:
    """Return the contents of the page's sections."""
    log = events.events(campaign.store)
    responses = events.current_responses(log)
    before = before_teaching(campaign)
    labels = campaign.labels()
    batches = [
        (found, batch)
        for found in rounds.rounds(campaign.store)
        if (batch := campaign.batch(found.id))
    ]
    return {
        "made": now(),
        "status": campaign.status(),
        "task": campaign.task,
        "free_form": free_form_task(campaign) is not None,
        "prices": options.prices,
        **_curve(log, options, before),
        **_rounds(campaign, log, options.prices),
        **_classes(campaign, batches, labels),
        "batches": [_batch(campaign, *batch, labels) for batch in batches],
        **_annotators(campaign, responses),
        "settings": settings_of(campaign),
        "versions": versions(),
    }


def _curve(log: Sequence[Event], options: ReportOptions, before: Sequence[Evaluation]) -> Section:
    costs: dict[int, LabelCost] = {
        one.model.last_event: cost_until(log, one.model.last_event, options.prices)
        for one in [*options.tested, *before]
    }
    money = {until: cost.money for until, cost in costs.items() if cost.money is not None}
    return {
        "test_name": options.test_name,
        "tested": [_evaluation(one, costs) for one in options.tested],
        "before": [_evaluation(one, costs) for one in before],
        "curve": figures.learning_curve(options.tested, before),
        "curve_by_cost": figures.learning_curve(options.tested, before, money) if money else None,
        "reliability": figures.reliability_diagram(options.tested, before),
        "n_bins": N_BINS,
    }


def _evaluation(one: Evaluation, costs: Mapping[int, LabelCost]) -> Section:
    low, high = one.interval
    return {
        "round": one.round,
        "model": "base model" if one.model.round is None else f"round {one.model.round}",
        "n_labels": one.model.n_labels,
        "n": len(one.correct),
        "accuracy": one.accuracy,
        "low": low,
        "high": high,
        "confidence": float(one.confidence.mean()),
        "ece": calibration_error(reliability(one.confidence, one.correct)),
        "cost": costs[one.model.last_event],
    }


def _rounds(campaign: Campaign, log: Sequence[Event], prices: Prices) -> Section:
    records = campaign.history()
    # Read after the history, so that it has every round of the history.
    found = {each.id: each for each in rounds.rounds(campaign.store)}
    history = []
    for record in records:
        each = found[record.round]
        scores = campaign.scores(record.round)
        facts = {} if scores is None else scores.schema.metadata or {}
        history.append(
            {
                "record": record,
                "steps": each.record.get("steps"),
                "pool": each.record.get("pool"),
                "attempt": each.attempt,
                "weight": facts.get(b"weight of base", b"").decode(),
                "measure": facts.get(b"measure", b"").decode(),
                "length": _correlation(scores),
            }
        )
    last = log[-1].seq if log else 0
    return {
        "history": history,
        "n_first": int(campaign.meta.get("n_first", 0)),
        "cost": cost_until(log, last, prices),
        "uncertainty": figures.uncertainty(campaign),
    }


def _correlation(scores: Any) -> float | None:
    """Return Spearman's correlation of score and length of the answer; None where undefined."""
    if scores is None or not {"mixed", "n_tokens"} <= set(scores.column_names):
        return None
    values, lengths = scores["mixed"].to_numpy(), scores["n_tokens"].to_numpy()
    return spearman(values, lengths) if len(values) >= 3 else None


def _classes(campaign: Campaign, batches: Batches, labels: Mapping[str, str]) -> Section:
    if free_form_task(campaign) is not None:
        return {"class_mix": None, "unseen": []}
    given = {
        found.id: [labels[item.id] for item in items if item.id in labels]
        for found, items in batches
    }
    predicted = {}
    for found, _ in batches:
        scores = campaign.scores(found.id)
        if scores is not None and "answer" in scores.column_names:
            predicted[found.id] = scores["answer"].to_pylist()
    seen = set(labels.values())
    return {
        "class_mix": figures.class_mix(given, predicted),
        "unseen": [choice for choice in campaign.choices or [] if choice not in seen],
    }


def _batch(
    campaign: Campaign, found: Round, items: Sequence[BatchItem], labels: Mapping[str, str]
) -> Section:
    table = answers_to(campaign, found, {item.id for item in items})
    answers = {}
    if table is not None:
        answers = dict(zip(table["id"].to_pylist(), table["answer"].to_pylist(), strict=True))
    rows = [
        {
            "place": item.place + 1,
            "text": text_of(item.fields),
            "model": answers.get(item.id),
            "label": labels.get(item.id),
            "answers": item.answers,
            "other": {who: kind for who, kind in item.responses.items() if kind != "label"},
            "score": item.score,
            "reason": item.reason,
        }
        for item in items[:MAX_ROWS]
    ]
    return {"round": found.id, "state": found.state, "rows": rows, "n": len(items)}


def _annotators(campaign: Campaign, responses: Sequence[Event]) -> Section:
    task = free_form_task(campaign)
    contents = rounds.contents(campaign.store)
    skipped = [event for event in responses if event.kind in ("skip", "flag")]
    parse = str if task is None else task.parse
    return {
        "agreements": agreements(responses, parse),
        "skipped": [(event, text_of(json.loads(contents[event.item]))) for event in skipped],
    }


def settings_of(campaign: Campaign) -> dict[str, str]:
    """Return all settings by name, those of a part as in ``training learning_rate``."""
    meta = campaign.meta
    found: dict[str, str] = {}
    for name, value in json.loads(meta["learner"]).items():
        parts = value if isinstance(value, dict) else {"": value}
        found |= {f"{name} {key}".strip(): short(value) for key, value in parts.items()}
    found |= {name: short(value) for name, value in campaign.options.items()}
    facts = campaign.pool_facts
    found["pool"] = f"{facts['source'] or 'given in Python'}, {facts['n_rows']} rows"
    found["base model fingerprint"] = meta.get("base", "not loaded yet")[:16]
    found["campaign"] = campaign.id
    found["created"] = f"{meta['created']} by starlearn {meta['starlearn']}"
    return found


def text_of(fields: Mapping[str, str]) -> str:
    """Return the fields of an item as one text."""
    if len(fields) == 1:
        return next(iter(fields.values()))
    return " | ".join(f"{name}: {text}" for name, text in fields.items())


def short(value: Any, length: int = LONGEST_TEXT) -> str:
    """Return a value on one line, shortened, with control characters spelled out."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text[: 4 * length].split())
    return plain(text if len(text) <= length else text[: length - 1] + "…")


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text; empty for None."""
    return "" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Return a duration as text; empty for None."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
