"""What a step's loss takes of whole completions, known before the step's first pass.

Legend: T completion tokens of all groups
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.learner.losses.corrections import completion_ratio
from interlock.learner.packing import TrainingGroup


@dataclass(frozen=True)
class Constants:
    """What a step knows of every completion token before its first pass. All [T] fp32, on the CPU.

    Fields as of Terms.
    """

    old: Tensor | None = None
    completion: Tensor | None = None
    sequence: Tensor | None = None


def of_completions(
    groups: Sequence[TrainingGroup],
    loss: LossSettings,
    old: Tensor | None,
    now: Callable[[], Tensor],
) -> Constants:
    """The ratios of whole completions that the loss needs.

    old [T]: log pi_old, None: pi_old is the policy as it is. `now` computes log pi as it is [T] in
    a pass over all groups: it is called only where the answer hangs on it, so not by "gspo" at the
    first update, whose ratio is 1.
    """
    geometric, bypass = loss.correction == "geometric", loss.correction == "bypass"
    whole = loss.rule == "gspo" and (bypass or old is not None)
    if not geometric and not whole:
        return Constants(old)
    lengths = [len(tokens) for group in groups for tokens in group.completions]
    sampler, learned = _sampler(groups), _learned(groups)
    completion = sequence = None
    present = now() if whole or old is None else old
    if geometric:
        old = present if old is None else old
        completion = completion_ratio(old, sampler, lengths, learned)
    if whole:
        base = sampler if bypass or old is None else old
        sequence = completion_ratio(present, base, lengths, learned)
    return Constants(old, completion, sequence)


def _sampler(groups: Sequence[TrainingGroup]) -> Tensor:
    """log mu of every completion token, fp32 [T]."""
    columns = [values for group in groups for values in group.sampler_logprobs or ()]
    return torch.tensor([value for values in columns for value in values], dtype=torch.float32)


def _learned(groups: Sequence[TrainingGroup]) -> Tensor:
    """Which completion tokens have a weight, bool [T]: what was given is of no policy."""
    columns = [values for group in groups for values in group.weights]
    return torch.tensor([value != 0 for values in columns for value in values])
