"""Worked solutions: every line must be true, and the verifier must agree with the last."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks.arithmetic import verify
from interlock.tasks.worked import worked

NUMBER = st.integers(0, 10**6 - 1)
ARITHMETIC = TaskSettings("arithmetic")


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
    assert worked(ARITHMETIC, asked) == f"<think>\n{thought}\n</think>\n{asked.answer}"


@given(NUMBER, st.sampled_from("+-*"), NUMBER)
def test_every_line_is_true_and_the_verifier_agrees(a: int, op: str, b: int) -> None:
    asked = problem(a, op, b)
    turn = worked(ARITHMETIC, asked)
    assert verify(asked, turn)
    lines = turn.removeprefix("<think>\n").partition("\n</think>")[0].split("\n")
    for line in lines:
        left, result = line.split("=")
        assert eval(left) == int(result)
    assert lines[-1].endswith(f"={asked.answer}")


def test_a_task_without_solutions_says_so() -> None:
    with pytest.raises(TaskError, match="'gsm8k' has no worked solutions"):
        worked(TaskSettings("gsm8k"), problem(1, "+", 1))
