"""What a step makes of the policies its tokens came from: mismatch, corrections, clipping, KL."""

import math
from itertools import chain, islice

import pytest
import torch
from learning import (
    LENGTHS,
    Plain,
    Sampled,
    Tiny,
    assert_same,
    differentiated,
    flat,
    gradients,
    make,
    masters,
)
from msgspec.structs import replace
from rounding import allowed, assert_close, in_both
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.errors import TrainingError
from interlock.learner.learner import Learner
from interlock.learner.packing import TrainingGroup
from interlock.models.decoder import Decoder

FP32 = LearnerSettings(dtype="float32", logits_chunk=4)


def k3_and_slack(gap: Tensor, slack: Tensor) -> tuple[float, float]:
    """The mean k3 of log pi - log mu, and how far it moves where each moves by `slack`."""
    slope = torch.expm1(gap.double())
    return (slope - gap).mean().item(), (slope.abs() * slack + slack**2).mean().item()


def test_the_ratio_of_the_first_update_is_exactly_one(tiny: Tiny, sampled: Sampled) -> None:
    groups, loss = sampled(LENGTHS), LossSettings()
    left, right = make(tiny()), make(tiny(), OptimizerSettings(lr=1e-12, clip_norm=1e9))
    old = right.logprobs(groups)
    plain, with_old = left.step(groups, loss), right.step(groups, loss, old=old)
    assert plain == with_old
    assert plain.clipped_share == 0
    assert plain.tokens == 17


def test_later_updates_are_clipped_against_the_old_policy(tiny: Tiny, sampled: Sampled) -> None:
    groups, loss = sampled(LENGTHS), LossSettings()
    learner = make(tiny(), OptimizerSettings(lr=0.05))
    old = learner.logprobs(groups)
    steps = [learner.step(groups, loss, old=old) for _ in range(4)]
    assert steps[0].clipped_share == 0 and (steps[-1].clipped_share or 0) > 0.2
    # The mismatch is that of the policy which was sampled, not of the one being updated.
    assert steps[-1].mismatch == steps[0].mismatch


def test_the_reference_stays_while_the_policy_moves(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain
) -> None:
    groups, decoder = sampled(LENGTHS, kl=True), tiny()
    learner = Learner(decoder, FP32, OptimizerSettings(lr=1e-2), 10, keep_reference=True)

    @torch.no_grad()
    def now() -> tuple[Tensor, Tensor]:
        exact, plain = in_both(decoder, lambda made: torch.cat(plain_logprobs(made, groups)))
        return exact, allowed(exact, plain)

    before, slack_before = now()
    assert learner.step(groups, LossSettings()).kl == 0
    after, slack_after = now()
    expected, slack = k3_and_slack(before - after, slack_before + slack_after)
    assert slack < expected / 100
    assert learner.step(groups, LossSettings()).kl == pytest.approx(expected, abs=slack)
    with pytest.raises(TrainingError, match="no reference policy"):
        make(tiny()).step(groups, LossSettings())


def test_mismatch_of_a_step_is_against_the_sampler(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain
) -> None:
    groups, decoder = sampled(LENGTHS), tiny()
    mu = torch.cat([flat(group.sampler_logprobs) for group in groups])
    with torch.no_grad():
        exact, plain = in_both(decoder, lambda made: torch.cat(plain_logprobs(made, groups)))
    gap, slack = exact - mu, allowed(exact, plain)
    k3, k3_slack = k3_and_slack(gap, slack)
    result = make(decoder, micro_batch_tokens=8).step(groups, LossSettings())
    assert result.mismatch is not None
    assert result.mismatch.k3 == pytest.approx(k3, abs=k3_slack)
    assert result.mismatch.max == pytest.approx(gap.abs().max().item(), abs=slack.max().item())
    assert result.mismatch.share_above_2 == (gap.exp() > 2).double().mean().item()


def relabelled(groups: list[TrainingGroup], labels: list[str]) -> list[TrainingGroup]:
    return [replace(group, label=label) for group, label in zip(groups, labels, strict=True)]


