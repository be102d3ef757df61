"""Against the plain loop over full logits, TRL, sums by hand, and exact expectations."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import LENGTHS, differentiated, flat, make
from rounding import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from interlock.config.stages import OptimizerSettings
from interlock.errors import TrainingError
from interlock.learner.distillation import (
    LocalTarget,
    ToldTarget,
    WholeVocabulary,
    chunked_divergence,
    distil,
    tops,
)
from interlock.learner.losses.divergences import (
    LEAST,
    Divergence,
    Tops,
    bucketed,
    divergence,
    overlapping,
    shared,
)
from interlock.learner.packing import TrainingGroup
from interlock.models.attention import causal
from interlock.models.decoder import Decoder

BETAS = [0.0, 0.1, 0.5, 1.0]


def plain_divergence(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """Of [..., n]: as its definition is written, for autograd."""
    p, q = log_p.exp(), log_q.exp()
    if beta == 0:
        return (q * (log_q - log_p)).sum(-1)
    if beta == 1:
        return (p * (log_p - log_q)).sum(-1)
    log_m = (beta * q + (1 - beta) * p).log()
    ours, theirs = (p * (log_p - log_m)).sum(-1), (q * (log_q - log_m)).sum(-1)
    return beta * theirs + (1 - beta) * ours


def problem(rows: int, vocab: int, dtype: torch.dtype) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(rows)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise, dtype=torch.float64).to(dtype)

    return {
        "hidden": drawn(rows, 8).requires_grad_(),
        "head": drawn(vocab, 8).requires_grad_(),
        "their_hidden": drawn(rows, 5),
        "their_head": drawn(vocab, 5),
        "weights": drawn(rows).abs(),
        "targets": torch.randint(0, vocab, (rows,), generator=noise),
    }


def expected(given: dict[str, Tensor], beta: float, temperature: float) -> list[Tensor]:
    """Loss with its gradients, then logprobs and divergences, by full logits and autograd."""
    log_p = (given["hidden"] @ given["head"].T / temperature).log_softmax(-1)
    log_q = (given["their_hidden"] @ given["their_head"].T / temperature).log_softmax(-1)
    each = plain_divergence(log_p, log_q, beta)
    loss = (given["weights"] * each).sum()
    slopes = torch.autograd.grad(loss * 3, [given["hidden"], given["head"]])
    own = log_p.gather(1, given["targets"][:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    return [loss, *slopes, own, entropy, each, plain_divergence(log_p, log_q, 1.0)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("beta", BETAS)
def test_chunked_divergence_is_the_plain_one(beta: float, chunk: int, temperature: float) -> None:
    made, wide = problem(7, 11, torch.float32), problem(7, 11, torch.float64)
    exact, again = expected(wide, beta, temperature), expected(made, beta, temperature)
    for each in (made, wide):
        how = Divergence(beta, temperature, top_k=4)
        whole = WholeVocabulary(each["their_hidden"], each["their_head"], F.linear, how)
        loss, found = chunked_divergence(
            *(each[name] for name in ("hidden", "head", "targets", "weights")),
            whole,
            temperature,
            chunk,
        )
        slopes = torch.autograd.grad(loss * 3, [each["hidden"], each["head"]])
        for one, other, plain in zip((loss, *slopes, *found[:4]), exact, again, strict=True):
            if each is made:
                assert_close(one, other, plain)
            else:
                assert (one - other).abs().max().item() < 1e-12
        assert not any(column.requires_grad for column in found)


@pytest.mark.parametrize("beta", BETAS)
def test_it_is_trls_generalised_jsd(beta: float) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer").GKDTrainer
    made = problem(6, 13, torch.float64)
    given_hidden, head = made["hidden"], made["head"]
    logits = (given_hidden @ head.T)[None]
    theirs = (made["their_hidden"] @ made["their_head"].T)[None]
    labels = torch.zeros(1, 6, dtype=torch.int64)
    expected = gkd.generalized_jsd_loss(
        logits, theirs, labels, beta=beta, temperature=1.3, reduction="batchmean"
    )
    slopes = torch.autograd.grad(expected, [given_hidden, head])
    whole = WholeVocabulary(
        made["their_hidden"], made["their_head"], F.linear, Divergence(beta, 1.3)
    )
    share = torch.full((6,), 1 / 6, dtype=torch.float64)
    loss, _ = chunked_divergence(given_hidden, head, made["targets"], share, whole, 1.3, 4)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for one, other in zip(torch.autograd.grad(loss, [given_hidden, head]), slopes, strict=True):
        assert (one - other).abs().max().item() < 1e-6


def test_values_and_slopes_by_hand() -> None:
    # p = (1/4, 3/4), q = (1/2, 1/2).
    log_p, log_q = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward, slope, reverse = divergence(log_p, log_q, 0.0)
    # 1/2 log 2 + 1/2 log 2/3 = 1/2 log 4/3; p - q
    assert forward.item() == pytest.approx(0.5 * math.log(4 / 3))
    assert slope.flatten().tolist() == pytest.approx([-0.25, 0.25])
    # 1/4 log 1/2 + 3/4 log 3/2 = 3/4 log 3 - log 2; p (log p/q - KL), which is 3/16 log 3 of both
    kl = 0.75 * math.log(3) - math.log(2)
    assert reverse.item() == pytest.approx(kl)
    _, slope, _ = divergence(log_p, log_q, 1.0)
    part = 0.1875 * math.log(3)
    assert slope.flatten().tolist() == pytest.approx([-part, part])


@given(
    st.lists(st.floats(-8, 8), min_size=2, max_size=9),
    st.lists(st.floats(-8, 8), min_size=9, max_size=9),
    st.floats(0, 1),
)
def test_a_divergence_is_never_negative_and_its_slope_adds_up_to_nothing(
    ours: list[float], theirs: list[float], beta: float
) -> None:
    log_p = torch.tensor([ours], dtype=torch.float64).log_softmax(-1)
    log_q = torch.tensor([theirs[: len(ours)]], dtype=torch.float64).log_softmax(-1)
    value, slope, reverse = divergence(log_p, log_q, beta)
    assert value.item() >= -1e-12 and reverse.item() >= -1e-12
    assert slope.sum().item() == pytest.approx(0, abs=1e-12)


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(0, 10**6), st.floats(0, 1))
def test_of_the_top_k_it_is_the_divergence_of_the_words_and_the_rest(
    k: int, seed: int, beta: float
) -> None:
    noise = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(4, 9, generator=noise, dtype=torch.float64)).requires_grad_()
    log_q = (3 * torch.randn(4, 9, generator=noise, dtype=torch.float64)).log_softmax(-1)
    top = log_q.topk(k)

    def coarse(logs: Tensor) -> Tensor:
        words = logs.exp().gather(1, top.indices)
        return torch.cat([words, 1 - words.sum(-1, keepdim=True)], dim=1).clamp(min=LEAST).log()

    plain = plain_divergence(coarse(logits.log_softmax(-1)), coarse(log_q), beta)
    (slopes,) = torch.autograd.grad(plain.sum(), logits)
    value, slope, _ = bucketed(logits.detach().log_softmax(-1), top.indices, top.values, beta)
    assert (value - plain).abs().max().item() < 1e-6
    assert (slope - slopes).abs().max().item() < 1e-5
    whole = plain_divergence(logits.log_softmax(-1), log_q, beta)
    assert (value <= whole + 1e-6).all()  # some of what differs is not seen


@pytest.mark.parametrize("k", [1, 4])
def test_of_the_top_k_it_is_trls_with_a_tail(k: int) -> None:
    trl = pytest.importorskip("trl.experimental.iw_opd.iw_opd_trainer").IWOPDTrainer
    noise = torch.Generator().manual_seed(k)
    logits, theirs = (torch.randn(1, 6, 11, generator=noise, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    labels = torch.zeros(1, 6, dtype=torch.int64)
    expected = trl.generalized_jsd_loss(
        *(logits, theirs, labels), beta=0.0, reduction="sum", top_k=k, add_tail=True
    )
    (slopes,) = torch.autograd.grad(expected, logits)
    top = theirs[0].log_softmax(-1).topk(k)
    log_p = logits.detach()[0].log_softmax(-1)
    value, slope, _ = bucketed(log_p, top.indices, top.values, 0.0)
    assert value.sum().item() == pytest.approx(expected.item(), abs=1e-6)
    assert (slope - slopes[0]).abs().max().item() < 1e-6


def test_a_teachers_mass_that_rounding_made_more_than_all_stays_finite() -> None:
    log_p = torch.tensor([[0.5, 0.5 - 1e-30, 1e-30]]).log()
    log_q = torch.tensor([[0.6, 0.4001]]).log()
    for beta in BETAS:
        found = bucketed(log_p, torch.tensor([[0, 1]]), log_q, beta)
        assert all(bool(each.isfinite().all()) for each in found)


def test_the_overlap_by_hand() -> None:
    log_p = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    ids, log_q = torch.tensor([[0, 3]]), torch.tensor([[0.25, 0.7]]).log()
    share, advantage = overlapping(log_p, ids, log_q)  # common: word 0 alone
    assert share.item() == pytest.approx(0.5)
    assert advantage.item() == pytest.approx(math.log(0.25 / 0.5))
    share, advantage = overlapping(log_p, torch.tensor([[1, 0]]), torch.tensor([[0.6, 0.2]]).log())
    assert share.item() == 1.0
    by_hand = (0.3 * math.log(0.6 / 0.3) + 0.5 * math.log(0.2 / 0.5)) / 0.8
    assert advantage.item() == pytest.approx(by_hand)


def test_the_overlap_is_the_same_where_both_tell_their_likeliest() -> None:
    noise = torch.Generator().manual_seed(3)
    log_p, log_q = ((2 * torch.randn(9, 12, generator=noise)).log_softmax(-1) for _ in range(2))
    ours, theirs = (
        Tops(torch.zeros(9), *reversed(each.topk(5)))  # type: ignore[arg-type]
        for each in (log_p, log_q)
    )
    found, expected = shared(ours, theirs), overlapping(log_p, theirs.ids, theirs.logprobs)
    assert 0 < found[0].mean().item() < 1
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max().item() < 1e-6


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


@pytest.mark.parametrize("beta", BETAS)
def test_no_tensor_is_larger_than_a_chunk_of_logits(beta: float) -> None:
    made = problem(40, 1000, torch.float32)
    whole = WholeVocabulary(made["their_hidden"], made["their_head"], F.linear, Divergence(beta))
    with Largest() as mode:
        loss, _ = chunked_divergence(
            *(made[name] for name in ("hidden", "head", "targets", "weights")), whole, 1.0, 10
        )
        loss.backward()
    assert mode.elements == 10 * 1000  # of either side; all logits: 40 * 1000


def reverse_and_forward(logits: Tensor, log_nu: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of KL(pi || nu) and KL(nu || pi) by the logits."""
    log_pi = logits.log_softmax(-1)
    (reverse,) = torch.autograd.grad((log_pi.exp() * (log_pi - log_nu)).sum(), logits)
    log_pi = logits.log_softmax(-1)
    (forward,) = torch.autograd.grad((log_nu.exp() * (log_nu - log_pi)).sum(), logits)
    return reverse, forward


