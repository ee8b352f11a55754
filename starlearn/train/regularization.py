"""Penalty on B: decoupled weight decay, given by its strength or by its effect."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from transformers import get_scheduler

from starlearn.settings import Training


def learning_rates(training: Training, n_steps: int) -> NDArray[np.float64]:
    """Return the learning rate of each step, shape [n_steps]."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=training.learning_rate)
    scheduler: Any = get_scheduler(
        schedule_name(training), optimizer, training.warmup_steps, n_steps
    )
    factor = scheduler.lr_lambdas[0]
    return training.learning_rate * np.array([float(factor(step)) for step in range(n_steps)])


def schedule_name(training: Training) -> str:
    """Return transformers' name of the schedule, whose own "constant" ignores the warm-up."""
    warm_constant = training.scheduler == "constant" and training.warmup_steps > 0
    return "constant_with_warmup" if warm_constant else training.scheduler


def b_decay(training: Training, n_steps: int) -> float:
    """Return the weight decay beta on B.

    AdamW multiplies B by 1 - lr(s) beta in step s. `b_shrinkage` is the exponent of the product
    of all these factors. beta is the one solution of prod_s (1 - lr(s) beta) = exp(-b_shrinkage)
    with positive factors only.
    """
    if training.b_shrinkage is None:
        return float(training.b_weight_decay)
    rates = learning_rates(training, n_steps)
    if training.b_shrinkage == 0 or rates.max() == 0:
        return 0.0

    # Solved for z, the exponent of the largest step alone, because its root lies between 0 and
    # b_shrinkage. With a single step it is b_shrinkage itself.
    def beta(z: float) -> float:
        return float(-np.expm1(-z) / rates.max())

    def excess(z: float) -> float:
        return float(-np.log1p(-rates * beta(z)).sum() - training.b_shrinkage)

    return beta(brentq(excess, 0.0, training.b_shrinkage * (1 + 1e-6)))


def parameter_groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Split the trainable weights into B with decay and A without (arXiv 2403.01165, sec. 3.3)."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if "lora_B" in name], "weight_decay": decay},
        {"params": [p for name, p in named if "lora_B" not in name], "weight_decay": 0.0},
    ]
