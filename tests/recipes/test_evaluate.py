"""Evaluations by workers that fail: what is left out, and when there is nothing left."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from interlock.errors import TrainingError
from interlock.recipes.evaluate import answer_greedily
from interlock.recipes.sinks import Sink
from interlock.records.rl import Completion, FinishReason, Group, Problem, Sampling, Verdict
from interlock.workers.generators import Outcome, Work


def answered(problems: int, aside: set[int]) -> list[Any]:
    """What comes of so many problems, those of these numbers set aside; every answer is right."""
    ordered: list[Work] = []

    def collect(*_: Any) -> list[Outcome]:
        work = ordered.pop(0)
        answer = Completion.sampled([1], [-0.5], FinishReason.STOP, "x", 0)
        found = []
        for key, problem in zip(work.keys, work.problems, strict=True):
            group = None if key in aside else Group(problem, [1], [answer], "a")
            found.append(Outcome(key, group, "it kills"))
        return found

    def verify(pairs: Sequence[Any]) -> list[Verdict]:
        return [Verdict(1.0) for _ in pairs]

    generators: Any = SimpleNamespace(size=2, order=ordered.extend, collect=collect, facts=dict)
    verifier: Any = SimpleNamespace(verify=verify)
    asked = [Problem(f"p{number}", [], "") for number in range(problems)]
    return answer_greedily(asked, generators, verifier, Sampling(), Sink())


def test_a_problem_that_is_set_aside_is_left_out() -> None:
    scored = answered(5, {1, 4})
    assert [each.group.problem.id for each in scored] == ["p0", "p2", "p3"]


def test_an_evaluation_of_which_nothing_is_left_ends_the_run() -> None:
    with pytest.raises(TrainingError, match="all 3 held-out problems were set aside"):
        answered(3, {0, 1, 2})
