"""How many of a completion's sampled tokens think, and how many answer.

    opening + text ──thinking.answer_span──> characters ──bisection over decoded prefixes──> tokens

Where the answer stands is asked of the turn as verifiers read it, so that what is counted as the
answer is what was judged. A block that never closes is thinking to the end. A token that holds the
end of a mark and the beginning of an answer thinks.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from interlock import thinking
from interlock.records.rl import Group

Decode = Callable[[list[int]], str]  # tokens of a beginning of an answer -> their text


class Lengths(NamedTuple):
    """Of one completion, or means over several; in sampled tokens."""

    thinking: float
    answer: float
    open: float  # whether it thinks to its end; of several the share


def lengths(group: Group, decode: Decode) -> list[Lengths]:
    """Of each completion of a group."""
    found = []
    for turn, completion in zip(group.turns, group.completions, strict=True):
        mask = completion.mask
        first, last = _answered(turn, len(group.opening), completion.tokens, decode)
        answer = sum(mask[first:last])
        found.append(Lengths(sum(mask) - answer, answer, thinking.is_open(turn)))
    return found


def mean_lengths(groups: Sequence[Group], decode: Decode) -> Lengths:
    """Means over all completions, of which there is one at least."""
    each = [found for group in groups for found in lengths(group, decode)]
    return Lengths(*(fmean(values) for values in zip(*each, strict=True)))


def _answered(turn: str, given: int, tokens: list[int], decode: Decode) -> tuple[int, int]:
    """The tokens [first, last) that answer; `given` characters of the turn are not theirs."""
    start, end = thinking.answer_span(turn)
    if (start, end) == (0, len(turn)):  # nothing was thought
        return 0, len(tokens)
    if not turn[start:end].strip():
        return len(tokens), len(tokens)

    def characters(count: int) -> int:
        return given + len(decode(tokens[:count]))

    counts = range(len(tokens) + 1)
    first = 0 if start <= given else bisect_left(counts, start, key=characters)
    last = len(tokens) if end == len(turn) else bisect_right(counts, end, key=characters) - 1
    return first, max(first, last)
