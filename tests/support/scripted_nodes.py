"""Nodes without machines: a fleet whose nodes answer by the book, or as a test has them."""

import time
from collections.abc import Callable

import interlock
from interlock.chips import certificates, versions
from interlock.chips.verdict import judge
from interlock.fleet.base import Event, Lost, Spec
from interlock.qualify.fleet.nodes import Place
from interlock.qualify.fleet.talk import (
    DeviceNews,
    Examine,
    LinkMeasured,
    LinkNews,
    LinkPlan,
    Listening,
    NodeFacts,
    NodeReply,
    NodeRequest,
)
from interlock.records.coding import from_bytes, to_bytes
from interlock.records.trust import Certificate, Finding, Result, Stack

FAST = 100e6
Answers = list[NodeReply | Lost | bytes]
# What a node says to a request; None: it has just been started.
Node = Callable[[NodeRequest | None], Answers]


def facts(**changes: object) -> NodeFacts:
    known: dict[str, object] = {
        "host": "h",
        "interlock": interlock.__version__,
        "suite": versions.suite(),
        "commit": versions.commit(),
        "torch": "2.13.0",
        "cores": 2,
        "devices": ["npu:0", "npu:1", "cpu"],
    }
    return NodeFacts(**known | changes)  # type: ignore[arg-type]


def certificate(device: str, failed: str = "") -> Certificate:
    findings = [Finding("forward", Result.FAIL if failed else Result.PASS, failed, 2.0)]
    trust, reasons = judge(findings)
    made = Certificate(
        Stack("npu", "Chip 9"), device, 1, "quick", trust, reasons, findings, 86400.0
    )
    return certificates.seal(made)


def sound(
    bad: int | None = None, links: dict[str, LinkMeasured] | None = None, **known: object
) -> Node:
    """A node that does what it is asked; its device `bad` fails."""

    def answer(asked: NodeRequest | None) -> Answers:
        match asked:
            case None:
                return [facts(**known)]
            case Examine(devices):
                return [
                    DeviceNews(i, certificate(each, "3 of 5 are wrong" if i == bad else ""))
                    for i, each in enumerate(devices)
                ]
            case LinkPlan() as plan:
                usual = LinkMeasured(0.0, "", 1e-4, FAST, FAST, 0.1)
                said = (links or {}).get(plan.link.removesuffix(", again"), usual)
                before: Answers = [] if plan.rank else [LinkNews(plan.link, 0, Listening(4000))]
                return [*before, LinkNews(plan.link, plan.rank, said)]

    return answer


class ScriptedFleet:
    """See fleet/base.Fleet."""

    def __init__(self, nodes: dict[str, Node]) -> None:
        self._nodes = nodes
        self._events: list[Event] = []
        self.asked: list[tuple[str, NodeRequest]] = []
        self.killed: list[str] = []

    @property
    def places(self) -> list[Place]:
        from pathlib import Path

        return [Place(n, f"10.0.0.{i}", [], Spec(n, "", Path())) for i, n in enumerate(self._nodes)]

    def start(self, spec: Spec) -> None:
        self._take(spec.name, None)

    def send(self, name: str, message: bytes, reply_bytes: int | None = None) -> None:
        asked = from_bytes(message, NodeRequest)
        self.asked.append((name, asked))
        if name not in self.killed:
            self._take(name, asked)

    def poll(self, timeout_s: float) -> list[Event]:
        events, self._events = self._events, []
        if not events:
            time.sleep(0.01)
        return events

    def wake(self) -> None: ...

    def kill(self, name: str) -> None:
        self.killed.append(name)

    def close(self) -> None: ...

    def _take(self, name: str, asked: NodeRequest | None) -> None:
        for reply in self._nodes[name](asked):
            known = reply if isinstance(reply, bytes | Lost) else to_bytes(reply)
            self._events.append((name, known))
            if isinstance(reply, Lost):
                self.killed.append(name)
