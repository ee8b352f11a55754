"""Checks of the Triton routes, run by test_triton_routes.py in a separate process.

With TRITON_INTERPRET=1 they run on a CPU, without it on a CUDA device.
"""

import os
from dataclasses import replace

import pytest
import torch
from kernel_cases import DTYPES, Case, assert_close, assert_same_bits, make_case
from kernel_truths import CHECKS, Check
from starlearn_kernels import feature_mask, linear_entropy, token_mask

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
# numpy's warnings about NaN and infinity inside the interpreter
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
ROUTES = ["triton-fused", "triton-chunk"]
# One tile and several, ragged ends, descriptors (D = 80, 64) and pointers (D = 17), many splits.
SHAPES = [
    {"passes": 1, "rows": 1, "width": 16, "vocabulary": 1},
    {"passes": 1, "rows": 7, "width": 17, "vocabulary": 97},
    {"passes": 1, "rows": 140, "width": 80, "vocabulary": 600, "spread": 10.0},
    {"passes": 3, "rows": 50, "width": 64, "vocabulary": 600, "bias": True, "scale": 3.0},
    {"passes": 4, "rows": 33, "width": 80, "vocabulary": 257, "softcap": 30.0},
    {"passes": 5, "rows": 9, "width": 17, "vocabulary": 130, "bias": True, "softcap": 1e4},
]


def case_of(seed: int, **shape: object) -> Case:
    return make_case(seed, device=DEVICE, **shape)  # type: ignore[arg-type]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(dtype, shape) for dtype in DTYPES for shape in SHAPES[0 if dtype == torch.float32 else 3 :]],
    ids=lambda value: str(value) if isinstance(value, torch.dtype) else None,
)
def test_within_1e5_of_float64(
    seed: int, route: str, dtype: torch.dtype, shape: dict[str, object]
) -> None:
    case = case_of(seed, dtype=dtype, **shape)
    assert_close(case.run(route), case.run("reference"), case.tolerance())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("check", CHECKS)
def test_truths(check: Check, route: str, seed: int) -> None:
    check(route, seed, DEVICE)


@pytest.mark.parametrize("megabytes", [64, 2])
def test_the_second_look_from_a_second_product(seed: int, megabytes: float) -> None:
    case = case_of(seed, passes=3, rows=20, width=16, vocabulary=2500)
    found = case.run("triton-chunk", max_workspace_mb=megabytes)
    assert_close(found, case.run("reference"), case.tolerance())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_rows_do_not_depend_on_other_rows(seed: int, route: str, dtype: torch.dtype) -> None:
    if route == "triton-chunk" and DEVICE == "cuda":
        pytest.skip("the bits of the vendor's product are not guaranteed")
    case = case_of(seed, passes=2, rows=75, width=64, vocabulary=260, dtype=dtype)
    if DEVICE == "cpu":
        # The interpreter multiplies with numpy, whose products on some processors depend on a row's
        # place. Multiples of 1/8 have exact products, which leaves our own arithmetic to test.
        for values in (case.hidden, case.weight):
            values.mul_(8).round_().div_(8)
    whole = case.run(route)
    for rows in (torch.randperm(75), torch.tensor([70]), torch.arange(20, 60)):
        part = Case(case.hidden[:, rows], case.weight, None, case.target[rows], 1.0, None)
        assert_same_bits(part.run(route), {k: v[..., rows] for k, v in whole.items()})


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("passes", [1, 3])
def test_nan_stays_in_its_row(seed: int, route: str, passes: int) -> None:
    case = case_of(seed, passes=passes, rows=20, vocabulary=300)
    clean = case.run(route)
    case.hidden[0, 7, 3] = torch.nan
    for name, value in case.run(route).items():
        bad = torch.zeros_like(value, dtype=torch.bool)
        bad[(0, 7) if value.dim() == 2 else 7] = True
        assert torch.equal(value.isnan(), bad), name
        assert torch.equal(value[~bad], clean[name][~bad]), name


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("passes", [1, 3])
def test_masked_columns(seed: int, route: str, passes: int) -> None:
    case = case_of(seed, passes=passes, rows=20, vocabulary=300, bias=True)
    kept = torch.rand(300, device=DEVICE) < 0.3
    case.bias[~kept] = -torch.inf
    assert_close(case.run(route), case.run("reference"), case.tolerance())
    case.bias[1:] = -torch.inf
    case.bias[0] = 0
    assert_close(case.run(route), case.run("reference"), case.tolerance())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("passes", [1, 3])