@pytest.mark.parametrize("micro_batch_tokens", [1000, 8])  # 8: groups are split
def test_mismatch_is_told_apart_by_label(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain, micro_batch_tokens: int
) -> None:
    groups, decoder = sampled([[5, 1, 3], [4, 4], [2, 6]]), tiny()
    # e times as unlikely, so that some ratios of this group too are above 2
    groups[1] = replace(
        groups[1], sampler_logprobs=[[x - 1 for x in mu] for mu in groups[1].sampler_logprobs or []]
    )
    groups = relabelled(groups, ["b/0", "a/1", "b/0"])
    with torch.no_grad():
        exact, plain = in_both(decoder, lambda made: plain_logprobs(made, groups))
    slack = allowed(torch.cat(exact), torch.cat(plain)).max()
    parts = iter(exact)
    gaps: dict[str, list[float]] = {"b/0": [], "a/1": []}
    for group in groups:
        for mu in group.sampler_logprobs or []:
            gaps[group.label] += (next(parts) - torch.tensor(mu)).tolist()
    learner = make(decoder, micro_batch_tokens=micro_batch_tokens)
    result = learner.step(groups, LossSettings())
    assert {label: found.tokens for label, found in result.by_label.items()} == {
        "b/0": 17,
        "a/1": 8,
    }
    for label, values in gaps.items():
        found = result.by_label[label]
        k3, k3_slack = k3_and_slack(torch.tensor(values, dtype=torch.float64), slack)
        assert found.k3 == pytest.approx(k3, abs=k3_slack)
        assert found.max == pytest.approx(max(map(abs, values)), abs=slack.item())
        above = sum(gap > math.log(2) for gap in values)
        assert 0 < above < len(values)
        assert found.share_above_2 == pytest.approx(above / len(values))
    both = result.by_label["a/1"] + result.by_label["b/0"]
    assert both.tokens == result.tokens and both.max == result.mismatch.max
    assert both.k3 == pytest.approx(result.mismatch.k3, rel=1e-9)
    assert both.share_above_2 == pytest.approx(result.mismatch.share_above_2, rel=1e-9)


def token_by_token(
    loss: LossSettings,
    groups: list[TrainingGroup],
    now: list[Tensor],  # of each completion, with gradients
    old: list[Tensor],
) -> tuple[Tensor, int, int]:
    """The loss of each token with its gradients; how many were truncated or masked, and vetoed."""
    parts, corrected, vetoed = [], 0, 0
    members = [
        (weights, mu)
        for group in groups
        for weights, mu in zip(group.weights, group.sampler_logprobs or [], strict=True)
    ]
    for (weights, mu), pi, before in zip(members, now, old, strict=True):
        mean = sum(b - m for b, m in zip(before.tolist(), mu, strict=True)) / len(mu)
        for at, weight in enumerate(weights):
            rho, base, factor = math.exp(before[at].item() - mu[at]), before[at], 1.0
            if loss.correction == "bypass":
                base = torch.tensor(mu[at])
            elif loss.correction == "masked":
                inside = loss.mask_low <= rho <= loss.mask_high
                factor = rho if inside else 0.0
                corrected += not inside
            elif loss.correction != "off":
                wanted = math.exp(mean) if loss.correction == "geometric" else rho
                factor = min(wanted, loss.tis_cap)
                if rho < loss.tis_veto:
                    factor = 0.0
                    vetoed += 1
                else:
                    corrected += wanted > loss.tis_cap
            ratio = (pi[at] - base).exp()
            if weight > 0:
                bounded = ratio.clamp(max=1 + loss.clip_high)
            else:
                bounded = ratio.clamp(min=1 - loss.clip_low)
            parts.append(-weight * factor * bounded)
    return torch.stack(parts), corrected, vetoed


