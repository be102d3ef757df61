"""The plots of a run as plotly figures: plain dicts that go into the page as JSON.

    metrics lines, evaluations ──> Plot(rows of traces) ── figure ──> {"data", "layout"}

The x axis is the global step: the steps of all stages, one after another. A quantity that no step
logged has no plot. Colours of the frame belong to the page, which knows light from dark.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from interlock.report.summary import Evaluation, Metrics, number
from interlock.text import label

BLUE, ORANGE, GREEN, VIOLET, GREY = "#3f83f8", "#f0883e", "#2ba471", "#9b6cf0", "#98a2b3"
TEAL, ROSE = "#1aa7b8", "#e0609a"
_MARKERS_UP_TO = 60  # points; more of them would hide the line
_SMOOTH_FROM = 20  # steps
_LOWER_ROW, _GAP = 0.28, 0.14  # of the height of a plot with two rows

_FROM_ZERO = {"rangemode": "tozero"}
_PERCENT = {"rangemode": "tozero", "tickformat": "~%"}
_LEGEND = {
    "orientation": "h",
    "traceorder": "normal",
    "x": 1,
    "xanchor": "right",
    "y": 1,
    "yanchor": "top",
    "yref": "container",
}
_SMALL = {"rangemode": "tozero", "exponentformat": "e"}

Trace = dict[str, Any]
Line = dict[str, Any]


class Row(NamedTuple):
    """One pair of axes of a plot."""

    label: str  # of the y axis, with its unit
    traces: list[Trace]
    axis: dict[str, Any]  # further properties of the y axis


class Plot(NamedTuple):
    id: str
    title: str
    note: str  # one line: what is shown and how to read it
    rows: list[Row]  # one or two
    x: dict[str, Any] | None = None  # the x axis, where it is not the steps
    height: int = 280  # pixels
    wide: bool = False  # over the whole page

    def figure(self, timeline: "Timeline") -> dict[str, Any]:
        """The rows over one x axis, as {"data", "layout"} of plotly."""
        return _figure(self, timeline)


class Timeline:
    """Where each (stage, step) lies on the x axis: stages follow one another."""

    def __init__(self, metrics: Metrics, evaluations: Sequence[Evaluation]) -> None:
        points = [(line["stage"], line["step"]) for line in metrics]
        points += [(evaluation.stage, evaluation.step) for evaluation in evaluations]
        self.kinds = {line["stage"]: str(line.get("kind", "")) for line in metrics}
        self.starts: dict[int, int] = {}
        self.end = 0
        for stage in sorted({stage for stage, _ in points}):
            self.starts[stage] = self.end
            self.end += max(step for other, step in points if other == stage)

    def x(self, stage: int, step: int) -> int:
        return self.starts[stage] + step

    def marks(self) -> dict[str, list[dict[str, Any]]]:
        """A dotted line where each stage but the first begins, and every stage's kind beside it."""
        if len(self.starts) < 2:
            return {"shapes": [], "annotations": []}
        frame = {"xref": "x", "yref": "paper"}
        dotted = {"color": GREY, "width": 1, "dash": "dot"}
        shapes = [
            {**frame, "type": "line", "x0": start, "x1": start, "y0": 0, "y1": 1, "line": dotted}
            for start in list(self.starts.values())[1:]
        ]
        place = {"y": 1, "xanchor": "left", "yanchor": "bottom", "showarrow": False}
        annotations = [
            {**frame, **place, "x": start, "text": label(f"{stage}: {self.kinds[stage]}")}
            for stage, start in self.starts.items()
            if stage in self.kinds
        ]
        for annotation in annotations:
            annotation["font"] = {"size": 11, "color": GREY}
        return {"shapes": shapes, "annotations": annotations}


def plots(metrics: Metrics, evaluations: Sequence[Evaluation], timeline: Timeline) -> list[Plot]:
    """Every plot the run has numbers for, in the order of the page."""
    draw = Drawing(metrics, timeline)
    candidates = [
        Plot(
            "accuracy",
            "Held-out accuracy",
            "Greedy answers to problems never trained on; bars are 95 % Wilson intervals.",
            [Row("accuracy", _accuracy(evaluations, timeline), _PERCENT | {"range": [0, 1]})],
        ),
        *_learning(draw),
        *_policy(draw),
        *_cost(draw),
    ]
    return shown(candidates)


def shown(candidates: Sequence[Plot]) -> list[Plot]:
    """The plots and rows that have something to show."""
    found = [plot._replace(rows=[row for row in plot.rows if row.traces]) for plot in candidates]
    return [plot for plot in found if plot.rows]


def _learning(draw: "Drawing") -> list[Plot]:
    return [
        Plot(
            "reward",
            "Mean reward",
            "Over all completions sampled in a step.",
            [Row("reward", draw.smoothed("reward", BLUE), {})],
        ),
        Plot(
            "loss",
            "Loss",
            "Of a GRPO step only the gradient matters, not the level.",
            [Row("loss", draw.line("loss", "loss", VIOLET), {})],
        ),
        Plot(
            "gradient",
            "Gradient norm and learning rate",
            "The norm is the one before clipping.",
            [
                Row("norm", draw.line("grad_norm", "gradient norm", VIOLET), _FROM_ZERO),
                Row("learning rate", draw.line("lr", "learning rate", GREY), _SMALL),
            ],
        ),
    ]


