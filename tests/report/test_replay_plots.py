"""Kept sets in the report."""

from interlock.mismatch import Mismatch
from interlock.records.metrics import ReplayMetrics, StepMetrics, UpdateMetrics
from interlock.report.drawing import Timeline
from interlock.report.replay_plots import replay_plots


def test_a_run_that_repeats_sets_has_the_plot_and_others_have_none() -> None:
    figures = ReplayMetrics(
        tokens=10, kept_mass=0.9, far_share=0.0, whole_far_share=0.6, whole=Mismatch(10, 0.02)
    )
    update = UpdateMetrics(mismatch=Mismatch(10, 1e-4), replay=figures)
    steps = [StepMetrics(stage=0, step=n, kind="grpo", update=update) for n in (1, 2)]
    (plot,) = replay_plots(steps, Timeline(steps, []))
    assert [[trace["y"] for trace in row.traces] for row in plot.rows] == [
        [[1e-4, 1e-4], [0.02, 0.02]],
        [[0.0, 0.0], [0.6, 0.6], [0.9, 0.9]],
    ]
    plain = [StepMetrics(stage=0, step=1, update=UpdateMetrics(mismatch=Mismatch(10, 1e-4)))]
    assert replay_plots(plain, Timeline(plain, [])) == []
