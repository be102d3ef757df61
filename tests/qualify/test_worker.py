"""The program that takes a quarantined worker's place, with the checks themselves left out."""

import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue

import pytest
from findings import findings_for

from interlock.chips import certificates
from interlock.errors import ConfigError
from interlock.qualify import runner, worker
from interlock.qualify.check import Check, Level
from interlock.qualify.checks import CHECKS
from interlock.records.trust import Certificate, Role, Stack, Trust
from interlock.workers import protocol
from interlock.workers.protocol import Alive, Failed, Failure, Qualified, Qualify

NPU = Stack("npu", "Chip 1", "", "", "", "2.13.0", "", "0.1")


GENERATION = [check for check in CHECKS.values() if Role.GENERATE in check.needed]


class FakeChannel:
    """Asks each question, then is gone."""

    def __init__(self, *asked: Qualify) -> None:
        self.asked: SimpleQueue[bytes | None] = SimpleQueue()
        for each in asked:
            self.asked.put(protocol.encode(each))
        self.asked.put(None)
        self.said: list[protocol.Reply] = []

    def receive(self) -> bytes | None:
        return self.asked.get()

    def send(self, message: bytes) -> None:
        self.said.append(protocol.reply(message))


def pretend(
    name: str, level: Level, *, fail_fast: bool, checks: Sequence[Check] = GENERATION
) -> Certificate:
    assert level is Level.QUICK and fail_fast and checks == GENERATION
    if name != "npu:1":
        raise ConfigError(f"device {name!r}\ncannot be used here")
    found = Certificate(NPU, name, 1, level, Trust.GENERATE, [], findings_for(Trust.GENERATE), 1.0)
    return certificates.seal(found)


def test_it_qualifies_files_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLOCK_CERTIFICATES", str(tmp_path))
    monkeypatch.setattr(runner, "qualify", pretend)
    channel = FakeChannel(Qualify("npu:1", "quick", id=1), Qualify("warp", "quick", id=2))
    worker.serve(channel)
    answers = [said for said in channel.said if not isinstance(said, Alive)]
    passed = pretend("npu:1", Level.QUICK, fail_fast=True)
    refused = Failed("device 'warp' cannot be used here", Failure.MISTAKE, [2])
    assert answers == [Qualified(passed, id=1), refused]
    assert certificates.find(NPU) == passed


def test_it_shows_signs_of_life_while_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BEAT_S", 0.01)
    channel = FakeChannel()
    monkeypatch.setattr(channel, "receive", lambda: None if len(channel.said) >= 2 else waits())

    def waits() -> bytes:
        deadline = time.monotonic() + 60
        while len(channel.said) < 2:
            assert time.monotonic() < deadline, "no sign of life"
            time.sleep(0.005)
        return protocol.encode(Qualify("warp", "quick"))

    monkeypatch.setattr(runner, "qualify", pretend)
    worker.serve(channel)
    assert channel.said[:2] == [Alive(), Alive()]
