"""Multi-token prediction in a step: against plain sequences, one at a time."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.learner.ahead import ahead_loss, ahead_of
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup, pack
from interlock.models.attention import causal
from interlock.models.decoder import Decoder
from interlock.models.predictor import Predictor, predictor_of

CPU = torch.device("cpu")
LENGTHS = [[4, 1, 3], [5], [2, 2]]


@pytest.fixture
def predicting(tiny: Callable[..., Decoder]) -> Callable[[], Decoder]:
    """A tiny decoder with a predictor, the same every time."""

    def make() -> Decoder:
        decoder = tiny(tied=False)
        decoder.predictor = Predictor(decoder.arch)
        noise = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in decoder.predictor.parameters():
                drawn = 0.3 * torch.randn(parameter.shape, generator=noise)
                parameter.copy_(1 + drawn if parameter.ndim == 1 else drawn)
        return decoder

    return make


def learned(groups: list[TrainingGroup]) -> list[TrainingGroup]:
    """The same with some tokens that are not learned, and a prompt of one token."""
    cut = [[[0.0 if place == 1 else w for place, w in enumerate(row)] for row in g.weights]
           for g in groups]  # fmt: skip
    first, *others = groups
    prompts = [first.prompt[:1], *(g.prompt for g in others)]
    rows = zip(groups, prompts, cut, strict=True)
    return [TrainingGroup(p, g.completions, w, g.sampler_logprobs) for g, p, w in rows]


def plainly(decoder: Decoder, groups: list[TrainingGroup]) -> Tensor:
    """-log p of every learned token that has two before it, text by text."""
    predictor, found = predictor_of(decoder), []
    assert predictor is not None
    for group in groups:
        for completion, weights in zip(group.completions, group.weights, strict=True):
            tokens = torch.tensor(group.prompt + completion)
            attend, parts = causal(len(tokens), CPU), causal(len(tokens) - 1, CPU)
            hidden = decoder(tokens, attend.positions, attend)[:-1]
            embedded = F.embedding(tokens[1:], decoder.embed)
            angles = decoder.rotary(parts.positions)
            ahead = predictor(hidden, embedded, angles, parts, torch.float32)
            logprobs = decoder.logits(ahead).log_softmax(-1)
            for place, weight in enumerate(weights):
                at = len(group.prompt) + place
                if weight and at >= 2:
                    found.append(-logprobs[at - 2, tokens[at]])
    return torch.stack(found)


def test_loss_and_gradients_are_those_of_plain_sequences(
    predicting: Callable[[], Decoder], sampled: Callable[..., list[TrainingGroup]]
) -> None:
    groups = learned(sampled(LENGTHS))
    wanted_of, found_of = predicting(), predicting()
    each = plainly(wanted_of, groups)
    (0.5 * each.mean()).backward()
    total = 0.0
    batches = pack(groups, 20, 61, CPU, predict=True)
    assert len(batches) > 1
    count = sum(len(batch.ahead.targets) for batch in batches if batch.ahead)
    assert count == len(each) == 9
    for batch in batches:
        stream = found_of(batch.tokens, batch.attend.positions, batch.attend)
        value, unlikely = ahead_loss(found_of, stream, batch.ahead, 0.5 / count, False, 3)
        value.backward()
        total += unlikely
    assert total == pytest.approx(each.sum().item(), rel=1e-5)
    wanted = dict(wanted_of.named_parameters())
    for name, parameter in found_of.named_parameters():
        assert parameter.grad is not None and wanted[name].grad is not None, name
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-6, rtol=1e-4)


def test_nothing_is_predicted_where_nothing_is_learned() -> None:
    assert ahead_of([[([1], [2], [1.0])]], CPU) is None
    assert ahead_of([[([1, 2], [3, 4], [0.0, 0.0])]], CPU) is None
    found = ahead_of([[([1, 2], [3, 4], [1.0, 0.0]), ([1, 2], [5], [1.0])]], CPU)
    assert found is not None
    # Stream 1 2 3; the first text's inputs are 1 2, of the second, without its last two, 1.
    assert found.rows.tolist() == [0, 1, 0] and found.tokens.tolist() == [2, 3, 2]
    assert found.chosen.tolist() == [0, 2] and found.targets.tolist() == [3, 5]


def masters(decoder: Decoder, part: str) -> dict[str, Tensor]:
    named = decoder.named_parameters()
    return {n: p.detach().clone() for n, p in named if n.startswith("predictor.") == (part != "")}


def test_a_detached_predictor_learns_and_changes_nothing_else(
    predicting: Callable[[], Decoder], sampled: Callable[..., list[TrainingGroup]]
) -> None:
    groups, results, losses = learned(sampled(LENGTHS)), [], []
    for weight in (0.0, 0.1):
        decoder = predicting()
        if weight == 0:
            decoder.predictor = None
        settings = LearnerSettings(dtype="float32", micro_batch_tokens=20, mtp_weight=weight)
        # A norm that clips both.
        learner = Learner(decoder, settings, OptimizerSettings(lr=1e-2, clip_norm=1e-3), 8)
        for _ in range(8):
            losses.append(learner.step(groups, LossSettings()).mtp_loss)
        results.append(masters(decoder, ""))
    assert losses[:8] == [None] * 8
    assert losses[8] == pytest.approx(plainly(predicting(), groups).mean().item(), rel=1e-5)
    assert losses[-1] < losses[8] - 0.1
    for name, tensor in results[0].items():
        assert torch.equal(results[1][name], tensor), name


def test_undetached_it_moves_the_decoder_too(
    predicting: Callable[[], Decoder], sampled: Callable[..., list[TrainingGroup]]
) -> None:
    groups, found = learned(sampled(LENGTHS)), []
    for detached in (True, False):
        decoder = predicting()
        settings = LearnerSettings(dtype="float32", mtp_weight=0.1, mtp_detached=detached)
        learner = Learner(decoder, settings, OptimizerSettings(lr=1e-2), 2)
        learner.step(groups, LossSettings())
        found.append(masters(decoder, ""))
    assert any(not torch.equal(found[0][name], found[1][name]) for name in found[0])
