"""Tokens that nobody sampled, amid a completion: they are read, and nothing is learned of them."""

import pytest
import torch
from learning import (
    LENGTHS,
    STILL,
    Plain,
    Sampled,
    Tiny,
    assert_same,
    differentiated,
    flat,
    gradients,
    make,
)
from msgspec.structs import replace

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.errors import TrainingError
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.mismatch import mismatch

_GIVEN = [[[True, True, False, False, True], [True], [False, True, True]], [[True] * 4, [True] * 4]]


def given(groups: list[TrainingGroup], logprob: float = 0.0) -> list[TrainingGroup]:
    """The groups with some tokens given: no weight, and whatever stands for a log-probability."""

    def column(
        values: list[list[float]], flags: list[list[bool]], filled: float
    ) -> list[list[float]]:
        return [
            [value if drawn else filled for value, drawn in zip(*pair, strict=True)]
            for pair in zip(values, flags, strict=True)
        ]

    return [
        replace(
            group,
            weights=column(group.weights, flags, 0.0),
            sampler_logprobs=column(group.sampler_logprobs or [], flags, logprob),
            kl_weights=column(group.kl_weights, flags, 0.0) if group.kl_weights else None,
            sampled=flags,
        )
        for group, flags in zip(groups, _GIVEN, strict=True)
    ]


def test_loss_gradients_and_figures_by_hand_are_of_the_sampled_tokens_alone(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain
) -> None:
    groups, decoder = given(sampled(LENGTHS, kl=True)), tiny()
    pi = torch.cat(plain_logprobs(decoder, groups))
    drawn = torch.tensor([flag for flags in _GIVEN for own in flags for flag in own])
    mu = flat([row for group in groups for row in group.sampler_logprobs or []])
    weights = flat([row for group in groups for row in group.weights])
    slopes = differentiated(decoder, -(weights * pi)[drawn].sum())
    # On-policy, with nothing truncated: every ratio is 1, and pi is its own reference.
    loss = LossSettings(correction="off", kl_beta=0.05)

    def learner() -> Learner:
        settings = LearnerSettings(dtype="float32", logits_chunk=4)
        return Learner(tiny(), settings, STILL, 10, keep_reference=True)

    result = learner().step(groups, loss)
    assert result.loss == pytest.approx(-weights[drawn].sum().item(), abs=1e-6)
    assert result.tokens == 14
    expected = mismatch(pi[drawn].tolist(), mu[drawn].tolist())
    assert result.mismatch is not None
    assert result.mismatch.tokens == 14
    assert result.mismatch.k3 == pytest.approx(expected.k3, rel=1e-5)
    assert result.mismatch.max == pytest.approx(expected.max, rel=1e-5)
    for name, gradient in gradients(learner(), groups, loss).items():
        torch.testing.assert_close(gradient, slopes[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rule", ["clip", "gspo", "cispo", "sapo", "dppo"])
def test_what_stands_for_the_logprob_of_a_given_token_changes_no_bit(
    tiny: Tiny, sampled: Sampled, rule: str
) -> None:
    settings = LossSettings(rule=rule, normalize="sequence", correction="bypass")
    zero, wild = (
        gradients(make(tiny()), given(sampled(LENGTHS), logprob), settings)
        for logprob in (0.0, -30.0)
    )
    assert_same(wild, zero)


def test_a_given_token_with_a_weight_and_a_mask_of_another_length_are_refused(
    tiny: Tiny, sampled: Sampled
) -> None:
    groups = sampled(LENGTHS)
    bad = [replace(groups[0], sampled=_GIVEN[0]), groups[1]]
    with pytest.raises(TrainingError, match="training group 0: a token that was given and not"):
        make(tiny()).step(bad, LossSettings())
    short = [replace(groups[0], sampled=[[True]]), groups[1]]
    with pytest.raises(TrainingError, match="training group 0: sampled does not say of every"):
        make(tiny()).step(short, LossSettings())
