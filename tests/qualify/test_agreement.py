"""Learner and engine against the reference: what counts as rounding, and what is found."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import on_device
import pytest
import torch
from on_device import failed
from torch import Tensor

from interlock.engine.portable.engine import PortableEngine
from interlock.learner.learner import Learner
from interlock.models.attention import causal
from interlock.qualify import agreement, tiny_model
from interlock.qualify.check import Level, Subject
from interlock.records.rl import Completion

# A CPU to torch, and yet told from the reference's.
DEVICE = torch.device("cpu:0")
QUICK = Subject(DEVICE, Level.QUICK)


def use_on_device(monkeypatch: pytest.MonkeyPatch, engine: type[PortableEngine]) -> None:
    """Let tiny_model.engine make this one on the device, and the sound one on the reference."""

    def made(
        arch: Any, tensors: Any, device: torch.device, dtype: torch.dtype, slots: int = 32
    ) -> PortableEngine:
        kind = engine if device == DEVICE else PortableEngine
        weights = tiny_model.decoder(arch, tensors, device, dtype)
        return kind(weights, tiny_model.NumberVocabulary(), slots)

    monkeypatch.setattr(tiny_model, "engine", made)


def test_apart_is_what_the_hand_says() -> None:
    pi = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    mu = torch.tensor([-1.0, -3.0, -3.0, -3.5])
    found = agreement.logprob_gap(pi, mu)
    k3 = ((math.e - 1 - 1) + (math.exp(-0.5) + 0.5 - 1)) / 4
    assert found == pytest.approx((k3, 1.5 / 4, 1.0, 1 / 4))


def test_a_logprob_that_is_not_a_number_is_infinitely_far() -> None:
    found = agreement.logprob_gap(torch.tensor([-1.0, math.nan]), torch.tensor([-1.0, -1.0]))
    own = agreement.LogprobGap(1.0, 1.0, 1.0, 1.0)
    measures = [*agreement.measured("x", found, own, torch.float32)]
    assert found.mean == found.max == math.inf
    assert sum(not m.value <= m.limit for m in measures) >= 3


def test_limits_are_the_margins_times_the_cpu() -> None:
    own = agreement.LogprobGap(1e-6, 1e-3, 1e-2, 0.0)
    limits = [m.limit for m in agreement.measured("x", own, own, torch.bfloat16)]
    assert limits == pytest.approx([36e-6, 6e-3, 6e-2, 0.0])


def test_the_reference_scores_packed_completions_as_plain_text() -> None:
    arch = tiny_model.architecture(hidden=32, vocab=61)
    model = tiny_model.exact(arch, tiny_model.weights(arch))
    prompt, completions = [3, 5, 7], [[11, 13, 17], [2], [60, 0]]
    found = tiny_model.logprobs(model, prompt, completions).split([3, 1, 2])
    for completion, values in zip(completions, found, strict=True):
        text = torch.tensor([*prompt, *completion])
        attend = causal(len(text), torch.device("cpu"))
        with torch.no_grad():
            rows = model.logits(model(text, attend.positions, attend)).softmax(-1).log()
        plain = rows[2:-1].gather(1, text[3:, None])[:, 0]
        assert values.tolist() == pytest.approx(plain.tolist(), rel=1e-12)
        assert values.dtype == torch.float64


def test_the_cpu_agrees_with_itself() -> None:
    evidence = agreement.learner_parity(QUICK)
    assert evidence.passed
    # In the same dtype on the same processor the differences are the reference's own.
    assert all(m.value == m.reference for m in evidence.measures if m.reference is not None)
    assert agreement.engine_parity(QUICK).passed
    assert agreement.stale_weights(QUICK).passed


def test_a_learner_whose_weights_turn_nan_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The truth is computed from what it publishes, and is NaN as well."""

    class Broken(Learner):
        def publish(self) -> tuple[int, dict[str, Tensor]]:
            number, tensors = super().publish()
            if number:
                next(iter(tensors.values())).fill_(math.nan)
            return number, tensors

    monkeypatch.setattr(agreement, "Learner", Broken)
    found = failed(agreement.learner_parity(QUICK))
    assert "float32, after 1 updates: weights that are not finite" in found


