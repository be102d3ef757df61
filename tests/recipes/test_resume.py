"""A run that is killed and resumed ends in the same weights, bit for bit, as one that was not."""

import random
from pathlib import Path

import pytest
from msgspec.structs import replace
from running import finish, kill_during, start, weights

from interlock.records.metrics import CostMetrics, PublishMetrics, StepMetrics, StepSeconds
from interlock.rundir import RunDir


@pytest.mark.parametrize("seed", [1])
def test_three_kills_change_no_bit(tiny_recipe: Path, tmp_path: Path, seed: int) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    narrow = "stage.sampling.top_p=0.9"  # what was left to draw from is in the ledger, too
    finish(start(tiny_recipe, undisturbed, narrow))
    moments = random.Random(seed)
    process = start(tiny_recipe, killed, narrow)
    for step in sorted(moments.sample(range(7), 3)):
        kill_during(process, killed, step, moments.uniform(0, 0.15))
        process = start(tiny_recipe, killed, narrow, "--resume")
    finish(process)
    assert weights(killed) == weights(undisturbed)
    ours, theirs = RunDir.read(killed), RunDir.read(undisturbed)
    assert [event.kind for event in ours.events()].count("resumed") == 3
    for step in range(1, 9):
        assert (groups := ours.ledger.read(0, step)) == theirs.ledger.read(0, step)
        assert all(answer.kept for scored in groups for answer in scored.group.completions)
    assert ours.ledger.count() == 8 * 3
    # A replayed step generates nothing, so its workers have done less.
    for mine, their in zip(ours.metrics(), theirs.metrics(), strict=True):
        assert lasting(mine) == lasting(their)


def lasting(metrics: StepMetrics) -> StepMetrics:
    return replace(
        metrics,
        time=None,
        seconds=StepSeconds(),
        workers={},
        published=PublishMetrics(),
        cost=CostMetrics(),
        rollout=replace(metrics.rollout, retried=None),  # of a session, as its workers' work
    )


def test_the_weights_were_trained_and_differ_by_seed(tiny_recipe: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    for run, seed in zip(runs, ("seed=0", "seed=1"), strict=True):
        finish(start(tiny_recipe, run, seed, "stage.steps=3", "stage.eval.every=0"))
    assert weights(runs[0]) != weights(runs[1])
