"""AdamW on the masters, the rate of each of its steps, and the length of what it is given.

OptimizerSettings ─┬─ adamw ──────────> torch.optim.AdamW, norms and biases without decay
                   ├─ learning_rate ──> warm-up, then the schedule, by the steps applied so far
                   └─ clip ───────────> gradients no longer than clip_norm
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from interlock.chips import device
from interlock.config.stages import OptimizerSettings
from interlock.learner.distributed import sharding
from interlock.learner.distributed.ranks import Ranks


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


def gradients_of(
    parameters: Mapping[str, nn.Parameter], ranks: Ranks, predictor: bool
) -> tuple[float, list[Tensor]]:
    """The norm of the gradients over all `ranks`, and this process's part of them: those of the
    layer for multi-token prediction, or of all else.
    """
    found = [
        sharding.local_shard(parameter.grad)
        for name, parameter in parameters.items()
        if parameter.grad is not None and name.startswith("predictor.") is predictor
    ]
    if not found:
        return 0.0, []
    norm = nn.utils.get_total_norm(found).item()
    return math.hypot(*ranks.all_gather(norm)), found


def clip(gradients: Iterable[Tensor], norm: float, longest: float) -> None:
    """Scale gradients of this norm down to the longest that is let."""
    if norm > longest:
        for gradient in gradients:
            gradient.mul_(longest / norm)
