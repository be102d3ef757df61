"""What rank 0 tells the other ranks of a sharded learner to do; see ranks.py and rank_loop.py."""

from typing import Literal

import msgspec

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.learner.packing import TrainingGroup
from interlock.models.architecture import Architecture

StateKind = Literal["masters", "exp_avg", "exp_avg_sq", "reference"]


class _CommandBase(msgspec.Struct, frozen=True, tag=True):
    pass


class ShardDecoder(_CommandBase, frozen=True):
    """Make a decoder, and take this rank's part of rank 0's weights."""

    arch: Architecture
    dtype: str  # of the activations


class BeginStage(_CommandBase, frozen=True):
    """Make the learner of a stage on the decoder."""

    settings: LearnerSettings
    optimizer: OptimizerSettings
    total_steps: int
    keep_reference: bool
    version: int


class TrainStep(_CommandBase, frozen=True):
    """One optimizer step; fields as of Learner.step."""

    groups: list[TrainingGroup]
    loss: LossSettings | None
    temperature: float
    old: bytes | None  # fp32, of all completion tokens one after another


class ComputeLogprobs(_CommandBase, frozen=True):
    """Of every completion token, under the current weights."""

    groups: list[TrainingGroup]
    temperature: float


class RenewReference(_CommandBase, frozen=True):
    """Make the weights as they are now the KL's reference."""


class ScoreText(_CommandBase, frozen=True):
    """The log-probabilities of one text's tokens."""

    tokens: list[int]


class PublishWeights(_CommandBase, frozen=True):
    """Give rank 0 this rank's part of the weights in a dtype."""

    dtype: str


class GatherState(_CommandBase, frozen=True):
    """Give rank 0 this rank's part of one kind of state."""

    kind: StateKind


class RestoreState(_CommandBase, frozen=True):
    """Take a saved state: the counters from here, this rank's part of the tensors from rank 0."""

    steps: int
    bad_steps: int
    bad_in_row: int
    version: int
    unpublished: bool


RankCommand = (
    ShardDecoder
    | BeginStage
    | TrainStep
    | ComputeLogprobs
    | RenewReference
    | ScoreText
    | PublishWeights
    | GatherState
    | RestoreState
)
