"""The torch route against float64, formulas of other libraries and identities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, assert_close, assert_same_bits, make_case
from kernel_strategies import cases
from scipy import stats as scipy_stats
from starlearn_kernels import linear_entropy


@given(cases())
@settings(deadline=None, max_examples=50)
def test_the_torch_route_is_within_1e5_of_float64(case: Case) -> None:
    assert_close(case.run("torch"), case.run("reference"), case.tolerance())


@given(cases(), st.sampled_from([0.3, 1.0]))
@settings(deadline=None, max_examples=25)
def test_a_small_workspace_changes_rounding_only(case: Case, megabytes: float) -> None:
    found = case.run("torch", max_workspace_mb=megabytes)
    assert_close(found, case.run("reference"), case.tolerance())


@given(cases(largest=97))
@settings(deadline=None, max_examples=40)
def test_the_reference_agrees_with_scipy(case: Case) -> None:
    logits = case.logits().numpy()  # [K, N, V]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    found = case.stats("reference")
    near = {"atol": 1e-6, "rtol": 1e-6}
    np.testing.assert_allclose(found.entropy, scipy_stats.entropy(p, axis=-1), **near)
    mean = scipy_stats.entropy(p.mean(0), axis=-1)
    np.testing.assert_allclose(found.predictive_entropy, mean, **near)
    expected = scipy_stats.entropy(p, axis=-1).mean(0)
    np.testing.assert_allclose(found.expected_entropy, expected, **near)
    np.testing.assert_allclose(found.mutual_information, mean - expected, **near)
    np.testing.assert_allclose(found.max_prob, p.max(-1), **near)
    if case.target is not None:
        rows = np.arange(p.shape[1])
        logp = np.log(p[:, rows, case.target.numpy()])
        np.testing.assert_allclose(found.logprob, logp, rtol=1e-5, atol=1e-5)


def test_small_information_keeps_its_digits(seed: int) -> None:
    # A true value of about 1e-6: as a difference of two entropies it would be lost in 1e-6.
    case = make_case(seed, passes=4, rows=60, width=64, vocabulary=5000)
    hidden = case.hidden[:1] + 1e-3 * (case.hidden - case.hidden[:1])
    truth = linear_entropy(hidden, case.weight, route="reference").mutual_information
    found = linear_entropy(hidden, case.weight, route="torch").mutual_information
    assert truth.max() < 1e-5
    assert (found - truth).abs().max() < 2e-7


@pytest.mark.parametrize("rows", [1, 7, 1023])
@pytest.mark.parametrize(("width", "vocabulary"), [(16, 1), (80, 97), (4096, 97), (16, 32000)])
def test_odd_sizes(seed: int, rows: int, width: int, vocabulary: int) -> None:
    if vocabulary == 32000 and rows > 130:
        rows = 129  # more than a block
    case = make_case(seed, rows=rows, width=width, vocabulary=vocabulary)
    assert_close(case.run("torch"), case.run("reference"), case.tolerance())


@pytest.mark.slow
@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize(("rows", "width", "vocabulary"), [(7, 4096, 128256), (255, 80, 32000)])
def test_large_sizes(seed: int, passes: int, rows: int, width: int, vocabulary: int) -> None:
    case = make_case(seed, passes=passes, rows=rows, width=width, vocabulary=vocabulary)
    assert_close(case.run("torch"), case.run("reference"), case.tolerance())


@pytest.mark.parametrize("route", ["reference", "torch"])
class TestIdentities:
    """Facts that hold for any numbers."""

    def test_uniform_logits_give_log_v(self, route: str) -> None:
        for vocabulary in (1, 2, 97, 3000):
            found = linear_entropy(torch.ones(2, 3, 4), torch.ones(vocabulary, 4), route=route)
            for value in (found.entropy, found.predictive_entropy):
                log_v = torch.full_like(value, math.log(vocabulary))
                torch.testing.assert_close(value, log_v, atol=2e-6, rtol=0)
            if vocabulary > 1:
                assert (found.margin == 0).all(), "a tie has margin 0"

    def test_one_hot_gives_zero(self, route: str) -> None:
        bias = torch.zeros(50)
        bias[17] = 500.0
        found = linear_entropy(torch.zeros(3, 4), torch.zeros(50, 4), bias, route=route)
        assert (found.entropy == 0).all()
        assert (found.max_prob == 1).all()
        assert (found.margin == 500).all()

    @pytest.mark.parametrize("shift", [-300.0, 300.0])
    def test_a_constant_changes_nothing(self, route: str, seed: int, shift: float) -> None:
        case = make_case(seed, passes=3, rows=20, vocabulary=200, bias=True)
        moved = Case(case.hidden, case.weight, case.bias + shift, case.target, 1.0, None)
        first, second = case.run(route), moved.run(route)
        second["logsumexp"] = second["logsumexp"] - shift
        assert_close(second, first, 5e-4)

    def test_identical_passes_share_no_information(self, route: str, seed: int) -> None:
        case = make_case(seed, rows=20, vocabulary=500, spread=5.0)
        for passes in (2, 3, 7):
            found = linear_entropy(case.hidden.repeat(passes, 1, 1), case.weight, route=route)
            assert (found.mutual_information < 1e-6).all()

    @pytest.mark.parametrize("passes", [2, 3, 8])
    def test_disjoint_one_hots_share_log_k(self, route: str, passes: int) -> None:
        hidden = torch.eye(8)[:passes, None] * 300  # [K, 1, 8]
        found = linear_entropy(hidden, torch.eye(100, 8), route=route)
        assert abs(found.mutual_information.item() - math.log(passes)) < 1e-6
        assert abs(found.predictive_entropy.item() - math.log(passes)) < 1e-6
        assert (found.expected_entropy == 0).all()

    @pytest.mark.parametrize("gap", [100.0, 700.0, 744.0, 744.4, 745.0, 2000.0])
    def test_a_mean_that_rounds_to_zero_gives_no_information(self, route: str, gap: float) -> None:
        """exp(-744.4) is the smallest number; a third of it is 0, and its logarithm -inf."""
        weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        hidden = torch.tensor([[[gap, 0.0]], [[2 * gap, 0.0]], [[2 * gap, 0.0]]])  # [3, 1, 2]
        found = linear_entropy(hidden, weight, route=route)
        assert found.mutual_information.item() < 1e-6

    def test_bounds(self, route: str, seed: int) -> None:
        for spread in (0.1, 1.0, 10.0, 100.0):
            case = make_case(seed, passes=6, rows=50, vocabulary=300, spread=spread)
            found = case.stats(route)
            assert (found.mutual_information >= 0).all()
            assert (found.mutual_information <= math.log(6)).all()
            logp = case.logits().log_softmax(-1)
            epkl = (logp.exp() * (logp - logp.mean(0))).sum(-1).mean(0)
            assert (found.mutual_information <= epkl + 1e-5).all()
            ceiling = found.expected_entropy + math.log(6) + 1e-5
            assert (found.predictive_entropy <= ceiling).all()

    def test_the_order_of_passes_and_columns_does_not_matter(self, route: str, seed: int) -> None:
        case = make_case(seed, passes=4, rows=20, vocabulary=500, target=False)
        first = case.run(route)
        columns, passes = torch.randperm(500), torch.randperm(4)
        mixed = Case(case.hidden[passes], case.weight[columns], None, None, 1.0, None).run(route)
        for name in ("entropy", "logsumexp", "max_prob", "margin"):
            first[name] = first[name][passes]
        assert_close(mixed, first, case.tolerance())

    def test_repeated_passes_do_not_matter(self, route: str, seed: int) -> None:
        case = make_case(seed, passes=3, rows=20, vocabulary=500)
        twice = linear_entropy(case.hidden.repeat(2, 1, 1), case.weight, route=route)
        once = case.stats(route)
        for name in ("mutual_information", "predictive_entropy", "expected_entropy"):
            torch.testing.assert_close(getattr(twice, name), getattr(once, name), atol=2e-6, rtol=0)

    def test_two_dimensions_are_one_pass(self, route: str, seed: int) -> None:
        case = make_case(seed, rows=9, vocabulary=70)
        one = linear_entropy(case.hidden[0], case.weight, target=case.target, route=route)
        assert one.entropy.shape == one.mutual_information.shape == (9,)
        assert (one.mutual_information == 0).all()
        assert torch.equal(one.entropy, one.expected_entropy)
        assert_same_bits(one.tensors(), case.stats(route).squeezed().tensors())

    def test_ties_and_margins(self, route: str) -> None:
        logits = torch.tensor([[0.0, 5.0, 3.0], [5.0, 0.0, 5.0], [1.0, 1.0, 1.0]])
        for copies in (1, 100):  # ties inside a group of columns and across tiles
            weight = torch.cat([logits.T, torch.full((3 * copies, 3), -9.0)])
            found = linear_entropy(torch.eye(3), weight, route=route)
            assert abs(found.margin[0] - 2) < 1e-6
            assert found.margin[1:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("route", ["reference", "torch"])
@pytest.mark.parametrize("passes", [1, 3])
class TestStrangeNumbers:
    """NaN, infinities, and rows without a finite logit."""

    def test_nan_stays_in_its_row(self, route: str, passes: int, seed: int) -> None:
        case = make_case(seed, passes=passes, rows=200, vocabulary=300)
        clean = case.run(route)
        case.hidden[0, 7, 3] = torch.nan
        found = case.run(route)
        for name, value in found.items():
            bad = torch.zeros_like(value, dtype=torch.bool)
            bad[(0, 7) if value.dim() == 2 else 7] = True
            assert torch.equal(value.isnan(), bad), name
            assert torch.equal(value[~bad], clean[name][~bad]), name

    @pytest.mark.parametrize("number", [torch.nan, torch.inf])
    def test_a_bad_column_reaches_every_row(
        self, route: str, passes: int, seed: int, number: float
    ) -> None:
        case = make_case(seed, passes=passes, rows=5, vocabulary=300, bias=True)
        case.bias[40] = number
        assert all(value.isnan().all() for value in case.run(route).values())

    def test_masked_columns_are_as_if_absent(self, route: str, passes: int, seed: int) -> None:
        case = make_case(seed, passes=passes, rows=30, vocabulary=300, bias=True)
        kept = torch.rand(300) < 0.3
        kept[case.target] = True
        case.bias[~kept] = -torch.inf
        position = kept.cumsum(0) - 1
        alone = Case(
            case.hidden, case.weight[kept], case.bias[kept], position[case.target], 1.0, None
        )
        assert_close(case.run(route), alone.run("reference"), case.tolerance())

    def test_a_masked_target_has_log_probability_minus_infinity(
        self, route: str, passes: int, seed: int
    ) -> None:
        case = make_case(seed, passes=passes, rows=3, vocabulary=99, bias=True)
        case.bias[case.target[0]] = -torch.inf
        case.target[1:] = (case.target[0] + 1) % 99
        found = case.stats(route).logprob
        assert (found[:, 0] == -torch.inf).all()
        assert found[:, 1:].isfinite().all()

    def test_one_finite_logit(self, route: str, passes: int, seed: int) -> None:
        case = make_case(seed, passes=passes, rows=3, vocabulary=99, bias=True, target=False)
        case.bias[1:] = -torch.inf
        found = case.stats(route)
        assert (found.entropy == 0).all()
        assert (found.max_prob == 1).all()
        assert (found.margin == torch.inf).all()

    def test_no_finite_logit(self, route: str, passes: int, seed: int) -> None:
        case = make_case(seed, passes=passes, rows=3, vocabulary=99, bias=True)
        case.bias.fill_(-torch.inf)
        found = case.run(route)
        assert (found.pop("logsumexp") == -torch.inf).all()
        assert all(value.isnan().all() for value in found.values())

    def test_a_soft_cap_bounds_everything(self, route: str, passes: int, seed: int) -> None:
        case = make_case(seed, passes=passes, rows=9, vocabulary=97, scale=1e30, softcap=5.0)
        found = case.stats(route)
        assert (found.margin <= 10.001).all()
        assert (found.logsumexp <= 5.001 + math.log(97)).all()
        assert_close(found.tensors(), case.run("reference"), 1e-4)


@pytest.mark.parametrize("poison", [torch.nan, 1e30, -7.0])
@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("megabytes", [64, 0.3])
def test_memory_is_written_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch, seed: int, poison: float, passes: int, megabytes: float
) -> None:
    case = make_case(seed, passes=passes, rows=150, vocabulary=700, bias=True)
    clean = case.run("torch", max_workspace_mb=megabytes)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(poison))
    assert_same_bits(case.run("torch", max_workspace_mb=megabytes), clean)


def test_gradients_are_not_recorded(seed: int) -> None:
    case = make_case(seed)
    found = linear_entropy(case.hidden.requires_grad_(), case.weight.requires_grad_())
    assert not found.entropy.requires_grad
