"""What bench/distil_or_grpo.py counts, by hand, and its shortest form."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Problem,
    ScoredGroup,
    Verdict,
)

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCH)
    return pytest.importorskip("distil_or_grpo")


def scored(rewards: list[float]) -> ScoredGroup:
    """A prompt of 3 tokens, and answers of 2 and 5."""
    answers = [
        Completion.sampled([7] * length, [-1.0] * length, FinishReason.STOP, "x", 0)
        for length in (2, 5)
    ]
    group = Group(Problem("p", [], ""), [1, 2, 3], answers, "w")
    return ScoredGroup(group, [Verdict(reward) for reward in rewards])


def test_flops_by_hand(bench: Any) -> None:
    student, teacher = bench.Weights(100, 10), bench.Weights(1000, 30)
    forward = 2 * (10 * 100 + 7 * 10)  # ten tokens through the layers, seven distributions
    assert bench.flops_of([scored([1.0, 0.0])], "grpo", student, teacher) == 4 * forward
    assert bench.flops_of([scored([1.0, 1.0])], "grpo", student, teacher) == forward
    scoring = 2 * (10 * 1000 + 7 * 30)
    both = [scored([1.0, 1.0]), scored([0.0, 1.0])]
    assert bench.flops_of(both, "distill", student, teacher) == 2 * (4 * forward + scoring)


def test_an_accuracy_is_met_on_the_line_between_two_measurements(bench: Any) -> None:
    curve = [
        bench.Point(0, 0.0, 0.0, 0.25),
        bench.Point(1, 10.0, 1.0, None),
        bench.Point(2, 20.0, 4.0, 0.75),
        bench.Point(4, 40.0, 8.0, 0.5),
    ]
    assert bench.reached(curve, 0.5) == (10.0, 2.0)
    assert bench.reached(curve, 0.75) == (20.0, 4.0)
    assert bench.reached(curve, 0.25) == (0.0, 0.0)
    assert bench.reached(curve, 0.8) is None


def test_both_arms_are_compared_at_what_grpo_reaches(bench: Any) -> None:
    def curve(*points: tuple[float, float]) -> list[Any]:
        return [bench.Point(n, s, 10 * s, a) for n, (s, a) in enumerate(points)]

    curves = {
        "grpo-0": curve((0, 0.1), (50, 0.3), (100, 0.5)),
        "distill-0": curve((0, 0.1), (20, 0.9)),
        "grpo-1": curve((0, 0.1), (50, 0.6), (100, 0.5)),  # it was there before
        "distill-1": curve((0, 0.1), (20, 0.4)),
    }
    first, second = bench.compared(curves, [0, 1])
    assert first["share_of_seconds"] == first["share_of_flops"] == pytest.approx(0.1)
    assert (first["grpo"], first["distill"]) == (0.5, 0.9)
    assert second["grpo_seconds"] == pytest.approx(40) and second["distill_seconds"] is None
    assert second["share_of_seconds"] is None


def test_seconds_are_those_of_the_last_time_and_without_evaluations(
    bench: Any, tmp_path: Path
) -> None:
    path = tmp_path / "seconds.jsonl"
    lines = [
        {"step": 1, "seconds": {"generating": 9.0}},
        {"step": 1, "seconds": {"generating": 1.0, "updating": 2.0, "evaluating": 50.0}},
        {"step": 2, "seconds": {"between": 0.5, "generating": 1.0, "updating": 3.0}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert bench.seconds_of(path) == {1: 3.0, 2: 4.5}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_minute_of_it_goes_on_where_it_stopped(smollm2: Path, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    command = [sys.executable, str(BENCH / "distil_or_grpo.py"), "--brief", "--seeds", "0"]
    command += ["--runs", str(tmp_path / "runs"), "--json", str(told)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for again in (False, True):
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert ran.returncode == 0, ran.stderr[-4000:]
        assert ran.stdout.count("is finished\n") == (3 if again else 0)
    found = json.loads(told.read_text())
    for name in ("grpo-0", "distill-0"):
        curve = found["curves"][name]
        assert [point["step"] for point in curve] == [0, 1]
        assert all(point["accuracy"] is not None for point in curve)
        assert all(a["flops"] < b["flops"] for a, b in itertools.pairwise(curve))
    grpo, distill = (found["curves"][name][-1]["flops"] for name in ("grpo-0", "distill-0"))
    assert distill > grpo  # the teacher reads as well, and no group is left out
