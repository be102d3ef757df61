"""What every rank but 0 does: what rank 0's recipe asks of its learner, at the same moment."""

import msgspec
import torch

from interlock.chips import device
from interlock.learner import checkpoint
from interlock.learner.distributed import sharding
from interlock.learner.distributed.messages import (
    BeginStage,
    ComputeLogprobs,
    GatherState,
    PublishWeights,
    RankCommand,
    RenewReference,
    RestoreState,
    ScoreText,
    ShardDecoder,
    TrainStep,
)
from interlock.learner.distributed.ranks import Ranks
from interlock.learner.learner import Learner
from interlock.models.decoder import Decoder


def run_rank(ranks: Ranks) -> None:
    """Do every command that rank 0 broadcasts, until it leaves.

    Raises TrainingError when a process is gone, and where rank 0's learner raises it too.
    """
    decoder: Decoder | None = None
    learner: Learner | None = None
    with ranks.collective_errors():
        while (content := ranks.receive_command()) is not None:
            command = msgspec.msgpack.decode(content, type=RankCommand)
            if isinstance(command, ShardDecoder):
                decoder = learner = None  # before the next one is made
                decoder = sharding.shard_from_rank0(command, None, ranks)
            elif isinstance(command, BeginStage):
                assert decoder is not None
                learner = Learner(
                    decoder,
                    command.settings,
                    command.optimizer,
                    command.total_steps,
                    keep_reference=command.keep_reference,
                    version=command.version,
                    ranks=ranks,
                )
            else:
                assert learner is not None
                _execute(learner, command)


def _execute(learner: Learner, command: RankCommand) -> None:
    match command:
        case TrainStep(groups, loss, temperature, old):
            flat = None if old is None else torch.frombuffer(bytearray(old), dtype=torch.float32)
            learner.step(groups, loss, temperature, None if flat is None else [[flat]])
        case ComputeLogprobs(groups, temperature):
            learner.logprobs(groups, temperature)
        case RenewReference():
            learner.renew_reference()
        case ScoreText(tokens):
            learner.score(tokens)
        case PublishWeights(name):
            learner.weights(device.dtype(name))
        case GatherState(kind):
            checkpoint.gather_state(learner, kind)
        case RestoreState():
            checkpoint.restore(learner, command, {})
