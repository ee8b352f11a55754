"""The certified interval holds what the exact route returns, and the top n are the true ones."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, make_case
from kernel_strategies import cases
from starlearn_kernels import (
    information_interval,
    linear_entropy,
    segment_reduce,
    top_information,
)


def bounds(case: Case, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
    found = information_interval(
        case.hidden, case.weight, case.bias, scale=case.scale, softcap=case.softcap, **options
    )
    return found.lower, found.upper


@given(cases(), st.sampled_from([64.0, 0.5]))
@settings(deadline=None, max_examples=40)
def test_the_interval_holds_the_exact_value(case: Case, megabytes: float) -> None:
    lower, upper = bounds(case, max_workspace_mb=megabytes)
    for route in ("torch", "reference"):
        exact = case.stats(route).mutual_information
        assert (lower <= exact).all()
        assert (exact <= upper).all()
    assert (lower >= 0).all()
    assert (upper <= torch.tensor(float(len(case.hidden))).log()).all()


@pytest.mark.parametrize("megabytes", [64, 1])
def test_the_ends_are_what_they_claim_to_be(seed: int, megabytes: float) -> None:
    case = make_case(seed, passes=4, rows=60, vocabulary=2500, spread=2.0)
    lower, upper = bounds(case, max_workspace_mb=megabytes)
    logp = case.logits().log_softmax(-1)
    epkl = (logp.exp() * (logp - logp.mean(0))).sum(-1).mean(0).clamp(max=math.log(4))
    torch.testing.assert_close(upper, epkl.float(), atol=2e-4, rtol=0)
    assert (lower / case.stats("reference").mutual_information).mean() > 0.3


def test_unknown_rows_stay_unknown(seed: int) -> None:
    case = make_case(seed, passes=3, rows=9, vocabulary=100)
    case.hidden[1, 4] = torch.nan
    for end in bounds(case):
        assert end.isnan().nonzero().tolist() == [[4]]


@pytest.mark.parametrize("how", ["mean", "sum"])
@pytest.mark.parametrize("n", [1, 5, 40])
def test_top_items_are_those_of_the_full_computation(seed: int, how: str, n: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 6, (40,), generator=draw)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    case = make_case(seed, passes=4, rows=int(offsets[-1]), vocabulary=300, target=False)
    noise = torch.rand(int(offsets[-1]), 1, generator=draw)
    hidden = case.hidden[:1] + noise * (case.hidden - case.hidden[:1])
    rows = linear_entropy(hidden, case.weight).mutual_information
    full = segment_reduce(rows, offsets, how)
    order = torch.where(full.isnan(), -torch.inf, full).sort(descending=True, stable=True).indices
    found = top_information(hidden, case.weight, n, offsets=offsets, how=how)
    assert found.indices.tolist() == order[:n].tolist()
    assert torch.equal(
        found.values.view(torch.int32), full[order[:n]].view(torch.int32)
    ) or torch.equal(found.values.nan_to_num(-1), full[order[:n]].nan_to_num(-1))
    if n == 5:
        assert n <= found.survivors < 40, "the interval must spare something"


def test_items_that_are_equal_come_in_their_order(seed: int) -> None:
    case = make_case(seed, passes=3, rows=1, vocabulary=50)
    found = top_information(case.hidden.repeat(1, 7, 1), case.weight, 4)
    assert found.indices.tolist() == [0, 1, 2, 3]
    assert found.survivors == 7


def test_unknown_items_come_last(seed: int) -> None:
    case = make_case(seed, passes=3, rows=6, vocabulary=50)
    case.hidden[:, 0] = torch.nan
    found = top_information(case.hidden, case.weight, 6)
    assert found.indices[-1] == 0
    assert found.values[-1].isnan()
    case.hidden.fill_(torch.nan)
    assert top_information(case.hidden, case.weight, 2).indices.tolist() == [0, 1]
