"""Answers judged side by side, or one of them while no other is: of all tasks of this process."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

_changed = Condition()
_judging = 0  # of those side by side


@contextmanager
def beside() -> Iterator[None]:
    """Side by side with others; waits while one is judged alone."""
    global _judging
    with _changed:
        _judging += 1
    try:
        yield
    finally:
        with _changed:
            _judging -= 1
            _changed.notify_all()


@contextmanager
def alone() -> Iterator[None]:
    """Once nothing is judged, until the end of the block nothing else is."""
    with _changed:
        _changed.wait_for(lambda: not _judging)
        yield
