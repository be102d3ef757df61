"""What the loss of a token is made of.

Legend: M tokens whose log-probability is needed
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """What the loss of each token is made of. All [M], fp32 but for `labels`; None: absent."""

    weights: Tensor  # signed: advantage times normalisation
    sampler: Tensor | None = None  # log mu, of the policy that sampled the token
    old: Tensor | None = None  # log pi_old, before the first update; None: this is the first
    reference: Tensor | None = None  # log pi_ref
    kl_weights: Tensor | None = None  # beta times normalisation
    completion: Tensor | None = None  # `completion_ratio`, which the geometric correction needs
    # Where the rule is gspo: `completion_ratio` of the learner's policy to `base`, a constant.
    sequence: Tensor | None = None
    labels: Tensor | None = None  # int64: whose mismatch the token's counts as

    def __getitem__(self, rows: slice) -> "Terms":
        values = (getattr(self, f.name) for f in fields(self))
        return Terms(*(None if value is None else value[rows] for value in values))  # type: ignore


def k3(log_ratio: Tensor) -> Tensor:
    """x - log x - 1 with x = exp(log_ratio).

    Unbiased for KL(q || p) when log_ratio = log p - log q on samples of q, see mismatch.py; the KL
    term of GRPO (arXiv 2402.03300, eq. 4).
    """
    return torch.expm1(log_ratio) - log_ratio
