"""Each rule by hand: the loss of a token, its slope, and whether it is bounded."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from learning import LENGTHS, Sampled, Tiny, gradients, make
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.config.stages import OptimizerSettings
from interlock.learner.losses.corrections import completion_ratio
from interlock.learner.losses.policy import policy_loss, sums
from interlock.learner.losses.rules import RULES, Policies
from interlock.learner.losses.terms import Terms

# rule, weight, r = pi / pi_old, loss, d loss / d logprob, bounded; log pi = -2 and pi_old follows.
BY_HAND = [
    ("clip", 2.0, 1.1, -2.2, -2.2, False),
    ("clip", 2.0, 1.5, -2.4, 0.0, True),
    ("clip", -2.0, 0.5, 1.6, 0.0, True),
    ("clip", -2.0, 1.5, 3.0, 3.0, False),
    # -w min(r, 5) log pi, whose slope is -w min(r, 5)
    ("cispo", 2.0, 1.5, 6.0, -3.0, False),
    ("cispo", 2.0, 6.0, 20.0, -10.0, True),
    ("cispo", -1.0, 0.5, -1.0, 0.5, False),
    # -w 4 / tau sigmoid(tau (r - 1)): at r = 1 it is -2 w / tau with the slope -w r
    ("sapo", 3.0, 1.0, -6.0, -3.0, False),
    ("sapo", -3.0, 1.0, 6.0 / 1.05, 3.0, False),
    # sigmoid(log 3) = 3/4, times 1/4 its slope: -4 · 3/4, and -4 · 3/16 · r
    ("sapo", 1.0, 1 + math.log(3), -3.0, -0.75 * (1 + math.log(3)), False),
    # pi = e^-2 = 0.1353: up from 0.0677 by 0.068, down from 0.2707 by 0.135; bounds 0.1 here
    ("dppo", 1.0, 2.0, -2.0, -2.0, False),
    ("dppo", -1.0, 0.5, 0.0, 0.0, True),
    ("dppo", 1.0, 0.5, -0.5, -0.5, False),  # down where up is wanted: no harm
    ("dppo", 1.0, 8.0, 0.0, 0.0, True),  # up by 0.118
]


def one(rule: Any, weight: float, ratio: float, **given: Any) -> tuple[float, float, bool]:
    logprobs = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
    base = logprobs.detach() - math.log(ratio)
    more = {"dppo_low": 0.1, "dppo_high": 0.1} if rule == "dppo" else {}
    policies = Policies(logprobs, base, torch.tensor([weight], dtype=torch.float64), **given)
    ruled = RULES[rule](policies, LossSettings(rule=rule, **more))
    (slope,) = torch.autograd.grad(ruled.loss.sum(), logprobs)
    return ruled.loss.item(), slope.item(), bool(ruled.bounded.item())


@pytest.mark.parametrize(("rule", "weight", "ratio", "loss", "slope", "bounded"), BY_HAND)
def test_rules_by_hand(
    rule: str, weight: float, ratio: float, loss: float, slope: float, bounded: bool
) -> None:
    found = one(rule, weight, ratio)
    assert found[:2] == pytest.approx((loss, slope), rel=1e-6)
    assert found[2] is bounded


# s, weight, loss and slope with the bounds [1 - 3e-4, 1 + 4e-4]: the token's own ratio has no say.
GSPO = [
    (1.0002, 2.0, -2.0004, -2.0004),
    (1.001, 2.0, -2.0008, 0.0),
    (0.999, 2.0, -1.998, -1.998),
    (0.999, -2.0, 1.9994, 0.0),
    (1.001, -2.0, 2.002, 2.002),
]


@pytest.mark.parametrize(("s", "weight", "loss", "slope"), GSPO)
def test_gspo_by_hand(s: float, weight: float, loss: float, slope: float) -> None:
    sequence = torch.tensor([s], dtype=torch.float64)
    assert one("gspo", weight, 3.0, sequence=sequence)[:2] == pytest.approx((loss, slope), rel=1e-6)


def test_the_ratio_of_a_completion_leaves_out_what_was_given() -> None:
    # log r: 0.2, (given), 0.4 and 1.0: means 0.3 and 1.0; and nothing learned at all: 1.
    above = torch.tensor([-1.0, -9.0, -2.0, -1.0, -5.0])
    below = above - torch.tensor([0.2, -7.0, 0.4, 1.0, 3.0])
    learned = torch.tensor([True, False, True, True, False])
    found = completion_ratio(above, below, [3, 1, 1], learned)
    expected = [math.exp(0.3)] * 3 + [math.e, 1.0]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def lone(ratio: float, weight: float = 1.0) -> Terms:
    old = torch.tensor([-1.0])
    return Terms(torch.tensor([weight]), sampler=old, old=old - math.log(ratio))


def test_the_unbiased_kl_by_hand() -> None:
    # log pi = -1, r = 2, x = pi_ref / pi = e: k3 = e - 2. The term is r k3, its slope in log pi
    # r k3 + r (1 - x) = 2 (e - 2) + 2 (1 - e) = -2.
    logprobs = torch.tensor([-1.0], requires_grad=True)
    terms = Terms(
        weights=torch.tensor([0.0]),
        sampler=torch.tensor([-1.0]),
        old=torch.tensor([-1.0 - math.log(2)]),
        reference=torch.tensor([0.0]),
        kl_weights=torch.tensor([0.5]),
    )
    loss = policy_loss(logprobs, terms, LossSettings(kl_estimate="unbiased", kl_beta=0.5))
    loss.sum().backward()
    assert logprobs.grad is not None
    assert loss.item() == pytest.approx(0.5 * 2 * (math.e - 2), rel=1e-6)
    assert logprobs.grad.item() == pytest.approx(0.5 * -2, rel=1e-6)


def test_in_expectation_the_unbiased_kl_has_the_gradient_of_the_reverse_kl() -> None:
    """Over a vocabulary of four, exactly: tokens of pi_old, KL(pi || pi_ref) by its logits."""
    noise = torch.Generator().manual_seed(1)
    logits, ref, old = torch.randn(3, 4, generator=noise, dtype=torch.float64).unbind()
    ref, old = ref.log_softmax(0), old.log_softmax(0)

    def slope(value: Tensor, leaf: Tensor) -> list[float]:
        return torch.autograd.grad(value, leaf)[0].tolist()

    def estimated(kind: Any, stale: bool = False, correction: Any = "off") -> list[float]:
        """`stale`: `old` is mu alone, and pi_old the policy as it is."""
        leaf = logits.clone().requires_grad_()
        pi = leaf.log_softmax(0)
        before = pi.detach() if stale else old
        terms = Terms(torch.zeros(4), old, before, reference=ref, kl_weights=old.exp())
        settings = LossSettings(kl_estimate=kind, kl_beta=1.0, correction=correction)
        return slope(policy_loss(pi, terms, settings).sum(), leaf)

    leaf = logits.clone().requires_grad_()
    pi = leaf.log_softmax(0)
    exact = slope((pi.exp() * (pi - ref)).sum(), leaf)
    assert estimated("unbiased") == pytest.approx(exact, abs=1e-12)
    assert estimated("k3") != pytest.approx(exact, abs=1e-2)
    assert estimated("unbiased", True, "bypass") == pytest.approx(exact, abs=1e-12)
    assert estimated("unbiased", True, "truncated") != pytest.approx(exact, abs=1e-2)


def test_statistics_of_ratios_by_hand() -> None:
    # pi / mu: 1, 2, 1/2 and, without a weight, 100. (3.5)^2 / (3 · 5.25) = 7/9. With the veto at
    # 0.6 and clip_high 0.5 the second is clipped and the third vetoed: 2/3 are masked.
    mu = torch.full((4,), -3.0)
    logprobs = mu + torch.tensor([1, 2, 0.5, 100]).log()
    old = mu + torch.tensor([1, 1, 0.5, 1]).log()
    terms = Terms(torch.tensor([1.0, 1.0, -1.0, 0.0]), mu, old)
    found = sums(logprobs, torch.zeros(4), terms, LossSettings(clip_high=0.5, tis_veto=0.6))
    assert (found.learned, found.masked, found.clipped) == (3, 2, 1)
    assert found.ratio**2 / (found.learned * found.ratio_squared) == pytest.approx(7 / 9, rel=1e-6)


@pytest.mark.parametrize("sampler", [-400.0, -9999.0])  # one whose square, one that is no float
def test_one_ratio_beyond_any_float_is_a_sample_of_one(
    tiny: Tiny, sampled: Sampled, sampler: float
) -> None:
    (group,) = sampled([[4, 3]])
    told = [[-1.0] * 4, [-1.0, -1.0, sampler]]
    group = type(group)(group.prompt, group.completions, [[0.1] * 4, [-0.1] * 3], told)
    found = make(tiny()).step([group], LossSettings())
    assert not found.skipped and found.effective_share == pytest.approx(1 / 7)


@given(
    st.sampled_from(["clip", "gspo", "cispo", "sapo", "dppo"]),
    st.floats(-2, 2, width=32),
    st.floats(-3, -0.125, width=32),
)
def test_on_policy_every_rule_has_the_plain_policy_gradient(
    rule: Any, weight: float, logprob: float
) -> None:
    assume(weight == 0 or abs(weight) > 1e-3)
    logprobs = torch.tensor([logprob], requires_grad=True)
    terms = Terms(torch.tensor([weight]), sampler=logprobs.detach())
    settings = LossSettings(rule=rule, correction="bypass" if rule == "dppo" else "off")
    policy_loss(logprobs, terms, settings).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(-weight, rel=1e-5, abs=1e-30)


def test_a_ratio_that_is_not_a_number_is_never_masked_away() -> None:
    nan = torch.tensor([math.nan])
    for rule in RULES:
        policies = Policies(nan, torch.tensor([-1.0]), torch.tensor([1.0]))
        assert math.isnan(RULES[rule](policies, LossSettings(rule=rule)).loss.item())


def test_gspo_of_the_learner_is_the_sequence_form(tiny: Tiny, sampled: Sampled) -> None:
    """Two updates on the same groups: the second's gradient is that of -A s / N, differentiated
    through the whole completion's geometric mean by another way than the learner's.
    """
    groups = [
        type(group)(
            group.prompt,
            group.completions,
            [[(-1.0) ** i * 0.2 / len(c)] * len(c) for i, c in enumerate(group.completions)],
            group.sampler_logprobs,
        )
        for group in sampled(LENGTHS)
    ]
    settings = LossSettings(
        rule="gspo", normalize="sequence", correction="off", gspo_low=0.9, gspo_high=9.0
    )
    learner = make(tiny(), OptimizerSettings(lr=0.004, clip_norm=1e9))
    old = learner.logprobs(groups)
    first = learner.step(groups, settings, old=old)
    assert first.clipped_share == 0
    now = learner.logprobs(groups)
    found = gradients(learner, groups, settings, old=old)
    # By the chain rule: the likelihood with the weights A / (N len) · s has the same gradient.
    apart = [
        (new - before).mean().exp().item()
        for one, other in zip(now, old, strict=True)
        for new, before in zip(one, other, strict=True)
    ]
    assert 0.1 < min(apart) < 0.98 and 1.02 < max(apart) < 10
    ratios = iter(apart)
    plain = [
        type(group)(
            group.prompt,
            group.completions,
            [[value * s for value in row] for row, s in zip(group.weights, ratios)],  # noqa: B905
        )
        for group in groups
    ]
    again = make(tiny(), OptimizerSettings(lr=0.004, clip_norm=1e9))
    again.step(groups, settings, old=old)
    expected = gradients(again, plain, None)
    for name in found:
        assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "gspo", "clip_high": 0.28}, "clip_high is of rule = 'clip', and the rule is"),
        ({"cispo_cap": 4.0}, "cispo_cap is of rule = 'cispo'"),
        ({"rule": "dppo"}, "would count the sampler twice"),
        ({"reference_every": 400}, "reference_every says how the KL is taken"),
        (
            {"correction": "masked", "tis_cap": 3.0},
            "tis_cap is of correction = 'truncated' or 'geo",
        ),
        ({"correction": "off", "tis_veto": 0.1}, "tis_veto is of correction = 'truncated' or 'geo"),
        ({"mask_low": 0.4}, "mask_low is of correction = 'masked', and that is 'truncated'"),
        ({"correction": "geometric", "mask_high": 4.0}, "mask_high is of correction = 'masked'"),
        ({"tis_veto": 1.0}, "tis_veto = 1.0 leaves out tokens whose ratio is 1"),
        ({"correction": "masked", "mask_low": 1.1}, "leave out tokens whose ratio is 1"),
        ({"correction": "masked", "mask_high": 0.9}, "leave out tokens whose ratio is 1"),
        ({"off_policy_least": 0.1}, "off_policy_least is of a mask, and off_policy_quantile is 0"),
        ({"kl_estimate": "unbiased"}, "kl_estimate says how the KL is taken"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, Any], message: str) -> None:
    (found,) = LossSettings(**settings).conflicts()
    assert message in found


def test_what_does() -> None:
    for settings in (
        LossSettings(),
        LossSettings(rule="dppo", correction="bypass", dppo_low=0.1),
        LossSettings(correction="geometric", tis_cap=3.0, tis_veto=0.1),
        LossSettings(correction="masked", mask_low=0.4, mask_high=1.0),
        LossSettings(off_policy_quantile=0.9, off_policy_least=0.1),
        LossSettings(kl_beta=0.1, kl_estimate="unbiased", reference_every=400),
    ):
        assert list(settings.conflicts()) == []
