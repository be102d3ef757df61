"""Dynamic sampling, a reference that is replaced and a learned threshold: killed and resumed, a run
with all of them ends in the same weights, bit for bit.
"""

from pathlib import Path

import pytest
from running import finish, kill_during, start, weights

from interlock.rundir import RunDir

MORE = [
    "stage.steps=10",
    "stage.extra_groups=2",
    "stage.loss.kl_beta=0.05",
    "stage.loss.kl_estimate=unbiased",
    "stage.loss.reference_every=4",
    "stage.loss.off_policy_quantile=0.5",
    "stage.loss.off_policy_least=0",
]

# As the recipe's own, but nothing is right for every third problem: those teach nothing.
REWARD = """
def reward(problem, answer):
    return 0.0 if int(problem["answer"]) % 3 == 0 else sum(map(ord, answer)) % 17 / 16
"""


@pytest.mark.slow
def test_two_kills_change_no_bit(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(REWARD)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start(tiny_recipe, undisturbed, *MORE))
    process = start(tiny_recipe, killed, *MORE)
    for step in (5, 8):  # a checkpoint is there of steps 3 and 6, the reference of step 4
        kill_during(process, killed, step, 0.05)
        process = start(tiny_recipe, killed, "--resume", *MORE)
    finish(process)
    assert weights(killed) == weights(undisturbed)
    ours, theirs = RunDir.read(killed), RunDir.read(undisturbed)
    for step in range(1, 11):
        assert ours.ledger.read(0, step) == theirs.ledger.read(0, step)
        assert ours.ledger.sequences(0, step) == theirs.ledger.sequences(0, step)
    for mine, their in zip(ours.metrics(), theirs.metrics(), strict=True):
        assert mine.update == their.update
        assert mine.rollout.groups_extra == their.rollout.groups_extra
    steps = theirs.metrics()[1:]
    # All of it was at work: else the comparison says nothing.
    assert 0 < sum(each.rollout.groups_extra or 0 for each in steps) <= 20
    assert any(each.update.off_policy_share for each in steps[6:])
    replaced = [each.message for each in theirs.events() if each.kind == "reference_replaced"]
    assert [message.split(":")[0] for message in replaced] == ["step 4", "step 8"]
