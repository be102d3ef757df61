"""Problems by pass rate in the report."""

from interlock.records.metrics import PoolMetrics, RolloutMetrics, StepMetrics
from interlock.report.drawing import Timeline
from interlock.report.pool_plots import pool_plots


def step(number: int, *pools: PoolMetrics) -> StepMetrics:
    rollout = RolloutMetrics(
        groups=8,
        groups_skipped=6,
        pools={f"task {place}": pool for place, pool in enumerate(pools)},
    )
    return StepMetrics(stage=0, step=number, kind="grpo", rollout=rollout)


def test_all_problems_of_all_tasks_are_stacked() -> None:
    metrics = [
        StepMetrics(stage=0, step=0, kind="grpo"),
        step(1, PoolMetrics(problems=9, retired=0, untried=9, rates={"0%": 0, "100%": 0})),
        step(
            2,
            PoolMetrics(problems=9, retired=2, untried=4, rates={"0%": 2, "100%": 1}),
            PoolMetrics(problems=5, retired=1, untried=1, rates={"0%": 3, "100%": 0}),
        ),
    ]
    timeline = Timeline(metrics, [])
    (plot,) = pool_plots(metrics, timeline)
    stacked, teach = plot.rows
    assert {trace["name"]: trace["y"] for trace in stacked.traces} == {
        "untried": [9, 5],
        "0%": [0, 5],
        "100%": [0, 1],
        "retired": [0, 3],
    }
    assert sum(trace["y"][1] for trace in stacked.traces) == 14
    assert {trace["stackgroup"] for trace in stacked.traces} == {"problems"}
    assert (teach.traces[0]["x"], teach.traces[0]["y"]) == ([1, 2], [0.25, 0.25])


def test_without_drawing_there_is_nothing_to_show() -> None:
    metrics = [step(1)]
    assert pool_plots(metrics, Timeline(metrics, [])) == []
