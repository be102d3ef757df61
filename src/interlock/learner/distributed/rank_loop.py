"""What every rank but 0 does: whatever rank 0's recipe asks of its learner, at the same moment."""

import msgspec
import torch

from interlock.learner import checkpoint
from interlock.learner.distributed import sharding
from interlock.learner.distributed.messages import (
    Begin,
    Command,
    Gather,
    Logprobs,
    Publish,
    Restore,
    Score,
    Shard,
    Step,
)
from interlock.learner.distributed.ranks import World
from interlock.learner.learner import Learner
from interlock.models.decoder import Decoder


def follow(world: World) -> None:
    """Obey rank 0 until it leaves.

    Raises TrainingError when a process is gone, and where rank 0's learner raises it too.
    """
    decoder: Decoder | None = None
    learner: Learner | None = None
    with world.linked():
        while (content := world.receive()) is not None:
            command = msgspec.msgpack.decode(content, type=Command)
            if isinstance(command, Shard):
                decoder = learner = None  # before the next one is made
                decoder = sharding.dealt_out(command, None, world)
            elif isinstance(command, Begin):
                assert decoder is not None
                learner = Learner(
                    decoder,
                    command.settings,
                    command.optimizer,
                    command.total_steps,
                    keep_reference=command.keep_reference,
                    version=command.version,
                    world=world,
                )
            else:
                assert learner is not None
                _obey(learner, command)


def _obey(learner: Learner, command: Step | Logprobs | Score | Publish | Gather | Restore) -> None:
    match command:
        case Step(groups, loss, temperature, old):
            flat = None if old is None else torch.frombuffer(bytearray(old), dtype=torch.float32)
            learner.step(groups, loss, temperature, None if flat is None else [[flat]])
        case Logprobs(groups, temperature):
            learner.logprobs(groups, temperature)
        case Score(tokens):
            learner.score(tokens)
        case Publish():
            learner.publish()
        case Gather(kind):
            checkpoint.gathered(learner, kind)
        case Restore():
            checkpoint.restore(learner, command, {})
