"""Rewards from outside of the verifier's process: a model's word and hidden tests, in one sum."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rude_service import Request, RudeService, completion, grade
from ways_here import any_usable

from interlock.config.reading import parse_recipe
from interlock.config.tasks import TaskSettings, task_conflicts
from interlock.errors import ConfigError, TaskError
from interlock.records.rl import Attempt, Problem, Verdict, VerdictStatus
from interlock.tasks import open_task
from interlock.tasks.executing import judges_outside
from interlock.tasks.mixture import Verifiers

SUM = Problem("p", [{"role": "user", "content": "What is 12 + 34?"}], "46", task="arithmetic")


def rewarded(name: str, *tables: dict[str, Any], **more: Any) -> TaskSettings:
    return msgspec.convert({"name": name, "reward": tables, **more}, TaskSettings)


def by_politeness(request: Request) -> None:
    """10 for "please", 5 else; away where an answer is "away", and garbage where it is "garble"."""
    user = request.body["messages"][1]["content"]
    told = re.search(r"<answer-(\w+)>\n(.*)\n</answer-\1>", user, re.DOTALL)
    said = told[2] if told else ""
    if said == "away":
        request.reply(401, b"{}")
    elif said == "garble":
        request.reply(200, completion("ten!"))
    else:
        request.reply(200, completion(grade(10 if "please" in said else 5)))


def test_a_judge_beside_the_verifier() -> None:
    with RudeService(by_politeness) as service:
        judge = {"url": service.url, "model": "m", "attempts": 1, "price_in": 1.0}
        task = rewarded(
            "arithmetic",
            {"kind": "accuracy"},
            {"kind": "judge", "name": "manners", "weight": 0.5, "judge": judge},
            {"kind": "overlong", "zone": 40},
        )
        turns = ["46", "46 please", "47 please"]
        with Verifiers([task]) as verifiers:
            found = verifiers.verify([Attempt(SUM, turn, 70, None, 100) for turn in turns])
            spent = verifiers.spent()
            lost = verifiers.verify(
                [Attempt(SUM, turn, 9, None, 100) for turn in ("away", "garble")]
            )
    assert found == [
        Verdict(
            reward, right, parts={"accuracy": float(right), "overlong": -0.25, "manners": value}
        )
        for reward, right, value in [(1.0, True, 0.5), (1.25, True, 1.0), (0.25, False, 1.0)]
    ]
    assert spent["requests"] == 4  # the trial of the service among them
    assert spent["money"] == pytest.approx(4 * 100 / 1e6)
    assert [each.status for each in lost] == [VerdictStatus.UNAVAILABLE, VerdictStatus.ERROR]
    assert [each.reward for each in lost] == [0.0, 0.0]


def test_a_judge_alone_pays_and_the_verifier_says_what_is_right() -> None:
    with RudeService(by_politeness) as service:
        judge = {"url": service.url, "model": "m"}
        task = rewarded("arithmetic", {"kind": "judge", "judge": judge, "fades": 2})
        attempts = [Attempt(SUM, "46", step=step) for step in (1, 2, 9)]
        with Verifiers([task]) as verifiers:
            found = verifiers.verify(attempts)
    assert [(each.reward, each.right) for each in found] == [(0.5, True), (0.25, True), (0, True)]
    assert found[0].parts == {"accuracy": 1.0, "judge": 0.5}


def test_hidden_tests_beside_a_users_verifier(tmp_path: Path) -> None:
    any_usable()
    rows = [
        {"question": f"Write `add`, which adds two numbers. ({n})", "answer": "add",
         "entry_point": "add", "tests": "assert add(1, 2) == 3"}
        for n in range(4)
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    functions = tmp_path / "short.py"
    functions.write_text("def short(row, text):\n    return len(text) < 60\n")
    options = {"path": str(path), "verifier": f"{functions}:short"}
    task = rewarded(
        "jsonl", {"kind": "accuracy"}, {"kind": "code", "weight": 2.0}, options=options, held_out=1
    )
    assert judges_outside(task)
    [problem] = open_task(task).held_out(1)
    problem = msgspec.structs.replace(problem, task="jsonl")
    assert problem.meta == {"entry": "add", "preamble": "", "tests": "assert add(1, 2) == 3"}
    right, wrong = "def add(a, b):\n    return a + b", "def add(a, b):\n    return a - b"
    with Verifiers([task]) as verifiers:
        found = verifiers.verify([(problem, right), (problem, wrong), (problem, right + "\n" * 60)])
    assert [each.reward for each in found] == [3.0, 1.0, 2.0]
    parts = [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]
    assert [each.parts for each in found] == [{"accuracy": a, "code": b} for a, b in parts]
    path.write_text(json.dumps({"question": "q", "answer": "a"}) + "\n")
    with pytest.raises(TaskError, match=r"no text in the field 'entry_point'"):
        open_task(task)


def test_what_does_not_go_together_is_said() -> None:
    code = rewarded("arithmetic", {"kind": "code"})
    assert list(task_conflicts([code])) == [
        "task.reward of kind code wants hidden tests in every row, and 'arithmetic' has none; use "
        "a jsonl or code task, or remove it"
    ]
    hub = rewarded("jsonl", {"kind": "code"}, options={"path": "hf:org/name"})
    with pytest.raises(TaskError, match="hides its tests from programs, and path = 'hf:org/name'"):
        Verifiers([hub])
    judge = {"kind": "judge", "judge": {"url": "nowhere", "model": "m"}}
    assert next(task_conflicts([rewarded("arithmetic", judge)])).startswith(
        "task.reward.judge.judge.url = 'nowhere' is no address"
    )
    judge["judge"] = {"url": "http://x/v1", "model": "m", "body": {"top_p": float("nan")}}
    stage = {"kind": "grpo", "steps": 1, "task": [{"name": "arithmetic", "reward": [judge]}]}
    with pytest.raises(ConfigError, match=r"reward\.judge\.judge\.body\.top_p = nan"):
        parse_recipe({"model": {"path": "m"}, "stage": [stage]})
