"""Does an optimizer step reach every element of parameters as large as models have?

    masters, gradients ─┬─ AdamW on the device, fused and not ──> found ─────┐
                        ├─ AdamW on the CPU, in float32 ────────> reference ─┼─ compared()
                        └─ AdamW on the CPU, in float64 ────────> exact ─────┘

Kernels cut large tensors, and lists of tensors, into pieces of fixed sizes; the sizes here are on
both sides of where they do. That many small steps add up to learning is for training.py to ask.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from interlock.qualify import numerics
from interlock.qualify.cases import Draw
from interlock.qualify.check import Evidence, Subject, is_missing, judged
from interlock.records.trust import Measure
from interlock.text import described

# Of one parameter: a norm, a matrix of SmolLM2-135M, one beyond 2^20, an embedding's.
_SIZES = (577, (1 << 20) - 1, (1 << 20) + 1, 3 << 20)
_STEPS = 3
_LR = 1e-2
_ROUNDINGS = 8.0 * _STEPS  # ulp: of the moments, the root, the quotient, the decay
_CPU = torch.device("cpu")
_FORMS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "one by one": {"foreach": False}}


def updates(subject: Subject) -> Evidence:
    """A few steps of AdamW on masters in float32, by every form that torch has of it."""
    draw = Draw(subject.seed)
    masters = [draw.normal((size,)).clone() * 0.02 for size in _SIZES]
    slopes = [[draw.normal((size,)).clone() for size in _SIZES] for _ in range(_STEPS)]
    exact = _updated(masters, slopes, _CPU, torch.float64, "one by one")
    measures: list[Measure] = []
    missing = []
    for form in _FORMS:
        reference = _updated(masters, slopes, _CPU, torch.float32, form)
        try:
            found = _updated(masters, slopes, subject.device, torch.float32, form)
        except Exception as error:  # the CPU ran it
            if is_missing(error) and form != "one by one":
                missing.append(form)
                continue
            measures.append(Measure(f"{form}: {described(error, 200)}", float("inf"), 0.0))
            continue
        measures += _judged(form, found, reference, exact)
    return judged(
        measures,
        "optimizer steps reach every element of large parameters",
        "optimizer steps are wrong in {count} of {total} parameters, worst: {worst}",
        {"forms that are missing": ", ".join(missing)} if missing else {},
    )


def _updated(
    masters: list[Tensor], slopes: list[list[Tensor]], device: torch.device, dtype: torch.dtype,
    form: str,
) -> list[Tensor]:  # fmt: skip
    """The masters after the steps, on the CPU."""
    parameters = [nn.Parameter(each.to(device, dtype, copy=True)) for each in masters]
    optimizer = torch.optim.AdamW(parameters, lr=_LR, weight_decay=0.1, **_FORMS[form])  # type: ignore[arg-type]
    for step in slopes:
        for parameter, slope in zip(parameters, step, strict=True):
            parameter.grad = slope.to(device=device, dtype=dtype)
        optimizer.step()
    return [parameter.detach().cpu() for parameter in parameters]


def _judged(
    form: str, found: list[Tensor], reference: list[Tensor], exact: list[Tensor]
) -> Iterator[Measure]:
    for f, y, e in zip(found, reference, exact, strict=True):
        yield numerics.compared(
            f"{form}, {len(e)} elements", [f], [y], [e], terms=2, roundings=_ROUNDINGS
        )
