"""Whom the head asks, what it makes of the answers, and of nodes that give none."""

from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_nodes import FAST, Answers, Node, ScriptedFleet, facts, sound

from interlock.chips import certificates
from interlock.fleet.base import Lost
from interlock.qualify.fleet import head, links
from interlock.qualify.fleet.found import FleetFound
from interlock.qualify.fleet.head import Head, Settings
from interlock.qualify.fleet.talk import (
    Examine,
    LinkBroken,
    LinkMeasured,
    LinkNews,
    LinkPlan,
    Listening,
    NodeAlive,
    NodeRequest,
)
from interlock.records.trust import Trust

Run = Callable[..., tuple[FleetFound, ScriptedFleet]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(links, "_SETTLE_S", 0.05)

    def on(settings: Settings | None = None, **nodes: Node) -> tuple[FleetFound, ScriptedFleet]:
        fleet = ScriptedFleet(nodes)
        asked = Head(
            fleet, fleet.places, settings or Settings("quick"), tmp_path, lambda line: None
        )
        return asked.run("hosts"), fleet

    return on


def names(found: FleetFound) -> list[str]:
    return [trouble.name for trouble in found.troubles]


def measured(up: float = FAST, down: float = FAST, off: float = 0.0) -> LinkMeasured:
    return LinkMeasured(off, "the sum of 1 float32" if off else "", 1e-4, up, down)


def test_a_bad_chip_and_a_slow_link_are_named_and_nothing_else(run: Run, tmp_path: Path) -> None:
    slow = {"n2 – n4": measured(up=10e6)}
    found, fleet = run(n1=sound(), n2=sound(links=slow), n3=sound(bad=1), n4=sound(links=slow))
    assert names(found) == ["n3 npu:1", "n2 – n4"]
    assert [device.name for device in found.devices] == ["npu:0", "npu:1"] * 4
    assert len(found.links) == 6 and found.together is not None and not found.together.error
    tried = [ask.link for _, ask in fleet.asked if isinstance(ask, LinkPlan) and ask.rank == 0]
    assert [each for each in tried if "n2 – n4" in each] == ["n2 – n4", "n2 – n4, again"]
    kept = certificates.load(tmp_path / "n3" / "1-npu%3a1" / "certificate.json")
    certificates.verify(kept)
    assert kept.trust is Trust.REJECT


def test_both_ends_of_a_link_are_told_where_to_meet(run: Run) -> None:
    _, fleet = run(n1=sound(), n2=sound())
    one, two = [(name, ask) for name, ask in fleet.asked if isinstance(ask, LinkPlan)]
    assert one[0] == "n1" and one[1].store is None and one[1].address == "10.0.0.0"
    assert two[0] == "n2" and two[1].store == ("10.0.0.0", 4000)
    assert {one[1].device, two[1].device} == {"npu:0"}


def test_a_bad_chip_takes_no_part_in_links(run: Run) -> None:
    _, fleet = run(n1=sound(bad=0), n2=sound())
    assert {ask.device for _, ask in fleet.asked if isinstance(ask, LinkPlan)} == {
        "npu:0",
        "npu:1",
    }


def test_nodes_of_two_vendors_meet_on_their_hosts(run: Run) -> None:
    _, fleet = run(n1=sound(), n2=sound(devices=["cuda:0", "cpu"]))
    assert {ask.device for _, ask in fleet.asked if isinstance(ask, LinkPlan)} == {"cpu"}


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ([Lost("exit code 255: no route to host")], "cannot be reached: exit code 255: no route"),
        ([Lost("exit code 1: No module named 'interlock.qualify'")], "has no such Interlock"),
        ([Lost("sent a message of 9 bytes, where 1 are the most")], "print something at login?"),
        ([facts(interlock="0.0.1")], "its Interlock is another: version 0.0.1, here"),
        ([facts(suite="abc")], "its Interlock is another: checks abc, here"),
        ([b"\xc1"], "does not understand"),
    ],
)
def test_a_node_that_does_not_take_part_is_a_line_and_the_others_go_on(
    said: Answers, line: str, run: Run
) -> None:
    found, fleet = run(n1=sound(), n2=lambda asked: said, n3=sound())
    assert names(found) == ["n2"] and line in found.troubles[0].line
    assert [node.name for node in found.nodes] == ["n1", "n2", "n3"]
    assert [link.name for link in found.links] == ["n1 – n3"]
    assert "n2" not in {name for name, _ in fleet.asked}
    assert not found.fit


