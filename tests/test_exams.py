"""What `interlock eval` is asked, and its figures for several tasks and several answers."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from scored import group

from interlock.cli.exams import asking_for, figures, what_to_measure
from interlock.config.schema import GeneratorSettings
from interlock.config.tasks import EvaluationSettings
from interlock.errors import ConfigError
from interlock.recipes.evaluate import Exam, asking, measure
from interlock.recipes.sinks import Sink
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
        (
            [],
            {"problems": 1_000_001},
            "--problems 1000001: that is too many; give 1,000,000 or fewer",
        ),
    ],
)
def test_mistakes(settings: list[str], more: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        asked(*settings, **more)


@pytest.mark.parametrize(
    ("names", "settings", "complaint"),
    [
        (["jsonl"], ["options.path={rows}"], "{rows} has 5 different problems, *give 4"),
        (["jsonl"], ["options.path={folder}"], "test.jsonl has 2 different problems, *give 2"),
        (["jsonl"], ["options.path={one}"], "has 1 different problems, *give data with more rows"),
        # 1 + 1 to 9 + 9 where the order does not count, and 0 beside each: 10 * 11 / 2
        (["arithmetic"], ["options.digits=1", 'options.operators=["+"]'], "than the 55 *give 55"),
        (["arithmetic"], ["held_out=7"], "the task holds out 7; give 7"),
        (["reasoning-gym/chain_sum"], ["options.size=12"], "than the 12 that *give 12"),
        (
            ["arithmetic", "jsonl"],
            ["1.options.path={rows}"],
            "jsonl: {rows} has 5 different problems, *give 4",
        ),
        (
            ["arithmetic", "arithmetic"],
            ["1.label=few", "1.held_out=7", "1.options.digits=1"],
            "few: 60 held-out problems asked for, but the task holds out 7; give 7",
        ),
    ],
)
def test_more_problems_than_there_are(
    names: list[str], settings: list[str], complaint: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [json.dumps({"question": f"{n}+1?", "answer": f"{n + 1}"}) + "\n" for n in range(7)]
    places = {name: tmp_path / f"{name}.jsonl" for name in ("rows", "one")}
    places |= {"folder": tmp_path / "both"}
    places["folder"].mkdir()
    for path, part in (
        (places["rows"], rows[:5]),
        (places["one"], rows[:1]),
        (places["folder"] / "train.jsonl", rows[:5]),
        (places["folder"] / "test.jsonl", rows[5:]),
    ):
        path.write_text("".join(part))
    exam = asked(
        *(each.format(**places) if "{" in each else each for each in settings),
        task=names,
        problems=60,
        max_tokens=4,
    )
    with pytest.raises(ConfigError) as caught, asking_for(60):
        measure(str(tiny_model), exam, GeneratorSettings(), Sink())
    told = str(caught.value)
    assert told.startswith("--problems 60: ") and "\n" not in told and "stage." not in told
    fact, _, remedy = complaint.format(**places).partition("give ")
    for part in fact.rstrip("; ").split("*"):
        assert part.strip() in told
    remedy = f"--problems {remedy} or fewer" if remedy.isdecimal() else remedy
    assert told.endswith(f"; give {remedy}")


def test_the_number_that_nobody_gave_is_named_as_such(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"question": "{n}?", "answer": "{n}"}}\n' for n in range(9)))
    exam = asked(f"options.path={path}", task=["jsonl"], max_tokens=4)
    with pytest.raises(ConfigError) as caught, asking_for(exam.problems, default=True):
        measure(str(tiny_model), exam, GeneratorSettings(), Sink())
    assert str(caught.value).startswith("--problems 128, as it is where nothing is said: ")
    assert str(caught.value).endswith("; give --problems 8 or fewer")


def test_a_run_whose_data_lost_rows_is_told_of_them(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "1?", "answer": "1"}\n')
    exam = asked(f"options.path={path}", task=["jsonl"], problems=3, max_tokens=4)
    began = exam._replace(files={"rows.jsonl": "sha256 0"})
    with pytest.raises(ConfigError, match="its data are others now; put them back") as caught:
        measure(str(tiny_model), began, GeneratorSettings(), Sink())
    assert "has 1 different problems" in str(caught.value)


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
