"""Agreement between the annotators of a campaign, and the cost of their labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from starlearn.campaign.events import Event, current_responses
from starlearn.errors import InputError


@dataclass(frozen=True)
class Agreement:
    """Agreement of two annotators on the items that both have answered."""

    first: str
    second: str
    n_items: int
    n_equal: int
    kappa: float | None
    """Cohen's kappa; None where both gave one and the same answer to all items."""


def agreements(responses: Sequence[Event], parse: Callable[[str], str] = str) -> list[Agreement]:
    """Compare every pair of annotators with a common item; pairs with most of them come first.

    `parse` returns the part of an answer to compare, such as the final answer of a free-form text.
    """
    from sklearn.metrics import cohen_kappa_score

    answers: dict[str, dict[str, str]] = {}
    for event in responses:
        if event.answer is not None:
            answers.setdefault(event.annotator, {})[event.item] = parse(event.answer)
    found = []
    for first, second in combinations(sorted(answers), 2):
        common = sorted(answers[first].keys() & answers[second].keys())
        if not common:
            continue
        one, two = ([answers[name][item] for item in common] for name in (first, second))
        defined = len({*one, *two}) > 1
        found.append(
            Agreement(
                first,
                second,
                len(common),
                sum(a == b for a, b in zip(one, two, strict=True)),
                float(cohen_kappa_score(one, two)) if defined else None,
            )
        )
    return sorted(found, key=lambda pair: -pair.n_items)


@dataclass(frozen=True)
class Prices:
    """Prices of labels in any currency; None where unknown."""

    per_label: float | None = None
    per_hour: float | None = None

    def check(self) -> None:
        """Raise InputError unless the prices are finite and not negative."""
        for name, value in (("label", self.per_label), ("hour", self.per_hour)):
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"--price-per-{name} must be a number from 0, got {value}.")

    @property
    def given(self) -> bool:
        """Whether there is a price."""
        return self.per_label is not None or self.per_hour is not None


@dataclass(frozen=True)
class LabelCost:
    """Cost of the labels up to an event."""

    n_answers: int
    """Number of current answers of all annotators."""
    seconds: float | None
    """Time for all responses, also those that were undone; None where no time is known."""
    n_untimed: int
    """Number of current answers without a time."""
    money: float | None
    """None without a price. With a price per hour, answers without a time count as free."""


def cost_until(log: Sequence[Event], until: int, prices: Prices) -> LabelCost:
    """Return the cost of all labels up to the event `until`."""
    log = [event for event in log if event.seq <= until]
    answers = [event for event in current_responses(log) if event.answer is not None]
    timed = [event.ms for event in log if event.ms is not None]
    seconds = sum(timed) / 1000 if timed else None
    money = None
    if prices.given:
        money = len(answers) * (prices.per_label or 0.0)
        money += (seconds or 0.0) / 3600 * (prices.per_hour or 0.0)
    return LabelCost(len(answers), seconds, sum(event.ms is None for event in answers), money)
