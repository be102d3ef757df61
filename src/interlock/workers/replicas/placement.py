"""Which replica is given what: the one that would be through with it first.

seconds of work that it has      tokens it may yet draw / its speed + prompts x their speed
prompts begun alike              go where the first blocks of one were read last, unless that
                                 replica is clearly busier
what another has drawn of        an equal replica rather than one inside the band
"""

from collections import OrderedDict
from collections.abc import Sequence

from interlock.records.rl import WeightVersion
from interlock.workers.replicas.jobs import LivePart
from interlock.workers.replicas.replica import ReplicaHandle

_BLOCK = 16  # tokens of the shortest beginning that counts; then twice as many, and so on
_KNOWN = 1 << 14  # beginnings that are remembered
_BUSIER = 1.5  # times the work of the least busy one, beside what reading the prompt would take
_UNKNOWN = 50.0  # tokens a second, when nobody has drawn any


class Seating:
    """Chooses; gives nothing out itself."""

    def __init__(self) -> None:
        self._read: OrderedDict[int, str] = OrderedDict()  # who read a beginning last

    def choose(
        self, part: LivePart, replicas: Sequence[ReplicaHandle], weights: WeightVersion
    ) -> ReplicaHandle | None:
        """Who is to draw `part` from `weights`; None: nobody can now."""
        able = [each for each in replicas if each.takes and each.serves == weights]
        able = [each for each in able if each.engine not in part.unable]
        if part.suspect:
            able = [each for each in able if not each.held]
        able = [each for each in able if each.name not in part.avoid] or able
        if not able:
            return None
        if part.origin:
            able = [each for each in able if each.kind == part.origin] or able
        fastest = max((each.speed.at(each.slots) for each in able), default=0.0) or _UNKNOWN
        slowest = max((each.speed.prompt_s for each in able), default=0.0)
        work = {
            each.name: each.work_s(each.speed.at(each.slots) or fastest, each.speed.prompt_s)
            + part.room / (each.speed.at(each.slots) or fastest)
            + part.prompt_tokens * each.speed.prompt_s
            for each in able
        }
        best = min(able, key=lambda each: work[each.name])
        name, known = self._reader(part)
        for each in able:
            saved = known * (each.speed.prompt_s or slowest)
            if each.name == name and work[name] <= _BUSIER * work[best.name] + saved:
                return each
        return best

    def gave(self, part: LivePart, replica: ReplicaHandle) -> None:
        """It reads the prompt now."""
        for beginning in _beginnings(part.job.generation.prompt):
            self._read[beginning] = replica.name
            self._read.move_to_end(beginning)
        while len(self._read) > _KNOWN:
            self._read.popitem(last=False)

    def forget(self, replica: ReplicaHandle) -> None:
        """What it has read is gone."""
        for beginning in [key for key, name in self._read.items() if name == replica.name]:
            del self._read[beginning]

    def _reader(self, part: LivePart) -> tuple[str, int]:
        """Who read most of the prompt's beginning, and how many tokens of it."""
        for place, beginning in reversed(list(enumerate(_beginnings(part.job.generation.prompt)))):
            if beginning in self._read:
                return self._read[beginning], _BLOCK << place
        return "", 0


def _beginnings(prompt: list[int]) -> list[int]:
    """Hashes of its first 16, 32, 64, … tokens."""
    found, size = [], _BLOCK
    while size <= len(prompt):
        found.append(hash(tuple(prompt[:size])))
        size *= 2
    return found
