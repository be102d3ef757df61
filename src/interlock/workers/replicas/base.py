"""The replicas as the endpoint sees them: generations go in, tokens come out, whoever draws them.

    begin(generation, take) ──> Replicas ──take(Piece), …, take(Ended)──> the endpoint
    cancel(ticket)          ──>

`Pool` (pool.py) has worker processes of a fleet, as `Dispatcher` has for a recipe.
"""

from collections.abc import Callable
from typing import Protocol

from interlock.engine.base import Limits
from interlock.records.serving import Generation, ReplicaFacts, Told

# Called on a thread of the replicas' own, which must not be kept waiting; `Ended` is the last.
Take = Callable[[Told], None]
Ticket = int


class Replicas(Protocol):
    """What an endpoint needs of replicas."""

    @property
    def limits(self) -> Limits:
        """What every replica can take; `slots` is the sum of those that serve."""

    @property
    def version(self) -> int:
        """Of the weights that new generations are given."""

    def begin(self, generation: Generation, take: Take, deadline_s: float) -> Ticket:
        """Have it drawn. From any thread; does not wait. A generation keeps to one weight version.

        Raises Overloaded when the queue is full, Unserved when no replica serves or all are put
        aside, ConfigError on what can never be served (tokens, context); nothing is then taken.
        """

    def cancel(self, ticket: Ticket) -> None:
        """Whoever asked is gone: it is forgotten in every state, and its slots fall free.

        No `take` comes after it has returned on the thread that `take` is called on; a few may on
        others. Nothing happens if it has ended.
        """

    def facts(self) -> list[ReplicaFacts]:
        """Of every replica, as it is now."""

    @property
    def waiting(self) -> int:
        """Sequences that no replica was given yet."""

    def drain(self, name: str, on: bool) -> None:
        """Give a replica nothing more (or again). Raises ConfigError on an unknown name."""

    def pin(self, version: int | None) -> None:
        """Serve this weight version and no newer one; None: the newest again.

        Raises ConfigError when it cannot be had.
        """

    def close(self, drain_s: float) -> None:
        """Take nothing more, wait so long for what runs, and end the workers."""
