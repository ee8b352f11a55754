"""On a CPU the bits of a row do not depend on the other rows, its place or its address."""

import pytest
import torch
from hypothesis import given, settings
from kernel_cases import Case, assert_same_bits, make_case
from kernel_strategies import cases
from starlearn_kernels.chunked import powers_of_two
from starlearn_kernels.plan import slack
from torch import Tensor


def rows_of(case: Case, rows: Tensor) -> Case:
    target = None if case.target is None else case.target[rows]
    hidden = case.hidden[:, rows]
    return Case(hidden, case.weight, case.bias, target, case.scale, case.softcap)


def picked(found: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: value[..., rows] for name, value in found.items()}


def check(case: Case, route: str, megabytes: float) -> None:
    n = case.hidden.shape[1]
    whole = case.run(route, max_workspace_mb=megabytes)
    alone, middle = torch.tensor([n // 2]), torch.arange(n // 4, n // 2 + 1)
    for rows in (torch.randperm(n), alone, middle, torch.arange(n).repeat(2)):
        found = rows_of(case, rows).run(route, max_workspace_mb=megabytes)
        assert_same_bits(found, picked(whole, rows))


@given(cases())
@settings(deadline=None, max_examples=20)
def test_other_rows_do_not_matter(case: Case) -> None:
    check(case, "torch", 64)


@pytest.mark.parametrize(("threads", "megabytes"), [(1, 64), (1, 9), (2, 64), (5, 9)])
@pytest.mark.parametrize(
    ("passes", "width", "vocabulary", "dtype"),
    # D = 777 is where the plain product was seen to change bits below 80 rows.
    [(1, 777, 1500, torch.float32), (1, 64, 97, torch.bfloat16), (3, 512, 1100, torch.float16)],
)
def test_sizes_where_products_change_bits(
    seed: int,
    threads: int,
    megabytes: float,
    passes: int,
    width: int,
    vocabulary: int,
    dtype: torch.dtype,
) -> None:
    case = make_case(
        seed, passes=passes, rows=150, width=width, vocabulary=vocabulary, dtype=dtype, bias=True
    )
    torch.set_num_threads(threads)  # the fixture `one_thread` sets it back
    check(case, "torch", megabytes)


def test_addresses_do_not_matter(seed: int) -> None:
    case = make_case(seed, passes=2, rows=40, width=48, vocabulary=600)
    whole = case.run("torch")
    for offset in (1, 2, 5):
        room = torch.empty(case.hidden.numel() + 16)
        moved = room[offset : offset + case.hidden.numel()].view_as(case.hidden)
        moved.copy_(case.hidden)
        moved_case = Case(moved, case.weight, None, case.target, 1.0, None)
        assert_same_bits(moved_case.run("torch"), whole)
    strided = Case(
        case.hidden.transpose(0, 2).contiguous().transpose(0, 2), case.weight, None, case.target,
        1.0, None,
    )  # fmt: skip
    assert_same_bits(strided.run("torch"), whole)


def test_a_run_repeats_itself(seed: int) -> None:
    case = make_case(seed, passes=3, rows=90, vocabulary=3000)
    assert_same_bits(case.run("torch"), case.run("torch"))


@pytest.mark.parametrize("count", [98304, 196608, 196608 + 64])
@pytest.mark.parametrize("threads", [1, 2, 3, 5, 7])
def test_powers_of_two_do_not_depend_on_the_threads_parts(
    seed: int, count: int, threads: int
) -> None:
    # torch.exp2 rounds differently at the end of a part, here for one number of 10,000.
    torch.set_num_threads(threads)
    room = torch.empty(count + slack(count))
    x = room[:count].view(1, count).copy_(-30 * torch.rand(1, count))
    for _ in range(5):
        order = torch.randperm(count)
        whole = powers_of_two(x, torch.empty_like(room))[0].clone()
        x.copy_(x[:, order])
        assert torch.equal(powers_of_two(x, torch.empty_like(room))[0], whole[order])
