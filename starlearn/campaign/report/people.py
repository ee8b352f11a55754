"""What people did in a campaign: who agrees with whom, what was passed over, and what it cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from starlearn.campaign.events import Event, standing
from starlearn.errors import InputError


@dataclass(frozen=True)
class Agreement:
    """How two annotators agree on the items that both have answered."""

    first: str
    second: str
    n_items: int
    n_equal: int
    kappa: float | None
    """Cohen's kappa; None where both gave one and the same answer to everything, so that
    agreement by chance cannot be told from any other."""


def agreements(words: Sequence[Event], parse: Callable[[str], str] = str) -> list[Agreement]:
    """Compare every pair of annotators that have an item in common.

    Parameters
    ----------
    words : sequence of Event
        The last word of each annotator on each item.
    parse : callable
        Brings an answer to what counts, as with the final answer of a free-form text.

    Returns
    -------
    list of Agreement
        Pairs with most common items first.
    """
    from sklearn.metrics import cohen_kappa_score

    answers: dict[str, dict[str, str]] = {}
    for event in words:
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
    """What labels cost, in any currency; None where it is not known."""

    per_label: float | None = None
    per_hour: float | None = None

    def check(self) -> None:
        """Raise InputError for a price that is none."""
        for name, value in (("label", self.per_label), ("hour", self.per_hour)):
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"--price-per-{name} must be a number from 0, got {value}.")

    @property
    def given(self) -> bool:
        """Whether there is any price."""
        return self.per_label is not None or self.per_hour is not None


@dataclass(frozen=True)
class Spent:
    """What labels have cost up to a moment."""

    n_answers: int
    """Answers that stood, of all annotators."""
    seconds: float | None
    """What annotators took for all they said, taken back or not; None where no time is known."""
    n_untimed: int
    """Answers that stood and have no time."""
    money: float | None
    """None without a price; too low where a price by the hour meets answers without a time."""


def spent(log: Sequence[Event], until: int, prices: Prices) -> Spent:
    """Return what had been spent when the event `until` was the newest."""
    log = [event for event in log if event.seq <= until]
    answers = [event for event in standing(log) if event.answer is not None]
    timed = [event.ms for event in log if event.ms is not None]
    seconds = sum(timed) / 1000 if timed else None
    money = None
    if prices.given:
        money = len(answers) * (prices.per_label or 0.0)
        money += (seconds or 0.0) / 3600 * (prices.per_hour or 0.0)
    return Spent(len(answers), seconds, sum(event.ms is None for event in answers), money)
