"""A label budget with a cost per item: what labels cost, what is left, what it still buys."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starlearn.errors import InputError, listed
from starlearn.tasks import Item

PIECE = 2048  # rows of a pool whose prices are checked at a time
SLACK = 1e-9  # relative: three times 0.1 is within a budget of 0.3, which in floats it is not


@dataclass(frozen=True)
class Budget:
    """What labels may cost, and what has been spent; a value that never changes.

    Parameters
    ----------
    total : float
        All the money (or minutes, or tokens) there is; above 0.
    cost : float, str or callable
        Of one label: the same for every item, the name of a field of dict items, or a function
        of an item. Always above 0.
    spent : float
        So far.

    Examples
    --------
    >>> budget = Budget(10, cost="minutes")
    >>> costs = budget.costs([{"q": "a", "minutes": 3}, {"q": "b", "minutes": 4.5}])
    >>> budget.spend(costs).remaining
    2.5
    """

    total: float
    cost: float | str | Callable[[Any], float] = 1.0
    spent: float = 0.0
    cheapest: float = field(default=0.0, repr=False, compare=False)
    """What no item of the pool at hand costs less than; see `budget_for`."""

    def __post_init__(self) -> None:
        """Check the numbers before anything is spent."""
        if not _is_price(self.total):
            raise InputError(f"A budget's total must be a number above 0, got {self.total!r}.")
        if not (isinstance(self.cost, str) or callable(self.cost) or _is_price(self.cost)):
            raise InputError(
                "A budget's cost must be a number above 0, the name of a field, or a function of "
                f"an item; got {self.cost!r}."
            )
        if not (self.spent == 0 or _is_price(self.spent)):
            raise InputError(f"What is spent must be a number from 0 up, got {self.spent!r}.")
        if self.spent > self.total * (1 + SLACK):
            raise InputError(f"{self.spent:g} is spent of a budget of {self.total:g}.")

    @property
    def remaining(self) -> float:
        """What is left; never below 0."""
        return max(self.total - self.spent, 0.0)

    @property
    def each(self) -> bool:
        """Whether each item has a price of its own."""
        return isinstance(self.cost, str) or callable(self.cost)

    @property
    def most(self) -> int:
        """How many labels can be bought at the most; 2^31 - 1 where each has a price of its own."""
        if isinstance(self.cost, str) or callable(self.cost):
            return 2**31 - 1
        return int(self.remaining * (1 + SLACK) / self.cost)

    def allows(self, costs: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which of these costs is within what is left, one at a time."""
        return costs <= self.remaining * (1 + SLACK)

    def lasts(self, bill: float) -> bool:
        """Tell whether the cheapest item of the pool can be had after paying a bill."""
        return bill + self.cheapest <= self.remaining * (1 + SLACK)

    def costs(
        self, items: Sequence[Item], rows: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Return what the label of each item costs.

        Parameters
        ----------
        items : sequence of str or dict, length m
        rows : sequence of int, optional
            What to call the items in complaints; by default 0 .. m - 1.

        Returns
        -------
        ndarray of shape (m,)

        Raises
        ------
        InputError
            When a cost is missing, no number, NaN, infinite, 0 or negative; names the rows.
        """
        if isinstance(self.cost, str):
            return checked_costs(_field_values(items, self.cost, rows), rows)
        if callable(self.cost):
            return checked_costs([self.cost(item) for item in items], rows)
        return np.full(len(items), float(self.cost))

    def spend(self, costs: NDArray[np.float64]) -> "Budget":
        """Return the budget after buying labels at these costs.

        Raises
        ------
        InputError
            When they cost more than is left.
        """
        bill = math.fsum(checked_costs(costs))
        if self.spent + bill > self.total * (1 + SLACK):
            raise InputError(
                f"{len(costs)} labels cost {bill:g}, and {self.remaining:g} is left of a budget of "
                f"{self.total:g}. Buy fewer, or raise the total."
            )
        return replace(self, spent=min(self.spent + bill, self.total))


def budget_for(budget: Any, rows: Any) -> "Budget | None":
    """Check a budget against a pool.

    Parameters
    ----------
    budget : object
    rows : sequence of m items, in memory or on disk

    Returns
    -------
    Budget or None
        The same, knowing what the cheapest item costs.

    Raises
    ------
    InputError
        Unless it is None, or a Budget that knows what every item of the pool costs.
    """
    if budget is None:
        return None
    if not isinstance(budget, Budget):
        raise InputError(
            f"budget must be a Budget, got {budget!r:.60}. Write budget=Budget(100), or "
            "Budget(100, cost='price') where each item has a price."
        )
    if not budget.each:
        return budget
    cheapest = math.inf
    for start in range(0, len(rows), PIECE):
        piece = rows[start : start + PIECE]
        costs = budget.costs(piece, range(start, start + len(piece)))
        cheapest = min(cheapest, float(costs.min()))
    return replace(budget, cheapest=cheapest)


def within_budget(
    order: Sequence[int] | NDArray[np.intp],
    costs: NDArray[np.float64],
    remaining: float,
    n: int | None = None,
) -> NDArray[np.intp]:
    """Buy down a ranking while the money lasts.

    An item that costs more than what is left is passed over, and cheaper ones further down may
    still fit. That is greedy and not optimal: an expensive item at the top is bought
    even if the same money would buy many cheap ones.

    Parameters
    ----------
    order : sequence of int
        Positions, best first.
    costs : ndarray of shape (m,)
    remaining : float
        What may be spent, from 0 up; exceeded by at most 1e-9 of itself, for rounding.
    n : int, optional
        At most this many.

    Returns
    -------
    ndarray of shape (at most n,)
        Positions in the ranking's order; empty when nothing fits.

    Raises
    ------
    InputError
        When a cost is not above 0, or `remaining` is negative or no number.
    """
    order = np.asarray(order, dtype=np.intp)
    prices = checked_costs(costs)[order]
    if not remaining >= 0:
        raise InputError(f"What remains must be a number from 0 up, got {remaining!r}.")
    limit = remaining * (1 + SLACK)
    most = len(order) if n is None else n
    # The cheapest from each place on: where even that is too dear, the walk ends.
    cheapest = np.minimum.accumulate(prices[::-1])[::-1]
    bought: list[int] = []
    spent = 0.0
    for i in range(len(order)):
        if len(bought) >= most or spent + cheapest[i] > limit:
            break
        if spent + prices[i] <= limit:
            bought.append(int(order[i]))
            spent += float(prices[i])
    return np.array(bought, dtype=np.intp)


def checked_costs(
    costs: Sequence[Any] | NDArray[Any], rows: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Return costs as numbers above 0, or say which rows have none."""
    numbers = costs.tolist() if isinstance(costs, np.ndarray) else costs
    wrong = [
        f"row {row}: {cost!r:.40}"
        for row, cost in zip(rows or range(len(costs)), numbers, strict=True)
        if not _is_price(cost)
    ]
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(costs)} costs are no number above 0: {listed(wrong)}. "
            "Give each item what its label costs."
        )
    return np.asarray(costs, dtype=np.float64)


def _is_price(value: Any) -> bool:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        return False
    return math.isfinite(value) and float(value) > 0


def _field_values(
    items: Sequence[Item], field: str, rows: Sequence[int] | None = None
) -> list[Any]:
    missing = [
        f"row {row} has " + (f"the fields {sorted(item)}" if isinstance(item, Mapping) else "none")
        for row, item in zip(rows or range(len(items)), items, strict=True)
        if not isinstance(item, Mapping) or field not in item
    ]
    if missing:
        raise InputError(
            f"The cost is to come from the field {field!r}, which {len(missing)} of {len(items)} "
            f"items lack: {listed(missing)}. Add it to the items, or give a number or a function "
            "as the cost."
        )
    return [item[field] for item in items if isinstance(item, Mapping)]
