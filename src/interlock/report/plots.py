"""The plots of a run as plotly figures: plain dicts that go into the page as JSON.

    step metrics, evaluations ──> Plot(rows of traces) ── figure ──> {"data", "layout"}

The x axis is the global step: the steps of all stages, one after another. A quantity that no step
logged has no plot. Colours of the frame belong to the page, which knows light from dark.
"""

from collections import deque
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any, NamedTuple

from interlock.records.metrics import StepMetrics
from interlock.report.summary import Evaluation, Metrics
from interlock.text import label

BLUE, ORANGE, GREEN, VIOLET, GREY = "#3f83f8", "#f0883e", "#2ba471", "#9b6cf0", "#98a2b3"
_HUES = (GREEN, BLUE, ORANGE, VIOLET)
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


def plots(metrics: Metrics, evaluations: Sequence[Evaluation], timeline: Timeline) -> list[Plot]:
    """Every plot the run has numbers for, in the order of the page."""
    draw = Drawing(metrics, timeline)
    candidates = [
        Plot(
            "accuracy",
            "Held-out accuracy",
            "Answers to problems never trained on; bars are 95 % Wilson intervals.",
            [Panel("accuracy", _accuracy(evaluations, timeline), _PERCENT | {"range": [0, 1]})],
        ),
        Plot(
            "tasks",
            "Held-out accuracy by task",
            "Answers to problems never trained on, of stages that have several tasks.",
            [Panel("accuracy", _by_task(evaluations, timeline), _PERCENT | {"range": [0, 1]})],
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
    loss = draw.line("loss", VIOLET, lambda m: m.update.loss)
    norm = draw.line("gradient norm", VIOLET, lambda m: m.update.grad_norm)
    rate = draw.line("learning rate", GREY, lambda m: m.update.lr)
    return [
        Plot(
            "reward",
            "Reward and right answers",
            "Over all completions sampled in a step. A reward may be any number; what is right the "
            "verifier says.",
            [
                Panel("mean reward", draw.smoothed(lambda m: m.rollout.reward, BLUE), {}),
                Panel("right", draw.line("right", GREEN, lambda m: m.rollout.correct), _PERCENT),
            ],
        ),
        Plot(
            "loss",
            "Loss",
            "Of a GRPO step only the gradient matters, not the level. Held out: of texts that a "
            "pretrain stage does not learn.",
            [
                Panel(
                    "loss", [*loss, *draw.points("held out", GREEN, lambda m: m.held_out_loss)], {}
                )
            ],
        ),
        Plot(
            "gradient",
            "Gradient norm and learning rate",
            "The norm is the one before clipping.",
            [Panel("norm", norm, _FROM_ZERO), Panel("learning rate", rate, _SMALL)],
        ),
    ]


def _policy(draw: "Drawing") -> list[Plot]:
    length = [*draw.line("length", BLUE, lambda m: m.rollout.length), *_apart(draw)]
    cut = [
        *draw.line("share cut", ORANGE, lambda m: m.rollout.truncated),
        *draw.line("thinking ended by its budget", VIOLET, _over_budget),
    ]
    entropy = draw.line("entropy", GREEN, lambda m: m.update.entropy)
    return [
        Plot(
            "length",
            "Completion length",
            "Mean length, of models that think also what thinks and what answers; and the share of "
            "completions cut at max_tokens, or whose thinking had used its budget.",
            [Panel("tokens", length, _FROM_ZERO), Panel("share cut", cut, _PERCENT)],
        ),
        Plot(
            "entropy",
            "Entropy",
            "Of the policy's next token, mean; a fall to zero ends exploration.",
            [Panel("nats per token", entropy, _FROM_ZERO)],
        ),
        Plot(
            "mismatch",
            "Mismatch of learner and sampler",
            "Same tokens, same weights: k3 estimate of the KL, and the share of ratios above 2.",
            [
                Panel("k3, nats", draw.line("k3", ORANGE, _k3), _SMALL),
                Panel("ratio > 2", draw.line("ratio > 2", GREY, _share_above_2), _PERCENT),
            ],
        ),
    ]


def _over_budget(metrics: StepMetrics) -> float | None:
    cut, answers = metrics.rollout.thinking_cut, metrics.rollout.completions
    return None if cut is None or not answers else cut / answers


def _apart(draw: "Drawing") -> list[Trace]:
    """Thinking and answer; nothing where nobody ever thought."""
    thinking = draw.line("thinking", VIOLET, lambda m: m.rollout.thinking_length)
    answer = draw.line("answer", TEAL, lambda m: m.rollout.answer_length)
    thought = any(y for trace in thinking for y in trace["y"])
    return [*thinking, *answer] if thought else []


def _cost(draw: "Drawing") -> list[Plot]:
    generation = draw.line("generation", BLUE, _generation_rate)
    update = draw.line("update", ORANGE, _update_rate)
    return [
        Plot(
            "time",
            "Time per step",
            "Stacked by what it went to.",
            [Panel("seconds", draw.time_split(), _FROM_ZERO)],
        ),
        Plot(
            "speed",
            "Tokens per second",
            "Sampled per second of generation, trained per second of update.",
            [Panel("tokens / s", [*generation, *update], _FROM_ZERO)],
        ),
    ]


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

    def time_split(self) -> list[Trace]:
        traces = [
            *self.line("generation", BLUE, lambda m: m.seconds.generate),
            *self.line("waiting for groups", TEAL, lambda m: m.seconds.wait),
            *self.line("verification", GREEN, lambda m: m.seconds.verify),
            *self.line("update", ORANGE, lambda m: m.seconds.update),
            *self.line("publishing", ROSE, lambda m: m.seconds.publish),
            *self.line("other", GREY, _other_seconds),
        ]
        return self.bars(traces)


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


def _by_task(evaluations: Sequence[Evaluation], timeline: Timeline) -> list[Trace]:
    """One trace per task and stage, all of a task in one colour."""
    names = list(dict.fromkeys(name for each in evaluations for name in each.tasks))
    traces = []
    for place, name in enumerate(names):
        of_task = [each for each in evaluations if name in each.tasks]
        for stage in dict.fromkeys(each.stage for each in of_task):
            own = [each for each in of_task if each.stage == stage]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": label(name),
                    "legendgroup": label(name),
                    "showlegend": stage == of_task[0].stage,
                    "x": [timeline.x(each.stage, each.step) for each in own],
                    "y": [each.tasks[name].mean for each in own],
                    "line": {"color": _HUES[place % len(_HUES)], "width": 2},
                }
            )
    return traces


def _k3(step: StepMetrics) -> float | None:
    return step.update.mismatch.k3 if step.update.mismatch else None


def _share_above_2(step: StepMetrics) -> float | None:
    return step.update.mismatch.share_above_2 if step.update.mismatch else None


def _other_seconds(step: StepMetrics) -> float | None:
    spent = step.seconds
    parts = (spent.generate, spent.wait, spent.verify, spent.update, spent.publish)
    known = [part for part in parts if part is not None]
    return max(0.0, spent.step - sum(known)) if known and spent.step is not None else None


def _generation_rate(step: StepMetrics) -> float | None:
    return _rate(step.rollout.tokens, step.seconds.generate)


def _update_rate(step: StepMetrics) -> float | None:
    return _rate(step.update.tokens, step.seconds.update)


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
