"""The error measure against numbers worked out by hand; what passes, and what is found."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interlock.qualify import cases, numerics
from interlock.qualify.cases.case import normal
from interlock.qualify.check import Level, Subject
from interlock.qualify.numerics import compared, error, limit, nearby

CPU = torch.device("cpu")
EPS32, EPS16 = 2.0**-23, 2.0**-7


def fp32(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def fp64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_error_is_counted_against_the_element_and_the_whole() -> None:
    exact = fp64(3, 4)  # rms: sqrt(25 / 2)
    found = fp32(3, 4 + 2**-10)
    assert error(found, exact, found) == pytest.approx(2**-10 / (4 + 12.5**0.5) / EPS32, rel=1e-6)
    found = torch.tensor([3 + 2**-5, 4], dtype=torch.bfloat16)
    assert error(found, exact, found) == pytest.approx(2**-5 / (3 + 12.5**0.5) / EPS16, rel=1e-6)
    assert error(fp32(3, 4), exact, fp32(3, 4)) == 0.0


@pytest.mark.parametrize(
    ("found", "exact", "right"),
    [
        (math.nan, 1.0, False),
        (math.inf, 1.0, False),
        (math.nan, math.nan, True),
        (math.inf, math.inf, True),
        (-math.inf, math.inf, False),
        (math.inf, 1e39, True),  # what fp32 cannot hold
        (1.0, math.inf, False),
        (0.0, 1e-39, True),  # flushed to zero
        (0.0, 2e-38, False),
    ],
)
def test_what_is_not_finite_must_be_so_on_both_sides(
    found: float, exact: float, right: bool
) -> None:
    yard = fp64(exact, 0.0).float()
    told = error(fp32(found, 0.0), fp64(exact, 0.0), yard)
    assert (told == 0.0) is right


def test_the_cpu_is_an_excuse_for_where_infinity_begins() -> None:
    """A function that overflows on the way does so on the CPU as well."""
    assert error(fp32(math.inf), fp64(1e30), yard=fp32(math.inf)) == 0.0
    assert error(fp32(math.inf), fp64(1e30), yard=fp32(1e30)) == math.inf


def test_integers_must_be_those_of_the_exact_run_or_of_the_cpu() -> None:
    exact, yard = torch.tensor([1, 2]), torch.tensor([1, 3])
    assert error(torch.tensor([1, 2]), exact, yard) == 0.0
    assert error(torch.tensor([1, 3]), exact, yard) == 0.0
    assert error(torch.tensor([1, 4]), exact, yard) == math.inf


def test_limits() -> None:
    assert limit(0.5, torch.float32, terms=4096, roundings=2.0) == 4 * 0.5 + 2 + 8 + 2 * 64
    assert limit(0.5, torch.bfloat16, terms=4096, roundings=2.0) == 4 * 0.5 + 2 + 136 / 2**16
    assert limit(0.5, torch.float16, terms=4096, roundings=6.0) == 4 * 0.5 + 6 + 136 / 2**13
    assert limit(0.5, torch.float32, terms=0, roundings=2.0) == 0.0
    assert limit(0.0, torch.int64, terms=9, roundings=2.0) == 0.0


def test_the_answer_to_a_question_nearby_is_right() -> None:
    """exp(88) moves by 88 ulp when its argument moves by one: no error of exp."""
    x = fp32(88.0, 88.0)
    moved = nearby([x])[0]
    assert ((moved / 88 - 1).abs() == pytest.approx([4 * EPS32] * 2, rel=1e-6)) is True
    exact, yard = x.double().exp(), x.exp()
    found = (x.double() * (1 + 3 * EPS32)).exp().float()  # 264 ulp, halved by rms
    near = [moved.exp()]
    plain = compared("exp", [found], [yard], [exact], terms=1, roundings=2.0)
    excused = compared("exp", [found], [yard], [exact], 1, 2.0, [near])
    assert plain.value == pytest.approx(132, rel=0.02) and plain.value > plain.limit
    assert excused.value == 0.0


def test_the_worst_of_several_outputs_counts() -> None:
    good, bad, exact = fp32(1, 1), fp32(1, 1.5), fp64(1, 1)
    for found in ([good, bad], [bad, good]):
        told = compared("pair", found, [good, good], [exact, exact], terms=0, roundings=2.0)
        assert told.value == pytest.approx(0.25 / EPS32)
        assert told.limit == 0.0


def test_outputs_of_another_shape_or_dtype_are_wrong() -> None:
    one, exact = fp32(1, 1), fp64(1, 1)
    for found, said in (
        ([one[:1]], "torch.float32 [1], not torch.float32 [2]"),
        ([one.bfloat16()], "torch.bfloat16 [2], not torch.float32 [2]"),
        ([one, one], "2 results, not 1"),
    ):
        told = compared("x", found, [one], [exact], terms=1, roundings=2.0)
        assert told.name == f"x: {said}" and told.value == math.inf


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    terms=st.sampled_from([2, 33, 512, 4097]),
    positive=st.booleans(),
    blocks=st.sampled_from([1, 7, 64]),
)
def test_no_order_of_summation_is_an_error(
    seed: int, terms: int, positive: bool, blocks: int
) -> None:
    """One after another in fp32 and a random order, in one run or in blocks that are summed."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((33, terms)).astype(np.float32)
    x = np.abs(x) if positive else x
    shuffled = x[:, random.permutation(terms)]
    found = np.zeros(33, np.float32)
    for part in np.array_split(shuffled, min(blocks, terms), axis=1):
        found += np.add.accumulate(part, axis=1, dtype=np.float32)[:, -1]
    given = torch.from_numpy(x)
    told = compared(
        "sum", [torch.from_numpy(found)], [given.sum(1)], [given.double().sum(1)], terms, 2.0
    )
    assert told.value <= told.limit


