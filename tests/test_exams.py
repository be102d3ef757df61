"""What `interlock eval` is asked, and its figures for several tasks and several answers."""

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from scored import group

from interlock.cli.exams import figures, what_to_measure
from interlock.config.tasks import EvaluationSettings
from interlock.errors import ConfigError
from interlock.recipes.evaluate import Exam, asking
from interlock.records.rl import Sampling, ScoredGroup


def asked(*settings: str, **more: Any) -> Exam:
    names = ("problems", "samples", "pass_at", "temperature", "top_p", "max_tokens", "stop")
    names += ("thinking_budget",)
    given: Any = SimpleNamespace(**dict.fromkeys(names), settings=list(settings), model="m")
    given.task = more.pop("task", ["arithmetic"])
    vars(given).update(more)
    return what_to_measure(given)


def test_settings_are_of_all_tasks_or_of_the_one_at_their_place() -> None:
    exam = asked(
        *("seed=4", "0.options.digits=1", "1.options.digits=3", "1.label=long"),
        task=["arithmetic", "arithmetic"],
        samples=4,
        pass_at=[1, 4],
        temperature=0.8,
    )
    found = [(task.called, task.seed, task.options, task.held_out) for task in exam.task]
    assert found == [
        ("arithmetic", 4, {"digits": 1}, 128),
        ("long", 4, {"digits": 3}, 128),
    ]
    assert exam.how == EvaluationSettings(samples=4, pass_at=[1, 4], temperature=0.8)
    drawn = asking(exam.how, exam.sampling, seed=3)
    assert drawn == (Sampling(0.8, 0.95, max_tokens=256), 4, 3)
    assert asking(asked().how, Sampling(0.7, stop=["x"]), 3) == (Sampling(0.0, stop=["x"]), 1, 0)


def test_both_modes_of_thinking_are_asked_apart_within_a_budget() -> None:
    exam = asked(
        *("0.label=thinks", "0.thinking=true", "1.thinking=false", "thinking_switch=tags"),
        task=["arithmetic", "arithmetic"],
        thinking_budget=9,
    )
    found = [(task.called, task.thinking, task.thinking_switch) for task in exam.task]
    assert found == [("thinks", True, "tags"), ("arithmetic", False, "tags")]
    drawn = asking(exam.how, exam.sampling, seed=3).sampling
    assert drawn == Sampling(0.0, max_tokens=256, thinking_budget=9)


@pytest.mark.parametrize(
    ("settings", "more", "complaint"),
    [
        (["2.seed=1"], {"task": ["arithmetic"] * 2}, "is of task 2, and they go from 0 to 1"),
        ([], {"task": ["arithmetic"] * 2}, "task: 2 are called 'arithmetic'"),
        ([], {"pass_at": [2]}, "eval.pass_at = 2 is of more answers than eval.samples = 1"),
        ([], {"temperature": 0.5}, "eval.temperature = 0.5 is of answers that are drawn"),
        ([], {"samples": 9999}, "expected int <= 1024"),
        ([], {"samples": 2, "temperature": 0.0}, "expected float > 0"),
    ],
)
def test_mistakes(settings: list[str], more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        asked(*settings, **more)


def of_task(name: str, scored: ScoredGroup) -> ScoredGroup:
    problem = replace(scored.group.problem, task=name)
    return replace(scored, group=replace(scored.group, problem=problem))


def test_figures_are_of_each_task_and_of_all() -> None:
    exam = asked("1.label=long", task=["arithmetic"] * 2, samples=2, pass_at=[2])
    scored = [
        of_task("arithmetic", group("a", True, False)),
        of_task("long", group("b", False, False)),
        of_task("long", group("c", False, True)),
    ]
    found = figures("m", exam, scored)
    assert (found["accuracy"], found["problems"]) == (pytest.approx(1 / 3), 3)
    assert found["pass_at"]["2"]["mean"] == pytest.approx(2 / 3)
    short, long = found["tasks"]
    assert (short["accuracy"], long["accuracy"]) == (0.5, 0.25)
    assert (short["pass_at"]["2"]["mean"], long["pass_at"]["2"]["mean"]) == (1, 0.5)
    assert long["task"]["label"] == "long"
    alone = figures("m", asked(), scored[:1])
    assert alone["task"]["name"] == "arithmetic" and "tasks" not in alone


def test_a_figure_of_no_problem_is_none() -> None:
    exam = asked(samples=2, pass_at=[1, 2])
    found = figures("m", exam, [group("a", True, None)])
    assert found["pass_at"]["1"]["mean"] == 1
    assert found["pass_at"]["2"] == {"mean": None, "low": None, "high": None, "problems": 0}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
