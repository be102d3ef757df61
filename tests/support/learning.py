"""A learner of a tiny decoder, what its step differentiates, and the same without it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.decoder import Decoder

Tiny = Callable[..., Decoder]
Sampled = Callable[..., list[TrainingGroup]]
Plain = Callable[..., list[Tensor]]

LENGTHS = [[5, 1, 3], [4, 4]]
STILL = OptimizerSettings(lr=1e-12, clip_norm=1e9)


def make(decoder: Decoder, optimizer: OptimizerSettings = STILL, **changes: object) -> Learner:
    settings = LearnerSettings(**{"dtype": "float32", "logits_chunk": 4} | changes)  # type: ignore
    return Learner(decoder, settings, optimizer, total_steps=10)


def gradients(
    learner: Learner,
    groups: list[TrainingGroup],
    loss: LossSettings | None,
    temperature: float = 1,
    old: list[list[Tensor]] | None = None,
) -> dict[str, Tensor]:
    """The gradients that the learner hands to AdamW."""
    caught: dict[str, Tensor] = {}

    def catch(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for name, parameter in learner.parameters.items():
            assert parameter.grad is not None
            caught[name] = parameter.grad.clone()

    handle = learner.optimizer.register_step_pre_hook(catch)
    learner.step(groups, loss, temperature, old)
    handle.remove()
    return caught


def differentiated(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def masters(decoder: Decoder) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]


def flat(values: list[list[float]] | None) -> Tensor:
    assert values is not None
    return torch.tensor([value for part in values for value in part])


def exploding(groups: list[TrainingGroup]) -> list[TrainingGroup]:
    """Finite weights with which the fp32 loss is infinite."""
    return [
        TrainingGroup(
            group.prompt,
            group.completions,
            [[3e38] * len(tokens) for tokens in group.completions],
            group.sampler_logprobs,
        )
        for group in groups
    ]
