"""Checks of any route: formulas that other libraries publish, and identities of any logits.

The tests of the torch route use them, and those of the Triton routes through the interpreter.
"""

import math
from collections.abc import Callable

import torch
from kernel_cases import DTYPES, Case, assert_close, make_case
from starlearn_kernels import linear_entropy, segment_reduce


def check_published_formulas(route: str, seed: int, device: str = "cpu") -> None:
    """Compare with the formulas of four libraries, in float64, on the same logits.

    TRL, trl/trainer/utils.py `entropy_from_logits`: https://github.com/huggingface/trl
    baal, baal/active/heuristics/heuristics.py `BALD`: https://github.com/baal-org/baal
    BatchBALD for one item, batchbald.py: https://github.com/BlackHC/batchbald_redux
    lm-polygraph, estimators/: https://github.com/IINemo/lm-polygraph
    """
    case = make_case(seed, passes=4, rows=33, vocabulary=300, spread=3.0, device=device)
    found = {name: value.cpu().double() for name, value in case.run(route).items()}
    logp = case.logits().cpu().log_softmax(-1)  # [K, N, V]
    p = logp.exp()
    near = {"atol": case.tolerance(), "rtol": 0}

    trl = -(torch.exp(logp) * logp).sum(-1)
    torch.testing.assert_close(found["entropy"], trl, **near)

    predictions = p.permute(1, 2, 0)  # [N, V, K], as baal has them
    expected = -torch.xlogy(predictions, predictions).sum(1).mean(-1)
    mean = predictions.mean(-1)
    baal = -torch.xlogy(mean, mean).sum(1) - expected
    torch.testing.assert_close(found["mutual_information"], baal, **near)

    log_mean = torch.logsumexp(logp, 0) - math.log(4)
    batchbald = -(log_mean * log_mean.exp()).sum(-1) + (logp * p).sum((0, 2)) / 4
    torch.testing.assert_close(found["mutual_information"], batchbald, **near)

    offsets = torch.tensor([0, 5, 5, 20, 33])  # the second answer is empty
    target = case.target.cpu()
    log_likelihoods = logp[0].gather(-1, target[:, None])[:, 0]
    for start, end, item in ((0, 5, 0), (5, 20, 2), (20, 33, 3)):
        entropy, likelihood = trl[0, start:end], log_likelihoods[start:end]
        means = segment_reduce(found["entropy"][0], offsets)
        perplexity = -segment_reduce(found["logprob"][0], offsets)
        sequence = -segment_reduce(found["logprob"][0], offsets, "sum")
        torch.testing.assert_close(means[item], entropy.mean(), **near)
        torch.testing.assert_close(perplexity[item], -likelihood.mean(), **near)
        torch.testing.assert_close(sequence[item], -likelihood.sum(), atol=1e-3, rtol=0)


def check_no_worse_than_eager(route: str, seed: int, device: str = "cpu") -> None:
    """Check that errors are at most those of eager code plus 1e-5, as in cut-cross-entropy."""
    for dtype in DTYPES:
        case = make_case(
            seed, rows=255, width=123, vocabulary=507, dtype=dtype, spread=3.0, device=device
        )
        logits = case.hidden @ case.weight.T
        eager = {
            "entropy": -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1),
            "logprob": logits.log_softmax(-1).gather(-1, case.target[None, :, None])[..., 0],
        }
        truth, found = case.run("reference"), case.run(route)
        for name, value in eager.items():
            error = (found[name] - truth[name]).abs().max()
            assert error <= (value.float() - truth[name]).abs().max() + 1e-5, (dtype, name)


def check_bfloat16_within_a_thousandth(route: str, seed: int, device: str = "cpu") -> None:
    """Check bfloat16 inputs against float64 on the same inputs, 1e-3 nats at usual logits."""
    case = make_case(
        seed, passes=3, rows=20, width=80, vocabulary=700, dtype=torch.bfloat16, spread=3.0,
        device=device,
    )  # fmt: skip
    assert_close(case.run(route), case.run("reference"), min(1e-3, case.tolerance()))


def check_identities(route: str, seed: int, device: str = "cpu") -> None:
    """Check uniform, one-hot and identical distributions, bounds, orders of passes and columns."""
    ones = torch.ones(2, 3, 16, device=device)
    uniform = linear_entropy(ones, torch.ones(97, 16, device=device), route=route)
    log_v = torch.full_like(uniform.entropy, math.log(97))
    torch.testing.assert_close(uniform.entropy, log_v, atol=2e-6, rtol=0)
    assert (uniform.margin == 0).all(), "a tie has margin 0"
    assert (uniform.mutual_information < 1e-6).all()

    bias = torch.zeros(97, device=device)
    bias[17] = 500.0
    one_hot = linear_entropy(0 * ones, torch.zeros(97, 16, device=device), bias, route=route)
    assert (one_hot.entropy == 0).all()
    assert (one_hot.max_prob == 1).all()

    case = make_case(seed, passes=4, rows=20, vocabulary=300, target=False, device=device)
    case = Case(case.hidden, case.weight, None, None, 2.0, None)
    first = case.run(route)
    information = first["mutual_information"]
    assert (information >= 0).all()
    assert (information <= math.log(4)).all()
    logp = case.logits().log_softmax(-1)
    epkl = (logp.exp() * (logp - logp.mean(0))).sum(-1).mean(0)
    assert (information <= epkl + 1e-5).all()

    columns, order = torch.randperm(300), torch.randperm(4)
    mixed = Case(case.hidden[order], case.weight[columns], None, None, 2.0, None).run(route)
    for name in ("entropy", "logsumexp", "max_prob", "margin"):
        mixed[name] = mixed[name][order.argsort()]
    assert_close(mixed, first, case.tolerance())

    twice = Case(case.hidden.repeat(2, 1, 1), case.weight, None, None, 2.0, None).run(route)
    same = Case(case.hidden[:1].repeat(4, 1, 1), case.weight, None, None, 2.0, None).run(route)
    torch.testing.assert_close(twice["mutual_information"], information, atol=5e-6, rtol=0)
    assert (same["mutual_information"] < 1e-6).all()


def check_large_logits(route: str, seed: int, device: str = "cpu") -> None:
    """Check that large logits have entropy 0 without NaN."""
    # Tiles of two shapes round differently: with the last seed a logit exceeded the largest.
    for size, number in ((1e2, seed), (1e4, seed), (1e20, seed), (1e20, 1232926640)):
        case = make_case(number, passes=2, rows=20, vocabulary=300, scale=size, device=device)
        found = case.run(route)
        assert all(value.isfinite().all() for value in found.values())
        if size > 1e4:
            assert (found["entropy"] < 1e-3).all()


Check = Callable[[str, int, str], None]
CHECKS: list[Check] = [
    check_published_formulas,
    check_no_worse_than_eager,
    check_bfloat16_within_a_thousandth,
    check_identities,
    check_large_logits,
]
