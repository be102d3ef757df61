"""Any fleet, with somebody who is told when each worker's process begins and has ended."""

from typing import Protocol

from interlock.fleet.base import Event, Fleet, Lost, Spec


class Occupancy(Protocol):
    """Who is told; on the fleet's own thread."""

    def began(self, name: str) -> None: ...

    def ended(self, name: str) -> None: ...


class MeteredFleet:
    """See `base.Fleet`. A worker begins when it is started, and ends when nothing of it runs."""

    def __init__(self, fleet: Fleet, told: Occupancy) -> None:
        self._fleet, self._told = fleet, told
        self._there: set[str] = set()

    def start(self, spec: Spec) -> None:
        self._there.add(spec.name)
        self._told.began(spec.name)
        try:
            self._fleet.start(spec)
        except BaseException:
            self._end(spec.name)
            raise

    def send(self, name: str, message: bytes, reply_bytes: int | None = None) -> None:
        self._fleet.send(name, message, reply_bytes)

    def poll(self, timeout_s: float) -> list[Event]:
        events = self._fleet.poll(timeout_s)
        for name, event in events:
            if isinstance(event, Lost):
                self._end(name)
        return events

    def pid(self, name: str) -> int | None:
        return self._fleet.pid(name)

    def wake(self) -> None:
        self._fleet.wake()

    def kill(self, name: str) -> None:
        self._fleet.kill(name)
        self._end(name)

    def close(self) -> None:
        self._fleet.close()
        for name in list(self._there):
            self._end(name)

    def _end(self, name: str) -> None:
        if name in self._there:
            self._there.discard(name)
            self._told.ended(name)
