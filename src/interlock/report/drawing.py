"""How a run's plots are drawn: plain plotly dicts that go into the page as JSON.

    step metrics ── Drawing ──> traces ──> Plot(rows of traces) ── figure ──> {"data", "layout"}

The x axis is the global step: the steps of all stages, one after another. Colours of the frame
belong to the page, which knows light from dark.
"""

from collections import deque
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any, NamedTuple

from interlock.records.metrics import StepMetrics
from interlock.report.summary import Evaluation, Metrics
from interlock.text import label

BLUE, ORANGE, GREEN, VIOLET, GREY = "#3f83f8", "#f0883e", "#2ba471", "#9b6cf0", "#98a2b3"
HUES = (GREEN, BLUE, ORANGE, VIOLET)
TEAL, ROSE = "#1aa7b8", "#e0609a"
_MARKERS_UP_TO = 60  # points; more of them would hide the line
_SMOOTH_FROM = 20  # steps
_LOWER_ROW, _GAP = 0.28, 0.14  # of the height of a plot with two rows

FROM_ZERO = {"rangemode": "tozero"}
PERCENT = {"rangemode": "tozero", "tickformat": "~%"}
_LEGEND = {
    "orientation": "h",
    "traceorder": "normal",
    "x": 1,
    "xanchor": "right",
    "y": 1,
    "yanchor": "top",
    "yref": "container",
}
SMALL = {"rangemode": "tozero", "exponentformat": "e"}

Trace = dict[str, Any]
Figure = Callable[[StepMetrics], float | None]


class Panel(NamedTuple):
    """One pair of axes of a plot."""

    label: str  # of the y axis, with its unit
    traces: list[Trace]
    axis: dict[str, Any]  # further properties of the y axis


class Plot(NamedTuple):
    id: str
    title: str
    note: str  # one line: what is shown and how to read it
    rows: list[Panel]  # one or two
    x: dict[str, Any] | None = None  # the x axis, where it is not the steps
    height: int = 280  # pixels
    wide: bool = False  # over the whole page

    def figure(self, timeline: "Timeline") -> dict[str, Any]:
        """The rows over one x axis, as {"data", "layout"} of plotly."""
        return _figure(self, timeline)


class Timeline:
    """Where each (stage, step) lies on the x axis: stages follow one another."""

    def __init__(
        self,
        metrics: Metrics,
        evaluations: Sequence[Evaluation],
        moves: Sequence[tuple[int, int, str]] = (),
    ) -> None:
        """`moves`: stage, step and device of each move of the run."""
        points = [(line.stage, line.step) for line in metrics]
        points += [(evaluation.stage, evaluation.step) for evaluation in evaluations]
        self.kinds = {line.stage: line.kind for line in metrics}
        self.starts: dict[int, int] = {}
        self.end = 0
        for stage in sorted({stage for stage, _ in points}):
            self.starts[stage] = self.end
            self.end += max(step for other, step in points if other == stage)
        self._moves = [
            (self.x(stage, step), to) for stage, step, to in moves if stage in self.starts
        ]

    def x(self, stage: int, step: int) -> int:
        return self.starts[stage] + step

    def marks(self) -> dict[str, list[dict[str, Any]]]:
        """A dotted line where each stage but the first begins, and every stage's kind beside it; a
        dashed one where a part of the run was moved, and the device below.
        """
        starts = list(self.starts.items()) if len(self.starts) > 1 else []
        shapes = [_line(start, GREY, "dot") for _, start in starts[1:]]
        shapes += [_line(x, VIOLET, "dash") for x, _ in self._moves]
        named = [
            (start, f"{stage}: {self.kinds[stage]}")
            for stage, start in starts
            if stage in self.kinds
        ]
        annotations = [_beside(x, text, GREY, y=1) for x, text in named]
        annotations += [_beside(x, f"→ {device}", VIOLET, y=0) for x, device in self._moves]
        return {"shapes": shapes, "annotations": annotations}


_FRAME = {"xref": "x", "yref": "paper"}


def _line(x: int, color: str, dash: str) -> dict[str, Any]:
    how = {"color": color, "width": 1, "dash": dash}
    return {**_FRAME, "type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": how}


def _beside(x: int, text: str, color: str, y: int) -> dict[str, Any]:
    place = {"y": y, "xanchor": "left", "yanchor": "bottom", "showarrow": False}
    font = {"size": 11, "color": color}
    return {**_FRAME, **place, "x": x, "text": label(text), "font": font}


def shown(candidates: Sequence[Plot]) -> list[Plot]:
    """The plots and rows that have something to show."""
    found = [plot._replace(rows=[row for row in plot.rows if row.traces]) for plot in candidates]
    return [plot for plot in found if plot.rows]


