"""Judging again what failed through no fault of the answers: bounded in times and in seconds.

    pairs ──> judge ──> verdicts ── UNAVAILABLE ──> pause ──> judge these alone ──> … ──> left so

A verdict that says something of the answer is never asked for twice: a policy that could have an
answer judged again would have it judged until it is right.
"""

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, TypeVar

from interlock.processes.deadline import Deadline
from interlock.records.rl import Problem, Verdict

Pair = tuple[Problem, str]
Judged = TypeVar("Judged", bound=tuple[Any, ...])

_PAUSE_S = 0.1  # before the first attempt; doubles
_MOST_PAUSE_S = 5.0


def judged_again(
    judge: Callable[[Sequence[Judged]], list[Verdict]],
    pairs: Sequence[Judged],
    retries: int,
    seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[list[Verdict], int]:
    """A verdict per (problem, answer), in order, and how many times one was tried again.

    Args:
        judge: gives a verdict per pair, whatever happens.
        retries: attempts after the first, at those whose verdict does not count.
        seconds: from the first such verdict on, within which an attempt may begin.
    """
    verdicts = judge(pairs)
    deadline, tried = Deadline(seconds), 0
    for attempt in count():
        lost = [index for index, verdict in enumerate(verdicts) if not verdict.status.counts]
        pause_s = min(_PAUSE_S * 2**attempt, _MOST_PAUSE_S)
        if not lost or attempt == retries or deadline.left < pause_s:
            return verdicts, tried
        sleep(pause_s)
        tried += len(lost)
        for index, verdict in zip(lost, judge([pairs[index] for index in lost]), strict=True):
            verdicts[index] = verdict
    raise AssertionError("count() ends")
