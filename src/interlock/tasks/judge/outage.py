"""A judge that is down is left alone for a while: each answer would wait its whole deadline for it.

reachable ── `after` answers in a row unreachable ──> down: nobody asks, for `rest_s`
    ^                                                   │ then one asks, and the others wait
    └──────── it says something ──── trying <───────────┘ for what becomes of that
                                        └── unreachable: down again
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from interlock.errors import Unavailable
from interlock.text import one_line

Said = TypeVar("Said")

_WORDS = 240


class Outage:
    """Of one service; threads may share it. `unasked`: how often nobody was asked."""

    def __init__(
        self, after: int, rest_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._after, self._rest_s, self._clock = after, rest_s, clock
        self._lock, self._trying = threading.Lock(), threading.Lock()
        self._row = 0  # answers that it was not reached for, one after another
        self._until: float | None = None  # when it may be asked again; None: it is reachable
        self._why = ""
        self.unasked = 0

    def asked(self, ask: Callable[[], Said]) -> Said:
        """What `ask` returns or raises. Raises Unavailable, without asking, while it is down."""
        if self._until is None:
            return self._noted(ask)
        self._leave_alone()
        with self._trying:  # no longer than one answer's deadline
            if self._until is not None:
                self._leave_alone()
                return self._noted(ask)
        return self._noted(ask)

    def _leave_alone(self) -> None:
        """Raise Unavailable unless it may be asked, or tried, now."""
        with self._lock:
            if self._until is None or self._clock() >= self._until:
                return
            self.unasked += 1
            raise Unavailable(
                f"not asked, as it was unreachable for {self._row} answers in a row: {self._why}"
            )

    def _noted(self, ask: Callable[[], Said]) -> Said:
        try:
            said = ask()
        except Unavailable as error:
            with self._lock:
                self._row += 1
                self._why = one_line(str(error), _WORDS)
                if self._row >= self._after:
                    self._until = self._clock() + self._rest_s
            raise
        except Exception:  # it is there, whatever it said
            self._reached()
            raise
        self._reached()
        return said

    def _reached(self) -> None:
        with self._lock:
            self._row, self._until = 0, None
