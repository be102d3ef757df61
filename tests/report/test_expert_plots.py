"""The load of experts in the report."""

from interlock.records.metrics import StepMetrics, UpdateMetrics
from interlock.report.drawing import Timeline
from interlock.report.expert_plots import expert_plots


def test_the_busiest_and_the_idle_have_a_row_each() -> None:
    updates = [
        UpdateMetrics(expert_load=3.5, experts_idle=0.25),
        UpdateMetrics(expert_load=1.5, experts_idle=0.0),
    ]
    metrics = [
        StepMetrics(stage=0, step=number + 1, kind="sft", update=update)
        for number, update in enumerate(updates)
    ]
    timeline = Timeline(metrics, [])
    (plot,) = expert_plots(metrics, timeline)
    load, idle = (row.traces[0] for row in plot.rows)
    assert (load["x"], load["y"]) == ([1, 2], [3.5, 1.5])
    assert idle["y"] == [0.25, 0.0]


def test_without_experts_there_is_nothing_to_show() -> None:
    metrics = [StepMetrics(stage=0, step=1, kind="sft", update=UpdateMetrics(loss=1.0))]
    assert expert_plots(metrics, Timeline(metrics, [])) == []
