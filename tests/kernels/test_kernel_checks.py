"""Messages for wrong input name the argument, the allowed values and the value."""

from collections.abc import Callable

import pytest
import torch
from starlearn_kernels import (
    feature_mask,
    linear_entropy,
    lora_product,
    segment_reduce,
    token_mask,
)

H, W = torch.zeros(3, 4), torch.zeros(5, 4)
H3 = torch.zeros(2, 3, 4)
MASK = {"seed": 1, "n_passes": 2, "layer": 0, "module": "q_proj", "n_features": 8, "p": 0.1}
TOKENS = {
    **MASK,
    "item_keys": torch.zeros(2, dtype=torch.int64),
    "positions": torch.zeros(2, 3, dtype=torch.int64),
}


def head(**changes: object) -> Callable[[], object]:
    arguments = {"hidden": H, "weight": W, **changes}
    return lambda: linear_entropy(**arguments)


WRONG: list[tuple[Callable[[], object], type[Exception], list[str]]] = [
    (head(hidden=[1.0]), TypeError, ["`hidden`", "[N, D]", "list"]),
    (head(hidden=torch.zeros(4)), ValueError, ["`hidden`", "[K, N, D]", "[4]"]),
    (head(hidden=torch.zeros(0, 4)), ValueError, ["`hidden`", "empty", "[0, 4]"]),
    (head(hidden=torch.zeros(2, 0, 4)), ValueError, ["`hidden`", "empty"]),
    (head(hidden=H.double()), TypeError, ["`hidden`", "float32, bfloat16 or float16", "float64"]),
    (head(hidden=H.long()), TypeError, ["`hidden`", "int64"]),
    (head(weight=None), TypeError, ["`weight`", "NoneType"]),
    (head(weight=torch.zeros(5, 3)), ValueError, ["`weight`", "D = 4", "[3, 4]", "[5, 3]"]),
    (head(weight=torch.zeros(0, 4)), ValueError, ["`weight`", "empty"]),
    (head(weight=W.to("meta")), ValueError, ["`weight`", "cpu", "meta"]),
    (head(bias=torch.zeros(4)), ValueError, ["`bias`", "[5]", "[4]"]),
    (head(bias=torch.zeros(5).long()), TypeError, ["`bias`", "int64"]),
    (head(bias=0.0), TypeError, ["`bias`", "[V]", "float"]),
    (head(target=torch.tensor([0, 1])), ValueError, ["`target`", "[3]", "[2]"]),
    (head(target=torch.tensor([0, 1, 5])), ValueError, ["`target`", "V - 1 = 4", "5"]),
    (head(target=torch.tensor([0, -100, 1])), ValueError, ["`target`", "-100", "remove"]),
    (head(target=torch.zeros(3)), TypeError, ["`target`", "int64", "float32"]),
    (head(scale=0.0), ValueError, ["`scale`", "above 0", "0.0"]),
    (head(scale=float("nan")), ValueError, ["`scale`", "nan"]),
    (head(scale=torch.tensor(1.0)), TypeError, ["`scale`", "Tensor"]),
    (head(softcap=-1), ValueError, ["`softcap`", "None", "-1"]),
    (head(softcap="30"), TypeError, ["`softcap`", "str"]),
    (head(route="fast"), ValueError, ["`route`", "'torch'", "'fast'"]),
    (head(route=None), TypeError, ["`route`", "NoneType"]),
    (head(max_workspace_mb=0), ValueError, ["`max_workspace_mb`", "0"]),
    (head(max_workspace_mb=1e-4), ValueError, ["`max_workspace_mb`", "at least", "D = 4"]),
    (lambda: segment_reduce([1.0], H), TypeError, ["`values`", "list"]),
    (lambda: segment_reduce(H3, torch.tensor([0, 3])), ValueError, ["`values`", "[2, 3, 4]"]),
    (lambda: segment_reduce(H.long(), torch.tensor([0, 4])), TypeError, ["`values`", "int64"]),
    (lambda: segment_reduce(H, torch.tensor([0.0, 4.0])), TypeError, ["`offsets`", "float32"]),
    (lambda: segment_reduce(H, torch.tensor([0, 3])), ValueError, ["`offsets`", "N = 4", "3"]),
    (lambda: segment_reduce(H, torch.tensor([1, 4])), ValueError, ["`offsets`", "from 0", "1"]),
    (lambda: segment_reduce(H, torch.tensor([0, 3, 2, 4])), ValueError, ["`offsets`", "decrease"]),
    (lambda: segment_reduce(H, torch.tensor([0, 4]), "max"), ValueError, ["`how`", "'max'"]),
    (lambda: feature_mask(**{**MASK, "p": 1.0}), ValueError, ["`p`", "p < 1", "1.0"]),
    (lambda: feature_mask(**{**MASK, "p": "0"}), TypeError, ["`p`", "str"]),
    (lambda: feature_mask(**{**MASK, "seed": -1}), ValueError, ["`seed`", "-1"]),
    (lambda: feature_mask(**{**MASK, "seed": 1.5}), TypeError, ["`seed`", "float"]),
    (lambda: feature_mask(**{**MASK, "n_passes": 0}), ValueError, ["`n_passes`", "0"]),
    (lambda: feature_mask(**{**MASK, "layer": -2}), ValueError, ["`layer`", "-2"]),
    (lambda: feature_mask(**{**MASK, "module": -2}), ValueError, ["`module`", "-2"]),
    (lambda: feature_mask(**{**MASK, "module": 0.5}), TypeError, ["`module`", "float"]),
    (lambda: feature_mask(**{**MASK, "n_features": 0}), ValueError, ["`n_features`", "0"]),
    (lambda: feature_mask(**MASK, dtype=torch.int64), TypeError, ["`dtype`", "int64"]),
    (
        lambda: token_mask(**{**TOKENS, "positions": torch.zeros(2, 3)}),
        TypeError,
        ["`positions`", "int64", "float32"],
    ),
    (
        lambda: token_mask(**{**TOKENS, "item_keys": torch.zeros(3, dtype=torch.int64)}),
        ValueError,
        ["`positions`", "B = 3", "[2, 3]"],
    ),
    (
        lambda: lora_product(torch.zeros(3, 2, 4), W, torch.ones(2, 4)),
        ValueError,
        ["`x`", "[2, 4]", "[3, 2, 4]"],
    ),
    (
        lambda: lora_product(torch.zeros(2, 2, 4), torch.zeros(5, 3), torch.ones(2, 4)),
        ValueError,
        ["`A`", "D = 4", "[5, 3]"],
    ),
    (lambda: lora_product(1.0, W, torch.ones(2, 4)), TypeError, ["`x`", "float"]),
]


@pytest.mark.parametrize(("call", "error", "words"), WRONG)
def test_wrong_input(call: Callable[[], object], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value)


def test_a_workspace_of_the_size_that_the_message_names_is_enough() -> None:
    for passes in (1, 3, 130):
        hidden, weight = torch.zeros(passes, 2, 80), torch.zeros(1001, 80)
        with pytest.raises(ValueError, match="max_workspace_mb") as raised:
            linear_entropy(hidden, weight, max_workspace_mb=1e-6)
        least = float(str(raised.value).split("at least ")[1].split(" ")[0])
        assert linear_entropy(hidden, weight, max_workspace_mb=least).entropy.isfinite().all()
