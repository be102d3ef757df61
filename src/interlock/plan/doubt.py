"""How far a figure may be off: every constant moved to the end of what it may be, and what the
formulas themselves miss, in quadrature.

    predict(Rates), Rates ──uncertainty──> half of the range, as a logarithm

Set so that about four of five published rows lie within, by constants that were fitted without
them (docs/planning.md has the count).
"""

import math
from collections.abc import Callable

from interlock.plan.constants import Rates, constants

DOUBT = 1.28  # standard deviations to either side: 80 % of a normal distribution
_FORMULAS = 0.17  # of the formulas beside their constants: held-out rows
_TOGETHER = 0.5  # constants were fitted together: what one is off, another makes good
# Of a chip on which no run was fitted: how much less its software may reach than the fitted ones'.
# 42 of 44 published figures on such chips took longer than planned, half of them twice as long.
_UNPROVEN = 1.0
_MEASURED = 0.5  # as far off where this very machine was measured


def uncertainty(
    predict: Callable[[Rates], float], rates: Rates, middle: float, measured: bool = False
) -> float:
    """ln(high / middle), which is ln(middle / low); `middle` is what `rates` predict."""
    table = constants()
    by = _MEASURED if measured else 1.0
    total = (_FORMULAS * by) ** 2
    for name in Rates._fields:
        moved = rates._replace(**{name: getattr(rates, name) * (1.0 + table[name].spread * by)})
        total += (_TOGETHER * math.log(predict(moved) / middle)) ** 2
    return DOUBT * math.sqrt(total)


def slower(doubt: float, proven: bool) -> float:
    """ln(high / middle) of a range whose ln(middle / low) is `doubt`."""
    return doubt if proven else math.hypot(doubt, DOUBT * _UNPROVEN)
