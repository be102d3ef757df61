"""What is counted of threads whose figures are given."""

import pytest

from interlock.processes import run_delay
from interlock.processes.run_delay import RunDelay

Figures = dict[int, tuple[int, int]]  # seconds on a processor and waiting for one, by thread


@pytest.mark.parametrize(
    ("processors", "after", "counted"),
    [
        (1, {1: (12, 5)}, 0.0),  # it slept, or ran
        (1, {1: (14, 11)}, 6.0),  # beside another's
        (2, {1: (12, 8), 2: (3, 7), 3: (3, 1)}, 6.0),  # the longest; what is new counts whole
        (2, {1: (16, 9), 2: (7, 4), 3: (4, 6)}, 2.5),  # its own held 15 of 20: others a quarter
        (1, {1: (15, 10), 2: (7, 5)}, 0.0),  # it waited for its own other thread alone
        (1, {}, 0.0),  # it has ended
    ],
)
def test_what_own_threads_held_is_not_others(
    processors: int, after: Figures, counted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, figures = 100.0, {1: (10, 5), 2: (2, 1)}
    monkeypatch.setattr(run_delay.time, "monotonic", lambda: now)
    monkeypatch.setattr(run_delay, "processors", lambda pids: processors)
    monkeypatch.setattr(
        run_delay,
        "_threads",
        lambda pids: {thread: (r * 10**9, w * 10**9) for thread, (r, w) in figures.items()},
    )
    delay = RunDelay([7])
    now, figures = 110.0, after
    assert delay.seconds == pytest.approx(counted)


def test_of_a_process_that_is_not_there_nothing_is_counted() -> None:
    assert RunDelay([2**22 + 1]).seconds == 0.0
