"""What a stage asks its generators to tell, and how that comes to the learner."""

from pathlib import Path
from typing import Any

import pytest
from expert_models import mixture
from msgspec.structs import replace
from running import finish, kill_during, start, weights

from interlock.config.losses import LossSettings
from interlock.config.schema import ModelSettings, Recipe
from interlock.config.stages import Distill, Grpo
from interlock.config.tasks import TaskSettings
from interlock.errors import ConfigError
from interlock.recipes.credit import Credit
from interlock.recipes.replays import check, replay_of
from interlock.records.coding import from_bytes, to_bytes
from interlock.records.replay import KeptTokens, Replay, RouteShape, kept_ids
from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Problem,
    Sampling,
    ScoredGroup,
    Segment,
    Verdict,
)
from interlock.rundir import RunDir

ARCH = mixture().arch
SHAPE = RouteShape(layers=3, per_token=4, experts=16)
TASK = [TaskSettings(name="arithmetic")]


def grpo(replay: list[Any] | None, **sampling: Any) -> Grpo:
    return Grpo(task=TASK, steps=1, replay=replay, sampling=Sampling(**sampling))


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (grpo(None), Replay()),
        (grpo(None, top_p=0.9), Replay(kept=True)),
        (grpo([], top_p=0.9), Replay()),
        (grpo(["routes"], top_p=0.9), Replay(routes=SHAPE)),
        (grpo(["kept", "routes"], min_p=0.1), Replay(True, SHAPE)),
    ],
)
def test_what_is_asked_is_what_the_stage_repeats(stage: Grpo, expected: Replay) -> None:
    assert replay_of(stage, ARCH) == expected
    assert from_bytes(to_bytes(expected), Replay) == expected


@pytest.mark.parametrize(("loss", "kept"), [("policy_gradient", True), ("jsd", False)])
def test_distillation_repeats_sets_where_it_has_ratios(loss: Any, kept: bool) -> None:
    stage = Distill(task=TASK, steps=1, teacher=[], loss=loss, sampling=Sampling(top_k=5))
    assert replay_of(stage, ARCH) == Replay(kept=kept)


def test_routes_of_a_model_without_experts_are_refused_at_the_start() -> None:
    recipe = Recipe(model=ModelSettings("m"), stage=[grpo(None), grpo(["routes"])])
    check(recipe, ARCH)
    with pytest.raises(ConfigError, match=r"stage\.1\.replay has 'routes', and m has no experts"):
        check(recipe, replace(ARCH, routing=None))


def test_what_was_told_comes_to_the_learner_with_its_tokens() -> None:
    row = bytes(range(SHAPE.token_bytes))
    sets = KeptTokens.of([kept_ids([5, 6]), kept_ids([6])])
    told = Segment([5, 6], [-0.5, 0.0], 0, sets, 2 * row)
    first = Completion([told, Segment([9], routes=row)], FinishReason.STOP, "", prompt_routes=row)
    second = Completion([Segment([7], [-1.0], 0)], FinishReason.STOP, "")
    group = Group(Problem("p", [], ""), [1, 2], [first, second], "w")
    scored = from_bytes(to_bytes(ScoredGroup(group, [Verdict(1.0), Verdict(0.0)])), ScoredGroup)
    credit = Credit(LossSettings(), 8)
    (taught,) = credit.training_groups(credit.of([scored]), lambda _: 0)
    assert taught.prompt_routes == row and taught.routes == [3 * row, b""]
    assert taught.kept is not None and taught.kept[1] is None and taught.kept[0] is not None
    assert taught.kept[0].sizes == (2, 1, 0)


@pytest.mark.slow
def test_a_kill_changes_no_bit_where_sets_are_repeated(tiny_recipe: Path, tmp_path: Path) -> None:
    """What is learned again after the last checkpoint has its sets from the ledger."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start(tiny_recipe, undisturbed, "stage.sampling.top_p=0.5"))
    process = start(tiny_recipe, killed, "stage.sampling.top_p=0.5")
    kill_during(process, killed, 5, 0.05)
    finish(start(tiny_recipe, killed, "stage.sampling.top_p=0.5", "--resume"))
    assert weights(killed) == weights(undisturbed)
    steps = RunDir.read(killed).metrics()[1:]
    masses = [each.update.replay.kept_mass for each in steps]
    assert len(masses) == 8 and all(mass is not None and mass < 0.9 for mass in masses)
