"""Known ways to be paid without an answer, against each verifier that reads one from text."""

from collections.abc import Callable
from typing import Any

import pytest

from interlock.config.tasks import TaskSettings
from interlock.records.rl import Problem
from interlock.tasks import arithmetic, math_verifier

Verify = Callable[[Problem, str], Any]
SUM = Problem("p", [{"role": "user", "content": "What is 12 + 34?"}], "46")
HACKS = {
    "echo": "What is 12 + 34?",
    "only in thinking": "<think>12 + 34 = 46</think>",
    "thinking never ended": "<think>12 + 34 = 46, so the answer is 46",
    "thinking again behind it": "<think>a</think> <think>46",
    "hedging": "It is 45, 46, 47 or 48",
    "nothing": "",
}


@pytest.fixture(params=["arithmetic", "math"])
def verify(request: pytest.FixtureRequest) -> Verify:
    if request.param == "arithmetic":
        return arithmetic.verify
    return math_verifier.open_verifier(TaskSettings("jsonl", options={"path": "x.jsonl"}))


@pytest.mark.parametrize("hack", HACKS)
def test_a_hack_earns_nothing(verify: Verify, hack: str) -> None:
    assert verify(SUM, HACKS[hack]) is False
    assert verify(SUM, "<think>so</think> 46") is True


def test_several_boxes_must_all_be_right() -> None:
    verify = math_verifier.open_verifier(TaskSettings("jsonl", options={"path": "x.jsonl"}))
    assert not verify(SUM, r"\boxed{45} \boxed{46}")
    assert not verify(SUM, r"\boxed{46} \boxed{45}")
    assert verify(SUM, r"\boxed{46} \boxed{46}")
