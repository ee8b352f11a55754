"""From a campaign to a page: what it says, gathered by section, and the HTML that says it."""

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
from starlearn.campaign.report.people import Prices, Spent, agreements, spent
from starlearn.campaign.report.reliability import N_BINS, expected_calibration_error
from starlearn.campaign.report.trials import Trial, answered, before_teaching, free_form_task
from starlearn.campaign.rounds import Round
from starlearn.console import TOKEN, plain
from starlearn.version import versions

LONGEST_TEXT = 240
MOST_ROWS = 200
"""Rows of a batch that are shown."""

Section = dict[str, Any]
Batches = Sequence[tuple[Round, list[BatchItem]]]


@dataclass(frozen=True)
class Told:
    """What a report is given besides the campaign."""

    prices: Prices = field(default_factory=Prices)
    test_name: str | None = None
    """Name of the test file."""
    tested: list[Trial] = field(default_factory=list)


def render(campaign: Campaign, told: Told) -> str:
    """Return the page; every text that comes from outside is escaped."""
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
        # Only this style applies, whatever a text may hold that slipped through.
        style_hash=base64.b64encode(sha256(style.encode()).digest()).decode(),
        **contents(campaign, told),
    )
    return TOKEN.sub("hf_***", page)


def contents(campaign: Campaign, told: Told) -> Section:
    """Gather what the page says, section by section."""
    log = events.events(campaign.store)
    words = events.standing(log)
    before = before_teaching(campaign)
    labels = campaign.labels()
    batches = [
        (found, batch)
        for found in rounds.rounds(campaign.store)
        if (batch := campaign.batch(found.id))
    ]
    return {
        "made": events.now(),
        "status": campaign.status(),
        "task": campaign.task,
        "free_form": free_form_task(campaign) is not None,
        "prices": told.prices,
        **_curve(log, told, before),
        **_rounds(campaign, log, told.prices),
        **_classes(campaign, batches, labels),
        "batches": [_batch(campaign, *batch, labels) for batch in batches],
        **_people(campaign, words),
        "settings": settings_of(campaign),
        "versions": versions(),
    }


def _curve(log: Sequence[Event], told: Told, before: Sequence[Trial]) -> Section:
    costs: dict[int, Spent] = {
        trial.model.taught: spent(log, trial.model.taught, told.prices)
        for trial in [*told.tested, *before]
    }
    money = {until: cost.money for until, cost in costs.items() if cost.money is not None}
    return {
        "test_name": told.test_name,
        "tested": [_trial(trial, costs) for trial in told.tested],
        "before": [_trial(trial, costs) for trial in before],
        "curve": figures.learning_curve(told.tested, before),
        "curve_by_cost": figures.learning_curve(told.tested, before, money) if money else None,
        "reliability": figures.reliability_diagram(told.tested, before),
        "n_bins": N_BINS,
    }


def _trial(trial: Trial, costs: Mapping[int, Spent]) -> Section:
    low, high = trial.interval
    return {
        "round": trial.round,
        "model": "base model" if trial.model.round is None else f"round {trial.model.round}",
        "n_labels": trial.model.n_labels,
        "n": len(trial.correct),
        "accuracy": trial.accuracy,
        "low": low,
        "high": high,
        "confidence": float(trial.confidence.mean()),
        "ece": expected_calibration_error(trial.correct, trial.confidence),
        "spent": costs[trial.model.taught],
    }


def _rounds(campaign: Campaign, log: Sequence[Event], prices: Prices) -> Section:
    records = campaign.history()
    # Read later, so that a round that another process begins meanwhile is in it.
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
        "spent": spent(log, last, prices),
        "uncertainty": figures.uncertainty(campaign),
    }


def _correlation(scores: Any) -> float | None:
    """Return Spearman's correlation of score and length of the answer; None where it has none."""
    from scipy.stats import spearmanr

    if scores is None or not {"mixed", "n_tokens"} <= set(scores.column_names):
        return None
    values, lengths = scores["mixed"].to_numpy(), scores["n_tokens"].to_numpy()
    if len(values) < 3 or values.min() == values.max() or lengths.min() == lengths.max():
        return None
    return float(spearmanr(values, lengths).statistic)


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
    table = answered(campaign, found, {item.id for item in items})
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
            "said": {who: kind for who, kind in item.said.items() if kind != "label"},
            "score": item.score,
            "reason": item.reason,
        }
        for item in items[:MOST_ROWS]
    ]
    return {"round": found.id, "state": found.state, "rows": rows, "n": len(items)}


def _people(campaign: Campaign, words: Sequence[Event]) -> Section:
    task = free_form_task(campaign)
    contents = rounds.contents(campaign.store)
    passed = [event for event in words if event.kind in ("skip", "flag")]
    parse = str if task is None else task.parse
    return {
        "agreements": agreements(words, parse),
        "passed": [(event, text_of(json.loads(contents[event.item]))) for event in passed],
    }


def settings_of(campaign: Campaign) -> dict[str, str]:
    """Return every setting by its name, a part's as in ``training learning_rate``."""
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
    """Join the fields of an item in one text."""
    if len(fields) == 1:
        return next(iter(fields.values()))
    return " | ".join(f"{name}: {text}" for name, text in fields.items())


def short(value: Any, most: int = LONGEST_TEXT) -> str:
    """Return a value on one line, cut, with control characters spelled out."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text[: 4 * most].split())
    return plain(text if len(text) <= most else text[: most - 1] + "…")


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for a cell; empty where there is none."""
    return "" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Return seconds as people say them; empty where they are not known."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
