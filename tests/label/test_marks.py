"""Marks, by hand: what is said of a problem, and which of several things is said first."""

import pytest

from interlock.label.marks import LabelAnswer, Mark, mark

CUT = "0% of the answers are right; 4 were cut by max_tokens"


def some(right: int, wrong: int, lost: int = 0, **more: object) -> list[LabelAnswer]:
    verdicts = [True] * right + [False] * wrong + [None] * lost
    return [LabelAnswer("x", each, 5, again=each, **more) for each in verdicts]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answers", "takes", "expected", "why"),
    [
        (some(8, 0), True, "too_easy", "100% of the answers are right"),
        (some(19, 1), True, "too_easy", "95% of the answers are right"),
        (some(7, 1), True, "useful", "88% of the answers are right"),
        (some(1, 7), None, "useful", "12% of the answers are right"),
        (some(0, 8), True, "too_hard", "0% of the answers are right"),
        (
            some(0, 4, cut=True),
            True,
            "too_hard",
            CUT,
        ),
        (some(8, 0), False, "disagreed", "the verifier does not take the reference itself"),
        (some(1, 3, final="41"), True, "disagreed", "3 of 4 answers agree on '41'"),
        (some(2, 3, final="41"), True, "useful", "40% of the answers are right"),
        (some(0, 2, final="41"), True, "too_hard", "0% of the answers are right"),
        (
            some(0, 4, final="41", cut=True),
            True,
            "too_hard",
            CUT,
        ),
        (some(3, 0, lost=1), True, "flaky", "1 of 4 answers could not be judged"),
        (
            [*some(3, 0), LabelAnswer("x", True, 5, again=False)],
            True,
            "flaky",
            "1 of 4 answers were judged right and wrong",
        ),
    ],
)
def test_marks(answers: list[LabelAnswer], takes: bool | None, expected: Mark, why: str) -> None:
    assert mark(answers, takes, easy=0.95, hard=0.0) == (expected, why)
