import plotly.graph_objects as go

from interlock.records.metrics import StepMetrics, TeacherMetrics
from interlock.report.drawing import Timeline
from interlock.report.teacher_plots import teacher_plots


def test_each_teacher_has_its_line() -> None:
    metrics = [
        StepMetrics(
            stage=0,
            step=step,
            teachers={
                "<m>": TeacherMetrics(reverse_kl=1.0 / step, overlap=0.1 * step),
                "code": TeacherMetrics(reverse_kl=2.0),
            },
        )
        for step in (1, 2)
    ]
    timeline = Timeline(metrics, [])
    (plot,) = teacher_plots(metrics, timeline)
    figure = plot.figure(timeline)
    go.Figure(figure)
    found = {trace["name"]: (trace["x"], trace["y"]) for trace in figure["data"]}
    assert found == {
        "&lt;m&gt;": ([1, 2], [1.0, 0.5]),
        "overlap with &lt;m&gt;": ([1, 2], [0.1, 0.2]),
        "code": ([1, 2], [2.0, 2.0]),
    }


def test_without_teachers_there_is_nothing_to_show() -> None:
    metrics = [StepMetrics(stage=0, step=1)]
    assert teacher_plots(metrics, Timeline(metrics, [])) == []
