"""Groups of answers that were judged, for what counts them."""

from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Problem,
    ScoredGroup,
    Verdict,
    VerdictStatus,
)


def group(problem: str, *right: bool | None) -> ScoredGroup:
    """A problem whose answers are right, wrong or, of None, not judged."""
    answer = Completion.sampled([1], [0.0], FinishReason.STOP, "", 0)
    verdicts = [
        Verdict.failed(VerdictStatus.UNAVAILABLE, "gone") if each is None else Verdict(float(each))
        for each in right
    ]
    return ScoredGroup(Group(Problem(problem, [], ""), [1], [answer] * len(right), "a"), verdicts)