class Drawing:
    """Turns figures of the steps into traces; one that no step has gives none.

    A None between the stages breaks the lines there: what one stage measures need not be what the
    next one does.
    """

    def __init__(self, metrics: Metrics, timeline: Timeline) -> None:
        self._steps: list[StepMetrics | None] = []
        self._x: list[int | None] = []
        for line in metrics:
            if self._steps and self._steps[-1] and self._steps[-1].stage != line.stage:
                self._steps.append(None)
                self._x.append(None)
            self._steps.append(line)
            self._x.append(timeline.x(line.stage, line.step))

    def line(self, name: str, color: str, figure: Figure) -> list[Trace]:
        """A line through `figure` of every step; steps without one are left as a gap."""
        y = [None if step is None else figure(step) for step in self._steps]
        points = sum(point is not None for point in y)
        if not points:
            return []
        return [
            {
                "type": "scatter",
                "mode": "lines" if points > _MARKERS_UP_TO else "lines+markers",
                "name": name,
                "x": self._x,
                "y": y,
                "line": {"color": color, "width": 2},
                "marker": {"size": 5},
            }
        ]

    def points(self, name: str, color: str, figure: Figure) -> list[Trace]:
        """A line through the steps that have `figure`, where only some do."""
        at = [
            place
            for place, each in enumerate(self._steps)
            if each is None or figure(each) is not None
        ]
        return [
            trace
            | {
                "mode": "lines+markers",
                "x": [trace["x"][place] for place in at],
                "y": [trace["y"][place] for place in at],
            }
            for trace in self.line(name, color, figure)
        ]

    def smoothed(self, figure: Figure, color: str) -> list[Trace]:
        """The line and, over enough steps, its trailing mean, which is then the bolder one."""
        traces = self.line("each step", color, figure)
        points = sum(y is not None for trace in traces for y in trace["y"])
        if points < _SMOOTH_FROM:
            return traces
        [each] = traces
        window = points // 10
        faint = {"mode": "lines", "opacity": 0.45, "line": {"color": color, "width": 1}}
        bold = {
            "mode": "lines",
            "name": f"mean of {window} steps",
            "y": self._trailing_mean(each["y"], window),
            "line": {"color": color, "width": 2.5},
        }
        return [each | faint, each | bold]

    def _trailing_mean(self, values: list[float | None], window: int) -> list[float | None]:
        """The mean of up to `window` values, the current one the last; begins anew per stage."""
        means: list[float | None] = []
        recent: deque[float] = deque(maxlen=window)
        for step, value in zip(self._steps, values, strict=True):
            if step is None:
                recent.clear()
            if value is not None:
                recent.append(value)
            means.append(None if value is None else mean(recent))
        return means

    def bars(self, traces: Sequence[Trace]) -> list[Trace]:
        """The same numbers as bars, which stack."""
        return [
            {
                "type": "bar",
                "name": trace["name"],
                "x": trace["x"],
                "y": trace["y"],
                "marker": {"color": trace["line"]["color"], "line": {"width": 0}},
            }
            for trace in traces
        ]


def _figure(plot: Plot, timeline: Timeline) -> dict[str, Any]:
    """Stack the rows over one x axis; the first row gets most of the height."""
    rows = plot.rows
    bounds = [(0.0, 1.0)] if len(rows) == 1 else [(_LOWER_ROW + _GAP, 1.0), (0.0, _LOWER_ROW)]
    listed = [[trace for trace in row.traces if trace.get("showlegend", True)] for row in rows]
    legend = any(len(traces) > 1 for traces in listed)
    lying = any(trace.get("orientation") == "h" for row in rows for trace in row.traces)
    marks = timeline.marks() if plot.x is None else {"shapes": [], "annotations": []}
    top = 12 + (22 if legend else 0) + (16 if marks["annotations"] else 0)  # pixels
    data: list[Trace] = []
    layout: dict[str, Any] = {
        "barmode": "stack",
        "bargap": 0 if timeline.end > _MARKERS_UP_TO else 0.15,
        "hovermode": "closest" if lying else "x unified",
        "margin": {"l": 64, "r": 16, "t": top, "b": 44},
        "legend": _LEGEND,
        "showlegend": legend,
        "xaxis": {
            "title": {"text": "step", "standoff": 8},
            "anchor": "y" if len(rows) == 1 else "y2",
            **(_steps_axis(timeline) if plot.x is None else plot.x),
        },
        **marks,
    }
    for index, (row, domain) in enumerate(zip(rows, bounds, strict=True), start=1):
        suffix = "" if index == 1 else str(index)
        layout[f"yaxis{suffix}"] = {
            "title": {"text": row.label, "standoff": 8},
            "domain": domain,
            "nticks": 6 if index == 1 else 3,
            **row.axis,
        }
        alone = {"showlegend": False} if len(row.traces) == 1 else {}  # the axis says what it is
        data += [_whole(trace) | alone | {"yaxis": f"y{suffix}"} for trace in row.traces]
    return {"data": data, "layout": layout}


def _whole(trace: Trace) -> Trace:
    """A point that lies on an axis is not cut in half."""
    return trace | ({"cliponaxis": False} if trace["type"] == "scatter" else {})


def _steps_axis(timeline: Timeline) -> dict[str, Any]:
    return {
        "range": [-0.02 * timeline.end - 0.5, 1.02 * timeline.end + 0.5],
        "tickformat": "d",
        **({"dtick": 1} if timeline.end <= 10 else {}),
    }
