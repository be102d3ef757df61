"""Tasks of a recipe: several in a stage, and what stages of one recipe may not share."""

import re
from pathlib import Path

import pytest
from recipe_texts import BASE, load

from interlock.config.reading import parse_recipe, to_tree
from interlock.errors import ConfigError

TWO_TASKS = """
[[stage]]
kind = "grpo"
steps = 3

[[stage.task]]
name = "arithmetic"
weight = 3.0

[[stage.task]]
name = "arithmetic"
label = "long"
options.digits = 4
"""


def test_a_lone_task_is_a_list_of_one_and_several_are_told_apart(tmp_path: Path) -> None:
    lone = load(tmp_path, BASE, "stage.task.seed=4")
    assert [(task.called, task.seed) for task in lone.stage[0].task] == [("arithmetic", 4)]
    model = BASE.partition("[[stage]]")[0]
    two = load(tmp_path, model + TWO_TASKS, "stage.task.1.seed=4")
    assert [(task.called, task.weight, task.seed) for task in two.stage[0].task] == [
        ("arithmetic", 3.0, 0),
        ("long", 1.0, 4),
    ]
    assert parse_recipe(to_tree(two)) == two


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("stage.task.1.label=a\nb", r"task.label = 'a\nb' is no name: at most 80 characters"),
        ("stage.task.1.label=arithmetic", "task: 2 are called 'arithmetic'; give each a label"),
        ("stage.task.1.held_out=8", "is more than task.1.held_out = 8"),
        ("stage.task.0.weight=0", "stage.0.task.0.weight = 0: expected float > 0"),
        ("stage.task.1.options.digits=inf", "stage.0.task.1.options.digits = inf"),
        ("stage.task.seed=1", "cannot set stage.task.seed: give an index from 0 to 1"),
        ("stage.task.0.sed=1", "unknown setting 'stage.0.task.0.sed'"),
    ],
)
def test_mistakes_in_one_of_several_tasks(tmp_path: Path, override: str, complaint: str) -> None:
    model = BASE.partition("[[stage]]")[0]
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(tmp_path, model + TWO_TASKS, override)


def test_a_weight_needs_another_task(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.weight = 2\.0 is against other tasks"):
        load(tmp_path, BASE, "stage.task.weight=2.0")


TWO = """
[model]
path = "m"
[[stage]]
kind = "grpo"
steps = 1
[stage.task]
name = "arithmetic"
[[stage]]
kind = "grpo"
steps = 1
[stage.task]
name = "arithmetic"
"""


@pytest.mark.parametrize("setting", ["stage.1.task.seed=1", "stage.1.task.held_out=512"])
def test_no_stage_trains_on_what_another_holds_out(tmp_path: Path, setting: str) -> None:
    assert len(load(tmp_path, TWO).stage) == 2
    assert len(load(tmp_path, TWO, setting, "stage.1.task.options.digits=3").stage) == 2
    with pytest.raises(ConfigError, match=r"stage\.1: task .* has the problems of stage 0"):
        load(tmp_path, TWO, setting)


@pytest.mark.parametrize(
    "other",
    [
        'path="./rows.jsonl"',
        'path="data/../rows.jsonl"',
        'path="rows.jsonl", question_field="question"',
        'path="rows.jsonl", instruction="Think."',
    ],
)
def test_rows_are_known_however_a_task_names_them(tmp_path: Path, other: str) -> None:
    rows = ['stage.task={name="jsonl",label="a",options={path="rows.jsonl"}}']
    more = f'{{name="jsonl",label="b",seed=1,options={{{other}}}}}'
    both = [rows[0].replace("={", "=[{", 1) + f",{more}]"]
    with pytest.raises(ConfigError, match=r"'a' and 'b' are of the same problems"):
        load(tmp_path, BASE, *both)
    assert len(load(tmp_path, BASE, both[0].replace("seed=1", "seed=0")).stage[0].task) == 2
    apart = [f"stage.0.{rows[0][6:]}", f"stage.1.task={more}"]
    with pytest.raises(ConfigError, match=r"stage\.1: task 'b' has the problems of stage 0"):
        load(tmp_path, TWO, *apart)
