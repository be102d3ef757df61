"""Answers that had no processor: those that took it from each other are scored, and what others
took it from is left out.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier, Lock

import pytest

from interlock.config.tasks import TaskSettings
from interlock.records.rl import Attempt, Problem, Verdict, VerdictStatus
from interlock.tasks.verifier_pool import VerifierPool, VerifierProcess

STARVED = Verdict.failed(VerdictStatus.STARVED, "no processor")
LATE = Verdict.failed(VerdictStatus.TIMEOUT, "late")
RIGHT = Verdict(1.0, correct=True)


class Machine:
    """With a processor for one; who has none beside others is late with one, unless right."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, together: int, taken: bool = False) -> None:
        self.asked: Counter[str] = Counter()
        self.most_again = self._inside = 0  # the most judged beside one that is judged again
        self._taken, self._lock, self._barrier = taken, Lock(), Barrier(together)
        for name in ("start", "stop"):
            monkeypatch.setattr(VerifierProcess, name, lambda process: None)
        monkeypatch.setattr(VerifierProcess, "verify", lambda process, attempt: self(attempt))

    def __call__(self, attempt: Attempt) -> Verdict:
        with self._lock:
            self._inside += 1
            inside = self._inside
            self.asked[attempt.problem.id] += 1
            first = self.asked[attempt.problem.id] == 1
        if first:
            self._barrier.wait(30)
            self._barrier.wait(30)  # nobody leaves before all have come
        else:
            self.most_again = max(self.most_again, inside)
        with self._lock:
            self._inside -= 1
        if self._taken or first:
            return STARVED
        return RIGHT if attempt.text == "right" else LATE


def _pairs(name: str, count: int) -> list[tuple[Problem, str]]:
    return [(Problem(f"{name}{i}", [], ""), "right" if i == 1 else "heavy") for i in range(count)]


@pytest.mark.parametrize("retries", [0, 3])
def test_who_starve_each_other_are_judged_alone_and_scored(
    retries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two tasks, at the same time."""
    machine = Machine(monkeypatch, together=4)
    task = TaskSettings("arithmetic", workers=2, retries=retries, retry_s=0.0)
    with ExitStack() as stack:
        pools = [stack.enter_context(VerifierPool(task)) for _ in range(2)]
        threads = stack.enter_context(ThreadPoolExecutor(2))
        found = list(
            threads.map(lambda pool, name: pool.verify(_pairs(name, 4)), pools, ("a", "b"))
        )
    assert found == [[LATE, RIGHT, LATE, LATE]] * 2
    assert machine.asked == {f"{name}{i}": 2 for name in "ab" for i in range(4)}
    assert machine.most_again == 1
    assert [pool.retried for pool in pools] == [0, 0]


def test_who_is_starved_alone_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One shows it of all: the machine is not kept busy with the others."""
    machine = Machine(monkeypatch, together=4, taken=True)
    with VerifierPool(TaskSettings("arithmetic", workers=4, retries=0)) as pool:
        assert pool.verify(_pairs("a", 4)) == [STARVED] * 4
    assert machine.asked == {"a0": 2, "a1": 1, "a2": 1, "a3": 1}
    assert not STARVED.status.counts and LATE.status.counts


# Real processes, on one processor.

HEAVY = """
import time
def verify(problem, answer):
    began = time.thread_time()
    while answer == "spin" or time.thread_time() - began < float(answer): pass
    return 1
"""
SPIN = "while True: pass"
linux = pytest.mark.skipif(sys.platform != "linux", reason="no schedstat, and no affinity")


@pytest.fixture
def one_processor() -> Iterator[None]:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _judged(directory: Path, answers: list[str], workers: int) -> list[VerdictStatus]:
    (directory / "heavy.py").write_text(HEAVY)
    options = {"path": "unused", "verifier": f"{directory / 'heavy.py'}:verify"}
    task = TaskSettings("jsonl", options, workers=workers, timeout_s=0.3, retries=0)
    with VerifierPool(task) as pool:
        verdicts = pool.verify([(Problem("p", [], ""), answer) for answer in answers])
    return [verdict.status for verdict in verdicts]


@linux
@pytest.mark.usefixtures("one_processor")
@pytest.mark.timeout(120)
def test_heavy_answers_are_not_left_out_for_their_own_load(tmp_path: Path) -> None:
    """Ten at a time have a tenth of a processor each: none has its 0.3 s within 1.5 s."""
    for _ in range(3):
        found = _judged(tmp_path, ["spin"] * 9 + ["0.05"], workers=10)
        if VerdictStatus.STARVED not in found:
            break
        if _judged(tmp_path, ["spin"], workers=1) == [VerdictStatus.STARVED]:
            pytest.skip("others hold the processors of this machine")
    assert found == [VerdictStatus.TIMEOUT] * 9 + [VerdictStatus.JUDGED]


@linux
@pytest.mark.usefixtures("one_processor")
@pytest.mark.timeout(120)
def test_an_answer_that_others_starve_is_left_out(tmp_path: Path) -> None:
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(10)]
    try:
        found = _judged(tmp_path, ["spin", "0.25"], workers=2)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert found == [VerdictStatus.STARVED] * 2
