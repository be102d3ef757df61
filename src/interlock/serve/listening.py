"""From the replicas' threads to the one that speaks HTTP: once per step, not once per token.

    take(Told), on their threads ──> Switchboard ──one call_soon_threadsafe──> Hearing ──> a handler
                                                                              ^
                                     the client is gone, the deadline passed ─┘

A hearing is one client's: it hears all generations that were begun for it, and whatever ends it,
what still runs for it is cancelled.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial

from interlock.records.serving import Ended, EndKind, Generation, Told
from interlock.workers.replicas.base import Replicas, Ticket

_AT_ONCE = 256  # pieces that are made text of before others have their turn
_GRACE_S = 10.0  # behind a deadline that the replicas keep themselves


class ClientGone(Exception):
    """Whoever asked closed the connection, or takes nothing of the answer."""


class Switchboard:
    """Made on the thread of the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told: deque[tuple[Hearing, int, Told]] = deque()
        self._called = False

    def post(self, hearing: "Hearing", index: int, told: Told) -> None:
        """From any thread; never waits."""
        self._told.append((hearing, index, told))
        if not self._called:
            self._called = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: nobody hears any more
                self._told.clear()

    def _deliver(self) -> None:
        self._called = False  # first: what is posted from now on calls again
        told = self._told
        for _ in range(len(told)):
            hearing, index, each = told.popleft()
            hearing.hear(index, each)


class Hearing:
    """What is told of some generations, by their index. Used on the loop's thread."""

    def __init__(self, board: Switchboard, replicas: Replicas, deadline_s: float) -> None:
        self._board, self._replicas, self._deadline_s = board, replicas, deadline_s
        self._loop = asyncio.get_running_loop()
        self._box: list[tuple[int, Told]] = []
        self._waiter: asyncio.Future[None] | None = None
        self._tickets: dict[int, Ticket] = {}
        self._gone = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, generations: Sequence[Generation]) -> None:
        """Have all drawn, or none. Raises what `Replicas.begin` raises."""
        late = Ended(EndKind.LATE, f"no answer within {self._deadline_s:g} s")
        self._timer = self._loop.call_later(self._deadline_s + _GRACE_S, self.end_all, late)
        try:
            for index, generation in enumerate(generations):
                take = partial(self._board.post, self, index)
                ticket = self._replicas.begin(generation, take, self._deadline_s)
                self._tickets[index] = ticket
        except BaseException:
            self.close()
            raise

    @property
    def waits(self) -> bool:
        """Whether something is still to be heard."""
        return bool(self._tickets or self._box)

    def hear(self, index: int, told: Told) -> None:
        """Take what was told of a generation."""
        if index not in self._tickets:
            return  # it was ended here already
        self._box.append((index, told))
        if type(told) is Ended:
            del self._tickets[index]
        self._wake()

    def leave(self) -> None:
        """The client is gone."""
        self._gone = True
        self._wake()

    def end_all(self, ended: Ended) -> None:
        """Tell that all of it ended, and why."""
        for index, ticket in list(self._tickets.items()):
            self._replicas.cancel(ticket)
            self.hear(index, ended)

    async def heard(self) -> list[tuple[int, Told]]:
        """What was told since the last call, at least one. Raises ClientGone."""
        if self._box:
            await asyncio.sleep(0)  # who has much to tell leaves time to others
        while not self._box and not self._gone:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._gone:
            raise ClientGone
        box, self._box = self._box[:_AT_ONCE], self._box[_AT_ONCE:]
        return box

    def close(self) -> None:
        """What still runs for it is cancelled."""
        if self._timer is not None:
            self._timer.cancel()
        for ticket in self._tickets.values():
            self._replicas.cancel(ticket)
        self._tickets = {}

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
