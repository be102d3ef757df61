"""The cases of numerics.py: which operators, at which shapes, on which views. Data, and one-liners.

    case.py ─┬─ computing.py ──┬── forward(quick, tried), products(…), backward(…)
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

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from interlock.qualify.cases import computing, functions, moving, sizes
from interlock.qualify.cases.case import Case, Draw
from interlock.records.trust import Sizes

__all__ = ["Case", "Draw", "backward", "forward", "products"]


# The beginnings of labels: what the decoder, the engine or the learner is made of.
_OURS = (
    *("attention of the decoder", "merged attention", "RMSNorm", "SwiGLU", "rotary", "linear"),
    *("embedding", "logprob of targets", "sampler", "expert gate", "copy_ of a weight", "cache"),
)


# What multiplies matrices and does nothing else: it is to be right in whatever layout.
_PRODUCTS = ("mm", "bmm", "linear", "matmul", "addmm", "mv", "einsum")


def forward(quick: bool, tried: Sequence[Sizes]) -> Iterator[Case]:
    """Every case in each of its dtypes; with `quick`, only those of every level.

    `tried`: the sizes of models at which sizes.py makes its own.
    """
    return _each_dtype(case for case in _all(tried) if case.quick or not quick)


def products(quick: bool, tried: Sequence[Sizes]) -> Iterator[Case]:
    """Those of `backward` whose gradients are plain products, of transposed factors."""
    return (case for case in _with_gradients(quick, tried) if case.label.startswith(_PRODUCTS))


def backward(quick: bool, tried: Sequence[Sizes]) -> Iterator[Case]:
    """What else has a gradient."""
    return (case for case in _with_gradients(quick, tried) if not case.label.startswith(_PRODUCTS))


def _with_gradients(quick: bool, tried: Sequence[Sizes]) -> Iterator[Case]:
    """With as many terms as gradients may add up: along any side of an input."""
    chosen = (case for case in _all(tried) if case.grad and (case.quick or not quick))
    for case in _each_dtype(chosen):
        sides = (side for each in case.inputs for side in each.shape)
        yield replace(case, terms=max(1, case.terms, *sides))


def _each_dtype(cases: Iterable[Case]) -> Iterator[Case]:
    for case in cases:
        for dtype in case.dtypes:
            yield replace(case, dtype=dtype)


def _all(tried: Sequence[Sizes]) -> Iterator[Case]:
    ordinary = (*computing.TABLES, *functions.TABLES, *moving.TABLES)
    for made in (*(table() for table in ordinary), *(table(tried) for table in sizes.TABLES)):
        for case in made:
            yield replace(case, ours=case.label.startswith(_OURS))
