"""Whether operators give the right numbers, forward and backward, at the shapes of language models.

    case (cases/) ─┬─ the CPU in fp64 ──────────────> exact ──────┐
                   ├─ the CPU in the case's dtype ──> reference ──┼─ compared() ─> value, limit
                   ├─ the device in that dtype ─────> found ──────┤
                   └─ fp64, inputs a bit off ───────> near ───────┘  only if `found` seems wrong

The error of a result is counted in ulp of its dtype, element by element, against the size of the
element: |found - exact| / |exact| / eps. Sums are held against |exact| + rms(exact), since terms
cancel; a function of one number is not, or small results could all be zero. What exact arithmetic
gives on inputs that differ by a few fp32 roundings is no error: a result is good that is nearly the
right answer to nearly the right question (the mixed forward-backward error of Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., section 1.5). So a chip whose exp(x) rounds x is not
blamed at x = 88, where that makes 88 ulp.

A device may err as much as the CPU does in the same dtype, times MARGIN, plus a floor (`limit`) for
what healthy chips do otherwise: another order of summation, fused kernels, approximated functions.
A fixed tolerance would be far too loose for bf16 and too tight for long sums. This does not look
for last-bit differences from run to run; the `determinism` check does.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from interlock.qualify import cases
from interlock.qualify.cases import Case, Draw
from interlock.qualify.check import (
    Evidence,
    Level,
    Subject,
    beyond,
    excess,
    is_missing,
    judged,
)
from interlock.records.trust import Measure
from interlock.text import described

# The largest error of one order of summation against that of another: both are extremes of
# random walks, which rarely differ by more than two; and once more for kernels that round what the
# CPU's keep in fp32 (flash attention rounds its weights to the dtype, the CPU's may not).
MARGIN = 4.0
FUNCTIONS = 8.0  # ulp of fp32: exp, rsqrt, tanh and division as chips approximate them
_MISSING = 0.1  # of the cases: with more of them missing, little is proven by the others
_EPS32 = torch.finfo(torch.float32).eps

Outputs = list[Tensor]


def forward(subject: Subject) -> Evidence:
    """Every operator that the decoder, the engine, the sampler and the learner use, and more."""
    drawn = cases.forward(subject.level is Level.QUICK, subject.tried)
    return _evidence(
        subject,
        drawn,
        _run,
        "operators give the right numbers in all {total} cases",
        "{count} of {total} results are wrong, worst: {worst}",
    )


def products(subject: Subject) -> Evidence:
    """The gradients of plain products: products again, of transposed factors. A chip that gets them
    wrong may get those of generation wrong at some other shape."""
    drawn = cases.products(subject.level is Level.QUICK, subject.tried)
    return _evidence(
        subject,
        drawn,
        _gradients,
        "products are right in the layouts of gradients in all {total} cases",
        "products in the layouts of gradients are wrong in {count} of {total} cases, worst: "
        "{worst}",
    )


def backward(subject: Subject) -> Evidence:
    """The gradients of the other operators that the learner differentiates."""
    drawn = cases.backward(subject.level is Level.QUICK, subject.tried)
    return _evidence(
        subject,
        drawn,
        _gradients,
        "gradients are right in all {total} cases",
        "gradients of {count} of {total} cases are wrong, worst: {worst}",
    )


def _evidence(
    subject: Subject,
    drawn: Iterable[Case],
    run: Callable[[Case, list[Tensor], Draw], Outputs],
    good: str,
    bad: str,
) -> Evidence:
    draw = Draw(subject.seed)
    measures: list[Measure] = []
    missing: list[str] = []
    accepted = 0
    for case in drawn:
        measure = _measure(case, subject.device, draw, run)
        if measure is None:
            missing.append(case.name)
            if not case.ours:
                continue
            measure = Measure(f"{case.name}: missing", math.inf, 0.0)
        accepted += case.lenient and measure.value > 0
        measures.append(measure)
    total = len(measures)
    if missing:
        share = len(missing) / (len(missing) + total)
        measures.append(Measure("share of cases whose operator is missing", share, _MISSING))
    figures: dict[str, float | int | str] = {
        "largest error, ulp of the result's dtype": max(m.value for m in measures),
        "largest error of the CPU, ulp": max(m.reference or 0.0 for m in measures),
        "cases whose operator is missing": len(missing),
        "mistakes of dtype that are accepted": accepted,
    }
    if missing:
        figures["missing"] = "; ".join(missing[:10])
    return judged(measures, good.format(total=total), bad, figures)


def _measure(
    case: Case,
    device: torch.device,
    draw: Draw,
    run: Callable[[Case, list[Tensor], Draw], Outputs],
) -> Measure | None:
    """None when the device has no such operator, of which the `operators` checks judge."""
    inputs = case.draw(draw)
    if case.raises:
        return _refusal(case, inputs, device)
    here = draw.at

    def ran(tree: list[Tensor]) -> Outputs:
        return run(case, tree, draw.rewound(here))  # all draw the same gradient of the output

    exact, reference = ran(placed(inputs, _CPU, torch.float64)), ran(placed(inputs, _CPU))
    try:
        found = [each.cpu() for each in ran(placed(inputs, device))]
    except Exception as broken:  # the CPU ran it, so it is the device's doing
        if is_missing(broken):
            return None
        return Measure(f"{case.name}: {described(broken, 200)}", math.inf, 0.0)
    measure = compared(case.name, found, reference, exact, case.terms, case.roundings)
    if not beyond(measure) or case.terms == 0:
        return measure
    near = [ran(nearby(inputs))]
    return compared(case.name, found, reference, exact, case.terms, case.roundings, near)


_CPU = torch.device("cpu")


def _run(case: Case, inputs: list[Tensor], draw: Draw) -> Outputs:
    with torch.no_grad():
        found = case.run(*inputs)
    return [found] if isinstance(found, Tensor) else list(found)


def _gradients(case: Case, inputs: list[Tensor], draw: Draw) -> Outputs:
    """Of all floating-point inputs, for a random gradient of the output."""
    leaves = [each.requires_grad_() for each in inputs if each.is_floating_point()]
    out = case.run(*inputs)
    assert isinstance(out, Tensor)
    slope = draw.normal(out.shape).to(case.dtype)  # rounded alike for all
    return list(torch.autograd.grad(out, leaves, slope.to(out.device, out.dtype)))


def _refusal(case: Case, inputs: list[Tensor], device: torch.device) -> Measure:
    """A call that is wrong must be refused: a chip that answers it hides its user's mistakes.

    Value 1 where it is accepted, within the limit where `case` is lenient.
    """
    try:
        case.run(*placed(inputs, device))
    except Exception:  # which one is the vendor's choice
        return Measure(case.name, 0.0, 0.0, 0.0)
    return Measure(f"{case.name}: accepted", 1.0, float(case.lenient), 0.0)


def placed(inputs: Any, device: torch.device, wide: torch.dtype | None = None) -> Any:
    """Copies on `device` of the tensors of a tree, those of floating point in dtype `wide`."""

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        dtype = wide if wide and value.is_floating_point() else value.dtype
        return value.detach().to(device=device, dtype=dtype, copy=True)

    return pytree.tree_map(place, inputs)


def nearby(inputs: Any, sign: int = 1) -> Any:
    """The tensors of a tree in fp64, every number moved by four fp32 roundings, up or down.

    Which way is decided by the number's place; `sign` -1 turns all of them round.
    """

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not value.is_floating_point():
            return value.clone()
        # A pattern without a period that a sum could cancel: the golden ratio's multiples.
        place = torch.arange(value.numel(), dtype=torch.float64).mul_(0.6180339887498949)
        up = place.frac_().sub_(0.5).sign_().mul_(sign * 4 * _EPS32).add_(1.0)
        return value.detach().double() * up.view(value.shape)

    return pytree.tree_map(move, inputs)


def compared(
    name: str,
    found: Outputs,
    reference: Outputs,
    exact: Outputs,
    terms: int,
    roundings: float,
    near: Sequence[Outputs] = (),
) -> Measure:
    """The worst of several outputs against its limit: the measure of one case.

    found, reference: in the case's dtype; exact, near: of fp64 runs; all on the CPU. `terms` and
    `roundings`: as in `Case`.
    """
    if len(found) != len(reference):
        return Measure(f"{name}: {len(found)} results, not {len(reference)}", math.inf, 0.0)
    measures = []
    for place, (f, y, e) in enumerate(zip(found, reference, exact, strict=True)):
        if f.dtype != y.dtype or f.shape != y.shape:
            told = f"{f.dtype} {list(f.shape)}, not {y.dtype} {list(y.shape)}"
            return Measure(f"{name}: {told}", math.inf, 0.0)
        around = [each[place] for each in near]
        own = error(y, e, y, terms, around)
        # A CPU that is infinitely wrong is no excuse.
        bound = limit(own if math.isfinite(own) else 0.0, y.dtype, terms, roundings)
        measures.append(Measure(name, error(f, e, y, terms, around), bound, own))
    return max(measures, key=excess)


def limit(own: float, dtype: torch.dtype, terms: int, roundings: float) -> float:
    """How many ulp a device may err where the CPU errs by `own`, in a sum of `terms` terms.

    One after another, n terms make a random walk of rounding errors: its root mean square is
    at most 0.41 sqrt(n) u of the sum's own (zero-mean terms; 0.33 for positive ones), u = eps / 2.
    The largest of 1e9 such is 6 times that, 1.3 sqrt(n) eps; every other order errs less. See
    Higham & Mary, Sharper probabilistic backward error analysis, SIAM J. Sci. Comput. 42 (2020).
    Chips accumulate in fp32 whatever the dtype, and round `roundings` values to it. What only
    moves numbers (terms 0) may not err.
    """
    if terms == 0 or not dtype.is_floating_point:
        return 0.0
    narrow = max(1.0, torch.finfo(dtype).eps / _EPS32)
    return MARGIN * own + roundings + (FUNCTIONS + 2 * math.sqrt(terms)) / narrow


def error(
    found: Tensor, exact: Tensor, reference: Tensor, terms: int, near: Sequence[Tensor] = ()
) -> float:
    """The largest error of `found` in ulp; inf where it is NaN or infinite and may not be.

    exact, near: fp64; see the module's docstring. Where even the CPU (`reference`) differs from the
    exact result in what is finite, or an integer, either is right. Less than the smallest normal
    number is no error: chips may flush it to zero.
    """
    if not found.numel():
        return 0.0
    if not found.is_floating_point():
        right = (found == exact) | (found == reference)
        for each in near:
            right |= found == each
        return 0.0 if right.all() else math.inf
    got = found.double()
    limits = torch.finfo(found.dtype)
    if not (got.sum() + exact.abs().amax()).abs() < limits.max:  # some number is not finite
        kind = _kind(found)
        kinds = [_kind(each.to(found.dtype)) for each in (exact, reference, *near)]
        if not torch.stack([kind == each for each in kinds]).any(0).all():
            return math.inf
        both = (kind == 0) & exact.isfinite()
        got, exact, near = got[both], exact[both], [each[both] for each in near]
        if not got.numel():
            return 0.0
    wrong = (got - exact).abs_().sub_(limits.tiny)
    for each in near:
        wrong -= (each - exact).abs_().nan_to_num_(nan=math.inf)
    size = exact.abs()
    if terms > 1:
        size += torch.linalg.vector_norm(exact) / math.sqrt(exact.numel())
    ratio = wrong.clamp_(min=0.0).div_(size).nan_to_num_(nan=0.0, posinf=math.inf)  # 0 / 0 is 0
    return float(ratio.max()) / limits.eps


def _kind(x: Tensor) -> Tensor:
    """0 where finite, -1 and 1 where infinite, 2 where NaN."""
    return torch.where(x.isnan(), 2, torch.where(x.isinf(), x.sign(), 0)).to(torch.int8)
