"""Mismatch (interlock/mismatch.py) of tensors, label by label.

Legend: M tokens whose log-probability is needed
"""

import math

import torch
from torch import Tensor

from interlock.learner.losses.terms import k3
from interlock.mismatch import Mismatch


def mismatches(log_ratio: Tensor, labels: Tensor | None = None) -> dict[int, Mismatch]:
    """What mismatch.mismatch gives, of the tokens of each label that has any.

    log_ratio [M]: log pi - log mu; labels [M] int64, None: all have label 0.
    """
    if labels is None:
        labels = torch.zeros_like(log_ratio, dtype=torch.int64)
    count = int(labels.max()) + 1
    apart = log_ratio.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    nats = k3(apart).nan_to_num(nan=math.inf, posinf=math.inf)  # inf - inf
    parts = [torch.ones_like(apart), nats, (apart.exp() > 2).float()]
    table = apart.new_zeros((count, 3), dtype=torch.float64)
    table.index_add_(0, labels, torch.stack(parts, dim=1).double())
    largest = apart.new_zeros(count).scatter_reduce_(0, labels, apart.abs(), "amax")
    rows = zip(table.tolist(), largest.tolist(), strict=True)
    return {
        label: Mismatch(int(tokens), total / tokens, top, above_two / tokens)
        for label, ((tokens, total, above_two), top) in enumerate(rows)
        if tokens
    }
