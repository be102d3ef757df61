import pytest

from interlock.processes import deadline
from interlock.processes.deadline import Deadline


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