@pytest.mark.parametrize("correction", ["truncated", "masked", "geometric", "bypass", "off"])
@pytest.mark.parametrize("first", [True, False])
def test_corrections_equal_those_of_single_tokens(
    tiny: Tiny, sampled: Sampled, plain_logprobs: Plain, correction: str, first: bool
) -> None:
    groups, decoder = sampled(LENGTHS), tiny()
    loss = LossSettings(
        correction=correction,  # type: ignore[arg-type]
        tis_cap=0.4 if correction == "geometric" else 1.3,
        tis_veto=0.2,
        mask_low=0.5,
        mask_high=2.0,
    )
    old = None
    if not first:
        noise = torch.Generator().manual_seed(5)
        with torch.no_grad():
            parts = iter(plain_logprobs(decoder, groups, 0.8))
        old = [
            [part + torch.randn(part.shape, generator=noise) * 0.3 for part in islice(parts, count)]
            for count in map(len, LENGTHS)
        ]

    def expected(decoder: Decoder) -> tuple[Tensor, int, int, dict[str, Tensor]]:
        now = plain_logprobs(decoder, groups, 0.8)
        before = [part.detach() for part in now] if old is None else [*chain(*old)]
        parts, corrected, vetoed = token_by_token(loss, groups, now, before)
        return parts.detach(), corrected, vetoed, differentiated(decoder, parts.sum())

    (parts, corrected, vetoed, exact), (plain_parts, *_, plain) = in_both(decoder, expected)
    learner = make(decoder, micro_batch_tokens=8)
    found = gradients(learner, groups, loss, 0.8, old)
    for name, gradient in found.items():
        assert_close(gradient, exact[name], plain[name], where=name)
    result = learner.step(groups, loss, 0.8, old)
    slack = allowed(parts, plain_parts).sum().item()
    assert result.loss == pytest.approx(parts.sum().item(), abs=slack)
    assert result.corrected_share == corrected / 17 and result.vetoed == vetoed
    if correction in ("truncated", "masked", "geometric"):
        assert corrected > 0  # so that something is tested
    if correction in ("truncated", "geometric"):
        assert vetoed > 0


def test_logprobs_that_a_correction_lacks_are_an_error(tiny: Tiny, sampled: Sampled) -> None:
    good, bad = sampled(LENGTHS), sampled(LENGTHS, sampler=False)
    learner = make(tiny())
    before = masters(learner.decoder)
    labels = ["gpu/0", "npu/2"]
    for correction in ("truncated", "masked", "geometric", "bypass", "off"):
        loss = LossSettings(correction=correction)  # type: ignore[arg-type]
        for groups in ([good[0], bad[1]], [bad[1]]):
            with pytest.raises(TrainingError, match=r"\(npu/2\) has no sampler log-probabilities"):
                learner.step(relabelled(groups, labels[-len(groups) :]), loss)
        values = [list(part) for part in good[1].sampler_logprobs or []]
        for value, message in (
            (math.nan, "holds nan"),
            (0.01, "holds 0.01"),
            (None, "of .* values"),
        ):
            spoiled = [list(part) for part in values]
            spoiled[1][-1:] = [] if value is None else [value]
            group = replace(good[1], sampler_logprobs=spoiled)
            with pytest.raises(TrainingError, match=rf"\(npu/2\): .*sampler_logprobs.*{message}"):
                learner.step(relabelled([good[0], group], labels), loss)
    assert learner.steps == learner.bad_steps == 0
    assert_same(masters(learner.decoder), before)


def test_likelihood_training_reports_no_mismatch(tiny: Tiny, sampled: Sampled) -> None:
    learner = make(tiny(), OptimizerSettings(lr=1e-2))
    groups = [
        TrainingGroup(
            group.prompt, group.completions, [[1 / 17] * len(c) for c in group.completions]
        )
        for group in sampled(LENGTHS, sampler=False)
    ]
    losses = [learner.step(groups, None) for _ in range(8)]
    assert losses[0].loss > losses[-1].loss + 0.5
    assert losses[0].mismatch is None and losses[0].kl is None and losses[0].vetoed is None
    assert losses[0].corrected_share is None and losses[0].by_label == {}
