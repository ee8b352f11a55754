"""Workloads and sequences of tiny models, for tests below the learner."""

from typing import Any

import numpy as np
import torch

from starlearn.model.dropout import MonteCarlo
from starlearn.model.forward import Sequences, Workload
from starlearn.model.head import Head, head_of
from starlearn.model.memory import TokenBudget


def workload(
    model: Any,
    *,
    tokens: int = 4096,
    dropout: MonteCarlo | None = None,
    pad_id: int = 0,
    head: Head | None = None,
    by_positions: bool = True,
) -> Workload:
    """A model with a bound on its batches."""
    budget = TokenBudget(tokens)
    return Workload(
        model, head or head_of(model), pad_id, budget, dropout=dropout, by_positions=by_positions
    )


def sequences(input_ids: torch.Tensor, rows: torch.Tensor) -> Sequences:
    """Plain text whose prompt ends at the first wanted row."""
    keys = torch.arange(len(input_ids))
    return Sequences(input_ids, rows, keys, input_ids.shape[1])


def numbers(n_items: int) -> Any:
    """A number for each item."""
    return np.arange(n_items, dtype=np.int64)
