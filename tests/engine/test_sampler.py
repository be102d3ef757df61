"""The sampler against exact distributions, transformers' logits processors and plain arithmetic."""

import hashlib
import math

import pytest
import torch
from draws import distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_close
from scipy.stats import chisquare
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from interlock.engine.portable.sampler import Noise, draw, sample, truncate
from interlock.records.rl import Sampling

FP32, FP64 = torch.float32, torch.float64


def _logits(vocabulary: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def _draw(logits: torch.Tensor, rule: Sampling, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` draws from one row of logits, each with the noise of another position."""
    noise = Noise(1, "problem", 0)
    tokens, logprobs = [], []
    for start in range(0, count, 1000):
        points = [noise.at(position) for position in range(start, start + 1000)]
        drawn = sample(logits.expand(1000, -1), [rule] * 1000, points)
        tokens.append(drawn[0])
        logprobs.append(drawn[1])
    return torch.cat(tokens), torch.cat(logprobs)


def test_noise_is_the_hash_of_seed_sample_problem_and_position() -> None:
    digest = hashlib.blake2b(b"7 2 gsm8k/12" + (5).to_bytes(8, "big"), digest_size=8).digest()
    first, second = int.from_bytes(digest[:3], "big"), int.from_bytes(digest[5:], "big")
    assert Noise(7, "gsm8k/12", 2).at(5) == (first / 2**24, second / 2**24)


def test_noise_differs_in_each_of_its_four_inputs() -> None:
    points = [
        Noise(seed, problem, number).at(position)
        for seed in (0, 1, 12)
        for number in (0, 1, 21)
        for problem in ("", "1", "2 1", "a\udcff")
        for position in range(3)
    ]
    assert len(set(points)) == len(points)


def test_noise_is_uniform_and_its_halves_independent() -> None:
    noise = Noise(0, "p", 0)
    points = torch.tensor([noise.at(position) for position in range(20_000)])
    assert points.min() >= 0 and points.max() < 1
    for half in points.unbind(1):
        assert chisquare(torch.histc(half, 50, 0, 1)).pvalue > 1e-3
    assert abs(torch.corrcoef(points.T)[0, 1]) < 4 / math.sqrt(20_000)


@pytest.mark.parametrize(
    "rule",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(temperature=1.5, top_k=40),
        Sampling(top_p=0.8),
        Sampling(temperature=1.3, top_k=300, top_p=0.9),
        Sampling(min_p=0.02),
        Sampling(temperature=1.4, top_k=60, top_p=0.8, min_p=0.05),
    ],
    ids=str,
)
def test_draws_follow_the_exact_distribution(rule: Sampling) -> None:
    logits = _logits(600)
    exact = torch.tensor(distribution(logits.double().tolist(), rule), dtype=torch.float64)
    tokens, logprobs = _draw(logits, rule, 20_000)
    counts = torch.bincount(tokens, minlength=600)
    assert counts[exact == 0].sum() == 0
    plain = (logits / rule.temperature).softmax(-1) * (exact > 0)
    assert_close(logprobs, exact[tokens].log(), (plain / plain.sum()).log()[tokens])
    assert _fits(counts, exact)
    # The test can tell: a temperature 10 % off, at the same support, is refused.
    warmer = distribution(logits.double().tolist(), Sampling(rule.temperature * 1.1))
    off = torch.tensor(warmer, dtype=torch.float64) * (exact > 0)
    assert not _fits(counts, off / off.sum())


def _fits(counts: torch.Tensor, exact: torch.Tensor) -> bool:
    """Chi-square at p > 0.001; tokens expected fewer than 5 times are counted as one."""
    expected = exact * counts.sum()
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]]).double()
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    some = expected > 0
    return chisquare(observed[some], expected[some]).pvalue > 1e-3


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([0.15, 0.5, 0.1, 0.25]).log()
    tokens, logprobs = _draw(logits, Sampling(top_p=0.7), 1000)
    assert set(tokens.tolist()) == {1, 3}  # 0.5 + 0.25 reaches 0.7, 0.5 alone does not
    few = 8 * torch.finfo(FP32).eps  # a softmax, a quotient and a log of numbers up to one
    assert logprobs[tokens == 1][0].item() == pytest.approx(math.log(2 / 3), abs=few)
    assert logprobs[tokens == 3][0].item() == pytest.approx(math.log(1 / 3), abs=few)


def test_top_p_counts_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of 0.4 and 0.3, renormalised 0.571 and 0.429, the first reaches 0.5; of all four it does not.
    assert _draw(logits, Sampling(top_k=2, top_p=0.5), 1000)[0].unique().tolist() == [0]
    assert _draw(logits, Sampling(top_p=0.5), 1000)[0].unique().tolist() == [0, 1]


def test_tokens_as_likely_as_the_last_one_kept_stay() -> None:
    weights = torch.tensor([[0.5, 1.0, 0.5, 0.25]])
    kept = truncate(weights, [(2, 1.0)])
    assert kept.tolist() == [[0.5, 1.0, 0.5, 0.0]]


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=st.integers(2, 1500),
    spread=st.floats(0.01, 6),
    top_k=st.integers(0, 600),
    top_p=st.floats(0.05, 1.0),
    seed=st.integers(0, 1000),
)
def test_truncation_keeps_what_transformers_keeps(
    vocabulary: int, spread: float, top_k: int, top_p: float, seed: int
) -> None:
    logits = _logits(vocabulary, seed, spread)[None]
    kept = truncate((logits - logits.max()).exp(), [(top_k, top_p)]) > 0
    theirs = logits.clone()
    if top_k:
        theirs = TopKLogitsWarper(top_k)(torch.empty(0), theirs)
    theirs = TopPLogitsWarper(top_p)(torch.empty(0), theirs).isfinite()
    # Both sum 32-bit numbers, in opposite orders: the token on the very edge may differ.
    assert (kept != theirs).sum() <= 1
    if top_p == 1.0:
        assert kept.equal(theirs)


def test_min_p_goes_before_top_p_as_in_vllm() -> None:
    logits = torch.tensor([0.5, 0.3, 0.1, 0.1]).log()
    # Of 0.5 and 0.3, renormalised 0.625 and 0.375, the first reaches 0.6; of all four it does not.
    assert _draw(logits, Sampling(top_p=0.6, min_p=0.5), 1000)[0].unique().tolist() == [0]
    assert _draw(logits, Sampling(top_p=0.6), 1000)[0].unique().tolist() == [0, 1]
    tokens, logprobs = _draw(logits, Sampling(min_p=0.5), 1000)
    assert tokens.unique().tolist() == [0, 1]
    few = 8 * torch.finfo(FP32).eps
    assert logprobs[tokens == 1][0].item() == pytest.approx(math.log(0.375), abs=few)
    assert _draw(logits, Sampling(min_p=1.0), 1000)[0].unique().tolist() == [0]
    cold = Sampling(temperature=0.5, min_p=0.3)  # shares of 0.36 and 0.04 of the first's
    assert _draw(logits, cold, 1000)[0].unique().tolist() == [0, 1]


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=st.integers(2, 700),
    spread=st.floats(0.01, 6),
    top_k=st.integers(0, 300),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_with_min_p_it_keeps_what_the_processors_of_transformers_keep_in_this_order(
    vocabulary: int, spread: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    logits = _logits(vocabulary, seed, spread)[None]
    rule = Sampling(top_k=top_k, top_p=top_p, min_p=min_p)
    _, _, (top,), _ = draw(logits, [rule], [(0.5, 0.5)], [vocabulary])
    assert top is not None
    theirs = MinPLogitsWarper(min_p)(torch.empty(0), logits.clone())
    if top_k:
        theirs = TopKLogitsWarper(top_k)(torch.empty(0), theirs)
    theirs = TopPLogitsWarper(top_p)(torch.empty(0), theirs)[0]
    kept = {token for token, _ in top}
    assert len(kept ^ set(theirs.isfinite().nonzero()[:, 0].tolist())) <= 1


def test_alternatives_are_the_best_of_the_rows_that_asked_for_them() -> None:
    logits = torch.stack([_logits(300, seed) for seed in range(4)])
    rules = [Sampling(temperature=0), Sampling(), Sampling(temperature=0.5), Sampling(top_k=2)]
    noise = [(0.3, 0.6)] * 4
    tokens, logprobs, tops, _ = draw(logits, rules, noise, [1, 0, 300, 5])
    plain = sample(logits, rules, noise)
    assert tokens.equal(plain[0]) and logprobs.equal(plain[1])
    assert tops[0] == [(tokens[0].item(), logprobs[0].item())]  # of temperature one
    assert_close(logprobs[0], logits[0].log_softmax(0).max())
    assert tops[1] is None
    assert tops[2] is not None and tops[3] is not None
    exact = (logits[2] / 0.5).double().log_softmax(0)
    assert [token for token, _ in tops[2]] == exact.sort(descending=True).indices.tolist()
    assert_close(torch.tensor([v for _, v in tops[2]]), exact.sort(descending=True).values)
    best = logits[3].topk(2)  # though it asked for five, top-k leaves two
    assert [token for token, _ in tops[3]] == best.indices.tolist()
    assert_close(torch.tensor([v for _, v in tops[3]]), best.values.double().log_softmax(0))


def test_a_flat_row_is_sorted_whole() -> None:
    weights = torch.linspace(1.0, 1.1, 5000)[None]  # 0.9 of the mass needs over 4,000 tokens
    kept = (truncate(weights, [(0, 0.9)]) > 0)[0]
    share = weights[0].double()
    count = int(kept.sum())
    assert kept[-count:].all()
    assert share[-count:].sum() >= 0.9 * share.sum() > share[1 - count :].sum()


def test_greedy_takes_the_first_of_the_best_with_its_logprob_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    tokens, logprobs = sample(logits, [Sampling(temperature=0, top_k=1)], [(0.9, 0.9)])
    assert tokens.tolist() == [1]
    expected = 2 - math.log(1 + 2 * math.exp(2) + math.exp(1))
    assert_close(logprobs.item(), expected, logits.log_softmax(-1)[0, 1].item())


def test_greedy_tells_logits_apart_that_are_one_rounding_step_apart() -> None:
    near = torch.tensor([1e-3])
    logits = torch.cat([near, near.nextafter(torch.ones(1)), near])[None]
    assert (logits - logits.max()).exp().unique().tolist() == [1.0]  # no weight tells them apart
    tokens, _ = sample(logits, [Sampling(temperature=0)], [(0.1, 0.1)])
    assert tokens.item() == logits.argmax().item() == 1


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 5e-324])
def test_a_temperature_next_to_zero_takes_the_most_likely(temperature: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.999]])
    tokens, logprobs = sample(logits, [Sampling(temperature=temperature)], [(0.9, 0.9)])
    assert (tokens.item(), logprobs.item()) == (1, 0.0)


def test_every_row_has_its_own_rule() -> None:
    rules = [
        Sampling(temperature=0),
        Sampling(),
        Sampling(temperature=0.5, top_k=3),
        Sampling(top_p=0.5),
    ]
    logits = torch.stack([_logits(300, seed) for seed in range(4)])
    noise = [(0.3, 0.6), (0.99, 0.01), (0.5, 0.5), (0.0, 0.999)]
    together = sample(logits, rules, noise)
    for row in range(4):
        alone = sample(logits[row : row + 1], [rules[row]], [noise[row]])
        assert together[0][row] == alone[0][0]
        assert together[1][row] == alone[1][0]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_noise_stay_inside_the_vocabulary(uniform: float) -> None:
    logits = torch.full((1, 300), -math.inf)
    logits[0, [7, 290]] = 0.0  # one in either block; everything around them has no mass
    tokens, logprobs = sample(logits, [Sampling()], [(uniform, uniform)])
    assert tokens.tolist() == [7 if uniform == 0 else 290]
    assert logprobs.item() == pytest.approx(math.log(0.5))


def test_the_last_step_of_the_noise_reaches_a_rare_token() -> None:
    logits = torch.zeros(1, 512)
    logits[0, 300] = -10.0  # 1.8e-7 of the mass, alone in the second block
    logits[0, 256:300] = logits[0, 301:] = -math.inf
    tokens, logprobs = sample(logits, [Sampling()], [(1 - 2**-24, 0.5)])
    assert tokens.item() == 300
    assert_close(logprobs.item(), -10 - math.log(256 + math.exp(-10)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_show_in_the_logprob(bad: float) -> None:
    logits = torch.zeros(2, 10)
    logits[0, 3] = bad
    _, logprobs = sample(logits, [Sampling(), Sampling()], [(0.5, 0.5)] * 2)
    assert logprobs.isfinite().tolist() == [False, True]


def test_bfloat16_logits_are_sampled_in_float32() -> None:
    logits = _logits(1000).bfloat16()[None]
    tokens, logprobs = sample(logits, [Sampling(temperature=0.9)], [(0.4, 0.7)])
    exact, plain = ((logits.to(dtype) / 0.9).log_softmax(-1) for dtype in (FP64, FP32))
    assert_close(logprobs, exact[0, tokens], plain[0, tokens])
