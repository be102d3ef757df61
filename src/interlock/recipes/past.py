"""The updates of a stage that lie behind it, to be made once more: recipes/repeat.py does.

    module of a kind ── past(PastStage) ──> PastUpdates: which steps, and of(learner, step)

A kind that has no `past` of its own, and a stage that has taught nothing yet, has `sampled`: the
likelihood of the tokens that the ledger holds: another loss than the stage's, on the same tokens.
"""

import hashlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from interlock.config.stages import StageSettings
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.learner.step_result import StepResult
from interlock.models.tokenizer import Tokenizer
from interlock.rundir import RunView

Settings = TypeVar("Settings", bound=StageSettings, covariant=True)
Batches = Sequence[Sequence[TrainingGroup]]


@dataclass(frozen=True)
class PastStage(Generic[Settings]):
    """One stage of a run that is read."""

    index: int
    settings: Settings
    run: RunView
    tokenizer: Tokenizer
    context: int  # of the model, tokens
    seed: int  # as Stage.seed(0)
    memory: dict[str, Any]  # of its checkpoint

    def remembered(self) -> dict[str, Any]:
        """The memory, to be changed."""
        return deepcopy(self.memory)

    def ledger_steps(self) -> list[int]:
        return [step for stage, step in self.run.ledger.steps() if stage == self.index]


class PastUpdate(NamedTuple):
    """The updates of one step; none where nothing was to be learned."""

    batches: Batches  # of each
    make: Callable[[Batches], list[StepResult]]  # on the learner that they were asked for


class PastUpdates(NamedTuple):
    steps: Sequence[int]  # that can be repeated, ascending
    of: Callable[[Learner, int], PastUpdate]
    same: bool = True  # the loss is the stage's own
    teaches: Callable[[int], bool] = lambda step: True  # whether a step made an update at all


def likelihood(learner: Learner, groups: Sequence[TrainingGroup]) -> PastUpdate:
    """One update on what is to be predicted."""

    def make(batches: Batches) -> list[StepResult]:
        return [learner.step(batch, loss=None) for batch in batches]

    return PastUpdate([groups] if groups else [], make)


def cut(batches: Batches, tokens: int) -> Batches:
    """The first groups of each batch, of at most so many tokens in all; the first one whole."""
    found: list[list[TrainingGroup]] = []
    left = tokens
    for batch in batches:
        kept: list[TrainingGroup] = []
        for group in batch:
            left -= len(group.prompt) + sum(map(len, group.completions))
            if left < 0 and (kept or found):
                break
            kept.append(group)
        if kept:
            found.append(kept)
    return found


def sampled(stage: PastStage[StageSettings]) -> PastUpdates:
    """Every token that was sampled weighs the same."""
    return PastUpdates(stage.ledger_steps(), partial(_sampled, stage), same=False)


def _sampled(stage: PastStage[StageSettings], learner: Learner, step: int) -> PastUpdate:
    groups = [each.group for each in stage.run.ledger.read(stage.index, step)]
    share = 1 / sum(sum(answer.mask) for group in groups for answer in group.completions)
    taught = [
        TrainingGroup(
            prompt=group.prompt_tokens,
            completions=[answer.tokens for answer in group.completions],
            weights=[[share * own for own in answer.mask] for answer in group.completions],
            sampler_logprobs=[answer.logprobs for answer in group.completions],
        )
        for group in groups
    ]
    return likelihood(learner, taught)


def stage_seed(run_seed: int, name: str, index: int, step: int) -> int:
    """The seed of the sampling noise of one step; evaluations all share step 0's.

    A stage that has a name is by itself what it is among others.
    """
    text = f"{run_seed}/{name or index}/{step}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
