"""The penalty on B: decoupled weight decay on B alone, by its strength or by its effect."""

from typing import Any

import torch
from transformers import get_scheduler

from starlearn.settings import Training


def schedule_sum(training: Training, n_steps: int) -> float:
    """Return the sum of the learning rates over all steps of a training."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=training.learning_rate)
    scheduler: Any = get_scheduler(training.scheduler, optimizer, training.warmup_steps, n_steps)
    factor = scheduler.lr_lambdas[0]
    return training.learning_rate * sum(float(factor(step)) for step in range(n_steps))


def b_decay(training: Training, n_steps: int) -> float:
    """Return the weight decay beta on B.

    AdamW shrinks B by the factor 1 - lr(s) beta in step s, over a training by about
    exp(-beta sum_s lr(s)). `b_shrinkage` is that exponent; with it, beta follows from the
    schedule.
    """
    if training.b_shrinkage is None:
        return float(training.b_weight_decay)
    total = schedule_sum(training, n_steps)
    return training.b_shrinkage / total if total > 0 else 0.0


def parameter_groups(model: torch.nn.Module, decay: float) -> list[dict[str, Any]]:
    """Split the trainable weights: B with decay, A without (arXiv 2403.01165, section 3.3)."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if "lora_B" in name], "weight_decay": decay},
        {"params": [p for name, p in named if "lora_B" not in name], "weight_decay": 0.0},
    ]
