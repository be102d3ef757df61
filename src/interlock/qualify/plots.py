"""The pictures of a certificate: what was measured, beside its limit and the CPU's own figure.

    Finding.measures ──> Picture(title, note, figure as plotly's {"data", "layout"}, height)

All axes are logarithmic with two edges of our own, since the cases that matter most have no
logarithm: 0 (exact) stands on the left edge, what is infinite or not a number on the right one.
A failed case differs by shape as well as by colour. Names are escaped: plotly reads some HTML.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from interlock.qualify.check import beyond, excess
from interlock.records.trust import Finding, Measure
from interlock.report.drawing import BLUE, GREY, Trace
from interlock.text import label

RED = "#e5484d"
NAMED = 20  # cases that a picture can name
_ROWS = 24  # kinds of cases, each a row; the rest share one
_DEPTH = 7  # dots that lie one over the other within a row


class Picture(NamedTuple):
    """One figure of the page."""

    title: str
    note: str  # how to read it
    figure: dict[str, Any]
    height: int  # pixels


failed, share = beyond, excess


def pictures(finding: Finding) -> list[Picture]:
    """What there is to see of a check; nothing when it measured nothing, or only zeros."""
    cases = sorted(finding.measures, key=excess, reverse=True)
    if not any(case.value or case.limit or case.reference for case in cases):
        return []
    if len(cases) <= NAMED:
        return [_named(cases, "Every case against its limit")]
    total = finding.figures.get("cases")  # check.judged counts those that it did not keep
    total = total if isinstance(total, int) and total > len(cases) else len(cases)
    of_all = f"All {total:,} cases" if total == len(cases) else _worst(len(cases), total)
    shown = [_spread(cases, f"{of_all}, by kind")]
    if any(map(failed, cases)):
        shown.append(_named(cases[:NAMED], f"{_worst(NAMED, total)}, by name"))
    return shown


def _worst(count: int, total: int) -> str:
    return f"The worst {count:,} of {total:,} cases"


def overview(findings: Iterable[Finding]) -> Picture | None:
    """One row for each check: how near its worst case came to the limit."""
    worst = [(f.check, max(f.measures, key=excess)) for f in findings if f.measures]
    if not worst:
        return None
    rows = [label(check, 40) for check, _ in worst]
    cases = [case for _, case in worst]
    return Picture(
        "How near each check came to its limit",
        "The worst case of every check that measures. Left of the line is allowed; the further "
        "left, the more room.",
        _shares(rows, [(row, case) for row, case in enumerate(cases)], reference=False),
        _height(len(rows)),
    )


def _spread(cases: Sequence[Measure], title: str) -> Picture:
    """Every case as a dot in the row of its kind, the kind with the worst case on top."""
    groups = _kinds(cases)
    names = list(groups)
    if len(names) > _ROWS:
        names, rest = names[: _ROWS - 1], names[_ROWS - 1 :]
        other = f"{len(rest)} others"
        groups[other] = [case for name in rest for case in groups[name]]
        names.append(other)
    placed = [
        (row + 0.5 * ((index % _DEPTH) / (_DEPTH - 1) - 0.5) * (len(groups[name]) > 1), case)
        for row, name in enumerate(names)
        for index, case in enumerate(groups[name])
    ]
    rows = [f"{label(name, 60)} ({len(groups[name])})" for name in names]
    return Picture(
        title,
        "What was measured as a share of what is allowed. Each dot is a case; point at one to read "
        "its name. In brackets, the number of cases.",
        _shares(rows, placed, reference=True),
        _height(len(rows)),
    )


def _kinds(cases: Sequence[Measure]) -> dict[str, list[Measure]]:
    """The cases by what was measured ("…: k3", where several end so) or by operator ("mm …")."""
    ends = Counter(case.name.rpartition(": ")[2] for case in cases)
    kinds: dict[str, list[Measure]] = {}
    for case in cases:
        end = case.name.rpartition(": ")[2]
        first = case.name.split(maxsplit=1)[0].rstrip(":,") if case.name.strip() else ""
        shared = ends[end] > 1 and end != case.name
        kinds.setdefault(end if shared else first, []).append(case)
    return kinds


def _shares(
    rows: Sequence[str], placed: Sequence[tuple[float, Measure]], reference: bool
) -> dict[str, Any]:
    """Dots at (value / limit, row), with the limit as one line through all rows."""
    cases = [case for _, case in placed]
    own = [
        (row, case, case.reference / case.limit)
        for row, case in placed
        if reference and case.reference is not None and case.limit > 0
    ]
    axis = _Axis([1.0, *map(excess, cases), *(x for *_, x in own)])
    line = {"color": RED, "width": 1.5, "dash": "dash"}
    ends = {"x": [0, 0], "y": [-0.6, len(rows) - 0.4], "mode": "lines", "line": line}
    traces: list[Trace] = [{"type": "scatter", "name": "limit", **ends, "hoverinfo": "skip"}]
    if own:
        points = [(axis.place(x), row, _told(case)) for row, case, x in own]
        traces.append(_dots("CPU reference", points, _REFERENCE))
    points = [(axis.place(excess(case)), row, _told(case)) for row, case in placed]
    traces += _judged(points, cases)
    return _figure(traces, axis, rows, "measured ÷ limit")


def _named(cases: Sequence[Measure], title: str) -> Picture:
    """One row for each case, with its own limit, in the unit of the check."""
    figures = [[case.value, case.limit, case.reference] for case in cases]
    axis = _Axis([x for row in figures for x in row if x is not None])
    limits = [(axis.place(case.limit), row, _told(case)) for row, case in enumerate(cases)]
    own = [
        (axis.place(case.reference), row, _told(case))
        for row, case in enumerate(cases)
        if case.reference is not None
    ]
    points = [(axis.place(case.value), row, _told(case)) for row, case in enumerate(cases)]
    traces = [_dots("limit", limits, _LIMIT)]
    if own:
        traces.append(_dots("CPU reference", own, _REFERENCE))
    traces += _judged(points, cases)
    rows = [label(case.name, 84) for case in cases]
    return Picture(
        title,
        "As measured on the device, beside the limit of that case"
        + (" and the CPU's own figure." if own else "."),
        _figure(traces, axis, rows, "as measured"),
        _height(len(rows)),
    )


_PASSED = {"symbol": "circle", "size": 8, "color": BLUE}
_FAILED = {"symbol": "x", "size": 10, "color": RED}
_REFERENCE = {"symbol": "diamond-open", "size": 8, "color": GREY, "line": {"width": 1.5}}
_LIMIT = {"symbol": "line-ns-open", "size": 16, "color": RED, "line": {"width": 2.5}}
_Point = tuple[float, float, str]  # x, y, what is told when pointed at


def _judged(points: Sequence[_Point], cases: Sequence[Measure]) -> list[Trace]:
    """The passed ones, and over them the failed ones."""
    kinds = [(False, "within its limit", _PASSED), (True, "failed", _FAILED)]
    traces = []
    for bad, name, marker in kinds:
        own = [p for p, case in zip(points, cases, strict=True) if failed(case) is bad]
        if own:
            traces.append(_dots(name, own, marker))
    return traces


def _dots(name: str, points: Sequence[_Point], marker: dict[str, Any]) -> Trace:
    x, y, told = zip(*points, strict=True)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": y,
        "text": told,
        "hovertemplate": "%{text}<extra></extra>",
        "marker": marker,
        "cliponaxis": False,
    }


def _told(case: Measure) -> str:
    figures = f"measured {number(case.value)}, limit {number(case.limit)}"
    if case.reference is not None:
        figures += f", CPU reference {number(case.reference)}"
    return f"<b>{label(case.name)}</b><br>{figures}{' – failed' * failed(case)}"


def number(value: float) -> str:
    """Four digits, as people write them."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    mantissa, _, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


