import math
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go
import pytest

from interlock.config.schema import GuardSettings
from interlock.mismatch import Mismatch
from interlock.records.metrics import (
    Event,
    StepMetrics,
    StepSeconds,
    WorkerMetrics,
    WorkerState,
)
from interlock.report import fleet
from interlock.report.drawing import Timeline
from interlock.report.fleet_plots import fleet_plots

FleetRun = tuple[list[StepMetrics], list[Event]]
GUARD = GuardSettings(warn=1e-3, quarantine=1e-2)


def line(step: int, seconds: float | None = None, **workers: dict[str, Any]) -> StepMetrics:
    return StepMetrics(
        stage=0,
        step=step,
        time=10.0 * step,
        seconds=StepSeconds(step=seconds),
        workers={name: WorkerMetrics(**facts) for name, facts in workers.items()},
    )


def traces(
    metrics: list[StepMetrics],
    events: Sequence[Event] = (),
    guard: GuardSettings | None = GUARD,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Plot id -> trace name -> trace; every figure must be valid plotly."""
    timeline = Timeline(metrics, [])
    found = {}
    for plot in fleet_plots(metrics, events, guard, timeline):
        figure = plot.figure(timeline)
        go.Figure(figure)  # raises on a property that plotly does not know
        found[plot.id] = {trace["name"]: trace for trace in figure["data"]}
    return found


def test_counters_that_begin_anew_are_added_up() -> None:
    metrics = [line(step, w={"groups": value}) for step, value in enumerate([5, 8, 8, 3, 4, 1])]
    metrics.insert(2, line(9))
    grown = fleet.increments(metrics, "w", lambda own: own.groups)
    assert grown == [5, 3, None, 0, 3, 1, 1]
    assert fleet.workers(metrics)[0].groups == 13


def test_a_rate_is_of_the_seconds_spent_generating() -> None:
    figures = [(300, 3.0), (300, 3.0), (700, 4.0), (100, 0.5)]  # the last in a resumed run
    metrics = [
        line(step, w={"tokens": tokens, "seconds_generating": seconds})
        for step, (tokens, seconds) in enumerate(figures)
    ]
    assert fleet.rates(metrics, "w") == [100.0, None, 400.0, 200.0]
    assert fleet.workers(metrics)[0].rate == 800 / 4.5


def test_mismatch_is_weighted_by_tokens_and_told_at_the_lowest_staleness() -> None:
    first = {2: Mismatch(10, 0.5, 0.1, 0.5), 1: Mismatch(30, 1e-3)}
    second = {1: Mismatch(10, 5e-3, 0.7, 0.2), 10: Mismatch(1, 1.0)}
    metrics = [line(1, w={"mismatch": first}), line(2, w={"mismatch": second})]
    means = fleet.mean_mismatch(metrics, "w")
    assert list(means) == [1, 2, 10]
    assert {at: gap.k3 for at, gap in means.items()} == pytest.approx({1: 2e-3, 2: 0.5, 10: 1.0})
    assert (means[1].tokens, means[1].max, means[1].share_above_2) == (40, 0.7, 2 / 40)
    [worker] = fleet.workers(metrics)
    assert (worker.k3, worker.staleness) == (pytest.approx(2e-3), 1)


def test_what_the_guard_does_not_judge_is_not_held_against_its_line() -> None:
    drift, few = {1: Mismatch(900, 0.5)}, {0: Mismatch(GUARD.min_tokens - 1, 0.5)}
    metrics = [line(1, w={"mismatch": drift}), line(2, w={"mismatch": few})]
    assert "worker-mismatch" not in traces(metrics)
    assert list(traces(metrics)["staleness-mismatch"]) == ["w"]
    metrics.append(line(3, w={"mismatch": drift | {0: Mismatch(GUARD.min_tokens, 1e-4)}}))
    shown = traces(metrics)["worker-mismatch"]
    assert shown["w"]["y"] == [None, None, 1e-4] and "quarantine at 0.01" in shown


def test_a_mismatch_beyond_all_numbers_is_shown_as_such() -> None:
    gaps = {0: Mismatch(200, math.inf, math.inf, 1.0)}
    metrics = [line(1, w={"mismatch": gaps}), line(2, w={"mismatch": {0: Mismatch(200, 1e-4)}})]
    assert fleet.workers(metrics)[0].k3 == math.inf
    assert traces(metrics)["worker-mismatch"]["w"]["y"] == [math.inf, 1e-4]


def test_a_worker_keeps_what_it_once_told() -> None:
    told = {"engine": "vllm 0.32.0", "device": "cpu", "dtype": "bfloat16", "canary_k3": 1e-5,
            "state": WorkerState.READY, "weight_version": 4}  # fmt: skip
    gone = {"state": WorkerState.RETIRED}
    [worker] = fleet.workers([line(1, w=told), line(2, w=gone), line(3)])
    assert (worker.engine, worker.device, worker.dtype) == ("vllm 0.32.0", "cpu", "bfloat16")
    assert (worker.state, worker.version, worker.canary_k3) == ("retired", None, 1e-5)
    assert worker.rate is worker.k3 is None and worker.restarts == 0


def test_whom_no_certificate_admits_is_told() -> None:
    trusts = {"a": "train", "b": "unqualified", "c": "cpu", "d": None}
    metrics = [line(1, **{name: {"trust": trust} for name, trust in trusts.items()})]
    metrics += [line(2, b={"trust": None})]
    assert {worker.name: worker.trust for worker in fleet.workers(metrics)} == trusts
    assert fleet.summary(metrics)["without a certificate"] == "1"
    assert "without a certificate" not in fleet.summary([line(1, a={"trust": "train"})])


def test_loading_is_a_share_of_all_workers_time() -> None:
    metrics = [
        line(1, 10.0, a={"seconds_loading": 2.0}, b={"seconds_loading": 0.0}),
        line(2, 4.0, a={"seconds_loading": 3.0}),
        line(3, a={"seconds_loading": 3.5}),
        line(4, 4.0),
    ]
    assert fleet.loading_share(metrics) == [0.1, 0.25, None, None]


def test_the_summary_of_a_run(fleet_run: FleetRun) -> None:
    metrics, _ = fleet_run
    sizes = [step.published.bytes or 0 for step in metrics]
    waited = sum(step.seconds.wait or 0 for step in metrics) / (10.0 * 40)
    staleness = sum(step.rollout.staleness_mean or 0 for step in metrics) / 40
    assert fleet.summary(metrics) == {
        "workers": "2",
        "at work at the end": "1",
        "restarts": "2",
        "mean staleness": f"{staleness:.2f}",
        "groups too stale": "4",
        "problems set aside": "1",
        "learner waited": f"{waited:.0%} of the time",
        "published": f"{sum(sizes) / 1e6:.0f} MB in 2 anchors, 38 deltas",
    }
    torch, vllm = fleet.workers(metrics)
    assert (torch.name, torch.groups, torch.refused, torch.state) == (
        "torch-0", 38 * 4, 1, "generating",
    )  # fmt: skip
    assert (vllm.groups, vllm.dropped, vllm.redispatched, vllm.state) == (
        25 * 4, 3, 5, "quarantined",
    )  # fmt: skip
    assert vllm.fetched_bytes == sum(sizes[:26]) - sizes[8]


@pytest.mark.parametrize(
    ("size", "shown"), [(0, "0"), (12_345, "0.0123"), (2_400_000, "2.4"), (2.69e8, "269")]
)
def test_megabytes(size: float, shown: str) -> None:
    assert fleet.megabytes(size) == shown


def test_the_plots_show_the_logged_numbers(fleet_run: FleetRun) -> None:
    metrics, events = fleet_run
    shown = traces(metrics, events)
    assert list(shown) == [
        "states", "worker-speed", "worker-mismatch", "staleness-mismatch", "staleness", "weights",
    ]  # fmt: skip
    lines = shown["worker-mismatch"]
    workers = [step.workers["vllm-0"].mismatch for step in metrics]
    assert lines["vllm-0"]["y"] == [found[0].k3 if found else None for found in workers]
    assert lines["warn at 0.001"]["y"] == [1e-3, 1e-3]
    assert lines["quarantine at 0.01"]["x"] == [0, 40]
    by_staleness = shown["staleness-mismatch"]["torch-0"]
    assert (by_staleness["x"], by_staleness["y"]) == (
        [0, 1, 2],
        [gap.k3 for gap in fleet.mean_mismatch(metrics, "torch-0").values()],
    )
    assert shown["worker-speed"]["torch-0"]["y"] == fleet.rates(metrics, "torch-0")
    assert shown["staleness"]["highest"]["y"][:4] == [0, 1, 2, 2]
    assert sum(shown["staleness"]["dropped"]["y"]) == 4
    anchors = [mb for mb in shown["weights"]["anchor"]["y"] if mb is not None]
    assert anchors == [269.0, 269.0]
    assert shown["weights"]["share of time"]["y"] == fleet.loading_share(metrics)


def test_the_axis_of_a_mismatch_has_whole_decades(fleet_run: FleetRun) -> None:
    timeline = Timeline(fleet_run[0], [])
    plots = {plot.id: plot for plot in fleet_plots(*fleet_run, GUARD, timeline)}
    axis = plots["worker-mismatch"].figure(timeline)["layout"]["yaxis"]
    assert (axis["type"], axis["range"]) == ("log", [-5.05, -1.95])
    metrics = [line(1, w={"mismatch": {0: Mismatch(5)}})]  # no place on that axis
    assert "worker-mismatch" not in traces(metrics, guard=None)


def test_states_are_spells_and_events_lie_between_the_steps(fleet_run: FleetRun) -> None:
    states = traces(*fleet_run)["states"]
    spells = {
        kind: list(zip(states[kind]["y"], states[kind]["base"], states[kind]["x"], strict=True))
        for kind in ("at work", "starting")
    }
    assert spells["starting"] == [("torch-0", 14, 2), ("vllm-0", 8, 1)]
    assert spells["at work"] == [
        ("torch-0", 0, 14), ("torch-0", 16, 24), ("vllm-0", 0, 8), ("vllm-0", 9, 17),
    ]  # fmt: skip
    [quarantined] = [
        trace
        for plot in fleet_plots(*fleet_run, GUARD, Timeline(fleet_run[0], []))[:1]
        for trace in plot.rows[0].traces
        if trace["name"] == "quarantined" and trace["type"] == "bar"
    ]
    assert (quarantined["base"], quarantined["x"]) == ([26], [14])
    assert states["lost"]["x"] == pytest.approx([8.4])
    assert (states["lost"]["y"], states["lost"]["text"]) == (
        ["vllm-0"], ["worker vllm-0 ended with signal 9"],
    )  # fmt: skip
    assert states["started"]["x"] == [0.5, 0.5]  # before the first step was logged


def test_a_run_without_workers_has_no_fleet(grpo_step: Callable[..., StepMetrics]) -> None:
    metrics = [grpo_step(0, step) for step in (1, 2)]
    assert traces(metrics) == {} and fleet.workers(metrics) == []


def test_a_fleet_too_large_to_draw_says_so() -> None:
    facts = {"state": WorkerState.READY, "tokens": 10, "seconds_generating": 1.0}
    metrics = [line(1, **{f"w{index}": facts for index in range(30)})]
    timeline = Timeline(metrics, [])
    speed = next(p for p in fleet_plots(metrics, [], None, timeline) if p.id == "worker-speed")
    assert len(speed.rows[0].traces) == 24 and "The first 24 of 30 workers." in speed.note
    looks = [(t["line"]["color"], t["line"]["dash"]) for t in speed.rows[0].traces]
    assert len(set(looks)) == 24
    assert len(fleet.workers(metrics)) == 30
