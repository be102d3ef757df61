"""What rounding may do to a result, measured on the machine that runs the test.

    found ─────────────────────────────────┐
    expected, in float64 where it can be ──┼─ assert_close: as near as another order of operations
    the same again, in other orders ───────┘

CPUs add up in orders of their own, some without rounding in between, so a tolerance in digits fits
the machine it was tried on. A test computes the same quantity again instead: what that differs by
is rounding, and a result may differ by a few times as much. A mistake, even of one token in
twenty, is thousands of times larger than what float32 rounds.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from interlock.models.decoder import Decoder
from interlock.workers.inspection.operators import Doubled

# In float32. Of two orders' largest errors one is rarely above three times the other; of few
# numbers it may be. In half precision a result is rounded once, whatever was done in between.
MARGIN, ULPS = 8.0, 2.0
HALF_MARGIN, HALF_ULPS = 2.0, 0.5
Values = Tensor | list[float] | float
Result = TypeVar("Result")


def allowed(expected: Values, *again: Values, dtype: torch.dtype = torch.float32) -> Tensor:
    """How far from `expected` rounding in `dtype` may bring each of its numbers.

    Args:
        expected: the result, in float64 if it can be had.
        again: the same result, each computed in `dtype` in another order of operations.

    Returns:
        Float64, of expected's shape: MARGIN times the largest difference there is between
        `expected` and any of `again`, plus ULPS units in the last place of the number and of the
        root mean square of all, since some are small only because others cancelled.
    """
    exact, half = _wide(expected), dtype in (torch.bfloat16, torch.float16)
    seen = [(_wide(each) - exact).abs().max().item() for each in again if exact.numel()]
    assert all(map(math.isfinite, seen)), "what is not finite measures nothing"
    margin, ulps = (HALF_MARGIN, HALF_ULPS) if half else (MARGIN, ULPS)
    size = exact.abs() + exact.square().mean().sqrt()
    return margin * max(seen, default=0.0) + ulps * torch.finfo(dtype).eps * size


def assert_close(
    found: Values,
    expected: Values,
    *again: Values,
    dtype: torch.dtype = torch.float32,
    where: str = "",
) -> None:
    """`found` is `expected` but for rounding; see `allowed`."""
    got, exact = _wide(found), _wide(expected)
    assert got.shape == exact.shape, f"{where}: {list(got.shape)}, not {list(exact.shape)}"
    limit, apart = allowed(expected, *again, dtype=dtype), (got - exact).abs()
    wrong = ~(apart <= limit)
    if wrong.any():
        at = (apart / limit).nan_to_num(torch.inf).argmax()
        raise AssertionError(
            f"{where or 'values'}: {int(wrong.sum())} of {wrong.numel()} are further off than "
            f"rounding: {got.flatten()[at]:.9g}, not {exact.flatten()[at]:.9g} within "
            f"{limit.flatten()[at]:.2g}"
        )


@contextmanager
def in_float64(decoder: Decoder) -> Iterator[Decoder]:
    """The same weights, with which everything is computed in float64 inside the `with`."""
    exact = copy.deepcopy(decoder).double()
    exact.dtype = torch.float64
    exact.rotary.frequencies = exact.rotary.frequencies.double()
    with Doubled():
        yield exact


def in_both(decoder: Decoder, compute: Callable[[Decoder], Result]) -> tuple[Result, Result]:
    """What `compute` makes of the weights in float64, and what of them as they are."""
    with in_float64(decoder) as exact:
        wide = compute(exact)
    return wide, compute(decoder)


def _wide(values: Values) -> Tensor:
    return torch.as_tensor(values).detach().double()
