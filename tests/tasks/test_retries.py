"""What is judged again, how often, and what never is."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.records.rl import Problem, Verdict, VerdictStatus
from interlock.tasks.retries import Pair, judged_again

GONE = Verdict.failed(VerdictStatus.UNAVAILABLE, "down")


def _pairs(count: int) -> list[Pair]:
    return [(Problem(str(index), [], ""), "") for index in range(count)]


class Judge:
    """Answers number i only from attempt `back[i]` on; counts what it was asked."""

    def __init__(self, back: Sequence[int]) -> None:
        self.back = back
        self.asked: list[list[int]] = []

    def __call__(self, pairs: Sequence[Pair]) -> list[Verdict]:
        numbers = [int(problem.id) for problem, _ in pairs]
        attempt = len(self.asked)
        self.asked.append(numbers)
        return [Verdict(float(n)) if attempt >= self.back[n] else GONE for n in numbers]


@given(back=st.lists(st.integers(0, 6), max_size=12), retries=st.integers(0, 4))
def test_each_is_asked_until_it_counts_or_the_attempts_are_over(
    back: list[int], retries: int
) -> None:
    judge = Judge(back)
    found, again = judged_again(judge, _pairs(len(back)), retries, 1e9, lambda _: None)
    assert found == [
        Verdict(float(number)) if first <= retries else GONE for number, first in enumerate(back)
    ]
    # By hand: the first time all, then who was not judged before.
    rounds = min(retries, max(back, default=0))
    expected = [[n for n in range(len(back)) if back[n] >= t] for t in range(1, rounds + 1)]
    assert judge.asked == [list(range(len(back))), *expected]
    assert again == sum(map(len, expected))


def test_pauses_double_up_to_their_end() -> None:
    pauses: list[float] = []
    judged_again(Judge([99]), _pairs(1), 9, 1e9, pauses.append)
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


def test_no_attempt_begins_when_the_time_is_over() -> None:
    judge = Judge([99])
    assert judged_again(judge, _pairs(1), 100, 0.0, lambda _: None) == ([GONE], 0)
    assert judge.asked == [[0]]


@pytest.mark.parametrize("status", [each for each in VerdictStatus if each.counts])
def test_what_says_something_of_the_answer_is_never_judged_again(status: VerdictStatus) -> None:
    asked: list[int] = []

    def judge(pairs: Sequence[Pair]) -> list[Verdict]:
        asked.append(len(pairs))
        return [Verdict(0.0, status=status)] * len(pairs)

    judged_again(judge, _pairs(3), 5, 1e9, lambda _: None)
    assert asked == [3]
