"""How far a distill stage's student is from its teachers, a line each.

step metrics ── teachers ──> Plot(reverse KL, overlap); a run without any has none
"""

from functools import partial

from interlock.records.metrics import StepMetrics, TeacherMetrics
from interlock.report.drawing import (
    BLUE,
    GREEN,
    ORANGE,
    ROSE,
    TEAL,
    VIOLET,
    Drawing,
    Panel,
    Plot,
    Timeline,
    shown,
)
from interlock.report.summary import Metrics
from interlock.text import label

_COLORS = (BLUE, ORANGE, GREEN, VIOLET, TEAL, ROSE)  # of more teachers they are told by name alone


def teacher_plots(metrics: Metrics, timeline: Timeline) -> list[Plot]:
    draw = Drawing(metrics, timeline)
    names = list(dict.fromkeys(name for line in metrics for name in line.teachers))
    distance, overlap = [], []
    for place, name in enumerate(names):
        color = _COLORS[place % len(_COLORS)]
        distance += draw.line(label(name), color, partial(_reverse_kl, name))
        overlap += draw.line(f"overlap with {label(name)}", color, partial(_overlap, name))
    note = (
        "Reverse KL of the student against each teacher, per token; and the share of the teacher's "
        "likeliest tokens that are among the student's."
    )
    rows = [
        Panel("nats per token", distance, {"rangemode": "tozero"}),
        Panel("overlap", overlap, {"rangemode": "tozero", "tickformat": "~%"}),
    ]
    return shown([Plot("teachers", "Distance to the teachers", note, rows)])


def _reverse_kl(name: str, step: StepMetrics) -> float | None:
    return step.teachers.get(name, TeacherMetrics()).reverse_kl


def _overlap(name: str, step: StepMetrics) -> float | None:
    return step.teachers.get(name, TeacherMetrics()).overlap