def test_every_case_has_a_name_of_its_own_and_the_refused_are_refused_here() -> None:
    for drawn in (list(cases.forward(quick=False)), list(cases.backward(quick=False))):
        names = [case.name for case in drawn]
        assert len(set(names)) == len(names)
    assert "mm bf16 [257, 4096] @ [4096, 1]" in {case.name for case in cases.forward(quick=True)}
    quick = {case.name for case in cases.forward(quick=True)}
    assert quick < {case.name for case in cases.forward(quick=False)}
    refused = [case for case in cases.forward(quick=True) if case.raises]
    draw = cases.Draw(0)
    for case in refused:
        with pytest.raises((RuntimeError, TypeError, IndexError)):
            case.run(*case.draw(draw))
    assert len(refused) == 11


def test_a_draw_repeats_itself_from_where_it_was() -> None:
    draw = cases.Draw(3)
    draw.normal((7,))
    here = draw.at
    first = draw.normal((5, 4))
    assert torch.equal(draw.rewound(here).normal((5, 4)), first)
    assert not torch.equal(draw.normal((5, 4)), first)
    uniform = draw.uniform((100_000,))
    assert uniform.min() >= 0 and uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.005)


def test_a_missing_operator_is_counted_and_a_broken_one_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device runs a case third, after the oracle and the CPU."""
    calls: dict[str, int] = {}

    def fails(name: str, error: Exception) -> Any:
        def run(x: Tensor) -> Tensor:
            calls[name] = calls.get(name, 0) + 1
            if calls[name] == 3:
                raise error
            return x + 1

        return cases.Case(name, run, (normal(2, 3),), dtypes=(torch.float32,))

    drawn = [
        fails("missing", NotImplementedError("no such operator")),
        fails("broken", RuntimeError("vector core exception\nmore")),
        cases.Case("fine", torch.neg, (normal(2),)),
    ]
    monkeypatch.setattr(cases, "forward", lambda quick: drawn)
    told = numerics.forward(Subject(CPU))
    assert not told.passed
    assert told.summary == (
        "1 of 2 results are wrong, worst: broken fp32 [2, 3]: RuntimeError: vector core exception"
    )
    assert told.figures["cases whose operator is missing"] == 1
    assert told.figures["missing"] == "missing fp32 [2, 3]"


@pytest.mark.parametrize("check", [numerics.forward, numerics.backward])
def test_the_cpu_passes_its_own_test(check: Any) -> None:
    told = check(Subject(CPU, Level.QUICK, seed=1))
    assert told.passed, told.summary
    assert told.figures["cases"] > 200
    assert all(measure.value == measure.reference for measure in told.measures)


@pytest.mark.slow
@pytest.mark.parametrize("check", [numerics.forward, numerics.backward])
def test_the_cpu_passes_all_cases(check: Any) -> None:
    told = check(Subject(CPU))
    assert told.passed, told.summary
    assert told.figures["cases"] > 500


_ON_DEVICE = """
import json, sys, torch
torch.set_num_threads(1)
from interlock.chips.device import resolve
from interlock.qualify import numerics
from interlock.qualify.cases.case import normal
from interlock.qualify.check import Level, Subject
device = resolve(sys.argv[1])
for name in sys.argv[2:]:
    told = getattr(numerics, name)(Subject(device, Level.QUICK))
    wrong = [m.name for m in told.measures if not m.value <= m.limit]
    print(json.dumps({"passed": told.passed, "summary": told.summary, "wrong": wrong}))
