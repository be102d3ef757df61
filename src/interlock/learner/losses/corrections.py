"""What is done about the ratio of the learner's first policy to the sampler's.

Legend: M tokens whose log-probability is needed, T completion tokens of all groups
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.learner.losses.terms import Terms


def completion_ratio(
    above: Tensor, below: Tensor, lengths: Sequence[int], learned: Tensor | None = None
) -> Tensor:
    """exp of the mean of above - below over a completion's learned tokens, at each of its tokens.

    above and below [T] fp32, log-probabilities of completions of `lengths` tokens one after
    another; learned [T] bool, None: all of them -> [T] fp32; 1 where none is learned.
    Kept in units of one token, as GSPO does (arXiv 2507.18071): a product over thousands of
    tokens would leave the range of any cap.
    """
    sizes = torch.tensor(lengths)
    owner = torch.arange(len(sizes)).repeat_interleave(sizes)  # [T]
    counted = torch.ones_like(above, dtype=torch.bool) if learned is None else learned
    table = torch.zeros((2, len(sizes)), dtype=torch.float64)  # sums of differences, counts
    table[0].index_add_(0, owner, torch.where(counted, above - below, 0.0).double())
    table[1].index_add_(0, owner, counted.double())
    return (table[0] / table[1].clamp(min=1)).exp().float()[owner]


def off_sampler(logprobs: Tensor, terms: Terms) -> Tensor:
    """log pi_old - log mu, with pi_old the policy before the first update in every correction."""
    assert terms.sampler is not None
    return (logprobs.detach() if terms.old is None else terms.old) - terms.sampler


def correct(
    logprobs: Tensor, terms: Terms, settings: LossSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """The constant factor of each token; whether it was truncated or masked; whether vetoed; [M].

    With rho = pi_old / mu of the token, settings.correction is one of:

        "truncated"  min(rho, tis_cap), 0 if rho < tis_veto. Truncated importance sampling: Yao et
                     al. 2025, "Your efficient RL framework secretly brings you off-policy RL
                     training"; the veto, of one token here: verl, docs/algo/rollout_corr_math.md
        "masked"     rho, 0 outside [mask_low, mask_high]. IcePop: Zhao et al. 2025, "Small leak
                     can sink a great ship"; Ring-1T, arXiv 2510.18855
        "geometric"  as "truncated", with `completion_ratio` capped, and each token's rho vetoed
        "bypass"     1: mu is the old policy, and one clipped ratio carries staleness and mismatch;
                     verl, the same page
        "off"        1
    """
    rho = off_sampler(logprobs, terms).exp()
    none = torch.zeros_like(rho, dtype=torch.bool)
    match settings.correction:
        case "bypass" | "off":
            return torch.ones_like(rho), none, none
        case "masked":
            outside = (rho < settings.mask_low) | (rho > settings.mask_high)
            return torch.where(outside, 0.0, rho), outside, none
        case "truncated":
            ratio = rho
        case "geometric":
            assert terms.completion is not None
            ratio = terms.completion
    vetoed = rho < settings.tis_veto
    factor = torch.where(vetoed, 0.0, ratio.clamp(max=settings.tis_cap))
    return factor, (ratio > settings.tis_cap) & ~vetoed, vetoed
