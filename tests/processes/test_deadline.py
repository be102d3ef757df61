import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from interlock.processes import deadline
from interlock.processes.child import Child, ChildLate
from interlock.processes.deadline import Deadline, ProcessDeadline

Start = Callable[..., Child]


def test_what_is_left_and_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now)
    until = Deadline(2.5)
    assert (until.left, until.over) == (2.5, False)
    now = 102.0
    assert (until.left, until.over) == (0.5, False)
    now = 102.5
    assert (until.left, until.over) == (0.0, True)
    now = 200.0
    assert (until.left, until.over) == (0.0, True)
    assert Deadline(0.0).over


class Machine:
    """Time, and a process that waits for a processor in a share of it."""

    def __init__(self, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        began = self.now
        monkeypatch.setattr(deadline.time, "monotonic", lambda: self.now)

        class Delay:
            def __init__(self, pids: list[int]) -> None: ...

            @property
            def seconds(delay) -> float:
                return share * (self.now - began)

        monkeypatch.setattr(deadline, "RunDelay", Delay)

    def until_over(self, until: ProcessDeadline) -> float:
        """Seconds that a wait for it takes."""
        began = self.now
        while not until.over:
            assert until.left > 0, "it would be looked at over and over"
            self.now += until.left
        return self.now - began


@pytest.mark.parametrize(
    ("share", "seconds", "busy", "starved", "words"),
    [
        (0.0, 30, False, False, "30 s"),  # a hang, or a quiet machine
        (0.1, 33.3, False, False, "30 s"),
        (0.5, 60, True, False, "30 s of its own and 29.8 s of waiting"),
        (0.75, 120, True, False, "30 s of its own and 89.3 s of waiting"),
        (0.9, 150, True, True, "15 s of its own and 135 s of waiting"),  # 5 times at most
        (1.0, 150, True, True, "0 s of its own and 150 s of waiting"),
    ],
)
def test_what_a_process_waits_for_others_does_not_count(
    share: float,
    seconds: float,
    busy: bool,
    starved: bool,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(share, monkeypatch)
    until = ProcessDeadline(30, [7])
    assert machine.until_over(until) == pytest.approx(seconds, rel=0.05)
    assert (until.busy, until.starved) == (busy, starved)
    assert str(until).startswith(words) and ("too busy" in str(until)) == busy
    machine.now += 1000
    assert until.over, "once over, it stays so"


# Real processes: one that sleeps, one that computes beside others, one that spins.

pinned = pytest.mark.skipif(sys.platform != "linux", reason="no schedstat, and no affinity")
SPIN = "import time\nwhile True: pass"


@pinned
def test_one_that_sleeps_is_late_on_time(start: Start) -> None:
    for _ in range(3):  # its threads may come to their sleep late, where others hold the machine
        child = start("channel.send(b'up'); time.sleep(1000)")
        child.receive(30, 10)
        with pytest.raises(ChildLate) as late:
            child.ask(b"", 0.5, 10)
        if not late.value.deadline.busy:
            break
    assert str(late.value) == "no answer within 0.5 s"


@pinned
def test_one_that_computes_beside_others_is_given_more(start: Start) -> None:
    child = start("""
        channel.send(b'up')
        channel.receive()
        began = time.thread_time()
        while time.thread_time() - began < 0.4: pass
        channel.send(b'done')
        time.sleep(1000)
    """)
    child.receive(30, 10)
    one = {min(os.sched_getaffinity(0))}
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(2)]
    try:
        for pid in (child.pid, *(other.pid for other in others)):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), one)
        began = time.monotonic()
        try:
            assert child.ask(b"", 0.5, 10) == b"done"
        except ChildLate as late:  # whoever else is on this machine left it next to nothing
            assert late.deadline.starved, late
        assert time.monotonic() - began > 0.5
    finally:
        for other in others:
            other.kill()
            other.wait()


@pinned
def test_one_that_spins_alone_is_late_on_time(start: Start) -> None:
    child = start("channel.send(b'up'); channel.receive()\nwhile True: pass")
    child.receive(30, 10)
    began, ran = time.monotonic(), _cpu_s(child.pid)
    with pytest.raises(ChildLate) as late:
        child.ask(b"", 1.0, 10)
    without_s = time.monotonic() - began - (_cpu_s(child.pid) - ran)
    assert not late.value.deadline.busy or without_s > 0.2, "nobody else held the processor"


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
