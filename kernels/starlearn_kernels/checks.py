"""Input checks, whose messages name the argument, the allowed values and the value."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from starlearn_kernels.stats import Head

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_tensor(name: str, value: object, shape: str, ndims: Sequence[int]) -> Tensor:
    """Return ``value`` if it is a tensor of an allowed rank without an empty axis."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor {shape}, got {type(value).__name__}")
    if value.dim() not in ndims:
        raise ValueError(f"`{name}` must have shape {shape}, got {list(value.shape)}")
    if 0 in value.shape:
        raise ValueError(f"`{name}` must not be empty, shape {shape}, got {list(value.shape)}")
    return value


def check_number(name: str, value: object, allowed: str) -> float:
    """Return ``value`` as a float if it is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{name}` must be {allowed}, got {type(value).__name__} {value!r}")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"`{name}` must be {allowed}, got {value!r}")
    return float(value)


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """Return ``value`` if it is an integer with ``low <= value < high``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an int, got {type(value).__name__} {value!r}")
    if not low <= value < high:
        raise ValueError(f"`{name}` must be at least {low} and below {high}, got {value}")
    return value


def check_choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """Return ``value`` if it is one of the allowed strings."""
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be one of {list(allowed)}, got {type(value).__name__}")
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {list(allowed)}, got {value!r}")
    return value


def check_device(name: str, value: Tensor, device: torch.device) -> None:
    """Raise ValueError unless ``value`` is on the device of ``hidden``."""
    if value.device != device:
        raise ValueError(
            f"`{name}` must be on the device of `hidden`, {device}, got {value.device}"
        )


def _check_float(name: str, value: Tensor) -> None:
    if value.dtype not in DTYPES:
        raise TypeError(f"`{name}` must be float32, bfloat16 or float16, got {value.dtype}")


def check_target(target: Tensor, rows: int, vocabulary: int) -> Tensor:
    """Return token ids [N] as int64 if they lie in 0 .. V - 1."""
    if target.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"`target` must be int64 or int32, got {target.dtype}")
    if target.shape[0] != rows:
        raise ValueError(f"`target` must have shape [N] = [{rows}], got {list(target.shape)}")
    low, high = (int(end) for end in target.aminmax())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"`target` must lie in 0 .. V - 1 = {vocabulary - 1}, got values from {low} to {high}; "
            "remove rows without a target (such as label -100) before the call"
        )
    return target.long()


def check_head(
    hidden: object,
    weight: object,
    bias: object,
    target: object,
    scale: object,
    softcap: object,
) -> Head:
    """Check the arguments of `linear_entropy`, and return them with ``hidden`` as [K, N, D]."""
    hidden = check_tensor("hidden", hidden, "[N, D] or [K, N, D]", (2, 3))
    weight = check_tensor("weight", weight, "[V, D]", (2,))
    _check_float("hidden", hidden)
    _check_float("weight", weight)
    check_device("weight", weight, hidden.device)
    width = hidden.shape[-1]
    if weight.shape[1] != width:
        raise ValueError(
            f"`weight` must have shape [V, D] with D = {width} as in `hidden` "
            f"{list(hidden.shape)}, got {list(weight.shape)}"
        )
    vocabulary = weight.shape[0]
    if bias is not None:
        bias = check_tensor("bias", bias, "[V]", (1,))
        _check_float("bias", bias)
        check_device("bias", bias, hidden.device)
        if bias.shape[0] != vocabulary:
            raise ValueError(f"`bias` must have shape [V] = [{vocabulary}], got {list(bias.shape)}")
    if target is not None:
        target = check_tensor("target", target, "[N]", (1,))
        check_device("target", target, hidden.device)
        target = check_target(target, hidden.shape[-2], vocabulary)
    cap = "None or a finite number above 0"
    return Head(
        hidden=hidden.detach() if hidden.dim() == 3 else hidden.detach()[None],
        weight=weight.detach(),
        bias=None if bias is None else bias.detach(),
        target=target,
        scale=check_number("scale", scale, "a finite number above 0"),
        softcap=None if softcap is None else check_number("softcap", softcap, cap),
    )
