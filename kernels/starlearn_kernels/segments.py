"""Sums and means per item over consecutive rows, in a fixed order."""

import torch
from torch import Tensor

from starlearn_kernels.checks import check_choice, check_tensor


def segment_reduce(values: Tensor, offsets: Tensor, how: str = "mean") -> Tensor:
    """Reduce consecutive rows to one value per item.

    Parameters
    ----------
    values : Tensor [N] or [K, N]
        Floating point values of the rows.
    offsets : Tensor [S + 1]
        Item s consists of rows ``offsets[s]`` to ``offsets[s + 1] - 1``. Offsets start at 0, never
        decrease and end at N; int64 or int32, on the device of ``values``.
    how : {"mean", "sum"}

    Returns
    -------
    Tensor [S] or [K, S]
        In the dtype of ``values``. An item without rows has sum 0 and mean NaN.

    Notes
    -----
    Rows are added in order in float64, so the bits of an item depend on its own rows only.
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"`values` must be a torch.Tensor, got {type(values).__name__}")
    if values.dim() not in (1, 2):
        raise ValueError(f"`values` must have shape [N] or [K, N], got {list(values.shape)}")
    if not values.is_floating_point():
        raise TypeError(f"`values` must be floating point, got {values.dtype}")
    check_tensor("offsets", offsets, "[S + 1]", (1,))
    check_choice("how", how, ("mean", "sum"))
    _check_offsets(offsets, values.shape[-1], values.device)

    starts = offsets[:-1].long()
    lengths = offsets[1:].long() - starts  # [S]
    total = values.new_zeros((*values.shape[:-1], len(lengths)), dtype=torch.float64)
    longest = int(lengths.max()) if len(lengths) else 0
    for step in range(longest):
        # Adds row number `step` of every item that has one.
        item = torch.nonzero(lengths > step)[:, 0]
        total[..., item] += values[..., starts[item] + step].double()
    if how == "mean":
        total = total / lengths  # 0 / 0 is NaN for an item without rows
    return total.to(values.dtype)


def _check_offsets(offsets: Tensor, rows: int, device: torch.device) -> None:
    if offsets.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"`offsets` must be int64 or int32, got {offsets.dtype}")
    if offsets.device != device:
        raise ValueError(
            f"`offsets` must be on the device of `values`, {device}, got {offsets.device}"
        )
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != rows:
        raise ValueError(f"`offsets` must run from 0 to N = {rows}, got {first} to {last}")
    if bool((offsets.diff() < 0).any()):
        where = int(torch.nonzero(offsets.diff() < 0)[0, 0])
        raise ValueError(f"`offsets` must never decrease, got a decrease after position {where}")