"""


def on_device(device: str, *checks: str) -> list[dict[str, Any]]:
    """A device is set up once per process."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ON_DEVICE, device, *checks],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.mark.parametrize("device", ["sim", "sim:nondeterministic"])
def test_a_healthy_device_passes_whatever_its_order_of_summation(device: str) -> None:
    for told in on_device(device, "forward", "backward"):
        assert told["passed"], told["summary"]


# Defects in one device that do not touch each other's cases, and a case that finds each.
FORWARD: dict[str, Sequence[str]] = {
    "mask-512,copy-noop,sampler-stuck,nonzero-drops,overflow": (
        "SDPA with a boolean mask bf16 [2, 4, 17, 80]",
        "SDPA with a bias of finfo.min fp32 [2, 4, 17, 80]",
        "attention with masked_fill fp32 [2, 4, 17, 80]",
        "attention with where fp32 [2, 4, 17, 80]",
        "attention with a bias of -inf fp32 [2, 4, 17, 80]",
        "attention of the decoder bf16 [2, 4, 17, 80]",
        "copy_ into columns",
        "copy_ into a view of a view",
        "argmax fp32 [17, 513]",
        "sampler at temperature 0,",
        "nonzero fp32 [1048577]",
        "exp from 60 to 80 fp32",
        "exp from 80 to 88 bf16",
    ),
    "softmax-skipped,nan-at-shape": (
        "softmax fp32 [17, 1025]",
        "softmax bf16 [2, 49153]",
        "cross entropy fp32 [3, 49153]",
        "mm bf16 [257, 4096] @ [4096, 1]",
    ),
    "matmul-bf16": ("mm fp32 [65, 11008] @ [11008, 129]", "mm bf16 [65, 11008] @ [11008, 129]"),
}


@pytest.mark.parametrize("defects", FORWARD)
def test_defects_of_the_forward_pass_are_found(defects: str) -> None:
    (told,) = on_device(f"sim:{defects}", "forward")
    assert not told["passed"]
    for case in FORWARD[defects]:
        assert any(name.startswith(case) for name in told["wrong"]), (case, told["wrong"])


def test_defects_of_gradients_are_found_by_backward_alone() -> None:
    forward, backward = on_device("sim:wrong-backward,embedding-backward", "forward", "backward")
    assert forward["passed"], forward["summary"]
    assert not backward["passed"]
    families = ("silu", "SwiGLU", "embedding")
    assert all(name.startswith(families) for name in backward["wrong"]), backward["wrong"]
    assert {name.split()[0] for name in backward["wrong"]} == set(families)
