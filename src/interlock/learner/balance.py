"""How even the experts of a mixture were in an optimizer step, and the bias that evens them.

    forward passes ── count ──> load of every expert ── all ranks ──> ExpertLoad, and each layer's
                                                                      bias moves against its load

Without an auxiliary loss: DeepSeek-V3 (arXiv 2412.19437, section 2.1.2), arXiv 2408.15664, whose
MaxVio is `busiest` - 1. In reinforcement the rate is better small: it changes which experts the
next version uses, beside what the gradient does.
"""

import msgspec
import torch

from interlock.learner.distributed import sharding
from interlock.learner.distributed.ranks import Ranks
from interlock.models.decoder import Decoder


class ExpertLoad(msgspec.Struct, frozen=True):
    """Of the tokens of one optimizer step."""

    busiest: float  # the tokens of an expert over the mean, at most, in any layer; 1 is even
    idle: float  # share of the experts of all layers that no token chose


def settle_experts(decoder: Decoder, ranks: Ranks, rate: float) -> ExpertLoad | None:
    """Begin to count anew, and move the biases by `rate`, where the family has any; at 0 they stay.

    None without experts, or without a pass that was counted. A collective: all ranks call it.
    """
    routing = decoder.arch.routing
    loads = decoder.expert_loads()
    if routing is None or not loads:
        return None
    sharding.all_reduce_loads(decoder, ranks)
    found = _measured(torch.stack(decoder.expert_loads()).double().cpu())
    if routing.corrected:
        decoder.balance_experts(rate)
    else:
        decoder.forget_loads()
    return found


def _measured(loads: torch.Tensor) -> ExpertLoad:
    """loads [layers, experts] of tokens."""
    busiest = (loads.amax(1) / loads.mean(1)).max().item()
    return ExpertLoad(busiest, (loads == 0).double().mean().item())
