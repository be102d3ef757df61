"""Whole runs that draw by pass rate: stopped, extended, and refused."""

import json
from pathlib import Path

import pytest
from running import weights
from stopping import train_until

from interlock.config.reading import load_recipe
from interlock.errors import ConfigError
from interlock.recipes.train import train
from interlock.rundir import RunDir
from interlock.rundir.draws import Draws

JUDGE = '''
def reward(problem, answer):
    """Every third problem is solved by any answer; of the others chance decides."""
    return float(int(problem["answer"]) % 3 == 0 or sum(map(ord, answer)) % 3 == 0)
'''
DRAW = """
[stage.task.draw]
retire = 2
floor = 0.2
"""


@pytest.fixture
def drawn_recipe(tiny_recipe: Path) -> Path:
    """The tiny recipe, its problems drawn by pass rate; half of them tell one."""
    tiny_recipe.with_name("reward.py").write_text(JUDGE)
    rows = [{"question": f"Say {number}.", "answer": str(number)} for number in range(30)]
    told = [row | {"pass_rate": place / 30} for place, row in enumerate(rows[:15])]
    lines = [json.dumps(row) + "\n" for row in told + rows[15:]]
    tiny_recipe.with_name("problems.jsonl").write_text("".join(lines))
    tiny_recipe.write_text(tiny_recipe.read_text() + DRAW)
    return tiny_recipe


def test_a_stop_changes_no_draw_and_no_bit_and_another_stage_draws_anew(
    drawn_recipe: Path, tmp_path: Path
) -> None:
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    given = ["model.clock=2026-01-01T00:00:00", "stage.0.eval.problems=2"]
    recipe = load_recipe(drawn_recipe, given)
    train(recipe, undisturbed)
    train_until(recipe, stopped, 5)  # the newest checkpoint is of step 3
    newest = RunDir.read(stopped).latest_checkpoint()
    assert newest is not None and newest.step == 3
    train(recipe, stopped, resume=True)
    assert weights(stopped) == weights(undisturbed)
    ours, theirs = RunDir.read(stopped), RunDir.read(undisturbed)
    drawn = Draws(theirs.ledger, 0).read()
    assert Draws(ours.ledger, 0).read() == drawn and len(drawn) == 8
    retired = [name for draw in drawn for name in draw.retired]
    pools = [line.rollout.pools.get("jsonl") for line in theirs.metrics()]
    assert pools == [line.rollout.pools.get("jsonl") for line in ours.metrics()]
    assert pools[0] is None and pools[-1] is not None and pools[-1].problems == 22
    assert pools[-1].retired and pools[-1].retired >= len(retired)
    stage = drawn_recipe.read_text().partition("[[stage]]")[2]
    drawn_recipe.write_text(f"{drawn_recipe.read_text()}\n[[stage]]{stage}")
    train(load_recipe(drawn_recipe, [*given, "stage.1.steps=2"]), undisturbed, resume=True)
    longer = RunDir.read(undisturbed)
    assert Draws(longer.ledger, 0).read() == drawn
    # Its own pass rates: those of the data, and none retired.
    assert [draw.known for draw in Draws(longer.ledger, 1).read()] == [0, 1]
    assert Draws(longer.ledger, 1).read()[0].problems == drawn[0].problems


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("stage.task.draw.wanted=[0.5, 0.2]", r"draw\.wanted = \[0\.5, 0\.2\] is no range; give"),
        ("stage.task.draw.floor=0", r"draw\.floor"),
        ("stage.task.draw.newest=0", r"draw\.newest"),
        ("stage.task.draw.retire=-1", r"draw\.retire"),
        ("stage.task.draw.flor=0.1", "flor"),
        ("stage.kind=distill", "draw|teacher"),
    ],
)
def test_settings_that_are_no_use_are_one_line(drawn_recipe: Path, given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(drawn_recipe, [given])
    assert "\n" not in str(caught.value)


def test_a_stage_that_learns_from_no_groups_draws_by_none(drawn_recipe: Path) -> None:
    text = drawn_recipe.read_text().replace('"grpo"', '"reject-sft"')
    drawn_recipe.write_text(text)
    with pytest.raises(ConfigError, match=r"task\.draw is of grpo stages, whose groups show what"):
        load_recipe(drawn_recipe, ["stage.rounds=2"])