def test_a_node_that_dies_at_work_is_a_line(run: Run) -> None:
    def dies(asked: NodeRequest | None) -> Answers:
        return [facts()] if asked is None else [Lost("signal 9")]

    found, _ = run(n1=sound(), n2=dies, n3=sound())
    assert [(t.name, t.line) for t in found.troubles] == [("n2", "signal 9")]
    assert [device.error for device in found.nodes[1].devices] == ["signal 9"] * 2
    assert [link.name for link in found.links] == ["n1 – n3"]


def test_a_node_that_dies_in_a_link_leaves_the_others(run: Run) -> None:
    whole = sound()

    def dies(asked: NodeRequest | None) -> Answers:
        return [Lost("signal 9")] if isinstance(asked, LinkPlan) else whole(asked)

    found, _ = run(n1=whole, n2=dies, n3=whole)
    assert names(found) == ["n2"]
    assert [(link.name, link.error) for link in found.links if not link.error] == [("n1 – n3", "")]


def test_a_link_that_hangs_twice_is_named(run: Run) -> None:
    reason = "hangs in pings: not over after 60 s"

    def hangs(asked: NodeRequest | None) -> Answers:
        if isinstance(asked, LinkPlan) and asked.link.startswith("n1 – n2"):
            before: Answers = [] if asked.rank else [LinkNews(asked.link, 0, Listening(1))]
            return [*before, LinkNews(asked.link, asked.rank, LinkBroken(reason, hangs=True))]
        return sound()(asked)

    found, _ = run(n1=hangs, n2=hangs, n3=sound())
    assert [(t.name, t.line) for t in found.troubles] == [("n1 – n2", reason)]
    assert found.together is None  # it would hang too


def test_a_link_that_is_cut_is_named_with_where_it_hung_and_the_rest_is_judged(run: Run) -> None:
    """Once it is cut, a second trial only finds that nobody can be reached."""

    def cut(asked: NodeRequest | None) -> Answers:
        if not (isinstance(asked, LinkPlan) and asked.link.startswith("n1 – n2")):
            return sound(bad=1)(asked)
        before: Answers = [] if asked.rank else [LinkNews(asked.link, 0, Listening(1))]
        if asked.link == "n1 – n2":
            word = LinkBroken("hangs in a transfer of 4 MiB there", hangs=True)
        else:
            word = LinkBroken("no connection")
        return [*before, LinkNews(asked.link, asked.rank, word)] if asked.rank else before

    found, _ = run(n1=cut, n2=cut, n3=sound())
    assert [(t.name, t.line) for t in found.troubles[2:]] == [
        ("n1 – n2", "hangs in a transfer of 4 MiB there; tried again: n2: no connection")
    ]
    assert names(found)[:2] == ["n1 npu:1", "n2 npu:1"]
    assert [link.up for link in found.links] == [0.0, FAST, FAST]
    assert found.links[0].hangs and found.together is None


