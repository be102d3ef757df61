"""The cases of numerics.py: which operators, at which shapes, on which views. Data, and one-liners.

    case.py ─┬─ computing.py ──┬── forward(quick), backward(quick)
             ├─ functions.py ──┤
             ├─ moving.py ─────┤
             └─ sizes.py ──────┘

A case is a function of contiguous inputs; views, masks and outputs that are written into are made
inside it, on the device. Inputs are drawn on the CPU from one seeded pool. The functions compute in
the dtype they are given, so that the same function in fp64 is the oracle.

Sizes straddle the edges of the tiles and blocks that kernels are made of (BOUNDARIES), and are 1
where kernels for vectors take over. The failures that taught us to look there are listed with their
public threads in docs/qualify.md.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from interlock.qualify.cases import computing, functions, moving, sizes
from interlock.qualify.cases.case import Case, Draw

__all__ = ["Case", "Draw", "backward", "forward"]


# The beginnings of labels: what the decoder, the engine or the learner is made of.
_OURS = (
    *("attention of the decoder", "merged attention", "RMSNorm", "SwiGLU", "rotary", "linear"),
    *("embedding", "logprob of targets", "sampler", "expert gate", "copy_ of a weight", "cache"),
)


def forward(quick: bool) -> Iterator[Case]:
    """Every case in each of its dtypes; with `quick`, only those of every level."""
    return _each_dtype(case for case in _all() if case.quick or not quick)


def backward(quick: bool) -> Iterator[Case]:
    """With as many terms as gradients may add up: along any side of an input."""
    chosen = (case for case in _all() if case.grad and (case.quick or not quick))
    for case in _each_dtype(chosen):
        sides = (side for each in case.inputs for side in each.shape)
        yield replace(case, terms=max(1, case.terms, *sides))


def _each_dtype(cases: Iterable[Case]) -> Iterator[Case]:
    for case in cases:
        for dtype in case.dtypes:
            yield replace(case, dtype=dtype)


def _all() -> Iterator[Case]:
    for table in (*computing.TABLES, *functions.TABLES, *moving.TABLES, *sizes.TABLES):
        for case in table():
            yield replace(case, ours=case.label.startswith(_OURS))
