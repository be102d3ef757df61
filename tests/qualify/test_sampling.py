"""The sampler's statistics and the engine's batches: what passes, and what is found."""

import math
from typing import Any

import on_device
import pytest
import torch
from on_device import failed
from torch import Tensor

from interlock.qualify import sampling
from interlock.qualify.check import Level, Subject
from interlock.records.rl import Completion, FinishReason, Sampling

# A CPU to torch, and yet told from the reference's.
DEVICE = torch.device("cpu:0")
QUICK = Subject(DEVICE, Level.QUICK)


def answer(tokens: list[int], logprobs: list[float]) -> Completion:
    return Completion.sampled(tokens, logprobs, FinishReason.LENGTH, "", 0)


def test_improbability_by_hand() -> None:
    # One degree of freedom: statistic 2 * 100 / 50 = 4, p = erfc(sqrt(2)).
    found = sampling.improbability(torch.tensor([60, 40]), torch.tensor([0.5, 0.5]).double())
    assert found == pytest.approx(-math.log10(math.erfc(math.sqrt(2.0))))
    # Tokens that expect 2 draws each share cells; three of them make one of 6.
    shares = torch.tensor([0.94, 0.02, 0.02, 0.02]).double()
    found = sampling.improbability(torch.tensor([94, 6, 0, 0]), shares)
    assert found == pytest.approx(0.0, abs=1e-6)


def test_expected_by_hand() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64).log()
    top_k = sampling.expected(logits, Sampling(top_k=2))
    assert top_k.tolist() == pytest.approx([0, 4 / 7, 0, 3 / 7])
    top_p = sampling.expected(logits, Sampling(top_p=0.8))
    assert top_p.tolist() == pytest.approx([0, 4 / 9, 2 / 9, 3 / 9])
    cold = sampling.expected(logits, Sampling(temperature=0.5))
    assert cold.tolist() == pytest.approx([1 / 30, 16 / 30, 4 / 30, 9 / 30])
    assert sampling.expected(logits, Sampling(temperature=0.0)).tolist() == [0, 1, 0, 0]


def test_where_answers_part_by_hand() -> None:
    one, other = answer([5, 6, 7], [-1.0, -2.0, -3.0]), answer([5, 9, 7], [-1.25, -2.0, -9.0])
    exact = torch.full((3, 10), -5.0)
    exact[1, 6], exact[1, 9] = -0.7, -0.9
    assert sampling._differ(one, other) == 0.25
    assert sampling._lead(one, other, exact) == pytest.approx(0.2)
    assert sampling._lead(one, one, exact) == 0.0


def test_the_cpu_passes_and_is_its_own_reference() -> None:
    evidence = sampling.distribution(QUICK)
    assert evidence.passed
    assert {m.value for m in evidence.measures if "unlike" in m.name} == {0.0}
    evidence = sampling.invariance(QUICK)
    assert evidence.passed and evidence.figures["repeats alone that differ in any bit"] == 0


def warmer(logits: Tensor, rules: list[Sampling], noise: Any) -> tuple[Tensor, Tensor]:
    """Temperatures are 3 % too high."""
    tokens, _ = sample(logits / 1.03, rules, noise)
    return tokens, sample(logits, rules, noise)[1]


def shifted(logits: Tensor, rules: list[Sampling], noise: Any) -> tuple[Tensor, Tensor]:
    """Every token is the next one."""
    tokens, logprobs = sample(logits, rules, noise)
    return (tokens + 1) % logits.shape[1], logprobs


def boastful(logits: Tensor, rules: list[Sampling], noise: Any) -> tuple[Tensor, Tensor]:
    """One logprob is a little too high."""
    tokens, logprobs = sample(logits, rules, noise)
    logprobs[0] += 1e-4
    return tokens, logprobs


sample = sampling.sample


@pytest.mark.parametrize(
    ("faulty", "names"),
    [
        (warmer, ["share of draws unlike the CPU's"]),
        (shifted, ["chi-square", "leaves out", "unlike"]),
        (boastful, ["largest error of a logprob"]),
    ],
)
def test_a_faulty_sampler_is_found(
    monkeypatch: pytest.MonkeyPatch, faulty: Any, names: list[str]
) -> None:
    turn = iter(range(10**9))
    # Each case draws on the device first and then on the reference.
    monkeypatch.setattr(sampling, "_DRAWS", 10**9)
    monkeypatch.setattr(
        sampling, "sample", lambda *given: (sample if next(turn) % 2 else faulty)(*given)
    )
    found = failed(sampling.distribution(QUICK))
    assert all(any(name in failure for failure in found) for name in names)


def test_the_noise_leaves_no_cut_to_chance() -> None:
    """Where top-p ends, nothing is within rounding of it: all healthy devices keep the same."""
    logits = 2 * torch.randn(509, generator=torch.Generator().manual_seed(sampling._LOGITS))
    for rule in sampling._RULES:
        if rule.top_p < 1:
            ranked = (logits.double() / rule.temperature).softmax(0).sort(descending=True).values
            ranked = ranked[: rule.top_k or None] / ranked[: rule.top_k or None].sum()
            assert (ranked.cumsum(0) - rule.top_p).abs().min() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("check", ["distribution", "invariance"])
def test_a_healthy_device_that_rounds_otherwise_passes(check: str) -> None:
    evidence = on_device.evidence(f"sampling:{check}")
    assert evidence.passed, evidence.summary


@pytest.mark.parametrize(
    ("check", "defect", "passed"),
    [
        ("distribution", "sampler-stuck", False),
        ("invariance", "batch-variant", False),
        pytest.param("invariance", "nondeterministic", True, marks=pytest.mark.slow),
    ],
)
def test_planted_defects(check: str, defect: str, passed: bool) -> None:
    assert on_device.evidence(f"sampling:{check}", f"sim:{defect}").passed is passed
