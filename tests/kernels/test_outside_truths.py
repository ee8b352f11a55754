"""Formulas of other libraries, and identities, on the routes that run on a CPU."""

import pytest
from kernel_truths import CHECKS, Check


@pytest.mark.parametrize("route", ["reference", "torch"])
@pytest.mark.parametrize("check", CHECKS)
def test_truths(check: Check, route: str, seed: int) -> None:
    check(route, seed, "cpu")
