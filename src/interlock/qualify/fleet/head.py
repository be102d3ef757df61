"""Qualifies a fleet: every device of every node at once, then the links between the nodes.

    reach ──> examine all devices ──> links, round by round ──> all nodes at once ──> verdict.py
      └─ what a node says of itself        └─ no node is in two at a time
         must be what we are

A node that cannot be reached, is another Interlock, or is lost on the way is a line and a row; the
others go on. Nodes end what they run when the fleet is closed.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

import interlock
from interlock.chips import certificates, versions
from interlock.fleet.base import Fleet, Lost
from interlock.processes.deadline import Deadline
from interlock.qualify.fleet import node as node_side
from interlock.qualify.fleet.found import (
    DeviceFound,
    FleetFound,
    LinkFound,
    NodeFound,
    TogetherFound,
)
from interlock.qualify.fleet.links import LinkTrial
from interlock.qualify.fleet.nodes import Place, folder
from interlock.qualify.fleet.rounds import pairs, rounds
from interlock.qualify.fleet.talk import (
    CERTIFICATE_BYTES,
    CheckNews,
    DeviceNews,
    Examine,
    LinkNews,
    NodeFacts,
    NodeReply,
    NodeRequest,
)
from interlock.qualify.fleet.verdict import link_fault, measured, rate, troubles
from interlock.records.coding import from_bytes, to_bytes
from interlock.records.trust import Certificate, Result
from interlock.text import one_line

_REACH_S = 300.0  # for a node to import torch, on a busy machine, and say what it is
_SILENCE_S = 60.0  # without a sign of life of a node that has given one
_LOOK_S = 1.0

_MOST_STEPS = 30  # of one link
_AGAIN = "{}, again"

Note = Callable[[str], None]


class Settings(msgspec.Struct, frozen=True):
    """What is asked of every node."""

    level: str
    checks: list[str] = []  # ids; []: all
    minutes: float = 0.0
    seed: int = 0
    fail_fast: bool = False
    timeout_s: float = 3600.0  # for all devices
    link_s: float = 60.0  # for one step of a link
    largest: int = 256 << 20  # bytes of a transfer


class Head:
    """Asks the nodes, and keeps what they say."""

    def __init__(
        self, fleet: Fleet, places: Sequence[Place], settings: Settings, out: Path, note: Note
    ) -> None:
        self._fleet, self._settings, self._out, self._note = fleet, settings, out, note
        self._places = {place.name: place for place in places}
        self._nodes = {place.name: NodeFound(place.name, place.address) for place in places}
        self._heard = dict.fromkeys(self._nodes, time.monotonic())
        self._trials: dict[str, LinkTrial] = {}

    def run(self, given: str) -> FleetFound:
        """All of it. Never raises for what a node does."""
        settings, began = self._settings, time.monotonic()
        found = FleetFound(
            given, settings.level, settings.checks, interlock.__version__, time.time()
        )
        self._reach()
        self._examine()
        chosen, found.tried = pairs(self._alive(), settings.seed)
        for some in rounds(chosen):
            found.links += self._try([LinkFound(a, b) for a, b in some])
        self._confirm(found.links)
        found.nodes = [*self._nodes.values()]
        if len(alive := self._alive()) > 2 and all(map(measured, found.links)):
            found.together = self._all_at_once(alive)
        found.troubles = troubles(found.nodes, found.links, found.together)
        found.seconds = time.monotonic() - began
        return found

    def _alive(self) -> list[str]:
        return [name for name, node in self._nodes.items() if not node.error]

    def _reach(self) -> None:
        for place in self._places.values():
            self._fleet.start(place.spec)
        self._wait(
            lambda: all(self._nodes[name].facts for name in self._alive()), Deadline(_REACH_S)
        )
        for name in self._alive():
            if self._nodes[name].facts is None:
                self._give_up(name, f"does not say what it is within {_REACH_S:g} s")

    def _examine(self) -> None:
        settings = self._settings
        for name in self._alive():
            node = self._nodes[name]
            assert node.facts is not None
            all_of_it = [each for each in node.facts.devices if each != "cpu"] or ["cpu"]
            devices = self._places[name].devices or all_of_it
            node.devices = [
                DeviceFound(each, f"{folder(name)}/{i}-{folder(each)}")
                for i, each in enumerate(devices)
            ]
            self._ask(
                name,
                Examine(
                    devices,
                    settings.level,
                    settings.checks,
                    settings.minutes,
                    settings.seed,
                    settings.fail_fast,
                ),
            )
        limit = settings.timeout_s + 60 * settings.minutes
        self._wait(
            lambda: all(d.done for name in self._alive() for d in self._nodes[name].devices),
            Deadline(limit),
        )
        for node in self._nodes.values():
            for device in node.devices:
                if not device.done:
                    device.error = node.error or f"not qualified within {limit:g} s (--timeout)"
            if any("--timeout" in device.error for device in node.devices):
                self._give_up(node.name, f"not done within {limit:g} s (--timeout)")

    def _try(self, links: Sequence[LinkFound], title: str = "{}") -> list[LinkFound]:
        """Some links at once; no node is in two of them. `title`: of their trials, by their names,
        so that what comes late of one is not taken for news of another."""
        trials = [self._begin([link.a, link.b], title.format(link.name)) for link in links]
        self._settle(trials)
        for link, trial in zip(links, trials, strict=True):
            trial.fill(link)
            speed = f"{rate(link.up)} there, {rate(link.down)} back, "
            speed += f"{1e3 * link.latency_s:.2g} ms"
            self._note(f"{link.name}: {link.error or speed}")
        return [*links]

    def _confirm(self, links: Sequence[LinkFound]) -> None:
        """Try those again that are slow or hang, each alone: others may have been in their way."""
        doubtful = [(link, fault) for link in links if (fault := link_fault(link, links))]
        for link, fault in doubtful:
            if {link.a, link.b} <= {*self._alive()}:
                (again,) = self._try([LinkFound(link.a, link.b)], _AGAIN)
                link.keep_best(again, fault)

    def _all_at_once(self, names: Sequence[str]) -> TogetherFound:
        trial = self._begin(names, "all nodes at once")
        self._settle([trial])
        together = trial.together()
        self._note(f"all {len(names)} nodes at once: {together.error or 'sums are exact'}")
        return together

    def _begin(self, names: Sequence[str], title: str) -> LinkTrial:
        trial = self._trials[title] = LinkTrial(
            title,
            [self._nodes[name] for name in names],
            self._ask,
            largest=self._settings.largest,
            seconds=self._settings.link_s,
        )
        for name in names:  # lost in an earlier round
            if error := self._nodes[name].error:
                trial.lost(name, error)
        return trial

    def _settle(self, trials: Sequence[LinkTrial]) -> None:
        # Nodes keep the deadlines themselves; this one is for a node that does not.
        limit = 2 * node_side.JOIN_S + _MOST_STEPS * self._settings.link_s
        self._wait(lambda: all(trial.over for trial in trials), Deadline(limit))
        for trial in trials:
            if not trial.over:
                trial.give_up(f"no word of it within {limit:g} s")

    def _ask(self, name: str, request: NodeRequest) -> None:
        self._fleet.send(name, to_bytes(request), CERTIFICATE_BYTES)

    def _wait(self, done: Callable[[], bool], deadline: Deadline) -> None:
        """Hear the nodes until it is done, or the time is over."""
        while not done() and not deadline.over:
            for name, event in self._fleet.poll(min(_LOOK_S, deadline.left)):
                self._heard[name] = time.monotonic()
                if isinstance(event, Lost):
                    self._lose(name, event.reason)
                elif not self._nodes[name].error:
                    self._hear(name, event)
            for name in self._alive():
                silent = time.monotonic() - self._heard[name]
                if self._nodes[name].facts is not None and silent > _SILENCE_S:
                    self._give_up(name, f"no sign of life for {silent:.0f} s")

    def _hear(self, name: str, data: bytes) -> None:
        try:
            reply: NodeReply = from_bytes(data, NodeReply)
        except ValueError as error:
            self._give_up(name, f"says what this Interlock does not understand: {error}")
            return
        node = self._nodes[name]
        match reply:
            case NodeFacts() as facts:
                node.facts = facts
                if why := _other(facts):
                    self._give_up(name, why)
            case CheckNews(number, check) if number < len(node.devices):
                self._note(f"{name} {node.devices[number].name}: {check} has run")
            case DeviceNews(number) as news if number < len(node.devices):
                self._keep(node, node.devices[number], news)
            case LinkNews(link, rank, word) if link in self._trials:
                self._trials[link].hear(rank, word)

    def _keep(self, node: NodeFound, device: DeviceFound, news: DeviceNews) -> None:
        device.done, device.note = True, news.reason
        if news.certificate is None:
            device.error, device.note = one_line(news.reason, 500), ""
        else:
            _note_certificate(device, news.certificate)
            where = self._out / device.folder
            where.mkdir(parents=True, exist_ok=True)
            certificates.save(news.certificate, where / "certificate.json")
        self._note(f"{node.name} {device.name}: {device.error or device.trust}")

    def _lose(self, name: str, reason: str) -> None:
        node = self._nodes[name]
        if node.error:
            return
        if node.facts is None:
            reason = _unreached(reason)
        node.error = one_line(reason, 500)
        self._note(f"{name}: {node.error}")
        for trial in self._trials.values():
            trial.lost(name, node.error)

    def _give_up(self, name: str, reason: str) -> None:
        self._fleet.kill(name)
        self._lose(name, reason)


def _other(facts: NodeFacts) -> str:
    """In what its Interlock is not this one; "": in nothing."""
    ours = {
        "version": (facts.interlock, interlock.__version__),
        "commit": (facts.commit, versions.commit()),
        "checks": (facts.suite, versions.suite()),
    }
    for what, (theirs, own) in ours.items():
        if theirs and own and theirs != own:
            return (
                f"its Interlock is another: {what} {theirs[:12]}, here {own[:12]}; install the "
                "same there"
            )
    return ""


def _unreached(reason: str) -> str:
    """What to do about a node that never said what it is."""
    if "No module named 'interlock" in reason:
        known = interlock.__version__
        return f"has no such Interlock ({reason}); install {known}, see --remote-python"
    if "sent a message of" in reason:
        return f"{reason}: does its shell print something at login?"
    return f"cannot be reached: {reason}"


def _note_certificate(device: DeviceFound, certificate: Certificate) -> None:
    device.kind, device.chip = certificate.stack.kind, certificate.stack.chip
    device.trust = certificate.trust
    device.seconds = sum(finding.seconds for finding in certificate.findings)
    for finding in certificate.findings:
        if finding.result is Result.FAIL:
            device.failed.append(f"{finding.check} failed: {finding.summary}")
        if finding.check == "speed":
            device.speeds = {
                name: float(value)
                for name, value in finding.figures.items()
                if name.startswith(("GFLOP/s", "GB/s")) and not isinstance(value, str)
            }
