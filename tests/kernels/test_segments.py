"""Sums and means per item: against a loop, in any grouping, with empty items."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from starlearn_kernels import segment_reduce


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.sampled_from(["mean", "sum"]),
    st.sampled_from([None, 1, 3]),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_equals_a_loop(lengths: list[int], how: str, passes: int | None, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    values = torch.randn((n,) if passes is None else (passes, n), generator=draw)
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    found = segment_reduce(values, offsets, how)
    for item, length in enumerate(lengths):
        part = values[..., offsets[item] : offsets[item] + length].double()
        right = part.sum(-1) if how == "sum" else part.mean(-1)
        torch.testing.assert_close(found[..., item], right.float(), equal_nan=True)


def test_empty_items() -> None:
    offsets = torch.tensor([0, 0, 2, 2])
    values = torch.tensor([1.0, 2.0])
    assert segment_reduce(values, offsets, "sum").tolist() == [0.0, 3.0, 0.0]
    mean = segment_reduce(values, offsets)
    assert mean[1] == 1.5
    assert mean[[0, 2]].isnan().all()
    assert segment_reduce(values[:0], torch.tensor([0, 0]), "sum").tolist() == [0.0]
    assert segment_reduce(values[:0], torch.tensor([0])).shape == (0,)


def test_nan_stays_in_its_item() -> None:
    values = torch.tensor([1.0, torch.nan, 2.0, 3.0])
    found = segment_reduce(values, torch.tensor([0, 2, 4]), "sum")
    assert found[0].isnan()
    assert found[1] == 5


@pytest.mark.parametrize("how", ["mean", "sum"])
def test_bits_do_not_depend_on_the_other_items(seed: int, how: str) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(seed)) * 100
    alone = segment_reduce(values[300:337], torch.tensor([0, 37]), how)
    among = segment_reduce(values, torch.tensor([0, 300, 337, 1000]), how)
    assert torch.equal(alone[0], among[1])
