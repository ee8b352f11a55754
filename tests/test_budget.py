"""A label budget: what labels cost, what they leave, and what a ranking buys."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starlearn.errors import InputError
from starlearn.query.budget import Budget, within_budget

costs_of = st.lists(st.integers(1, 40).map(lambda i: i / 10), min_size=1, max_size=15)


@settings(deadline=None)
@given(costs_of, st.integers(0, 120).map(lambda i: i / 10), st.data())
def test_a_ranking_is_bought_down_while_the_money_lasts(
    costs: list[float], remaining: float, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(costs))))
    bought = within_budget(order, np.array(costs), remaining).tolist()
    # In whole tenths there is no rounding.
    tenths, left = [round(10 * cost) for cost in costs], round(10 * remaining)
    expected = []
    for position in order:
        if tenths[position] <= left:
            expected.append(position)
            left -= tenths[position]
    assert bought == expected


def test_a_dear_item_is_passed_over_and_a_cheap_one_below_it_bought() -> None:
    assert within_budget([0, 1, 2, 3], np.array([4, 9, 5, 1.0]), 10).tolist() == [0, 2, 3]
    assert within_budget([1, 0], np.array([4, 9.0]), 3.5).tolist() == []


def test_three_times_a_tenth_is_three_tenths() -> None:
    budget = Budget(0.3, cost=0.1)
    costs = budget.costs(["a", "b", "c"])
    assert sum(costs) > 0.3  # in floats
    assert within_budget([0, 1, 2], costs, budget.remaining).tolist() == [0, 1, 2]
    assert budget.spend(costs).remaining == 0


@settings(deadline=None)
@given(costs_of, st.data())
def test_what_is_bought_can_be_paid_round_after_round(
    costs: list[float], data: st.DataObject
) -> None:
    items = [{"q": str(i), "price": cost} for i, cost in enumerate(costs)]
    budget = Budget(data.draw(st.integers(1, 100)) / 10, cost="price")
    left = list(range(len(costs)))
    n_bought = 0
    while left:
        prices = budget.costs([items[i] for i in left])
        bought = within_budget(range(len(left)), prices, budget.remaining)[:2]
        if not len(bought):
            break
        budget = budget.spend(prices[bought])
        n_bought += len(bought)
        left = [item for place, item in enumerate(left) if place not in bought]
    assert 0 <= budget.remaining <= budget.total
    assert budget.spent + budget.remaining == pytest.approx(budget.total)
    spent = sum(costs) - sum(costs[i] for i in left)
    assert budget.spent == pytest.approx(spent, abs=1e-9)
    assert all(costs[i] > budget.remaining for i in left)


def test_costs_come_from_a_number_a_field_or_a_function() -> None:
    items = [{"q": "ab", "price": 2}, {"q": "abcd", "price": 0.5}]
    assert Budget(9, cost=3).costs(items).tolist() == [3, 3]
    assert Budget(9, cost="price").costs(items).tolist() == [2, 0.5]
    assert Budget(9, cost=lambda item: len(item["q"]) / 2).costs(items).tolist() == [1, 2]
    assert Budget(9).costs([]).tolist() == []


def test_spending_leaves_the_earlier_budget_as_it_was() -> None:
    before = Budget(10)
    after = before.spend(np.ones(4)).spend(np.array([2.5]))
    assert (before.remaining, after.spent, after.remaining) == (10, 6.5, 3.5)
    assert before.spend(np.array([])) == before
    with pytest.raises(InputError, match=r"4 labels cost 4, and 3\.5 is left of a budget of 10"):
        after.spend(np.ones(4))


@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf, "3", None, True], ids=repr)
def test_a_cost_that_is_no_price_names_its_row(bad: object) -> None:
    items = [{"price": 1}, {"price": bad}, {"price": 2.5}]
    message = r"1 of 3 costs are not numbers above 0: row 1: "
    with pytest.raises(InputError, match=message):
        Budget(9, cost="price").costs(items)
    with pytest.raises(InputError, match=message):
        Budget(9, cost=lambda item: item["price"]).costs(items)
    if not isinstance(bad, str):  # a text is the name of a field
        with pytest.raises(InputError, match="cost must be a number above 0"):
            Budget(9, cost=bad)  # type: ignore[arg-type]


def test_items_without_the_field_are_named() -> None:
    items = [{"q": "a", "price": 1}, {"q": "b"}, "c"]
    with pytest.raises(
        InputError, match=r"'price', which 2 of 3 .*row 1 has the fields \['q'\]; row 2 has none"
    ):
        Budget(9, cost="price").costs(items)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"total": 0}, {"total": np.nan}, {"total": "9"}, {"spent": -1}, {"spent": 9.5}]
)
def test_a_budget_that_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"budget|spent"):
        Budget(**{"total": 9, **wrong})