def test_what_comes_late_of_a_first_trial_does_not_break_the_second(run: Run) -> None:
    """n2 is heard of only while the link is tried again."""
    late = LinkNews("n1 – n2", 1, LinkBroken("hangs", hangs=True))

    def first(asked: NodeRequest | None) -> Answers:
        if isinstance(asked, LinkPlan) and asked.link == "n1 – n2":
            broken = LinkBroken("hangs", hangs=True)
            return [LinkNews(asked.link, 0, Listening(1)), LinkNews(asked.link, 0, broken)]
        return sound()(asked)

    def second(asked: NodeRequest | None) -> Answers:
        if isinstance(asked, LinkPlan) and asked.link == "n1 – n2":
            return []
        return [late, *sound()(asked)] if isinstance(asked, LinkPlan) else sound()(asked)

    found, _ = run(n1=first, n2=second, n3=sound())
    assert names(found) == [] and found.links[0].first == "hangs"


def test_a_link_that_fails_once_is_told_but_not_named(run: Run) -> None:
    failed: set[int] = set()

    def once(asked: NodeRequest | None) -> Answers:
        if isinstance(asked, LinkPlan) and asked.link == "n1 – n2" and asked.rank not in failed:
            failed.add(asked.rank)
            before: Answers = [] if asked.rank else [LinkNews(asked.link, 0, Listening(1))]
            return [*before, LinkNews(asked.link, asked.rank, LinkBroken("hangs", hangs=True))]
        return sound()(asked)

    found, _ = run(n1=once, n2=once, n3=sound())
    assert names(found) == []
    assert found.links[0].first == "hangs" and found.links[0].up == FAST


def test_what_the_others_only_see_as_a_closed_connection_is_not_the_reason(run: Run) -> None:
    def breaks(reason: str) -> Node:
        def answer(asked: NodeRequest | None) -> Answers:
            if isinstance(asked, LinkPlan):
                before: Answers = [] if asked.rank else [LinkNews(asked.link, 0, Listening(1))]
                return [*before, LinkNews(asked.link, asked.rank, LinkBroken(reason))]
            return sound()(asked)

        return answer

    found, _ = run(n1=breaks("Connection closed by peer"), n2=breaks("507056: link down"))
    assert found.troubles[0].line == "n2: 507056: link down"


def test_wrong_sums_stay_wrong(run: Run) -> None:
    wrong = {"n1 – n2": measured(off=3.0)}
    found, _ = run(n1=sound(), n2=sound(links=wrong), n3=sound())
    assert [(t.name, t.line) for t in found.troubles] == [
        ("n1 – n2", "the sum of 1 float32 is off by 3")
    ]


def silent(asked: NodeRequest | None) -> Answers:
    return [facts(), NodeAlive()] if asked is None else []


def test_a_node_that_falls_silent_is_given_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_SILENCE_S", 0.2)
    found, fleet = run(n2=silent)
    assert names(found) == ["n2"] and "no sign of life" in found.troubles[0].line
    assert fleet.killed == ["n2"]


def test_a_node_that_never_says_what_it_is_is_given_up(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_REACH_S", 0.2)
    found, _ = run(n1=sound(), n2=lambda asked: [])
    assert names(found) == ["n2"] and "within 0.2 s" in found.troubles[0].line


def test_devices_have_a_deadline(run: Run) -> None:
    found, _ = run(Settings("quick", timeout_s=0.2), n1=sound(), n2=silent)
    assert [(t.name, t.line) for t in found.troubles] == [
        ("n2", "not done within 0.2 s (--timeout)")
    ]
    assert "--timeout" in found.nodes[1].devices[0].error


def test_what_is_asked_of_devices_is_what_was_asked_for(run: Run) -> None:
    settings = Settings("quick", ["forward"], seed=3, fail_fast=True)
    found, fleet = run(settings, n1=sound(devices=["cpu"]), n2=sound())
    asked = [ask for _, ask in fleet.asked if isinstance(ask, Examine)]
    assert asked == [
        Examine(["cpu"], "quick", ["forward"], 0.0, 3, True),
        Examine(["npu:0", "npu:1"], "quick", ["forward"], 0.0, 3, True),
    ]
    assert found.troubles == [] and not found.fit  # not all that decides has run
