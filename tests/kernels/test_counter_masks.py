"""Counter-based masks: known answers, statistics, no dependence on the batch, LoRA product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from starlearn_kernels import feature_mask, lora_product, token_mask
from starlearn_kernels.masks import philox
from torch import Tensor

WORDS = st.integers(0, 2**32 - 1)


# Known answers of the authors' own implementation, Random123, for philox4x32 with 10 rounds.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], answer: list[int]) -> None:
    first, *rest = counter
    words = philox((torch.tensor(first), *rest), tuple(key))
    assert [int(word) for word in words] == answer


@given(st.tuples(WORDS, WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS))
@settings(deadline=None, max_examples=40)
def test_equals_arithmetic_on_python_integers(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> None:
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    words = philox((torch.tensor(counter[0]), *counter[1:]), key)
    assert [int(word) for word in words] == c


def mask(**changes: object) -> Tensor:
    keys = {"seed": 7, "n_passes": 3, "layer": 2, "module": "q_proj", "n_features": 501, "p": 0.1}
    return feature_mask(**{**keys, **changes})


def test_pattern_is_pinned() -> None:
    # A change of these bits would change every score that was ever stored.
    dropped = torch.nonzero(mask(n_passes=1, n_features=64, p=0.1)[0] == 0)[:, 0].tolist()
    assert dropped == [1, 2, 12, 29, 48]


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_rate_and_values(seed: int, p: float) -> None:
    found = mask(seed=seed, n_passes=20, n_features=10_000, p=p)
    kept = found != 0
    assert torch.equal(found[kept], torch.full_like(found[kept], 1 / (1 - p)))
    # 200,000 draws; a true rate fails this once in a million runs.
    test = scipy_stats.binomtest(int((~kept).sum()), kept.numel(), p)
    assert test.pvalue > 1e-6


def test_no_dropout() -> None:
    assert (mask(p=0.0) == 1).all()


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"seed": 7 + 2**32}, {"layer": 3}, {"module": "k_proj"}, {"module": 0}],
)
def test_every_key_gives_an_independent_mask(change: dict[str, object]) -> None:
    size = {"n_features": 20_000, "p": 0.5}
    one, other = mask(**size) > 0, mask(**{**size, **change}) > 0
    # 60,000 fair coin pairs agree in half of the places; 6 standard deviations are 0.012
    assert abs((one == other).float().mean() - 0.5) < 0.0125


def test_passes_and_features_are_independent(seed: int) -> None:
    kept = (mask(seed=seed, n_passes=64, n_features=2048, p=0.5) > 0).double()
    for table in (kept, kept.T):
        table = table - table.mean(1, keepdim=True)
        table = table / table.norm(dim=1, keepdim=True)
        correlation = table @ table.T
        correlation.fill_diagonal_(0)
        # 6.5 standard deviations of a correlation over this number of draws
        assert correlation.abs().max() < 6.5 / table.shape[1] ** 0.5
    runs = (kept[:, 1:] == kept[:, :-1]).double().mean()
    assert abs(runs - 0.5) < 0.01


def test_words_are_uniform(seed: int) -> None:
    words = torch.stack(philox((torch.arange(50_000), 1, 2, 3), (seed, 5)))
    assert words.min() >= 0
    assert words.max() < 2**32
    for shift in (0, 8, 16, 24):
        counts = torch.bincount((words.flatten() >> shift) & 255, minlength=256)
        assert scipy_stats.chisquare(counts).pvalue > 1e-6


def test_more_passes_and_features_keep_the_first_ones() -> None:
    assert torch.equal(mask(n_passes=8)[:3], mask())
    assert torch.equal(mask(n_features=900)[:, :501], mask())


def test_rates_share_their_random_numbers() -> None:
    small, large = mask(p=0.1) == 0, mask(p=0.3) == 0
    assert (large | ~small).all(), "what is dropped at 0.1 is dropped at 0.3"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_pattern_is_the_same_in_every_dtype(dtype: torch.dtype) -> None:
    assert torch.equal(mask(dtype=dtype) == 0, mask() == 0)
    assert mask(dtype=dtype).dtype == dtype


def tokens(item_keys: list[int], positions: list[list[int]], **changes: object) -> Tensor:
    keys = {"seed": 7, "n_passes": 2, "layer": 2, "module": "q_proj", "n_features": 37, "p": 0.4}
    places = {"item_keys": torch.tensor(item_keys), "positions": torch.tensor(positions)}
    return token_mask(**{**keys, **places, **changes})


def test_token_masks_do_not_depend_on_the_batch() -> None:
    big = 2**40 + 3
    whole = tokens([5, big, 9], [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]])
    assert whole.shape == (2, 3, 4, 37)
    alone = tokens([big], [[2, 3]])
    assert torch.equal(whole[:, 1:2, 2:], alone)
    padded = tokens([big, 9], [[-1, -1, 2, 3], [4, 5, 6, 7]])
    assert torch.equal(padded[:, 0, 2:], alone[:, 0])
    assert torch.equal(padded[:, 1], whole[:, 2])


def test_token_masks_differ_between_tokens_items_and_modes() -> None:
    whole = tokens([5, 6, 5 + 2**32], [[0, 1]] * 3, n_features=2000, p=0.5)
    rows = (whole > 0).flatten(0, 2).float()  # [K * B * T, D]
    same = (rows[:, None] == rows).float().mean(-1)
    same.fill_diagonal_(0.5)
    assert (same - 0.5).abs().max() < 0.08
    tied = feature_mask(seed=7, n_passes=2, layer=2, module="q_proj", n_features=2000, p=0.5)
    assert ((tied[:, None, None] > 0) == (whole > 0)).float().mean() < 0.6


def test_the_modes_never_share_a_mask() -> None:
    first = tokens([0], [[0]], n_features=2000, p=0.5)[:, 0, 0]
    tied = feature_mask(seed=7, n_passes=2, layer=2, module="q_proj", n_features=2000, p=0.5)
    assert abs((first == tied).float().mean() - 0.5) < 0.07


def test_token_mask_rate(seed: int) -> None:
    found = tokens([1, 2, 3], [list(range(50))] * 3, seed=seed, n_features=1000, p=0.2)
    test = scipy_stats.binomtest(int((found == 0).sum()), found.numel(), 0.2)
    assert test.pvalue > 1e-6


@pytest.mark.parametrize("shape", [(4, 2, 5, 48), (1, 1, 1, 48), (3, 7, 48)], ids=str)
def test_lora_product_equals_masking_the_activations(seed: int, shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw).double()
    A = torch.randn(8, 48, generator=draw).double()
    masks = mask(seed=seed, n_passes=shape[0], n_features=48, p=0.3, dtype=torch.float64)
    spread = masks.view(shape[0], *[1] * (len(shape) - 2), 48)
    torch.testing.assert_close(lora_product(x, A, masks), (x * spread) @ A.T)
    single = lora_product(x.float(), A.float(), masks.float())
    torch.testing.assert_close(single.double(), (x * spread) @ A.T, atol=1e-4, rtol=1e-4)


def test_lora_product_has_gradients(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 4, 16, generator=draw, requires_grad=True)
    A = torch.randn(5, 16, generator=draw, requires_grad=True)
    masks = mask(n_passes=2, n_features=16, p=0.5)
    found = torch.autograd.grad(lora_product(x, A, masks).square().sum(), (x, A))
    right = torch.autograd.grad(((x * masks[:, None, None]) @ A.T).square().sum(), (x, A))
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