def test_weights_held_in_other_bits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class OffByOneBit(PortableEngine):
        def load(self, tensors: Mapping[str, Tensor], version: int) -> None:
            super().load(tensors, version)
            self.decoder.embed.view(torch.uint8)[0, 0] ^= 1

    use_on_device(monkeypatch, OffByOneBit)
    assert set(failed(agreement.engine_parity(QUICK))) == {
        f"{dtype}, second weights: tensors held in other bits than loaded"
        for dtype in ("float32", "bfloat16")
    }


@pytest.mark.parametrize("part", ["embed", "layers.1.attention.out.weight"])
def test_one_stale_matrix_in_decoding_is_found(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """The first weights are kept for decoding; what is held and prefilled is fresh."""

    class Stale(PortableEngine):
        kept: Tensor | None = None

        def generate(self, *args: Any, **kwargs: Any) -> list[list[Completion]]:
            parameter = dict(self.decoder.named_parameters())[part]
            fresh = parameter.data
            self.kept = fresh.clone() if self.kept is None else self.kept
            parameter.data = self.kept
            found = super().generate(*args, **kwargs)
            parameter.data = fresh
            return found

    use_on_device(monkeypatch, Stale)
    found = failed(agreement.stale_weights(QUICK))
    for dtype in ("float32", "bfloat16"):
        assert f"{dtype}, one by one, version 1 after 0: decode" in found
    assert not any(name.endswith(": prefill") for name in found)


def test_an_update_that_is_not_taken_is_wholly_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(PortableEngine):
        def load(self, tensors: Mapping[str, Tensor], version: int) -> None:
            self.version = version

    use_on_device(monkeypatch, Deaf)
    evidence = agreement.stale_weights(QUICK)
    found = {m.name: m for m in evidence.measures}
    decode = found["float32, one by one, version 1 after 0: decode"]
    rounding = agreement.MARGIN[torch.float32] * (decode.reference or 0.0)
    assert 0 < rounding < 1e-3 and decode.value == pytest.approx(1, abs=rounding)
    both = found["float32, one by one, version 1 after 0: decode against prefill"]
    assert both.value <= rounding


def test_answers_that_name_another_version_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Misnamed(PortableEngine):
        def generate(self, requests: Sequence[Any], *rest: Any) -> list[list[Completion]]:
            true, self.version = self.version, 0
            found = super().generate(requests, *rest)
            self.version = true
            return found

    use_on_device(monkeypatch, Misnamed)
    found = failed(agreement.stale_weights(QUICK))
    assert found and all(name.endswith("completions of another version") for name in found)


@pytest.mark.slow
@pytest.mark.parametrize("check", ["learner_parity", "engine_parity", "stale_weights"])
def test_a_healthy_device_that_rounds_otherwise_passes(check: str) -> None:
    evidence = on_device.evidence(f"agreement:{check}")
    assert evidence.passed, evidence.summary


@pytest.mark.parametrize(
    ("check", "defect", "passed"),
    [
        ("engine_parity", "decode-drift", False),
        ("stale_weights", "stale-weights", False),
        pytest.param("learner_parity", "mask-512", False, marks=pytest.mark.slow),
        pytest.param("learner_parity", "matmul-bf16", False, marks=pytest.mark.slow),
        pytest.param("engine_parity", "mask-512", False, marks=pytest.mark.slow),
        pytest.param("engine_parity", "matmul-bf16", False, marks=pytest.mark.slow),
        pytest.param("engine_parity", "wrong-backward", True, marks=pytest.mark.slow),
        pytest.param("engine_parity", "nondeterministic", True, marks=pytest.mark.slow),
        pytest.param("stale_weights", "decode-drift", True, marks=pytest.mark.slow),
    ],
)
def test_planted_defects(check: str, defect: str, passed: bool) -> None:
    assert on_device.evidence(f"agreement:{check}", f"sim:{defect}").passed is passed
