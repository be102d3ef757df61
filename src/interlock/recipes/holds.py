"""Who held which chip from when to when, shared out over roles and stages.

    place A  ██████████████████████  learner
    place A        ▒▒▒▒▒▒▒▒          a generator on the same chip: half of it while both hold it
    place B           ░░░░░░░░░░░░░  a generator with a chip of its own
    stages   |   0      |  1       |

A function of the intervals alone: where a chip is shared, what all have of it is what it was held.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from interlock.records.cost import HeldChip


class Hold(msgspec.Struct):
    """One process's time with its chips. `chip` becomes known once the process tells of it."""

    role: str
    name: str  # of the process
    chip: HeldChip
    begun: float
    ended: float | None = None  # None: it goes on
    chips: int = 1  # of this kind; a generator may be spread over several


class Held(NamedTuple):
    """Seconds of one process in one stage."""

    chip_s: float  # its share of its chips' time
    process_s: float

    def plus(self, other: "Held") -> "Held":
        return Held(self.chip_s + other.chip_s, self.process_s + other.process_s)


Stages = Sequence[tuple[float, int | None]]  # from when on, in order


def held(holds: Iterable[Hold], stages: Stages, now: float) -> dict[tuple[int | None, int], Held]:
    """By stage and by the place in `holds`."""
    by_place: dict[str, list[tuple[int, Hold]]] = defaultdict(list)
    for number, hold in enumerate(holds):
        by_place[hold.chip.place].append((number, hold))
    found: dict[tuple[int | None, int], Held] = defaultdict(lambda: Held(0.0, 0.0))
    for own in by_place.values():
        _share_out(own, stages, now, found)
    return dict(found)


def _share_out(
    own: Sequence[tuple[int, Hold]],
    stages: Stages,
    now: float,
    found: dict[tuple[int | None, int], Held],
) -> None:
    """The time of one place, between one change of who holds it, or of the stage, and the next."""
    changes: dict[float, list[tuple[int, Hold]]] = defaultdict(list)
    for each in own:
        changes[each[1].begun].append(each)
        changes[now if each[1].ended is None else each[1].ended].append(each)
    starts = [since for since, _ in stages]
    edges = sorted({*changes, *(since for since in starts if since < now)})
    holding: dict[int, Hold] = {}
    for start, end in pairwise(edges):
        for number, hold in changes.get(start, ()):
            if hold.begun == start and hold.ended != start:
                holding[number] = hold
            else:
                holding.pop(number, None)
        at = bisect_right(starts, start) - 1
        stage = stages[at][1] if at >= 0 else None
        for number, hold in holding.items():
            seconds = end - start
            one = Held(seconds * hold.chips / len(holding), seconds)
            found[stage, number] = found[stage, number].plus(one)
