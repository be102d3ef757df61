"""parity.json and parity.html: the same record for programs and for people.

Report ── plots ──> figures ┐
       ── page.html ────────┴─ report/sheet.py ──> one file that loads nothing
"""

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from interlock.parity.bisect import Bisection, named
from interlock.parity.outcome import How, Report
from interlock.records.sealing import SealedDocument, sealed
from interlock.report import sheet
from interlock.report.drawing import BLUE, GREY, ORANGE
from interlock.rundir import storage_errors, write_atomically
from interlock.text import label

Figure = dict[str, Any]

_POINTS = 4000  # of the scatter plot; of more tokens, every n-th is drawn
_LOWEST, _HIGHEST = 1e-9, 1e2  # errors beyond are drawn there; 0 has no place on a log axis


def write(report: Report, out: Path) -> Path:
    """Write both files into `out`; returns the page's path. Raises RunError when the disk refuses.

    What is not finite is null in the JSON.
    """
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    tree = sealed(SealedDocument.PARITY, report)
    write_atomically(out / "parity.json", msgspec.json.format(msgspec.json.encode(tree)))
    return sheet.write(out / "parity.html", render(report))


def render(report: Report) -> str:
    environment = sheet.environment(Path(__file__).parent)
    environment.filters["figure"] = "{:.2g}".format
    environment.filters["percent"] = "{:.1%}".format
    environment.filters["named"] = named
    sides = {"A": report.a, "B": report.b}
    body = environment.get_template("page.html").render(
        report=report,
        sides=sides,
        tokens=sum(len(answer.tokens) for answer in report.answers),
        seconds=f"{report.seconds:.0f} s",
        created=f"{datetime.fromtimestamp(report.created, UTC):%Y-%m-%d %H:%M} UTC",
        plots=list(_plots(report)),
        wide=[] if report.bisection is None else [_depth(report, report.bisection)],
    )
    return sheet.sheet(f"Parity of {report.a.label} and {report.b.label}", body)


def _plots(report: Report) -> Iterator[tuple[str, str, str]]:
    """Title, note and element of each plot."""
    if report.answers:
        yield (
            "Log-ratio of the sides",
            "log p(B) - log p(A) of every token that both scored; all at 0 is perfect. Counts are "
            "on a logarithmic axis.",
            sheet.figure(_ratios(report), name="ratios"),
        )
        yield (
            "Log-probability, token by token",
            "Each dot is a token; both sides agree on the diagonal.",
            sheet.figure(_scatter(report), name="scatter"),
        )
    if report.greedy is not None:
        yield (
            "Greedy answers still identical",
            "Share of answers in which the two have not parted yet. Rounding parts some: one token "
            "on the edge is enough.",
            sheet.figure(_survival(report), name="survival"),
        )
    if report.task is not None and report.task.not_judged is None:
        yield (
            f"Accuracy on {report.task.task}",
            "Greedy answers to the same held-out problems; bars are 95 % Wilson intervals.",
            sheet.figure(_accuracy(report), name="accuracy"),
        )


def _ratios(report: Report) -> Figure:
    ratios = [b - a for each in report.answers for a, b in zip(each.a, each.b, strict=True)]
    trace = {"type": "histogram", "x": _rounded(ratios), "nbinsx": 80, "marker": {"color": BLUE}}
    return _figure(
        [trace], "nats", "tokens", x={"exponentformat": "e"}, y={"type": "log", "dtick": 1}
    )