def _policy(draw: "Drawing") -> list[Plot]:
    return [
        Plot(
            "length",
            "Completion length",
            "Mean length, and the share of completions cut at max_tokens.",
            [
                Row("tokens", draw.line("length", "length", BLUE), _FROM_ZERO),
                Row("share cut", draw.line("truncated", "share cut", ORANGE), _PERCENT),
            ],
        ),
        Plot(
            "entropy",
            "Entropy",
            "Of the policy's next token, mean; a fall to zero ends exploration.",
            [Row("nats per token", draw.line("entropy", "entropy", GREEN), _FROM_ZERO)],
        ),
        Plot(
            "mismatch",
            "Mismatch of learner and sampler",
            "Same tokens, same weights: k3 estimate of the KL, and the share of ratios above 2.",
            [
                Row("k3, nats", draw.line("mismatch_k3", "k3", ORANGE), _SMALL),
                Row("ratio > 2", draw.line("mismatch_share_above_2", "ratio > 2", GREY), _PERCENT),
            ],
        ),
    ]


def _cost(draw: "Drawing") -> list[Plot]:
    generation = draw.computed("generation", BLUE, _generation_rate)
    update = draw.computed("update", ORANGE, _update_rate)
    return [
        Plot(
            "time",
            "Time per step",
            "Stacked by what it went to.",
            [Row("seconds", draw.time_split(), _FROM_ZERO)],
        ),
        Plot(
            "speed",
            "Tokens per second",
            "Sampled per second of generation, trained per second of update.",
            [Row("tokens / s", [*generation, *update], _FROM_ZERO)],
        ),
    ]


class Drawing:
    """Turns logged quantities into traces; a quantity that was never logged gives none.

    A None between the stages breaks the lines there: what one stage measures need not be what the
    next one does.
    """

    def __init__(self, metrics: Metrics, timeline: Timeline) -> None:
        self._lines: list[Line | None] = []
        self._x: list[int | None] = []
        for line in metrics:
            if self._lines and self._lines[-1] and self._lines[-1]["stage"] != line["stage"]:
                self._lines.append(None)
                self._x.append(None)
            self._lines.append(line)
            self._x.append(timeline.x(line["stage"], line["step"]))

    def computed(self, name: str, color: str, value: Callable[[Line], float | None]) -> list[Trace]:
        """A line through `value` of every step; steps without one are left as a gap."""
        y = [None if line is None else value(line) for line in self._lines]
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

    def line(self, key: str, name: str, color: str) -> list[Trace]:
        return self.computed(name, color, lambda line: number(line, key))

    def smoothed(self, key: str, color: str) -> list[Trace]:
        """The line and, over enough steps, its trailing mean, which is then the bolder one."""
        traces = self.line(key, "each step", color)
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
        for line, value in zip(self._lines, values, strict=True):
            if line is None:
                recent.clear()
            if value is not None:
                recent.append(value)
            means.append(None if value is None else sum(recent) / len(recent))
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

    def time_split(self) -> list[Trace]:
        parts = [
            ("generation", BLUE, lambda line: number(line, "seconds_generate")),
            ("waiting for groups", TEAL, lambda line: number(line, "seconds_wait")),
            ("verification", GREEN, lambda line: number(line, "seconds_verify")),
            ("update", ORANGE, _update_seconds),
            ("publishing", ROSE, lambda line: number(line, "seconds_publish")),
            ("other", GREY, _other_seconds),
        ]
        return self.bars([trace for part in parts for trace in self.computed(*part)])


def _accuracy(evaluations: Sequence[Evaluation], timeline: Timeline) -> list[Trace]:
    """One trace per stage: two stages may be measured on different problems."""
    traces = []
    for stage in dict.fromkeys(evaluation.stage for evaluation in evaluations):
        own = [evaluation for evaluation in evaluations if evaluation.stage == stage]
        ends = [point.interval or (point.accuracy, point.accuracy) for point in own]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "accuracy",
                "showlegend": False,
                "x": [timeline.x(point.stage, point.step) for point in own],
                "y": [point.accuracy for point in own],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [high - p.accuracy for p, (_, high) in zip(own, ends, strict=True)],
                    "arrayminus": [p.accuracy - low for p, (low, _) in zip(own, ends, strict=True)],
                    "color": GREY,
                    "thickness": 1.2,
                    "width": 4,
                },
                "line": {"color": GREEN, "width": 2.5},
                "marker": {"size": 8},
            }
        )
    return traces


def _update_seconds(line: Line) -> float | None:
    """A step that neither generates nor verifies is all update."""
    seconds = number(line, "seconds_update")
    if seconds is None and line.get("kind") == "sft":
        return number(line, "seconds_step")
    return seconds


def _other_seconds(line: Line) -> float | None:
    whole = number(line, "seconds_step")
    known = [
        *(number(line, f"seconds_{part}") for part in ("generate", "wait", "verify", "publish")),
        _update_seconds(line),
    ]
    if whole is None or all(part is None for part in known):
        return None
    return max(0.0, whole - sum(part or 0.0 for part in known))


def _generation_rate(line: Line) -> float | None:
    return _rate(number(line, "generated_tokens"), number(line, "seconds_generate"))


def _update_rate(line: Line) -> float | None:
    return _rate(number(line, "trained_tokens"), _update_seconds(line))


def _rate(tokens: float | None, seconds: float | None) -> float | None:
    return tokens / seconds if tokens is not None and seconds else None


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
        data += [{**trace, **alone, "yaxis": f"y{suffix}"} for trace in row.traces]
    return {"data": data, "layout": layout}


def _steps_axis(timeline: Timeline) -> dict[str, Any]:
    return {
        "range": [-0.02 * timeline.end - 0.5, 1.02 * timeline.end + 0.5],
        "tickformat": "d",
        **({"dtick": 1} if timeline.end <= 10 else {}),
    }
