"""Kept sets: the learner over what top-p, top-k and min-p left, against plain loops."""

import math
from collections.abc import Callable

import pytest
import torch
from msgspec.structs import replace
from rounding import assert_close
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.errors import TrainingError
from interlock.learner.learner import Learner
from interlock.learner.losses.kept import KeptSets
from interlock.learner.losses.projection import chunked_loss, token_logprobs
from interlock.learner.packing import TrainingGroup
from interlock.mismatch import mismatch
from interlock.models.attention import causal
from interlock.models.decoder import Decoder
from interlock.records.replay import KeptTokens, Replay, kept_ids, kept_tokens
from interlock.records.rl import Completion, Sampling

VOCAB = 61
SETS = [[2, 5, 60], [0], [], list(range(0, 61, 2)), [7, 8], [], list(range(61))]
TARGETS = [5, 0, 33, 4, 8, 60, 17]


class Silent:
    eos_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int]) -> str:
        return ""

    def stream(self) -> "Silent":
        return self

    def definition(self) -> str:
        return ""

    def push(self, token: int) -> str:
        return ""


def sets_of(places: list[int]) -> KeptSets:
    kept = KeptTokens.of([kept_ids(each) for each in SETS])
    return KeptSets.read([(len(SETS), kept)]).of(torch.tensor(places))


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_a_plain_loop_over_the_sets(
    chunk: int, temperature: float
) -> None:
    noise = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 8, generator=noise).requires_grad_()
    head = torch.randn(VOCAB, 8, generator=noise).requires_grad_()
    weights = torch.randn(7, generator=noise)

    def expected(hidden: Tensor, head: Tensor) -> list[Tensor]:
        logprobs, entropies, masses = [], [], []
        for row, (target, words) in enumerate(zip(TARGETS, SETS, strict=True)):
            logits = head @ hidden[row] / temperature
            inside = logits[words] if words else logits
            logprobs.append(logits[target] - inside.logsumexp(0))
            masses.append(inside.logsumexp(0) - logits.logsumexp(0))
            whole = logits.log_softmax(0)
            entropies.append(-(whole.exp() * whole).sum())
        loss = (-weights * torch.stack(logprobs)).sum()
        columns = [torch.stack(each) for each in (logprobs, entropies, masses)]
        return [*columns, *torch.autograd.grad(loss * 3, [hidden, head])]

    exact, plain = expected(hidden.double(), head.double()), expected(hidden, head)
    rest = torch.tensor(TARGETS), temperature, chunk
    kept = sets_of(list(range(7)))
    loss, *found = chunked_loss(
        *(hidden, head, *rest), lambda own, rows: -weights[rows] * own, kept=kept
    )
    gradients = torch.autograd.grad(loss * 3, [hidden, head])
    for one, *other in zip((*found, *gradients), exact, plain, strict=True):
        assert_close(one, *other)
    again = token_logprobs(hidden, head, *rest, kept=kept)
    assert torch.equal(again[0], found[0]) and torch.equal(again[1], found[1])


def test_sets_are_chosen_and_cut_with_their_tokens() -> None:
    places = [6, 0, 0, 3, 2, 4, 1]
    chosen = sets_of(places)
    assert chosen.ids.tolist() == [word for place in places for word in SETS[place]]
    parts = chosen.slices([slice(0, 2), slice(2, 3), slice(3, 7)])
    assert [each.counts.tolist() for each in parts] == [[61, 3], [3], [31, 0, 2, 1]]
    assert parts[2].ids.tolist() == [*SETS[3], *SETS[4], *SETS[1]]


def sampled(decoder: Decoder, sampling: Sampling) -> list[tuple[list[int], list[Completion]]]:
    engine = PortableEngine(decoder.shared(), Silent(), slots=16)
    prompts = [[3, 1, 4], [1, 5, 9, 2, 6], [5, 3]]
    asked = [
        Request(str(n), prompt, 4, sampling, seed=7, replay=Replay(kept=True))
        for n, prompt in enumerate(prompts)
    ]
    return list(zip(prompts, engine.generate(asked), strict=True))


def groups_of(drawn: list[tuple[list[int], list[Completion]]]) -> list[TrainingGroup]:
    return [
        TrainingGroup(
            prompt=prompt,
            completions=[each.tokens for each in answers],
            weights=[[0.01 * (n - 1.5)] * len(a.tokens) for n, a in enumerate(answers)],
            sampler_logprobs=[each.logprobs for each in answers],
            kl_weights=[[0.001] * len(each.tokens) for each in answers],
            kept=[each.kept for each in answers],
        )
        for prompt, answers in drawn
    ]


def open_learner(decoder: Decoder, **more: bool) -> Learner:
    settings = LearnerSettings(dtype="float32", logits_chunk=16, micro_batch_tokens=64)
    return Learner(decoder, settings, OptimizerSettings(), 10, **more)


RULES = [
    Sampling(top_p=0.8, max_tokens=40),
    Sampling(top_k=8, max_tokens=40),
    Sampling(min_p=0.2, temperature=1.3, max_tokens=40),
    Sampling(top_p=0.9, top_k=20, temperature=0.8, max_tokens=40),
]


