"""What a problem is marked as, from what a model's answers to it were worth.

    unfit        its prompt and an answer do not fit into the model's context
    disagreed    the verifier does not take the reference itself, or the answers agree on another
    flaky        the same answer was judged right and wrong, or an answer could not be judged
    too_easy     nearly every answer is right: no group teaches
    too_hard     no answer is right: likewise
    useful       the others

The first that holds counts: what is said of a problem that is wrong hangs on nothing.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

Mark = Literal["unfit", "disagreed", "flaky", "too_easy", "too_hard", "useful"]

_AGREE = 0.75  # of the answers, at least three of them, that a wrong one is to have in common
_FEWEST = 3


class LabelAnswer(msgspec.Struct, frozen=True):
    """One answer of the model. `right` is None where it could not be judged."""

    text: str
    right: bool | None
    tokens: int
    cut: bool = False  # by max_tokens
    again: bool | None = None  # what the verifier said of it a second time
    final: str | None = None  # what it comes to, where that can be told


class MarkedProblem(NamedTuple):
    mark: Mark
    why: str


def mark(
    answers: Sequence[LabelAnswer], takes_reference: bool | None, easy: float, hard: float
) -> MarkedProblem:
    """The mark of a problem that fits.

    Args:
        answers: all of the model's.
        takes_reference: whether the verifier takes the reference itself; None: it cannot be asked.
        easy, hard: the share of right answers from which, and up to which, they teach nothing.
    """
    judged = [each for each in answers if each.right is not None]
    if takes_reference is False:
        return MarkedProblem("disagreed", "the verifier does not take the reference itself")
    other = _common_wrong(judged)
    if other is not None:
        text, count = other
        return MarkedProblem("disagreed", f"{count} of {len(judged)} answers agree on {text!r}")
    if flips := sum(each.again is not None and each.again != each.right for each in judged):
        return MarkedProblem(
            "flaky", f"{flips} of {len(judged)} answers were judged right and wrong"
        )
    if len(judged) < len(answers):
        lost = len(answers) - len(judged)
        return MarkedProblem("flaky", f"{lost} of {len(answers)} answers could not be judged")
    rate = sum(bool(each.right) for each in judged) / len(judged)
    if rate >= easy:
        return MarkedProblem("too_easy", f"{rate:.0%} of the answers are right")
    if rate <= hard:
        cut = sum(each.cut for each in judged)
        hint = f"; {cut} were cut by max_tokens" if cut else ""
        return MarkedProblem("too_hard", f"{rate:.0%} of the answers are right{hint}")
    return MarkedProblem("useful", f"{rate:.0%} of the answers are right")


def _common_wrong(judged: Sequence[LabelAnswer]) -> tuple[str, int] | None:
    """What most answers come to, where that counts as wrong. One that was cut came to nothing."""
    finals = Counter(each.final for each in judged if each.right is False and not each.cut)
    del finals[None]
    for text, count in finals.most_common(1):
        if text and count >= max(_FEWEST, _AGREE * len(judged)):
            return text, count
    return None
