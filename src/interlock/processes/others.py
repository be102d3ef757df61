"""How many processors other processes hold, of those that this one may run on.

    /proc/stat, what was not idle ── this process's own time ──> .held()

Those of lower priority (nice) give way, and hold nothing; of a process that is nice itself all do.
Where there is no such file, nothing is held: elsewhere than under Linux.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

_STAT = Path("/proc/stat")
_NICE, _IDLE, _DISK = 1, 3, 4  # of these, nice users; nothing to do; waiting for a disk
_TIMES = 8  # user to steal; what follows is in user already


class Others:
    """What they hold from now on."""

    def __init__(self) -> None:
        self._since, self._busy = time.monotonic(), _busy()
        self._own = time.process_time()

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._since

    def held(self) -> float:
        """Processors, the mean since it was made: what a hypervisor takes is others', too."""
        own = time.process_time() - self._own
        return max(0.0, (_busy() - self._busy - own) / self.seconds)


def _busy() -> float:
    """Seconds that our processors were held, since the machine began."""
    with suppress(OSError, AttributeError, ValueError):
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        free = {_IDLE, _DISK} if os.nice(0) > 0 else {_NICE, _IDLE, _DISK}
        ticks = 0
        for name, *times in map(str.split, _STAT.read_text().splitlines()):
            if name in ours:
                ticks += sum(int(n) for at, n in enumerate(times[:_TIMES]) if at not in free)
        return ticks / os.sysconf("SC_CLK_TCK")
    return 0.0
