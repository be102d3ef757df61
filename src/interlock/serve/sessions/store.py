"""All sessions of one endpoint, bounded in number, memory and age.

    create ──> session ──found by its id and whose it is──> … ──> delete, or nobody asks for long

Nothing that is recorded makes room for something new: where there is none, `create` and `for_turn`
say so, and whoever asked may delete sessions and ask again.
"""

import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from interlock.errors import ConfigError, Overloaded
from interlock.models.tokenizer import Tokenizer
from interlock.serve.sessions.bridge import Bridge
from interlock.serve.sessions.session import RecordedSession, SessionTerms

_RETRY_S = 30.0
_WEIGH_S = 1.0  # between two looks at how much all of them hold


class SessionUnknown(ConfigError):
    """There is no such session, or it is another's, or nobody asked for it for too long."""


class Sessions:
    """The sessions of one tokenizer. For any thread."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        most: int = 4_096,
        most_bytes: int = 1 << 30,
        idle_s: float = 3_600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokenizer = tokenizer
        self._bridge: Bridge | None = None
        self._most = most
        self._most_bytes = most_bytes
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        # With when it was asked for last: the longest ago comes first.
        self._sessions: OrderedDict[str, tuple[RecordedSession, float]] = OrderedDict()
        self._weighed = -math.inf
        self._weight = 0

    def create(self, owner: str = "", terms: SessionTerms | None = None) -> RecordedSession:
        """A new session. Raises Overloaded when there are as many as there may be."""
        with self._lock:
            self._expire()
            if len(self._sessions) >= self._most:
                raise Overloaded(
                    f"there are {self._most} sessions; delete those that are over", _RETRY_S
                )
            self._bridge = self._bridge or Bridge(self._tokenizer)
            session = RecordedSession(
                f"s-{secrets.token_hex(16)}", owner, terms or SessionTerms(), self._bridge
            )
            self._touch(session)
            return session

    def get(self, id: str, owner: str = "") -> RecordedSession:
        """Raises SessionUnknown."""
        with self._lock:
            self._expire()
            session, _ = self._sessions.get(id, (None, 0.0))
            if session is None or session.owner != owner:
                raise SessionUnknown(
                    f"there is no session {id!r}; it may have been deleted, or left alone for more "
                    f"than {self._idle_s:g} s: create one with POST /sessions"
                )
            self._touch(session)
            return session

    def for_turn(self, id: str, owner: str = "") -> RecordedSession:
        """To record one more turn. Raises SessionUnknown, and Overloaded when memory is full."""
        session = self.get(id, owner)
        if self._clock() - self._weighed > _WEIGH_S:  # thousands take a while
            self._weighed, self._weight = self._clock(), self.held_bytes
        if (held := self._weight) >= self._most_bytes:
            raise Overloaded(
                f"the sessions hold {held >> 20:,} MiB, and may hold {self._most_bytes >> 20:,}; "
                "delete those that are over",
                _RETRY_S,
            )
        return session

    def delete(self, id: str, owner: str = "") -> None:
        """Forget it; what is being answered is answered. Raises SessionUnknown."""
        self.get(id, owner)
        with self._lock:
            self._sessions.pop(id, None)

    def owned(self, owner: str = "") -> list[RecordedSession]:
        """Those first that were not asked for the longest."""
        with self._lock:
            self._expire()
            return [each for each, _ in self._sessions.values() if each.owner == owner]

    @property
    def held_bytes(self) -> int:
        """Of memory, of all sessions."""
        with self._lock:
            return sum(session.held_bytes for session, _ in self._sessions.values())

    def __len__(self) -> int:
        with self._lock:
            self._expire()
            return len(self._sessions)

    def _touch(self, session: RecordedSession) -> None:
        self._sessions[session.id] = session, self._clock()
        self._sessions.move_to_end(session.id)

    def _expire(self) -> None:
        """Under the lock. One that is being answered is not left alone."""
        before = self._clock() - self._idle_s
        while self._sessions:
            session, asked = next(iter(self._sessions.values()))
            if asked >= before:
                return
            if session.open:
                self._touch(session)
            else:
                del self._sessions[session.id]