def expected_gradient(logits: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Of a loss of one sampled token's log pi: the mean over pi of its gradients, exactly."""
    pi = logits.detach().softmax(-1)
    total = torch.zeros_like(pi)
    for word in range(len(pi)):
        (slope,) = torch.autograd.grad(loss(logits.log_softmax(-1))[word], logits)
        total += pi[word] * slope
    return total


def test_estimators_give_the_gradients_that_their_names_say() -> None:
    noise = torch.Generator().manual_seed(5)
    logits = torch.randn(6, generator=noise, dtype=torch.float64).requires_grad_()
    log_nu = torch.randn(6, generator=noise, dtype=torch.float64).log_softmax(-1)
    reverse, forward = reverse_and_forward(logits, log_nu)
    assert (reverse - forward).abs().max().item() > 0.05  # they can be told apart

    def k3(log_pi: Tensor) -> Tensor:
        return torch.expm1(log_nu - log_pi) - (log_nu - log_pi)

    def policy_gradient(log_pi: Tensor) -> Tensor:
        return -(log_nu - log_pi).detach() * log_pi

    k1 = expected_gradient(logits, lambda log_pi: log_pi - log_nu)
    k2 = expected_gradient(logits, lambda log_pi: (log_pi - log_nu) ** 2 / 2)
    assert k1.abs().max().item() < 1e-15
    assert (k2 - reverse).abs().max().item() < 1e-15
    assert (expected_gradient(logits, k3) - forward).abs().max().item() < 1e-15
    assert (expected_gradient(logits, policy_gradient) - reverse).abs().max().item() < 1e-15


def test_the_slopes_are_the_reverse_and_the_forward_kls() -> None:
    noise = torch.Generator().manual_seed(6)
    logits = torch.randn(6, generator=noise, dtype=torch.float64).requires_grad_()
    log_nu = torch.randn(6, generator=noise, dtype=torch.float64).log_softmax(-1)
    reverse, forward = reverse_and_forward(logits, log_nu)
    log_pi = logits.detach().log_softmax(-1)[None]
    for beta, gradient in ((1.0, reverse), (0.0, forward)):
        slope = divergence(log_pi, log_nu[None], beta)[1][0]
        assert (slope - gradient).abs().max().item() < 1e-15


def shares(groups: list[TrainingGroup]) -> list[TrainingGroup]:
    """The groups, every token with the same share of the loss."""
    count = sum(len(text) for group in groups for text in group.completions)
    return [
        TrainingGroup(
            group.prompt,
            group.completions,
            [[1 / count] * len(text) for text in group.completions],
            group.sampler_logprobs,
        )
        for group in groups
    ]


def rows_of(decoder: Decoder, groups: list[TrainingGroup]) -> list[Tensor]:
    """The log-probabilities [tokens, V] of each completion, each computed alone."""
    found = []
    for group in groups:
        for text in group.completions:
            tokens = torch.tensor(group.prompt + text)
            attend = causal(len(tokens), tokens.device)
            logits = decoder.logits(decoder(tokens, attend.positions, attend)).float()
            found.append(logits.log_softmax(-1)[len(group.prompt) - 1 : -1])
    return found


def test_a_step_hands_adamw_the_gradients_of_the_plain_loop(
    tiny: Callable[..., Decoder], sampled: Callable[..., list[TrainingGroup]]
) -> None:
    student, teachers = tiny(0), [tiny(1), tiny(2, tied=False)]
    groups = shares(sampled(LENGTHS))
    caught: dict[str, Tensor] = {}
    learner = make(student)

    def catch(*_: object) -> None:
        caught.update(
            {n: p.grad.clone() for n, p in learner.parameters.items() if p.grad is not None}
        )

    plain = [
        plain_divergence(own, theirs, 0.5)
        for own, *both, place in zip(
            rows_of(student, groups),
            *(rows_of(each, groups) for each in teachers),
            (0, 0, 0, 1, 1),
            strict=True,
        )
        for theirs in [both[place].detach()]
    ]
    loss = torch.cat(plain).mean()
    exact = differentiated(student, loss)
    learner.optimizer.register_step_pre_hook(catch)
    owners = torch.tensor([0] * sum(LENGTHS[0]) + [1] * sum(LENGTHS[1]))
    how = Divergence(0.5)
    targets = [LocalTarget(each, 61, how) for each in teachers]
    result, (first, second) = distil(learner, groups, owners, targets, how, 4, 61)
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    assert (first.tokens, second.tokens, result.tokens) == (9, 8, 17)
    assert first.divergence == pytest.approx(torch.cat(plain[:3]).sum().item(), rel=1e-5)
    assert caught.keys() == exact.keys()
    for name, found in caught.items():
        assert (found - exact[name]).abs().max().item() < 1e-6, name
    # What it says of the sampler is what a policy's step says.
    pi = torch.cat(
        [
            own.gather(1, torch.tensor(text)[:, None])[:, 0]
            for own, text in zip(
                rows_of(tiny(0), groups), [t for g in groups for t in g.completions], strict=True
            )
        ]
    )
    mu = torch.cat([flat(group.sampler_logprobs) for group in groups])
    assert result.mismatch is not None and result.clipped_share is None
    assert result.mismatch.max == pytest.approx((pi - mu).abs().max().item(), rel=1e-4)


@pytest.mark.parametrize("told", [False, True])
def test_in_bfloat16_the_gradients_are_those_of_float32_but_for_rounding(
    tiny: Callable[..., Decoder], sampled: Callable[..., list[TrainingGroup]], told: bool
) -> None:
    groups, how = shares(sampled(LENGTHS)), Divergence(0.5, top_k=8)
    found = []
    for dtype in ("float32", "bfloat16"):
        teacher, learner = tiny(1), make(tiny(0), dtype=dtype)
        teacher.dtype = learner.decoder.dtype
        target = LocalTarget(teacher, 61, how)
        if told:
            target = ToldTarget(tops(teacher, learner, groups, 1.0, 4, 8, 61), how)  # type: ignore
        owners = torch.zeros(17, dtype=torch.int64)
        result, (measured,) = distil(learner, groups, owners, [target], how, 4, 61)
        found.append((result.loss, result.grad_norm, measured.reverse_kl))
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert found[1] != found[0]


def test_what_a_local_teacher_says_of_tokens(
    tiny: Callable[..., Decoder], sampled: Callable[..., list[TrainingGroup]]
) -> None:
    teacher, groups = tiny(3), sampled(LENGTHS)
    found = tops(teacher, make(tiny(0)), groups, 1.0, 4, 5, 61)
    exact = torch.cat(rows_of(teacher, groups)).detach()
    tokens = torch.tensor([t for g in groups for text in g.completions for t in text])
    assert (found.own - exact.gather(1, tokens[:, None])[:, 0]).abs().max().item() < 1e-5
    assert torch.equal(found.ids, exact.topk(5).indices)
    assert (found.logprobs - exact.topk(5).values).abs().max().item() < 1e-5


def test_told_words_teach_as_the_whole_vocabulary_where_they_are_all_of_it(
    tiny: Callable[..., Decoder], sampled: Callable[..., list[TrainingGroup]]
) -> None:
    groups, how = shares(sampled(LENGTHS)), Divergence(1.0, top_k=60)
    said = tops(tiny(1), make(tiny(0)), groups, 1.0, 4, 60, 61)
    owners = torch.zeros(len(said.own), dtype=torch.int64)
    results = []
    for target in (ToldTarget(said, how), LocalTarget(tiny(1), 61, how)):
        result, (measured,) = distil(make(tiny(0)), groups, owners, [target], how, 4, 61)
        results.append((result.loss, result.grad_norm, measured.overlap))
    assert results[0] == pytest.approx(results[1], rel=1e-3)


@pytest.mark.parametrize("told", [False, True])
def test_each_teachers_tokens_move_towards_it(
    tiny: Callable[..., Decoder], sampled: Callable[..., list[TrainingGroup]], told: bool
) -> None:
    student, teachers = tiny(0), [tiny(1), tiny(2)]
    groups = shares(sampled([[6, 6], [6, 6]]))
    learner = make(student, OptimizerSettings(lr=0.02))
    how = Divergence(1.0, top_k=8)
    owners = torch.arange(2).repeat_interleave(12)
    targets = [
        ToldTarget(tops(each, learner, groups, 1.0, 4, 8, 61), how)
        if told
        else LocalTarget(each, 61, how)
        for each in teachers
    ]

    def apart() -> list[float]:
        """Of each group's tokens, how far the student is from its own teacher, in nats."""
        ours = rows_of(student, groups)
        return [
            plain_divergence(torch.cat(ours[part]), torch.cat(rows_of(each, groups)[part]), 1.0)
            .mean()
            .item()
            for part, each in ((slice(0, 2), teachers[0]), (slice(2, 4), teachers[1]))
        ]

    before = apart()
    for _ in range(10):
        distil(learner, groups, owners, targets, how, 4, 61)
    after = apart()
    assert all(new < 0.6 * old for new, old in zip(after, before, strict=True)), (before, after)


def test_a_token_that_a_teacher_has_no_row_for_is_refused(
    tiny: Callable[..., Decoder], sampled: Callable[..., list[TrainingGroup]]
) -> None:
    groups, how = shares(sampled(LENGTHS)), Divergence()
    owners = torch.zeros(17, dtype=torch.int64)
    with pytest.raises(TrainingError, match="none of the 10 words"):
        distil(make(tiny(0)), groups, owners, [LocalTarget(tiny(1), 10, how)], how, 4, 10)
