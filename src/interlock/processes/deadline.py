"""A moment by which something must be over."""

import time


class Deadline:
    """`seconds` from now, on a clock that nobody sets.

    Example:
        deadline = Deadline(10.0)
        while not done() and not deadline.over:
            wait(deadline.left)
    """

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, never negative."""
        return max(0.0, self._at - time.monotonic())

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._at
