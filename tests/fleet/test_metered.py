"""Who is told of a worker's process, once each, whatever ends it."""

from pathlib import Path
from typing import Any

import pytest

from interlock.errors import ConfigError
from interlock.fleet.base import Event, Lost, Spec
from interlock.fleet.metered import MeteredFleet


class Scripted:
    """A fleet in which nothing runs."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def start(self, spec: Spec) -> None:
        if spec.name == "never":
            raise ConfigError("no such interpreter")

    def poll(self, timeout_s: float) -> list[Event]:
        found, self.events = self.events, []
        return found

    def kill(self, name: str) -> None: ...

    def close(self) -> None: ...


class Occupants:
    def __init__(self) -> None:
        self.told: list[str] = []

    def began(self, name: str) -> None:
        self.told.append(f"+{name}")

    def ended(self, name: str) -> None:
        self.told.append(f"-{name}")


def test_every_beginning_has_one_end() -> None:
    inner: Any = Scripted()
    occupants = Occupants()
    fleet = MeteredFleet(inner, occupants)

    def start(name: str) -> None:
        fleet.start(Spec(name, "m", Path("log")))

    start("a")
    start("b")
    start("c")
    inner.events = [("a", b"alive"), ("a", Lost("signal 9"))]
    assert fleet.poll(0.0) == [("a", b"alive"), ("a", Lost("signal 9"))]
    fleet.kill("a")  # what a pool does with one that is lost
    fleet.kill("b")
    fleet.kill("nobody")
    start("a")
    with pytest.raises(ConfigError):
        start("never")
    fleet.close()
    ended = ["-a", "-c"]
    assert occupants.told[:-2] == ["+a", "+b", "+c", "-a", "-b", "+a", "+never", "-never"]
    assert sorted(occupants.told[-2:]) == ended
