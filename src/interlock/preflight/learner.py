"""Tokens a second that the learner updates on: forward, backward, clipping and AdamW.

The bound: multiplications at the speed of the best product, a prompt computed once; and then the
optimizer's reads and writes of masters, gradients and moments at the speed of a copy. Tokens are
counted as a user counts them, prompt and completion of every row.
"""

import torch

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.architecture import Architecture
from interlock.preflight import bounds, peer, speed
from interlock.preflight.bounds import Bounds
from interlock.preflight.shapes import layer_weights, random_decoder, vocabulary_weights
from interlock.preflight.speed import Demand

PROMPT, NEW, PROBLEMS, GROUP = 64, 64, 2, 8
_OPTIMIZER_BYTES = 28  # a weight: master, gradient and two moments are read, all but one written
_KEPT_BYTES = 20  # a weight: these, and the weight in the compute dtype
_MICRO_BATCH = 4  # rows, of transformers


class Update:
    """One step on PROBLEMS groups of GROUP completions."""

    rows = PROBLEMS * GROUP
    tokens = rows * (PROMPT + NEW)

    def load(self, arch: Architecture, dtype: torch.dtype, limits: Bounds) -> Demand:
        layers = arch.layers * layer_weights(arch)
        weights = layers + vocabulary_weights(arch)
        stream, targets = PROBLEMS * PROMPT + self.rows * (NEW - 1), self.rows * NEW
        flops = 6 * (stream * layers + targets * arch.vocab * arch.hidden)
        activations = 1200 * arch.layers * (16 * arch.hidden + 6 * arch.inner) * 4
        memory = _KEPT_BYTES * weights + activations + 16 * 1024 * arch.vocab
        return Demand(memory, flops / limits.flops + _OPTIMIZER_BYTES * weights / limits.bytes)

    def ours(self, arch: Architecture, dtype: torch.dtype, place: torch.device) -> float:
        name = str(dtype).removeprefix("torch.")
        settings = LearnerSettings(dtype=name)  # type: ignore[arg-type]
        decoder = random_decoder(arch, torch.float32, place)
        learner = Learner(decoder, settings, OptimizerSettings(lr=1e-6), 1000)
        groups, loss = _groups(arch), LossSettings(correction="off")
        return bounds.seconds(place, lambda: learner.step(groups, loss), 2)

    def recorded(self, arch: Architecture, dtype: torch.dtype, place: torch.device) -> None:
        """An update is never recorded."""

    def theirs(self, arch: Architecture, dtype: torch.dtype, place: torch.device) -> float:
        net = peer.model(arch, torch.float32, place).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, betas=(0.9, 0.95))
        groups = _groups(arch)
        rows = torch.tensor([g.prompt + c for g in groups for c in g.completions], device=place)
        weights = torch.tensor([w for g in groups for w in g.weights], device=place)
        narrow = dtype != torch.float32

        def step() -> None:
            parts = zip(rows.split(_MICRO_BATCH), weights.split(_MICRO_BATCH), strict=True)
            for ids, weight in parts:
                with torch.autocast(place.type, dtype, enabled=narrow):
                    logits = net(ids, logits_to_keep=NEW + 1, use_cache=False).logits[:, :-1]
                logprobs = torch.log_softmax(logits.float(), -1)
                chosen = logprobs.gather(2, ids[:, -NEW:, None])[..., 0]
                (-weight * (chosen - chosen.detach()).exp()).sum().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return bounds.seconds(place, step, 2)


def _groups(arch: Architecture) -> list[TrainingGroup]:
    """Random tokens with weights of both signs."""
    noise = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, arch.vocab, (count,), generator=noise).tolist()

    share = 1 / (PROBLEMS * GROUP * NEW)
    weights = [[share * (-1) ** row] * NEW for row in range(GROUP)]
    logprobs = [[-9.0] * NEW] * GROUP
    return [
        TrainingGroup(tokens(PROMPT), [tokens(NEW) for _ in range(GROUP)], weights, logprobs)
        for _ in range(PROBLEMS)
    ]


if __name__ == "__main__":
    speed.run([Update()])