@pytest.mark.parametrize("sampling", RULES, ids=str)
def test_the_ratio_is_the_kept_mass_before_replay_and_one_after(
    tiny: Callable[..., Decoder],
    plain_logprobs: Callable[..., list[Tensor]],
    sampling: Sampling,
) -> None:
    decoder = tiny()
    drawn = sampled(decoder, sampling)
    groups, temperature = groups_of(drawn), sampling.temperature
    learner = open_learner(decoder)
    mu = [v for group in groups for values in group.sampler_logprobs or [] for v in values]
    own = torch.cat([v for each in learner.logprobs(groups, temperature) for v in each]).tolist()
    whole = torch.cat(plain_logprobs(decoder, groups, temperature)).tolist()
    mass = masses(decoder, drawn, temperature)
    before = [math.exp(a - b) for a, b in zip(whole, mu, strict=True)]
    after = [math.exp(a - b) for a, b in zip(own, mu, strict=True)]
    assert len(mu) == 3 * 4 * 40 and max(mass) < 1 and sum(mass) / len(mass) < 0.97
    assert before == pytest.approx(mass, abs=1e-4)  # token by token, so in the mean
    assert sum(after) / len(after) == pytest.approx(1, abs=0.002)
    assert after == pytest.approx([1.0] * len(after), abs=1e-4)

    result = learner.step(groups_without_kl(groups), LossSettings(), temperature)
    assert result.kept is not None and result.mismatch is not None
    assert result.kept.tokens == result.tokens == len(mu)
    assert result.kept.mass / len(mu) == pytest.approx(sum(mass) / len(mu), abs=1e-4)
    far = sum(abs(ratio - 1) > 0.1 for ratio in before)
    assert (result.kept.far, result.kept.whole_far) == (0, far) and far > 0
    assert result.kept.whole.k3 == pytest.approx(mismatch(whole, mu).k3, rel=1e-3)
    assert result.mismatch.k3 < 1e-6 < result.kept.whole.k3


def groups_without_kl(groups: list[TrainingGroup]) -> list[TrainingGroup]:
    return [replace(group, kl_weights=None) for group in groups]


def logits_of(decoder: Decoder, prompt: list[int], tokens: list[int]) -> Tensor:
    text = torch.tensor(prompt + tokens)
    attend = causal(len(text), text.device)
    return decoder.logits(decoder(text, attend.positions, attend))[len(prompt) - 1 : -1].detach()


def masses(
    decoder: Decoder, drawn: list[tuple[list[int], list[Completion]]], temperature: float
) -> list[float]:
    """What the whole softmax gives each kept set."""
    found = []
    for prompt, answers in drawn:
        for answer in answers:
            shares = (logits_of(decoder, prompt, answer.tokens) / temperature).softmax(-1)
            assert answer.kept is not None
            for row, ids in zip(shares, answer.kept.sets(), strict=True):
                found.append(row[list(kept_tokens(ids))].sum().item())
    return found


def test_policy_old_policy_and_reference_are_all_over_the_sets(
    tiny: Callable[..., Decoder],
) -> None:
    """So the estimate of the KL has for its expectation that of the narrowed distributions."""
    decoder, other = tiny(), tiny(seed=1)
    drawn = sampled(decoder, RULES[0])
    groups = groups_of(drawn)
    learner = open_learner(decoder, keep_reference=True)
    assert learner.reference is not None
    learner.reference.load_state_dict(other.state_dict())
    old = learner.logprobs(groups)
    result = learner.step(groups, LossSettings(kl_beta=0.1), 1.0, old)
    expected: list[float] = []
    for prompt, answers in drawn:
        for answer in answers:
            assert answer.kept is not None
            rows = [logits_of(each, prompt, answer.tokens) for each in (tiny(), other)]
            for own, ref, token, ids in zip(*rows, answer.tokens, answer.kept.sets(), strict=True):
                words = list(kept_tokens(ids))
                at = words.index(token)
                pi, nu = (each[words].double().log_softmax(-1)[at] for each in (own, ref))
                expected.append((torch.expm1(nu - pi) - (nu - pi)).item())
    assert result.kl == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert result.clipped_share == 0 and result.effective_share == pytest.approx(1, abs=1e-5)


def test_the_update_is_that_of_a_plain_formula(tiny: Callable[..., Decoder]) -> None:
    """On-policy and uncorrected: -w log pi over the set, one sequence at a time."""
    decoder, plain = tiny(), tiny()
    drawn = sampled(decoder, RULES[1])
    groups = groups_without_kl(groups_of(drawn))
    found = open_learner(decoder).step(groups, LossSettings(correction="off"))
    loss = torch.zeros(())
    for (prompt, answers), group in zip(drawn, groups, strict=True):
        for answer, weights in zip(answers, group.weights, strict=True):
            text = torch.tensor(prompt + answer.tokens)
            attend = causal(len(text), text.device)
            logits = plain.logits(plain(text, attend.positions, attend))[len(prompt) - 1 : -1]
            assert answer.kept is not None
            for row, token, weight, ids in zip(
                logits, answer.tokens, weights, answer.kept.sets(), strict=True
            ):
                words = list(kept_tokens(ids))
                loss = loss - weight * row[words].log_softmax(-1)[words.index(token)]
    gradients = torch.autograd.grad(loss, [p for p in plain.parameters() if p.requires_grad])
    norm = torch.nn.utils.get_total_norm(gradients).item()
    assert found.grad_norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([None], "1 kept sets for 2 answers"),
        ([KeptTokens.of([b"", kept_ids([1])]), None], "kept sets in 4 bytes for 3 tokens"),
        ([KeptTokens.of([kept_ids([1, 61]), b"", b""]), None], "outside the vocabulary of 61"),
        ([KeptTokens.of([kept_ids([2, 3]), b"", b""]), None], "not of its kept set"),
        ([KeptTokens.of([kept_ids([1, 1]), b"", b""]), None], "out of order"),
    ],
)
def test_a_malformed_set_is_refused(
    tiny: Callable[..., Decoder], kept: list[KeptTokens | None], said: str
) -> None:
    group = TrainingGroup([1], [[1, 2, 3], [4]], [[0.1] * 3, [0.1]], [[-1.0] * 3, [-1.0]])
    with pytest.raises(TrainingError, match=said):
        open_learner(tiny()).step([replace(group, kept=kept)], LossSettings())
