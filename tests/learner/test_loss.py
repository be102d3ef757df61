import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from rounding import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interlock.config.losses import LossSettings
from interlock.errors import TrainingError
from interlock.learner.losses.corrections import completion_ratio
from interlock.learner.losses.mismatches import mismatches
from interlock.learner.losses.policy import Sums, policy_loss, sums
from interlock.learner.losses.projection import chunked_loss, token_logprobs
from interlock.learner.losses.terms import Terms, k3
from interlock.mismatch import Mismatch, mismatch

PPO = LossSettings(clip_low=0.2, clip_high=0.28, tis_cap=2.0, tis_veto=1e-4)


EPS = torch.finfo(torch.float32).eps


def few(log_ratio: float = 1.0) -> float:
    """Relative: what a handful of float32 operations may round, exp and log being off by two units
    in the last place at most. exp is off relatively by what its argument is off absolutely.
    """
    return 8 * EPS * (1 + abs(log_ratio))


def problem(rows: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, head, targets, weights of a random problem."""
    noise = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 8, generator=noise).to(dtype).requires_grad_()
    head = torch.randn(vocab, 8, generator=noise).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), generator=noise)
    return hidden, head, targets, torch.randn(rows, generator=noise)


def weighted(weights: Tensor) -> Callable[[Tensor, slice], Tensor]:
    return lambda logprobs, rows: -weights[rows] * logprobs


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_plain_log_softmax(chunk: int, temperature: float) -> None:
    hidden, head, targets, weights = problem(7, 11, torch.float32)

    def expected(hidden: Tensor, head: Tensor) -> list[Tensor]:
        every = (hidden @ head.T / temperature).log_softmax(-1)
        chosen = every.gather(1, targets[:, None])[:, 0]
        loss, entropy = (-weights * chosen).sum(), -(every.exp() * every).sum(-1)
        return [loss, chosen, entropy, *torch.autograd.grad(loss * 3, [hidden, head])]

    exact, plain = expected(hidden.double(), head.double()), expected(hidden, head)
    loss, logprobs, entropy, _ = chunked_loss(
        hidden, head, targets, temperature, chunk, weighted(weights)
    )
    found = torch.autograd.grad(loss * 3, [hidden, head])
    again = token_logprobs(hidden, head, targets, temperature, chunk)
    # Another order of the sum, too, can be off by a part of its terms.
    slack = 8 * EPS * (weights * exact[1]).abs().sum().item()
    assert loss.item() == pytest.approx(exact[0].item(), abs=slack)
    for one, *other in zip((logprobs, entropy, *found), exact[1:], plain[1:], strict=True):
        assert_close(one, *other)
    assert torch.equal(again[0], logprobs) and torch.equal(again[1], entropy)
    assert not logprobs.requires_grad and not entropy.requires_grad


def test_a_gradient_worked_by_hand() -> None:
    # Two words, logits (0, log 3), so p = (1/4, 3/4). With weight 2 on word 0 the loss is
    # -2 log 1/4 = 4 log 2, d loss / d logits = -2 (1 - 1/4, -3/4) = (-3/2, 3/2),
    # d hidden = 3/2 log 3, d head = (-3/2, 3/2).
    hidden = torch.tensor([[1.0]], requires_grad=True)
    head = torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
    loss, logprobs, entropy, _ = chunked_loss(
        hidden, head, torch.tensor([0]), 1.0, 4, weighted(torch.tensor([2.0]))
    )
    loss.backward()
    assert hidden.grad is not None and head.grad is not None
    assert loss.item() == pytest.approx(4 * math.log(2))
    assert logprobs.item() == pytest.approx(-2 * math.log(2))
    # H = 1/4 log 4 + 3/4 log 4/3 = 2 log 2 - 3/4 log 3
    assert entropy.item() == pytest.approx(2 * math.log(2) - 0.75 * math.log(3))
    assert hidden.grad.item() == pytest.approx(1.5 * math.log(3))
    assert head.grad.flatten().tolist() == pytest.approx([-1.5, 1.5])


def test_a_sure_token_keeps_its_small_gradient_in_bfloat16() -> None:
    # p = 0.9990889 rounds to 1 in bf16, but the gradient 1 - p = 0.000911 must not become 0.
    hidden = torch.tensor([[1.0]], dtype=torch.bfloat16, requires_grad=True)
    head = torch.tensor([[7.0], [0.0]], requires_grad=True)
    loss, *_ = chunked_loss(hidden, head, torch.tensor([0]), 1.0, 1, weighted(torch.tensor([1.0])))
    loss.backward()
    assert head.grad is not None and head.grad.dtype == torch.float32
    share = 1 / (1 + math.exp(7))
    assert head.grad.flatten().tolist() == pytest.approx([-share, share], rel=2**-8)


class Largest(TorchDispatchMode):
    """The most elements any operator returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_tensor_is_larger_than_a_chunk_of_logits() -> None:
    hidden, head, targets, weights = problem(40, 1000, torch.float32)
    with Largest() as mode:
        loss, *_ = chunked_loss(hidden, head, targets, 1.0, 10, weighted(weights))
        loss.backward()
    assert mode.elements == 10 * 1000  # head and its gradient: 8 * 1000; all logits: 40 * 1000


# weight, ratio, loss with clip_low 0.2 and clip_high 0.28, d loss / d logprob
CLIPPING = [
    (1.0, 1.5, -1.28, 0.0),  # good and already likelier: no more
    (1.0, 1.1, -1.1, -1.1),
    (1.0, 0.5, -0.5, -0.5),  # good but unlikelier: not clipped
    (-1.0, 1.5, 1.5, 1.5),  # bad and likelier: not clipped
    (-1.0, 0.9, 0.9, 0.9),
    (-1.0, 0.5, 0.8, 0.0),  # bad and already unlikelier: no more
    (2.0, 1.1, -2.2, -2.2),
    (0.0, 3.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("weight", "ratio", "loss", "slope"), CLIPPING)
def test_clipping_by_hand(weight: float, ratio: float, loss: float, slope: float) -> None:
    old = torch.tensor([-2.0])
    logprobs = (old + math.log(ratio)).requires_grad_()
    terms = Terms(torch.tensor([weight]), sampler=old, old=old)
    value = policy_loss(logprobs, terms, PPO)
    value.sum().backward()
    assert value.item() == pytest.approx(loss, rel=few())
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(slope, rel=few())  # d r / d logprob = r


# rho = pi_old / mu, what the token's loss is multiplied by
TRUNCATION = [(1.0, 1.0), (0.5, 0.5), (1.9, 1.9), (3.0, 2.0), (2e-4, 2e-4), (0.5e-4, 0.0)]


@pytest.mark.parametrize(("rho", "factor"), TRUNCATION)
def test_truncated_importance_sampling_by_hand(rho: float, factor: float) -> None:
    # On-policy, r = 1 with slope 1: loss and slope are -w factor; the factor has no gradient.
    logprobs = torch.tensor([-1.0], requires_grad=True)
    terms = Terms(torch.tensor([3.0]), sampler=torch.tensor([-1.0 - math.log(rho)]))
    value = policy_loss(logprobs, terms, PPO)
    value.sum().backward()
    assert logprobs.grad is not None
    assert value.item() == pytest.approx(-3 * factor, rel=few(math.log(rho)))
    assert logprobs.grad.item() == pytest.approx(-3 * factor, rel=few(math.log(rho)))


def on_policy(rho: float, loss: LossSettings, weight: float = 3.0) -> tuple[float, float]:
    """Loss of a token and its slope at pi = pi_old, with a completion of this token alone."""
    logprobs = torch.tensor([-1.0], requires_grad=True)
    sampler = torch.tensor([-1.0 - math.log(rho)])
    completion = completion_ratio(logprobs.detach(), sampler, [1])
    value = policy_loss(
        logprobs, Terms(torch.tensor([weight]), sampler, completion=completion), loss
    )
    value.sum().backward()
    assert logprobs.grad is not None
    return value.item(), logprobs.grad.item()


# rho, factor with mask_low 0.5 and mask_high 5
MASKING = [(1.0, 1.0), (0.51, 0.51), (0.49, 0.0), (4.9, 4.9), (5.1, 0.0), (1e-6, 0.0), (1e30, 0.0)]


@pytest.mark.parametrize(("rho", "factor"), MASKING)
def test_masked_importance_sampling_by_hand(rho: float, factor: float) -> None:
    found = on_policy(rho, LossSettings(correction="masked", mask_low=0.5, mask_high=5.0))
    assert found == pytest.approx((-3 * factor, -3 * factor), rel=few(math.log(rho)))


@pytest.mark.parametrize("rho", [1e-6, 0.5, 3.0])
def test_off_is_a_factor_of_one(rho: float) -> None:
    assert on_policy(rho, LossSettings(correction="off")) == (-3, -3)


# rho = pi / mu here, weight, loss and slope with clip_low 0.2 and clip_high 0.28
BYPASS = [
    (1.5, 1.0, -1.28, 0.0),
    (1.1, 1.0, -1.1, -1.1),
    (1e-6, 1.0, -1e-6, -1e-6),  # no veto
    (1.5, -1.0, 1.5, 1.5),
    (0.5, -1.0, 0.8, 0.0),
]


@pytest.mark.parametrize(("rho", "weight", "loss", "slope"), BYPASS)
def test_bypass_clips_against_the_sampler(
    rho: float, weight: float, loss: float, slope: float
) -> None:
    settings = LossSettings(clip_low=0.2, clip_high=0.28, correction="bypass")
    assert on_policy(rho, settings, weight) == pytest.approx((loss, slope), rel=few(math.log(rho)))


def test_geometric_by_hand() -> None:
    # log rho of the completions: (3, -1) log 2, (log 3), (log 1/2, log 1/8), whose means are
    # log 2, log 3 and log 1/4.
    mu = torch.tensor([-1.0, -2.0, -3.0, -1.0, -0.5])
    old = mu + torch.tensor([8, 0.5, 3, 0.5, 0.125]).log()
    completion = completion_ratio(old, mu, [2, 1, 2])
    assert completion.tolist() == pytest.approx([2, 2, 3, 0.25, 0.25], rel=few())
    # The cap is 2.5 and the last token's own ratio, 1/8, is vetoed.
    settings = LossSettings(correction="geometric", tis_cap=2.5, tis_veto=0.2)
    logprobs = old.clone().requires_grad_()
    weights = torch.tensor([1.0, -2.0, 1.0, 4.0, 1.0])
    terms = Terms(weights, mu, old, completion=completion)
    value = policy_loss(logprobs, terms, settings)
    value.sum().backward()
    assert logprobs.grad is not None
    assert value.tolist() == pytest.approx([-2, 4, -2.5, -1, 0], rel=few())
    assert logprobs.grad.tolist() == pytest.approx([-2, 4, -2.5, -1, 0], rel=few())
    found = sums(old, torch.zeros(5), terms, settings)
    assert (found.corrected, found.vetoed) == (1, 1)


def by_formula(
    settings: LossSettings, weight: float, pi: float, old: float, mu: float, completion: float
) -> tuple[float, float, bool, bool]:
    """Loss and slope of one token, whether it was corrected and vetoed; in plain Python."""
    rho, corrected, vetoed = math.exp(old - mu), False, False
    match settings.correction:
        case "bypass" | "off":
            factor = 1.0
        case "masked":
            corrected = not settings.mask_low <= rho <= settings.mask_high
            factor = 0.0 if corrected else rho
        case kind:
            ratio = completion if kind == "geometric" else rho
            vetoed = rho < settings.tis_veto
            corrected = ratio > settings.tis_cap and not vetoed
            factor = 0.0 if vetoed else min(ratio, settings.tis_cap)
    ratio = math.exp(pi - (mu if settings.correction == "bypass" else old))
    if weight > 0 and ratio > 1 + settings.clip_high:
        return -weight * factor * (1 + settings.clip_high), 0.0, corrected, vetoed
    if weight <= 0 and ratio < 1 - settings.clip_low:
        return -weight * factor * (1 - settings.clip_low), 0.0, corrected, vetoed
    return -weight * factor * ratio, -weight * factor * ratio, corrected, vetoed


log_p = st.floats(-5, 0, width=32)
tokens = st.tuples(st.floats(-2, 2, width=32), log_p, log_p, log_p, st.floats(0.125, 8, width=32))


@given(
    st.sampled_from(["truncated", "masked", "geometric", "bypass", "off"]),
    st.lists(tokens, min_size=1, max_size=5),
)
def test_every_correction_equals_its_formula(
    correction: Any, rows: list[tuple[float, float, float, float, float]]
) -> None:
    settings = LossSettings(
        correction=correction, tis_cap=3.0, tis_veto=0.1, mask_low=0.4, mask_high=6.0
    )
    for _, pi, old, mu, completion in rows:  # rounding may decide what lies on an edge
        edges = [(old - mu, e) for e in (3, 0.1, 0.4, 6)] + [(math.log(completion), 3)]
        edges += [(pi - base, e) for base in (old, mu) for e in (0.8, 1.2)]
        assume(all(abs(value - math.log(edge)) > 1e-5 for value, edge in edges))
    weights, logprobs, old_logprobs, sampler, completions = torch.tensor(rows).T.contiguous()
    logprobs.requires_grad_()
    terms = Terms(weights, sampler, old_logprobs, completion=completions)
    value = policy_loss(logprobs, terms, settings)
    value.sum().backward()
    assert logprobs.grad is not None
    losses, slopes, corrected, vetoed = zip(
        *(by_formula(settings, *row) for row in rows), strict=True
    )
    assert value.tolist() == pytest.approx(losses, rel=few(5))
    assert logprobs.grad.tolist() == pytest.approx(slopes, rel=few(5))
    found = sums(logprobs.detach(), torch.zeros(len(rows)), terms, settings)
    assert (found.corrected, found.vetoed) == (sum(corrected), sum(vetoed))
    slack = few(5) * sum(map(abs, losses)) + torch.finfo(torch.float32).tiny
    assert found.loss == pytest.approx(sum(losses), abs=slack)
    largest = max(abs(row[2] - row[3]) for row in rows)
    assert found.mismatch.max == pytest.approx(largest, rel=few())


def test_a_mismatch_that_is_not_a_number_is_never_masked_away() -> None:
    nan = torch.tensor([math.nan])
    for correction in ("truncated", "masked", "geometric", "bypass", "off"):
        settings = LossSettings(correction=correction)  # type: ignore[arg-type]
        terms = Terms(torch.tensor([1.0]), torch.tensor([-1.0]), completion=nan)
        assert math.isnan(policy_loss(nan, terms, settings).item())


def test_likelihood_and_kl_by_hand() -> None:
    # x = pi_ref / pi = e^(-1 + 2) = e; k3 = e - 1 - 1; d k3 / d logprob = 1 - e
    logprobs = torch.tensor([-2.0], requires_grad=True)
    terms = Terms(
        torch.tensor([3.0]), reference=torch.tensor([-1.0]), kl_weights=torch.tensor([0.5])
    )
    value = policy_loss(logprobs, terms, None)
    value.sum().backward()
    assert logprobs.grad is not None
    assert value.item() == pytest.approx(6 + 0.5 * (math.e - 2))
    assert logprobs.grad.item() == pytest.approx(-3 + 0.5 * (1 - math.e))


def test_k3_is_exact_for_small_ratios() -> None:
    # x - 1 - log x = u^2 / 2 + u^3 / 6 + … with u = log x; a plain fp32 exp would give 0 or 1.2e-7.
    ulp = 2**-33  # of expm1(u), which is a little above 2^-10
    assert k3(torch.tensor(1e-3)).item() == pytest.approx(1e-6 / 2 + 1e-9 / 6, abs=2 * ulp)


def test_missing_logprobs_are_an_error() -> None:
    logprobs, weights = torch.tensor([-1.0]), torch.tensor([1.0])
    with pytest.raises(TrainingError, match="has no sampler log-probabilities, which this loss n"):
        policy_loss(logprobs, Terms(weights), PPO)
    with pytest.raises(TrainingError, match="has sampler log-probabilities, which this loss does"):
        policy_loss(logprobs, Terms(weights, sampler=logprobs), None)
    with pytest.raises(TrainingError, match="holds no reference policy"):
        policy_loss(logprobs, Terms(weights, kl_weights=weights), None)


def test_statistics_by_hand() -> None:
    # log pi_old - log mu: log 3, -log 2, -12, 0; pi / pi_old: 1, 1.5, 0.5, 1.5
    old = torch.tensor([-1.0, -2.0, -14.0, -3.0])
    terms = Terms(
        weights=torch.tensor([1.0, 1.0, -1.0, 0.0]),
        sampler=torch.tensor([-1.0 - math.log(3), -2 + math.log(2), -2.0, -3.0]),
        old=old,
    )
    logprobs = old + torch.tensor([1, 1.5, 0.5, 1.5]).log()
    found = sums(logprobs, torch.tensor([0.5, 1.0, 1.5, 2.0]), terms, PPO)
    mismatch = (3 - 1 - math.log(3)) + (0.5 - 1 + math.log(2)) + (math.exp(-12) - 1 + 12)
    assert found.tokens == 4
    # -1 · 2 · 1, -1 · 1/2 · 1.28, vetoed, weight 0
    assert found.loss == pytest.approx(-2 - 0.64)
    assert found.entropy == 5.0
    assert found.mismatch.k3 == pytest.approx(mismatch / 4)
    assert (found.mismatch.max, found.mismatch.share_above_2) == (12.0, 1 / 4)
    assert (found.corrected, found.vetoed, found.clipped) == (1, 1, 2)
    assert found.by_label == {}
    total = found + Sums(tokens=2, loss=1.0, mismatch=Mismatch(2, 0.0, 13.0, 0.5), clipped=1)
    assert (total.tokens, total.clipped) == (6, 3)
    assert total.loss == pytest.approx(-1.64)
    assert total.mismatch == Mismatch(6, pytest.approx(mismatch / 6), 13.0, 2 / 6)  # type: ignore


def test_mismatch_by_label_by_hand() -> None:
    # log pi_old - log mu is log 3, -log 2, 0, -1, log 4 under labels 0, 2, 2, 0, 3; 1 has no token.
    gaps = torch.tensor([math.log(3), -math.log(2), 0.0, -1.0, math.log(4)])
    logprobs = torch.full((5,), -2.0)
    terms = Terms(torch.ones(5), sampler=logprobs - gaps, labels=torch.tensor([0, 2, 2, 0, 3]))
    first = sums(logprobs, torch.zeros(5), terms, PPO).by_label
    assert first.keys() == {0, 2, 3}
    expected = {
        0: (2, (3 - 1 - math.log(3)) / 2 + math.exp(-1) / 2, math.log(3), 0.5),
        2: (2, (0.5 - 1 + math.log(2)) / 2, math.log(2), 0.0),
        3: (1, 4 - 1 - math.log(4), math.log(4), 1.0),
    }
    for label, (count, mean, largest, above) in expected.items():
        gap = first[label]
        assert (gap.tokens, gap.share_above_2) == (count, above)
        assert gap.k3 == pytest.approx(mean, rel=few(2))
        assert gap.max == pytest.approx(largest, rel=few())
    one = Mismatch(1, 0.5, 0.25, 0.0)
    more = Sums(by_label={1: one, 3: Mismatch(2, 0.5, 9.0, 0.5)})
    total = (Sums(by_label=first) + more).by_label
    both = Mismatch(3, (first[3].k3 + 1.0) / 3, 9.0, 2 / 3)
    assert total == first | {1: one, 3: both}


@given(
    st.lists(st.tuples(st.floats(-30, 0, width=32), st.floats(-30, 0, width=32)), min_size=1),
    st.booleans(),
)
def test_mismatch_of_tensors_is_that_of_the_plain_function(
    pairs: list[tuple[float, float]], broken: bool
) -> None:
    pairs = [*pairs, (math.nan, -1.0), (-math.inf, -1.0)] if broken else pairs
    log_ratio = [pi - mu for pi, mu in pairs]
    assume(all(abs(ratio - math.log(2)) > 1e-5 for ratio in log_ratio))
    (found,) = mismatches(torch.tensor(log_ratio)).values()
    plain = mismatch([pi for pi, _ in pairs], [mu for _, mu in pairs])
    assert found.tokens == plain.tokens and found.share_above_2 == plain.share_above_2
    assert found.max == pytest.approx(plain.max, rel=few())
    # Each k3 is a difference of two numbers, the first off by as much as its argument is, and more.
    parts = [(2 + abs(d)) * abs(math.expm1(d)) + abs(d) for d in log_ratio]
    slack = 0.0 if broken else 2 * EPS * sum(parts) / len(parts)
    assert found.k3 == pytest.approx(plain.k3, abs=slack)