def test_no_finite_logit_and_bad_columns(seed: int, route: str, passes: int) -> None:
    case = case_of(seed, passes=passes, rows=3, vocabulary=300, bias=True)
    case.bias.fill_(-torch.inf)
    found = case.run(route)
    assert (found.pop("logsumexp") == -torch.inf).all()
    assert all(value.isnan().all() for value in found.values())
    for number in (torch.nan, torch.inf):
        case.bias.zero_()[170] = number
        assert all(value.isnan().all() for value in case.run(route).values())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_an_infinite_state_or_weight(seed: int, route: str, softcap: float | None) -> None:
    # 300 columns and K = 3: tiles reach beyond the vocabulary, and lanes beyond the passes.
    shape = {"passes": 3, "rows": 4, "width": 64, "vocabulary": 300, "dtype": torch.bfloat16}
    for number in (torch.inf, -torch.inf):
        case = case_of(seed, softcap=softcap, **shape)
        case.weight.abs_()
        case.hidden[:, 1, 3] = number
        assert_close(case.run(route), case.run("reference"), case.tolerance())
        case = case_of(seed, softcap=softcap, **shape)
        case.hidden.abs_()
        case.weight[7, 0] = number
        assert_close(case.run(route), case.run("reference"), case.tolerance())


@pytest.mark.parametrize("route", ROUTES)
def test_an_axis_of_one_may_have_any_stride(seed: int, route: str) -> None:
    case = case_of(seed, passes=3, rows=1, width=64, vocabulary=1, dtype=torch.bfloat16)
    hidden = torch.empty_strided((3, 1, 64), (64, 5, 1), dtype=torch.bfloat16, device=DEVICE)
    weight = torch.empty(1, 65, dtype=torch.bfloat16, device=DEVICE)[:, :64]
    for room, values in ((hidden, case.hidden), (weight, case.weight)):
        assert room.is_contiguous()
        room.copy_(values)
    assert_same_bits(replace(case, hidden=hidden, weight=weight).run(route), case.run(route))


@pytest.mark.parametrize("route", ROUTES)
def test_ties_and_margins(route: str) -> None:
    logits = torch.tensor([[0.0, 5.0, 3.0], [5.0, 0.0, 5.0], [1.0, 1.0, 1.0]])
    weight = torch.cat([logits.T, torch.full((400, 3), -9.0), logits.T[1:2]]).to(DEVICE)
    found = linear_entropy(torch.eye(3, device=DEVICE), weight[:-1], route=route)
    assert abs(found.margin[0] - 2) < 1e-6
    assert found.margin[1:].tolist() == [0.0, 0.0]
    across_tiles = linear_entropy(torch.eye(3, device=DEVICE), weight, route=route)
    assert across_tiles.margin[0] == 0


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shift", [-300.0, 300.0])
def test_a_constant_changes_nothing(seed: int, route: str, shift: float) -> None:
    case = case_of(seed, passes=3, rows=10, vocabulary=300, bias=True)
    first = case.run(route)
    case.bias.add_(shift)
    second = case.run(route)
    second["logsumexp"] = second["logsumexp"] - shift
    assert_close(second, first, 5e-4)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("poison", [torch.nan, 1e30, -7.0])
def test_memory_is_written_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, seed: int, route: str, poison: float
) -> None:
    case = case_of(seed, passes=3, rows=20, vocabulary=300, bias=True)
    clean = case.run(route)
    empty, new_empty = torch.empty, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(poison))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *a, **k: new_empty(self, *a, **k).fill_(poison)
    )
    assert_same_bits(case.run(route), clean)


@pytest.mark.parametrize("passes", [2, 3, 8])
def test_disjoint_one_hots_share_log_k(passes: int) -> None:
    hidden = (torch.eye(8)[:passes, None] * 300).to(DEVICE)  # [K, 1, 8]
    weight = torch.eye(100, 8, device=DEVICE)
    for route in ROUTES:
        found = linear_entropy(hidden, weight, route=route)
        log_k = torch.tensor(float(passes)).log()
        torch.testing.assert_close(found.mutual_information.cpu(), log_k[None], atol=1e-6, rtol=0)


def test_rows_in_several_chunks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from starlearn_kernels import launch

    case = case_of(seed, passes=2, rows=100, vocabulary=300)
    whole = case.run("triton-fused")
    monkeypatch.setattr(launch, "CHUNK_ROWS", 64)
    assert_same_bits(case.run("triton-fused"), whole)


def test_the_same_masks_as_on_a_cpu() -> None:
    keys = {"seed": 2**60 + 1, "n_passes": 3, "layer": 2, "module": "q_proj", "p": 0.1}
    tied = [feature_mask(**keys, n_features=501, device=d) for d in ("cpu", DEVICE)]
    assert torch.equal(tied[0], tied[1].cpu())
    places = {"item_keys": torch.tensor([1, 2**50]), "positions": torch.arange(6).view(2, 3)}
    each = [token_mask(**keys, **places, n_features=37, device=d) for d in ("cpu", DEVICE)]
    assert torch.equal(each[0], each[1].cpu())


def test_wrong_input_is_named(seed: int) -> None:
    mixed = case_of(seed)
    with pytest.raises(ValueError, match="one dtype"):
        linear_entropy(mixed.hidden.half(), mixed.weight, route="triton-fused")
    many = case_of(seed, passes=129, rows=1)
    with pytest.raises(ValueError, match="at most K"):
        many.run("triton-fused")
    with pytest.raises(ValueError, match="max_workspace_mb"):
        mixed.run("triton-fused", max_workspace_mb=1e-5)
