"""What rank 0 tells the other ranks of a sharded learner to do; see world.py and follow.py."""

from typing import Literal

import msgspec

from interlock.config.schema import LearnerSettings, LossSettings, OptimizerSettings
from interlock.learner.packing import TrainingGroup
from interlock.models.architecture import Architecture

State = Literal["masters", "exp_avg", "exp_avg_sq", "reference"]


class _Command(msgspec.Struct, frozen=True, tag=True):
    pass


class Shard(_Command, frozen=True):
    """Make a decoder, and take this rank's part of rank 0's weights."""

    arch: Architecture
    dtype: str  # of the activations


class Begin(_Command, frozen=True):
    """Make the learner of a stage on the decoder."""

    settings: LearnerSettings
    optimizer: OptimizerSettings
    total_steps: int
    keep_reference: bool
    version: int


class Step(_Command, frozen=True):
    groups: list[TrainingGroup]
    loss: LossSettings | None
    temperature: float
    old: bytes | None  # fp32 of all completion tokens


class Logprobs(_Command, frozen=True):
    groups: list[TrainingGroup]
    temperature: float


class Score(_Command, frozen=True):
    tokens: list[int]


class Publish(_Command, frozen=True):
    pass


class Gather(_Command, frozen=True):
    """Give rank 0 this rank's part of one kind of state."""

    kind: State


class Restore(_Command, frozen=True):
    """Take a saved state: the counters from here, this rank's part of the tensors from rank 0."""

    steps: int
    bad_steps: int
    bad_in_row: int
    version: int
    unpublished: bool


Command = Shard | Begin | Step | Logprobs | Score | Publish | Gather | Restore
