"""How even the experts of a mixture are: step metrics ──> Plot; a model without any has none."""

from interlock.report.drawing import GREY, ORANGE, Drawing, Panel, Plot, Timeline, shown
from interlock.report.summary import Metrics


def expert_plots(metrics: Metrics, timeline: Timeline) -> list[Plot]:
    draw = Drawing(metrics, timeline)
    load = draw.line("busiest expert", ORANGE, lambda m: m.update.expert_load)
    idle = draw.line("idle", GREY, lambda m: m.update.experts_idle)
    note = (
        "Tokens of the busiest expert over the mean, in the layer that is worst (1 is even), of "
        "what was trained on; and the share of the experts of all layers that no token chose."
    )
    rows = [
        Panel("times the mean", load, {"rangemode": "tozero"}),
        Panel("idle", idle, {"rangemode": "tozero", "tickformat": "~%"}),
    ]
    return shown([Plot("experts", "Load of the experts", note, rows)])
