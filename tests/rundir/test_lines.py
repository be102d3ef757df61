"""Metrics and events as this version reads them: of any version, and of files somebody broke."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.errors import RunError
from interlock.mismatch import Mismatch
from interlock.records.metrics import (
    PublishMetrics,
    RolloutMetrics,
    StepMetrics,
    StepSeconds,
    UpdateMetrics,
    WorkerMetrics,
    WorkerState,
)
from interlock.rundir.files import JsonLines
from interlock.rundir.lines import read_events, read_metrics, steps_of, whole_lines

# A line as it was written before metrics had parts.
OLD: dict[str, Any] = {
    "time": 1780.5, "stage": 1, "step": 3, "kind": "grpo", "reward": 0.5, "length": 11.0,
    "truncated": 0.25, "groups": 4, "groups_skipped": 1, "verifier_errors": 2,
    "generated_tokens": 352, "trained_tokens": 264, "bad_steps": 0, "weight_version": 7,
    "loss": 0.125, "grad_norm": 1.5, "lr": 1e-5, "entropy": 2.0, "mismatch_k3": 1e-4,
    "mismatch_max": 0.75, "mismatch_share_above_2": 0.5, "clipped_share": 0.0,
    "corrected_share": 0.125, "vetoed": 1, "kl": None, "seconds_wait": 2.0, "seconds_verify": 0.5,
    "seconds_update": 4.0, "seconds_publish": 0.25, "seconds_step": 7.0, "staleness_mean": 0.5,
    "staleness_max": 1, "groups_stale": 3, "groups_set_aside": 1, "accuracy": 0.75,
    "published_bytes": 9000, "published": {"anchor": 1, "delta": 2},
    "workers": {
        "w0": {
            "state": "ready", "engine": "torch 2.13.0", "device": "cpu", "dtype": "float32",
            "trust": "cpu", "weight_version": 7, "groups": 12, "tokens": 900,
            "seconds_generating": 3.0, "seconds_loading": 0.5, "fetched_bytes": 9000,
            "dropped": 0, "redispatched": 0, "refused": 0, "restarts": 1, "requalified": 0,
            "canary_k3": 1e-9,
            "mismatch": {"0": {"tokens": 264, "k3": 1e-4, "max": 0.75, "share_above_2": 0.5}},
        }
    },
}  # fmt: skip
NEW = StepMetrics(
    time=1780.5,
    stage=1,
    step=3,
    kind="grpo",
    accuracy=0.75,
    weight_version=7,
    rollout=RolloutMetrics(
        reward=0.5,
        length=11.0,
        truncated=0.25,
        tokens=352,
        groups=4,
        groups_skipped=1,
        groups_stale=3,
        groups_set_aside=1,
        staleness_mean=0.5,
        staleness_max=1,
        verifier_errors=2,
    ),
    update=UpdateMetrics(
        loss=0.125,
        grad_norm=1.5,
        lr=1e-5,
        entropy=2.0,
        mismatch=Mismatch(264, 1e-4, 0.75, 0.5),
        clipped_share=0.0,
        corrected_share=0.125,
        vetoed=1,
        tokens=264,
        bad_steps=0,
    ),
    seconds=StepSeconds(wait=2.0, verify=0.5, update=4.0, publish=0.25, step=7.0),
    published=PublishMetrics(9000, anchors=1, deltas=2),
    workers={
        "w0": WorkerMetrics(
            WorkerState.READY,
            "torch 2.13.0",
            "cpu",
            "float32",
            "cpu",
            weight_version=7,
            groups=12,
            tokens=900,
            seconds_generating=3.0,
            seconds_loading=0.5,
            fetched_bytes=9000,
            restarts=1,
            canary_k3=1e-9,
            mismatch={0: Mismatch(264, 1e-4, 0.75, 0.5)},
        )
    },
)


def written(path: Path, *lines: Any) -> JsonLines:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return JsonLines(path)


def test_a_line_of_an_older_run_reads_as_one_of_today(tmp_path: Path) -> None:
    file = written(tmp_path / "metrics.jsonl", OLD)
    file.append(NEW)
    assert read_metrics(file) == [NEW, NEW]


@pytest.mark.parametrize("places", [{0}, {1}, {2}, {0, 2}, {0, 1, 2}])
def test_lines_of_older_versions_are_read_wherever_they_stand(
    tmp_path: Path, places: set[int]
) -> None:
    """A run may have been gone on with by an older version than the one that began it."""
    file = JsonLines(tmp_path / "metrics.jsonl")
    for place in range(3):
        file.append(OLD if place in places else NEW)
    assert steps_of(whole_lines(file.path.read_bytes().splitlines()), file.path) == [NEW] * 3
    assert read_metrics(file) == [NEW] * 3


def test_a_bare_line_reads_and_what_nobody_knows_is_passed_over(tmp_path: Path) -> None:
    more = {
        "invented": {"later": 1},
        "rollout": {"reward": 1, "joy": 2},
        "workers": {"w": {"x": 1}},
    }
    file = written(
        tmp_path / "metrics.jsonl", {"stage": 0, "step": 0}, {"stage": 0, "step": 1} | more
    )
    workers = {"w": WorkerMetrics()}
    assert read_metrics(file) == [
        StepMetrics(stage=0, step=0),
        StepMetrics(stage=0, step=1, rollout=RolloutMetrics(reward=1), workers=workers),
    ]


def test_what_is_not_finite_comes_back_as_what_it_can_be(tmp_path: Path) -> None:
    gap = Mismatch(9, math.inf, math.nan, 1.0)
    file = JsonLines(tmp_path / "metrics.jsonl")
    file.append(
        StepMetrics(
            stage=0,
            step=1,
            update=UpdateMetrics(loss=math.nan, grad_norm=math.inf, mismatch=gap),
            workers={"w": WorkerMetrics(canary_k3=math.inf, mismatch={2: gap})},
        )
    )
    [line] = read_metrics(file)
    beyond = Mismatch(9, math.inf, math.inf, 1.0)
    assert line.update == UpdateMetrics(mismatch=beyond)
    assert line.workers == {"w": WorkerMetrics(mismatch={2: beyond})}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"step": 1}, "missing required field `stage`"),
        ({"stage": 0, "step": "one"}, "Expected `int`, got `str`"),
        ({"stage": 0, "step": 1, "reward": "high"}, "`$.rollout.reward`"),
        ({"stage": 0, "step": 1, "workers": {"w": 3}}, "Expected `object`, got `int`"),
        ({"stage": 0, "step": 1, "workers": {"w": {"mismatch": {"²": {}}}}}, "Expected `int`"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: Any, said: str) -> None:
    file = written(tmp_path / "metrics.jsonl", {"stage": 0, "step": 0}, line)
    with pytest.raises(
        RunError, match=r"metrics\.jsonl line 2 is damaged .*delete that line"
    ) as told:
        read_metrics(file)
    assert said in str(told.value) and "\n" not in str(told.value)


ODD = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["0", "²", "tokens", "k3", "mismatch", "w"]), inner)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from([*OLD, "rollout", "update", "seconds"])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEYS, ODD))
def test_whatever_stands_in_a_line_is_read_or_named(
    tmp_path_factory: pytest.TempPathFactory, line: dict[str, Any]
) -> None:
    file = JsonLines(tmp_path_factory.mktemp("lines") / "metrics.jsonl")
    file.append({"stage": 0, "step": 1} | line)
    try:
        assert len(read_metrics(file)) == 1
    except RunError as error:
        assert "line 1 is damaged" in str(error)


def test_events_of_another_version(tmp_path: Path) -> None:
    file = written(
        tmp_path / "events.jsonl",
        {"time": 1.0, "kind": "unqualified", "message": "m", "device": "sim", "reason": "r"},
        {"time": 2.5, "kind": "worker_lost", "message": "lost", "worker": "w1"},
        {"time": 3.0, "kind": "moon_phase", "message": "full", "phase": 4},
        {"time": 4.0, "message": "no kind"},
    )
    used, lost, moon, bare = read_events(file)
    assert (used.kind, used.facts) == ("unqualified", {"device": "sim", "reason": "r"})
    assert (lost.time, lost.worker, lost.name, lost.facts) == (2.5, "w1", "worker lost", {})
    assert (moon.kind, moon.name) == ("other", "moon phase")
    assert moon.facts == {"kind": "moon_phase", "phase": "4"}
    assert (bare.kind, bare.name, bare.message) == ("other", "event", "no kind")
    with pytest.raises(RunError, match="line 5 is damaged"):
        file.append({"kind": "worker_lost", "message": "when?"})
        read_events(file)


def test_the_numbers_of_a_step_by_their_paths() -> None:
    found = NEW.scalars()
    assert found["accuracy"] == 0.75 and found["weight_version"] == 7
    assert found["rollout/reward"] == 0.5 and found["update/mismatch/k3"] == 1e-4
    assert found["workers/w0/mismatch/0/tokens"] == 264 and found["published/anchors"] == 1
    assert not found.keys() & {"time", "stage", "step", "kind", "update/kl", "seconds/generate"}
    assert StepMetrics(stage=0, step=1).scalars() == {}


NO_SHARE = {"tokens": 5, "k3": None, "max": None, "share_above_2": None}


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": 10**30},
        {"step": -1},
        {"stage": 2**63},
        {"time": 1e300},
        {"generated_tokens": 10**400},
        {"workers": {"w": {"tokens": 10**400}}},
        {"workers": {"w": {"mismatch": {str(10**400): {"tokens": 1}}}}},
        {"update": {"mismatch": {"tokens": 10**400}}, "mismatch_k3": None},
        {"update": {"mismatch": NO_SHARE}, "mismatch_k3": None},
        {"workers": {"w": {"mismatch": {"0": NO_SHARE}}}},
        {"workers": {"w": {"mismatch": {"0": {"tokens": 5, "share_above_2": 1e308}}}}},
    ],
)
def test_numbers_that_no_run_writes_are_damage(wrong: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(OLD | wrong) + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl line 1 is damaged"):
        read_metrics(JsonLines(path))