class _Axis:
    """A logarithmic axis over `values`, drawn as a linear one over their exponents."""

    def __init__(self, values: Sequence[float]) -> None:
        inside = [x for x in values if 0 < x < math.inf]
        self._low = math.floor(math.log10(min(inside, default=1.0)))
        self._high = max(math.ceil(math.log10(max(inside, default=1.0))), self._low + 1)
        self._zero = any(x <= 0 for x in values)
        self._negative = any(x < 0 for x in values)
        self._beyond = any(math.isnan(x) or x == math.inf for x in values)

    def place(self, value: float) -> float:
        if math.isnan(value) or value == math.inf:
            return self._high + self._edge
        return math.log10(value) if value > 0 else self._low - self._edge

    @property
    def _edge(self) -> float:
        """How far the edges stand outside, in decades."""
        return max(0.6, 0.08 * (self._high - self._low))

    def properties(self) -> dict[str, Any]:
        step = max(1, math.ceil((self._high - self._low) / 12))
        ticks = {float(e): _power(e) for e in range(self._low, self._high + 1, step)}
        if self._high - self._low <= 2:  # too few whole decades to read between
            for exponent in range(self._low, self._high):
                ticks |= {exponent + math.log10(k): _power(exponent, k) for k in (2, 5)}
        if self._zero:
            ticks[self._low - self._edge] = "≤ 0" if self._negative else "0"
        if self._beyond:
            ticks[self._high + self._edge] = "∞"
        room = 0.04 * (self._high - self._low)
        return {
            "range": [
                self._low - self._zero * self._edge - room,
                self._high + self._beyond * self._edge + room,
            ],
            "tickvals": list(ticks),
            "ticktext": list(ticks.values()),
        }


def _power(exponent: int, digit: int = 1) -> str:
    if -4 <= exponent <= 4:
        return number(digit * 10.0**exponent)
    power = f"10<sup>{exponent}</sup>"
    return power if digit == 1 else f"{digit}·{power}"


def _height(rows: int) -> int:
    return 118 + 23 * rows


def _figure(traces: list[Trace], axis: _Axis, rows: Sequence[str], x: str) -> dict[str, Any]:
    return {
        "data": traces,
        "layout": {
            "hovermode": "closest",
            "margin": {"l": 16, "r": 24, "t": 34, "b": 48},
            "showlegend": True,
            "legend": {
                "orientation": "h",
                "x": 1,
                "xanchor": "right",
                "y": 1,
                "yanchor": "top",
                "yref": "container",
            },
            "xaxis": {
                "title": {"text": f"{x} (logarithmic)", "standoff": 8},
                **axis.properties(),
            },
            "yaxis": {
                "tickvals": list(range(len(rows))),
                "ticktext": list(rows),
                "range": [len(rows) - 0.4, -0.6],
            },
        },
    }
