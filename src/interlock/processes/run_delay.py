"""How long processes were ready to run and had no processor: the scheduler's run delay.

    RunDelay([pid, …]) ── /proc/PID/task/*/schedstat, theirs and of all they started ──> .seconds

A thread that sleeps, in a driver or for another thread, waits for no processor: of a hang nothing
is counted, however busy the machine is. Threads and processes that have ended are not counted
either. Where there is no such file nothing is: elsewhere than under Linux, in a sandbox without
/proc, for a process on another machine.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_MOST_THREADS = 4096  # that are looked at: whoever starts more wants to be slow
_NS = 1e-9


class RunDelay:
    """Of some processes, and all that these started, from now on."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._began = time.monotonic()
        self._before = _threads(self._pids)

    @property
    def seconds(self) -> float:
        """Of the thread that waited longest, as far as others were to blame.

        For whatever part of the time its own threads had all processors it waited for those.
        """
        elapsed = time.monotonic() - self._began
        ran = waited = 0
        for thread, (now_ran, now_waited) in _threads(self._pids).items():
            before_ran, before_waited = self._before.get(thread, (0, 0))
            ran += now_ran - before_ran
            waited = max(waited, now_waited - before_waited)
        return max(0.0, min(waited * _NS, elapsed - ran * _NS / processors(self._pids)))


def _threads(pids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Nanoseconds on a processor and waiting for one, by thread; of all below `pids` too."""
    found: dict[int, tuple[int, int]] = {}
    left = list(pids)
    while left and len(found) < _MOST_THREADS:
        tasks = Path(f"/proc/{left.pop()}/task")
        with suppress(OSError):
            for thread in os.listdir(tasks):
                with suppress(OSError):  # it has ended; or the kernel tells of no children
                    ran, waited, _ = (tasks / thread / "schedstat").read_text().split()
                    found[int(thread)] = int(ran), int(waited)
                    left += map(int, (tasks / thread / "children").read_text().split())
    return found


def processors(pids: Iterable[int] = (0,)) -> int:
    """How many processes may run on; 0 is this one."""
    found: set[int] = set()
    for pid in pids:
        with suppress(OSError, AttributeError):  # it has ended; not Linux
            found |= os.sched_getaffinity(pid)
    return len(found) or os.cpu_count() or 1
