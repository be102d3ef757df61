"""AdamW on the masters, and the rate of each of its steps.

OptimizerSettings ─┬─ adamw ──────────> torch.optim.AdamW, norms and biases without decay
                   └─ learning_rate ──> warm-up, then the schedule, by the steps applied so far
"""

import math

import torch
from torch import nn

from interlock.chips import device
from interlock.config.stages import OptimizerSettings


def learning_rate(settings: OptimizerSettings, step: int, total_steps: int) -> float:
    """The rate of `step`, counted from 0: linear warm-up to lr, then the schedule's way down.

    With lr 1, two steps of warm-up and a linear schedule to 0 over six steps in all, the rates are
    1/2, 1, 1, 2/3, 1/3, 0. The last step of a linear or cosine schedule, and any after it, has
    final_lr * lr.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    way = total_steps - 1 - settings.warmup_steps
    progress = min(1.0, (step - settings.warmup_steps) / way) if way > 0 else 1.0
    match settings.schedule:
        case "constant":
            left = 1.0
        case "linear":
            left = 1.0 - progress
        case "cosine":
            left = (1 + math.cos(math.pi * progress)) / 2
    return settings.lr * (settings.final_lr + (1 - settings.final_lr) * left)


def adamw(parameters: dict[str, nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101); norms and biases do not decay."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = True if device.has_fused_adamw(matrices[0].device) else None
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused
    )
