"""The error measure against numbers worked out by hand; what passes, and what is found."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import on_device
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_device import failed
from torch import Tensor

from interlock.models.catalogue import most
from interlock.qualify import cases, numerics
from interlock.qualify.cases import functions, sizes
from interlock.qualify.cases.case import normal
from interlock.qualify.check import Level, Subject, beyond, excess, is_missing
from interlock.qualify.numerics import compared, error, limit, nearby
from interlock.records.trust import Measure, Sizes

CPU = torch.device("cpu")
TRIED = Subject(CPU).tried
EPS32, EPS16 = 2.0**-23, 2.0**-7


def fp32(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def fp64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_error_is_counted_against_the_element_and_the_whole() -> None:
    exact = fp64(3, 4)  # rms: sqrt(25 / 2)
    found = fp32(3, 4 + 2**-10)
    assert error(found, exact, found, terms=2) == pytest.approx(
        2**-10 / (4 + 12.5**0.5) / EPS32, rel=1e-6
    )
    found = torch.tensor([3 + 2**-5, 4], dtype=torch.bfloat16)
    assert error(found, exact, found, terms=2) == pytest.approx(
        2**-5 / (3 + 12.5**0.5) / EPS16, rel=1e-6
    )
    assert error(fp32(3, 4), exact, fp32(3, 4), terms=2) == 0.0


def test_a_function_of_one_number_is_held_against_each_result() -> None:
    exact, found = fp64(1e-3, 1e3), fp32(0, 1e3)
    assert error(found, exact, found, terms=1) == pytest.approx(1 / EPS32)


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
    reference = fp64(exact, 0.0).float()
    told = error(fp32(found, 0.0), fp64(exact, 0.0), reference, terms=2)
    assert (told == 0.0) is right


def test_the_cpu_is_an_excuse_for_where_infinity_begins() -> None:
    """A function that overflows on the way does so on the CPU as well."""
    assert error(fp32(math.inf), fp64(1e30), fp32(math.inf), terms=2) == 0.0
    assert error(fp32(math.inf), fp64(1e30), fp32(1e30), terms=2) == math.inf


def test_integers_must_be_those_of_the_exact_run_or_of_the_cpu() -> None:
    exact, reference = torch.tensor([1, 2]), torch.tensor([1, 3])
    assert error(torch.tensor([1, 2]), exact, reference, terms=1) == 0.0
    assert error(torch.tensor([1, 3]), exact, reference, terms=1) == 0.0
    assert error(torch.tensor([1, 4]), exact, reference, terms=1) == math.inf


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
    exact, reference = x.double().exp(), x.exp()
    found = (x.double() * (1 + 3 * EPS32)).exp().float()  # 264 ulp
    near = [moved.exp()]
    plain = compared("exp", [found], [reference], [exact], terms=1, roundings=2.0)
    excused = compared("exp", [found], [reference], [exact], 1, 2.0, [near])
    assert plain.value == pytest.approx(264, rel=0.02) and plain.value > plain.limit
    assert excused.value == 0.0


def test_the_worst_of_several_outputs_counts() -> None:
    good, bad, exact = fp32(1, 1), fp32(1, 1.5), fp64(1, 1)
    for found in ([good, bad], [bad, good]):
        told = compared("pair", found, [good, good], [exact, exact], terms=0, roundings=2.0)
        assert told.value == pytest.approx(0.5 / EPS32)
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
    for drawn in (list(cases.forward(False, TRIED)), list(cases.backward(False, TRIED))):
        names = [case.name for case in drawn]
        assert len(set(names)) == len(names)
    assert "mm bf16 [257, 4096] @ [4096, 1]" in {case.name for case in cases.forward(True, TRIED)}
    quick = {case.name for case in cases.forward(True, TRIED)}
    assert quick < {case.name for case in cases.forward(False, TRIED)}
    refused = [case for case in cases.forward(True, TRIED) if case.raises]
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
        *[cases.Case("fine", torch.neg, (normal(2),))] * 20,
    ]
    monkeypatch.setattr(cases, "forward", lambda quick, tried: drawn)
    told = numerics.forward(Subject(CPU))
    assert not told.passed
    assert told.summary == (
        "1 of 22 results are wrong, worst: broken fp32 [2, 3]: RuntimeError: vector core exception"
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
    assert told.figures["cases"] > 400


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "device"),
    [
        ("forward", "sim:other-rounding"),
        ("forward", "sim:nondeterministic"),
        ("backward", "sim:nondeterministic"),
        ("backward", "sim"),
    ],
)
def test_a_healthy_device_passes_whatever_its_order_of_summation(check: str, device: str) -> None:
    told = on_device.evidence(f"numerics:{check}", device)
    assert told.passed, told.summary


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
    "product-tail,large-angles,long-rows,lost-row,flushed-cast": (
        "linear of few rows fp32 [1, 65]",
        "linear of few padded rows bf16 [1, 1631]",
        "mm of few rows bf16 [1, 4095]",
        "sin and cos of positions",
        "softmax of a vocabulary fp32 [2, 65537]",
        "log_softmax of a padded vocabulary fp32 [2, 262272]",
        "logprob of targets of a vocabulary bf16 [2, 262208]",
        "cache by index_copy_ fp32 [2, 3, 128, 16]",
        "cache by assignment bf16 [2, 3, 128, 16]",
        "cast of every half to fp32 bf16",
        "copy_ of every half into fp32 bf16",
    ),
    "many-rows,short-topk": (
        "softmax of many rows fp32 [65537, 5]",
        "attention of the decoder for many rows bf16",
        "topk of a vocabulary fp32 [2, 262208]",
        "topk of a padded vocabulary bf16 [2, 262272]",
    ),
    "matmul-bf16": ("mm fp32 [65, 11008] @ [11008, 129]", "mm bf16 [65, 11008] @ [11008, 129]"),
}


@pytest.mark.parametrize(
    "defects",
    [
        pytest.param(each, marks=() if "nan-at-shape" in each else pytest.mark.slow)
        for each in FORWARD
    ],
)
def test_defects_of_the_forward_pass_are_found(defects: str) -> None:
    told = on_device.evidence("numerics:forward", f"sim:{defects}")
    wrong = failed(told)
    for case in FORWARD[defects]:
        assert any(name.startswith(case) for name in wrong), (case, wrong)


@pytest.mark.slow
def test_a_product_that_is_wrong_in_the_layout_of_gradients_is_found() -> None:
    device = "sim:transposed-product"
    assert on_device.evidence("numerics:forward", device).passed
    wrong = failed(on_device.evidence("numerics:products", device))
    assert any(name.startswith("linear with bias fp32 [257, 320]") for name in wrong)
    assert any(name.startswith("mm bf16 [65, 576] @ [576, 513]") for name in wrong)


def test_a_model_that_is_named_is_tried_at_its_own_sizes() -> None:
    mine = Sizes(vocab=300_007, context=9_001, hidden=259, inner=771, heads=6, kv_heads=2,
                 head_dim=40, experts=24, per_token=3, expert_inner=77)  # fmt: skip
    tried = Subject(CPU, model=mine).tried
    assert tried == [most(), mine]
    shapes = [
        {side for each in case.inputs for side in each.shape} for case in cases.forward(True, tried)
    ]
    for size in (300_007, 9_001, 259, 771, 40, 24, 77, 262_208, 163_840, 8_192, 32_768, 256):
        assert any(size in sides for sides in shapes), size


def test_products_and_the_rest_are_all_that_has_a_gradient() -> None:
    both = [*cases.products(True, []), *cases.backward(True, [])]
    names = {case.name for case in both}
    assert names == {case.name for case in cases._with_gradients(True, [])} and len(names) > 300
    products = {case.label.split()[0] for case in cases.products(True, [])}
    assert products == {"mm", "bmm", "linear", "matmul", "addmm", "mv", "einsum"}
    for case in cases.products(True, []):
        assert case.label.split()[0] not in ("softmax", "embedding", "attention")


@pytest.mark.slow
def test_defects_of_gradients_are_found_by_backward_alone() -> None:
    device = "sim:wrong-backward,embedding-backward"
    forward, backward = (
        on_device.evidence(f"numerics:{check}", device) for check in ("forward", "backward")
    )
    assert forward.passed, forward.summary
    assert {name.split()[0] for name in failed(backward)} == {"silu", "SwiGLU", "embedding"}


def test_a_gradient_of_busy_tokens_is_tried_beyond_256_of_one() -> None:
    case, _ = sizes._busy_tokens([])
    _, tokens = case.draw(cases.Draw(0))
    assert tokens.bincount().max() > 2 * 256 and tokens.bincount().min() < 256


def zeroed_below(found: Tensor, exact: Tensor) -> Tensor:
    """The lower half of the results that are not zero, by size, is zero."""
    size = exact.abs()
    return found.masked_fill(size <= size[size > 0].median(), 0)


def test_small_results_that_are_zero_are_found_in_every_pointwise_function() -> None:
    draw, tried = cases.Draw(0), 0
    for case in cases._each_dtype(functions._functions()):
        inputs = case.draw(draw)
        (exact,) = numerics._run(case, numerics.placed(inputs, CPU, torch.float64), draw)
        (reference,) = numerics._run(case, inputs, draw)
        if not reference.is_floating_point():
            continue
        tried += 1
        near = [numerics._run(case, nearby(inputs), draw)]
        rest = ([reference], [exact], case.terms, case.roundings, near)
        assert not beyond(compared(case.name, [reference], *rest))
        assert beyond(compared(case.name, [zeroed_below(reference, exact)], *rest)), case.name
    assert tried > 50


def test_a_mistake_of_dtype_may_be_accepted_and_one_of_shape_may_not() -> None:
    for lenient in (False, True):
        case = cases.Case("x", torch.neg, (normal(2),), 0, raises=True, lenient=lenient)
        told = numerics._measure(case, CPU, cases.Draw(0), numerics._run)
        assert told is not None and told.value == 1 and beyond(told) is not lenient


@pytest.mark.parametrize(
    ("missing", "ours", "passed"), [(1, False, True), (3, False, False), (1, True, False)]
)
def test_a_device_without_its_operators_fails(
    monkeypatch: pytest.MonkeyPatch, missing: int, ours: bool, passed: bool
) -> None:
    here = [cases.Case("fine", torch.neg, (normal(2),))] * 20
    gone = [cases.Case("gone", torch.neg, (normal(2),), ours=ours)] * missing
    monkeypatch.setattr(cases, "forward", lambda quick, tried: [*here, *gone])
    monkeypatch.setattr(
        numerics, "_measure", lambda case, *rest: None if case in gone else Measure("x", 0.0, 1.0)
    )
    told = numerics.forward(Subject(CPU))
    assert told.passed is passed and told.figures["cases whose operator is missing"] == missing


def test_what_is_not_finite_is_beyond_any_limit() -> None:
    assert beyond(Measure("x", math.inf, math.inf)) and beyond(Measure("x", math.nan, math.inf))
    assert not beyond(Measure("x", 1.0, 1.0)) and beyond(Measure("x", 1.1, 1.0))
    measures = [Measure("a", 5.0, 1.0), Measure("b", math.nan, 9.0), Measure("c", 8.0, 9.0)]
    assert [m.name for m in sorted(measures, key=excess, reverse=True)] == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("error", "missing"),
    [
        (NotImplementedError("x"), True),
        (RuntimeError("CPU fallback is disabled"), True),
        (RuntimeError("aclnnCumsum: not implemented for DT_BFLOAT16"), True),
        (RuntimeError("vector core exception, error code is 507035"), False),
    ],
)
def test_what_a_missing_operator_says(error: Exception, missing: bool) -> None:
    assert is_missing(error) is missing
