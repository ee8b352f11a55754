"""A label budget with a cost per item."""

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
    """A limit on the cost of labels, and the amount spent; immutable.

    Parameters
    ----------
    total : float
        The whole budget in money, minutes or another unit; above 0.
    cost : float, str or callable
        Cost of one label: a number for every item, the name of a field of dict items, or a
        function of an item. Always above 0.
    spent : float
        Amount spent so far.

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
    """Cost of the cheapest item of the pool; see `budget_for`."""

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
        """Rest of the budget; never below 0."""
        return max(self.total - self.spent, 0.0)

    @property
    def each(self) -> bool:
        """Whether items have different costs."""
        return isinstance(self.cost, str) or callable(self.cost)

    @property
    def most(self) -> int:
        """Largest number of labels within the rest; 2^31 - 1 if items have different costs."""
        if isinstance(self.cost, str) or callable(self.cost):
            return 2**31 - 1
        return int(self.remaining * (1 + SLACK) / self.cost)

    def allows(self, costs: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return whether each of these costs alone is within the rest."""
        return costs <= self.remaining * (1 + SLACK)

    def lasts(self, bill: float) -> bool:
        """Whether the rest pays for the cheapest item of the pool after a bill."""
        return bill + self.cheapest <= self.remaining * (1 + SLACK)

    def costs(
        self, items: Sequence[Item], rows: Sequence[int] | None = None
    ) -> NDArray[np.float64]:
        """Return the cost of each item's label.

        Parameters
        ----------
        items : sequence of str or dict, length m
        rows : sequence of int, optional
            Row numbers for error messages; by default 0 .. m - 1.

        Returns
        -------
        ndarray of shape (m,)

        Raises
        ------
        InputError
            When a cost is missing, not a number, NaN, infinite, 0 or negative; with the rows.
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
            When they cost more than the rest.
        """
        bill = math.fsum(checked_costs(costs))
        if self.spent + bill > self.total * (1 + SLACK):
            raise InputError(
                f"{len(costs)} labels cost {bill:g}, and {self.remaining:g} is left of a budget of "
                f"{self.total:g}. Buy fewer, or raise the total."
            )
        return replace(self, spent=min(self.spent + bill, self.total))


def budget_for(budget: Any, rows: Any) -> "Budget | None":
    """Check a budget against a pool, and return it with the cost of the pool's cheapest item."""
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
) -> NDArray[np.intp]:
    """Return the items to buy, from the top of a ranking, within what remains of the budget.

    An item that costs more than the rest is skipped, and cheaper ones further down may still fit.
    That is greedy and not optimal: an expensive item at the top is bought even if the same money
    would buy many cheap ones. For rounding the rest may be exceeded by 1e-9 of itself.
    """
    order = np.asarray(order, dtype=np.intp)
    prices = costs[order]
    limit = remaining * (1 + SLACK)
    # The cheapest from each place on: where that is too expensive, nothing more fits.
    cheapest = np.minimum.accumulate(prices[::-1])[::-1]
    bought: list[int] = []
    spent = 0.0
    for i in range(len(order)):
        if spent + cheapest[i] > limit:
            break
        if spent + prices[i] <= limit:
            bought.append(int(order[i]))
            spent += float(prices[i])
    return np.array(bought, dtype=np.intp)


def checked_costs(
    costs: Sequence[Any] | NDArray[Any], rows: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Return costs as numbers above 0, or raise InputError with the rows that have none."""
    numbers = costs.tolist() if isinstance(costs, np.ndarray) else costs
    wrong = [
        f"row {row}: {cost!r:.40}"
        for row, cost in zip(rows or range(len(costs)), numbers, strict=True)
        if not _is_price(cost)
    ]
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(costs)} costs are not numbers above 0: {listed(wrong)}. "
            "Give each item the cost of its label."
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
