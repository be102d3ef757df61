"""Worked solutions: every line must be true, and the verifier must agree with the last."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks import open_task
from interlock.tasks.arithmetic import verify as right
from interlock.tasks.gym import open_verifier
from interlock.tasks.worked import open_solver, worked

NUMBER = st.integers(0, 10**6 - 1)


def problem(a: int, op: str, b: int) -> Problem:
    answer = {"+": a + b, "-": a - b, "*": a * b}[op]
    return Problem("x", [], str(answer), {"a": a, "op": op, "b": b})


@pytest.mark.parametrize(
    ("a", "op", "b", "thought"),
    [
        (307, "+", 562, "300+500=800\n0+60=60\n7+2=9\n800+60=860\n860+9=869"),
        (92, "+", 508, "0+500=500\n90+0=90\n2+8=10\n500+90=590\n590+10=600"),
        (7, "+", 0, "7+0=7"),
        (91, "-", 38, "91-30=61\n61-8=53"),
        (38, "-", 91, "91-30=61\n61-8=53\n38-91=-53"),
        (47, "*", 38, "47*30=1410\n47*8=376\n1410+376=1786"),
    ],
)
def test_the_lines_are_those_worked_out_by_hand(a: int, op: str, b: int, thought: str) -> None:
    asked = problem(a, op, b)
    assert worked(asked) == f"<think>\n{thought}\n</think>\n{asked.answer}"


@given(NUMBER, st.sampled_from("+-*"), NUMBER)
def test_every_line_is_true_and_the_verifier_agrees(a: int, op: str, b: int) -> None:
    asked = problem(a, op, b)
    turn = worked(asked)
    assert right(asked, turn)
    lines = turn.removeprefix("<think>\n").partition("\n</think>")[0].split("\n")
    for line in lines:
        left, result = line.split("=")
        assert eval(left) == int(result)
    assert lines[-1].endswith(f"={asked.answer}")


def test_a_task_without_solutions_says_so() -> None:
    with pytest.raises(TaskError, match="'gsm8k' has no worked solutions"):
        open_solver(TaskSettings("gsm8k"))


def test_arithmetic_is_worked_out() -> None:
    assert open_solver(TaskSettings("arithmetic")) is worked


@pytest.mark.parametrize("generator", ["chain_sum", "number_sorting", "countdown", "word_sorting"])
@pytest.mark.parametrize(("form", "turn"), [("direct", "<answer>{}</answer>"), ("none", "{}")])
def test_a_generators_answer_is_given_in_the_form_and_earns_all(
    generator: str, form: str, turn: str
) -> None:
    task = TaskSettings(f"reasoning-gym/{generator}", {"form": form}, held_out=1)
    solve, verify = open_solver(task), open_verifier(task)
    for asked in open_task(task).train(1, 8):
        assert solve(asked) == turn.format(asked.answer)
        assert verify(asked, solve(asked))["reward"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "form = 'default' asks for reasoning; set options.form = \"direct\""),
        ({"form": "simple"}, "form = 'simple' asks for reasoning"),
        ({"shots": 2}, "shots show what worked teaches"),
    ],
)
def test_an_answer_without_reasoning_is_not_given_where_it_is_asked_for(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(TaskError, match=said):
        open_solver(TaskSettings("reasoning-gym/gcd", options))


def test_an_answer_that_is_not_paid_in_full_is_refused() -> None:
    """A lesson that its own scorer calls wrong is none."""
    task = TaskSettings("reasoning-gym/gcd", {"form": "direct"}, held_out=1)
    (asked,) = open_task(task).train(1, 1)
    with pytest.raises(TaskError, match="gcd pays its own answer '0' 0 instead of 1"):
        open_solver(task)(replace(asked, answer="0"))
