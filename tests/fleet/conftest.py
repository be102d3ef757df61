"""A fleet in a test's hands: workers that echo, obey or fail, and what is left of them."""

import ast
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from interlock.fleet.base import Event, Fleet, Lost, Spec
from interlock.fleet.local import LocalFleet

ROOT = Path(__file__).parents[2]
# Where a worker finds the modules of `workers/`, and the interlock under test.
WORKERS = os.pathsep.join([str(Path(__file__).parent / "workers"), str(ROOT / "src")])
DEADLINE_S = 30.0


class Hands:
    """Starts workers of `workers/` and waits, with a deadline, for what a test expects of them."""

    modules = WORKERS

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        self.fleet = fleet
        self.directory = directory

    def start(self, name: str, module: str, **changes: Any) -> None:
        env = {"PYTHONPATH": WORKERS, **changes.pop("env", {})}
        self.fleet.start(Spec(name, module, self.directory / f"{name}.log", env=env, **changes))

    def collect(self, enough: Callable[[list[Event]], bool]) -> list[Event]:
        """Poll until what came is enough."""
        events: list[Event] = []
        deadline = time.monotonic() + DEADLINE_S
        while not enough(events):
            assert time.monotonic() < deadline, f"{len(events)} events, last {events[-1:]!r:.500}"
            events += self.fleet.poll(1.0)
        return events

    def next(self) -> Event:
        (event,) = self.collect(bool)
        return event

    def ask(self, name: str, line: str) -> Any:
        """What an obeying worker says the line's value is."""
        self.fleet.send(name, line.encode())
        who, answer = self.next()
        assert who == name and isinstance(answer, bytes), (who, answer)
        return ast.literal_eval(answer.decode())

    def lost(self, name: str) -> str:
        """Why the worker is lost; nothing else comes, and it is lost once."""
        events = self.collect(bool)
        events += self.fleet.poll(0.2)
        ((who, event),) = events
        assert who == name and isinstance(event, Lost), events
        return event.reason

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()


@pytest.fixture
def hands(tmp_path: Path) -> Iterator[Hands]:
    """On a local fleet."""
    fleet = LocalFleet()
    yield Hands(fleet, tmp_path)
    fleet.close()