def _scatter(report: Report) -> Figure:
    pairs = [pair for each in report.answers for pair in zip(each.a, each.b, strict=True)]
    pairs = pairs[:: -(-len(pairs) // _POINTS)]
    lowest = min(min(pair) for pair in pairs)
    a, b = zip(*pairs, strict=True)
    diagonal = {
        "mode": "lines",
        "x": [lowest, 0],
        "y": [lowest, 0],
        "line": {"color": GREY, "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
    }
    dots = {
        "mode": "markers",
        "x": _rounded(a),
        "y": _rounded(b),
        "marker": {"color": BLUE, "size": 4, "opacity": 0.5},
    }
    x, y = (f"log p, {side} ({label(facts.label)})" for side, facts in _sides(report))
    return _figure([diagonal, dots], x, y)


def _survival(report: Report) -> Figure:
    assert report.greedy is not None
    found = report.greedy
    longest = max(
        (len(answer.tokens) for answer in report.answers if answer.how is How.GREEDY),
        default=max(found.parted_at, default=0) + 1,
    )
    x = list(range(longest + 1))
    y = [1 - sum(place < n for place in found.parted_at) / found.answers for n in x]
    trace = {"mode": "lines", "x": x, "y": y, "line": {"color": BLUE, "shape": "hv", "width": 2}}
    return _figure([trace], "tokens", "share", y={"range": [0, 1.05], "tickformat": "~%"})


def _accuracy(report: Report) -> Figure:
    assert report.task is not None
    found = [report.task.a, report.task.b]
    trace = {
        "mode": "markers",
        "x": [f"{side}: {label(facts.label)}" for side, facts in _sides(report)],
        "y": [each.share for each in found],
        "error_y": {
            "symmetric": False,
            "array": [each.high - each.share for each in found],
            "arrayminus": [each.share - each.low for each in found],
            "color": GREY,
        },
        "marker": {"color": BLUE, "size": 10},
    }
    return _figure([trace], "", "right answers", y={"range": [0, 1], "tickformat": "~%"})


def _depth(report: Report, found: Bisection) -> tuple[str, str, str]:
    names = [named(depth.point) for depth in found.depths]
    places = list(range(len(names)))
    curves = [
        ("A's limit", [d.limit_a for d in found.depths], {"color": BLUE, "dash": "dot"}),
        ("B's limit", [d.limit_b for d in found.depths], {"color": ORANGE, "dash": "dot"}),
        ("CPU in A's dtype", [d.own_a for d in found.depths], {"color": GREY, "dash": "dash"}),
        ("CPU in B's dtype", [d.own_b for d in found.depths], {"color": GREY}),
        (f"A, {label(report.a.label)}", [d.a for d in found.depths], {"color": BLUE}),
        (f"B, {label(report.b.label)}", [d.b for d in found.depths], {"color": ORANGE}),
    ]
    if report.a.dtype == report.b.dtype:  # then the band of both is one
        curves = [("limit", curves[0][1], curves[0][2] | {"color": GREY}), *curves[3:]]
        curves[1] = (f"CPU in {report.a.dtype}", *curves[1][1:])
    traces = [
        {
            "mode": "lines",
            "name": name,
            "x": places,
            "y": _drawn(values),
            "line": line | {"width": 2},
        }
        | {"text": names, "hovertemplate": "%{text}: %{y:.2g}"}
        for name, values, line in curves
    ]
    layers = [i for i, depth in enumerate(found.depths) if depth.point.endswith(".attention_norm")]
    ticks = layers[:: max(1, len(layers) // 16)]
    x = {"tickvals": ticks, "ticktext": [str(layers.index(tick)) for tick in ticks]}
    figure = _figure(
        traces, "layer", "relative error", x=x, y={"type": "log", "exponentformat": "e"}
    )
    if found.side:
        place = next(i for i, depth in enumerate(found.depths) if depth.point == found.point)
        figure["layout"] |= _mark(place, named(found.point))
    how = "token by token behind a prefilled prompt" if found.decode else "one prefill"
    note = (
        f"Error of every module's output against float64, worst token of {found.tokens}, {how}. "
        "Below the limit is rounding: 8 times that of the CPU. No error is drawn at the bottom."
    )
    return "Error over depth", note, sheet.figure(figure, height=340, name="depth")


def _mark(place: int, name: str) -> Figure:
    line = {"type": "line", "x0": place, "x1": place, "y0": 0, "y1": 1, "yref": "paper"}
    text = {"x": place, "y": 1, "yref": "paper", "text": name, "showarrow": False}
    return {
        "shapes": [line | {"line": {"color": GREY, "width": 1, "dash": "dot"}}],
        "annotations": [text | {"xanchor": "left", "yanchor": "bottom"}],
    }


def _drawn(values: Sequence[float]) -> list[float]:
    return [min(max(value, _LOWEST), _HIGHEST) for value in values]


def _rounded(values: Sequence[float]) -> list[float]:
    """Digits that no plot shows make the file three times as large."""
    return [float(f"{value:.5g}") for value in values if math.isfinite(value)]


def _sides(report: Report) -> list[tuple[str, Any]]:
    return [("A", report.a), ("B", report.b)]


def _figure(
    traces: list[Figure],
    x_title: str,
    y_title: str,
    x: Figure | None = None,
    y: Figure | None = None,
) -> Figure:
    listed = sum("name" in trace for trace in traces) > 1
    layout = {
        "margin": {"l": 64, "r": 16, "t": 40 if listed else 16, "b": 44},
        "showlegend": listed,
        "legend": {
            "orientation": "h",
            "x": 1,
            "xanchor": "right",
            "y": 1,
            "yanchor": "top",
            "yref": "container",
        },
        "hovermode": "x unified" if listed else "closest",
        "xaxis": {"title": {"text": x_title, "standoff": 8}} | (x or {}),
        "yaxis": {"title": {"text": y_title, "standoff": 8}} | (y or {}),
    }
    return {"data": traces, "layout": layout}
