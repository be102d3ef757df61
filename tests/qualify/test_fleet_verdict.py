"""What is named of a fleet, from figures written down here."""

from itertools import combinations

import pytest

from interlock.qualify.fleet.found import DeviceFound, LinkFound, NodeFound, TogetherFound, What
from interlock.qualify.fleet.rounds import pairs, rounds
from interlock.qualify.fleet.verdict import troubles, usual
from interlock.records.trust import Trust

NAMES = ["n1", "n2", "n3", "n4"]
FAST, LATENCY = 100e6, 2e-4


def device(speed: float = 10.0, **changes: object) -> DeviceFound:
    found = DeviceFound("npu:0", kind="npu", chip="Chip 9", trust=Trust.TRAIN, done=True)
    found.speeds = {"GFLOP/s of matmul float32": speed}
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def nodes(**devices: list[DeviceFound]) -> list[NodeFound]:
    return [NodeFound(n, n, devices=devices.get(n, [device(), device()])) for n in NAMES]


def links(**changes: dict[str, object]) -> list[LinkFound]:
    """All pairs of four nodes; changes by "n1_n2"."""
    found = []
    for a, b in combinations(NAMES, 2):
        figures = {"up": FAST, "down": FAST, "latency_s": LATENCY} | changes.get(f"{a}_{b}", {})
        found.append(LinkFound(a, b, "npu", **figures))  # type: ignore[arg-type]
    return found


def named(*arguments: object) -> list[tuple[str, str]]:
    return [(each.what, each.name) for each in troubles(*arguments)]  # type: ignore[arg-type]


def test_a_sound_fleet_has_nothing_to_mend() -> None:
    assert troubles(nodes(), links(), TogetherFound(4, 0.1)) == []


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_slow_link_is_named_with_its_way(way: str) -> None:
    (found,) = troubles(nodes(), links(n2_n4={way: 0.49 * FAST}), None)
    ends = "n2 to n4" if way == "up" else "n4 to n2"
    assert (found.what, found.name) == (What.LINK, "n2 – n4")
    assert found.line == f"slow: 49 MB/s from {ends}, where 100 MB/s is usual"
    assert troubles(nodes(), links(n2_n4={way: 0.51 * FAST}), None) == []


def test_a_late_link_is_named() -> None:
    (found,) = troubles(nodes(), links(n1_n2={"latency_s": 0.01}), None)
    assert found.line == "late: 10 ms one way, where 0.2 is usual"
    # Ten times as late, but less than a millisecond more: what a busy host does.
    fast = {f"{a}_{b}": {"latency_s": 1e-5} for a, b in combinations(NAMES, 2)}
    assert troubles(nodes(), links(**fast | {"n1_n2": {"latency_s": 5e-4}}), None) == []


def test_one_bad_cable_is_a_node_and_not_three_links() -> None:
    slow = {f"{n}_n4": {"up": 10e6, "down": 10e6} for n in NAMES[:3]}
    (found,) = troubles(nodes(), links(**slow), None)
    assert (found.what, found.name) == (What.NODE, "n4")
    assert found.line.startswith("all its 3 links are bad: slow: 10 MB/s")


def test_hangs_and_wrong_sums_are_named() -> None:
    changes = {
        "n1_n2": {"error": "hangs in pings: not over after 60 s", "hangs": True},
        "n3_n4": {"off": 3.0, "worst": "the sum of 65537 float32"},
    }
    found = troubles(nodes(), links(**changes), None)
    assert [(each.name, each.line) for each in found] == [
        ("n1 – n2", "hangs in pings: not over after 60 s"),
        ("n3 – n4", "the sum of 65537 float32 is off by 3"),
    ]


def test_sums_over_all_are_named_when_every_link_is_sound() -> None:
    wrong = TogetherFound(4, off=2.0, worst="the sum of 1 int64")
    assert named(nodes(), links(), wrong) == [("fleet", "all nodes at once")]
    assert named(nodes(), links(n1_n2={"up": 1.0}), wrong) == [("link", "n1 – n2")]


def test_a_bad_device_is_named_with_its_number_where_names_repeat() -> None:
    bad = device(trust=Trust.REJECT, failed=["forward failed: 3 of 5 are wrong"])
    (found,) = troubles(nodes(n3=[device(), bad]), links(), None)
    assert (found.what, found.name) == (What.DEVICE, "n3 npu:0 (number 1)")
    assert found.line == "forward failed: 3 of 5 are wrong"
    bad.name = "npu:1"
    assert named(nodes(n3=[device(), bad]), links(), None) == [("device", "n3 npu:1")]


def test_a_slow_device_and_a_straggling_node_are_told_apart() -> None:
    assert named(nodes(n2=[device(4.9), device()]), links(), None) == [
        ("device", "n2 npu:0 (number 0)")
    ]
    assert named(nodes(n2=[device(4.9), device(4.0)]), links(), None) == [("node", "n2")]
    assert named(nodes(n2=[device(5.1), device(5.1)]), links(), None) == []


def test_chips_are_held_against_their_own_kind_alone() -> None:
    other = device(1.0, chip="Chip 3")
    assert named(nodes(n2=[other, other]), links(), None) == []
    simulated = [device(value, kind="sim") for value in (1.0, 10.0, 10.0, 10.0)]
    assert named(nodes(**{n: simulated for n in NAMES}), links(), None) == []


def test_a_lost_node_is_one_line() -> None:
    found = nodes()
    found[1].error = "cannot be reached: exit code 255"
    found[1].devices = [DeviceFound("npu:0", error=found[1].error)]
    broken = {"n1_n2": {"error": "n2 was lost"}, "n2_n3": {"error": "n2 was lost"}}
    assert named(found, links(**broken), None) == [("node", "n2")]


def test_usual_is_of_the_best_links() -> None:
    half = {"n1_n2": {"up": 1e6}, "n1_n3": {"up": 1e6}, "n1_n4": {"up": 1e6}}
    assert usual(links(**half)) == (FAST, LATENCY)
    assert usual([]) == (0.0, 0.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 9, 20])
def test_every_pair_is_tried_once_and_no_node_is_in_two_at_once(count: int) -> None:
    names = [f"n{i}" for i in range(count)]
    chosen, words = pairs(names, seed=3)
    found = rounds(chosen)
    assert sorted(pair for each in found for pair in each) == sorted(chosen)
    assert all(len({*a, *b}) == 4 for each in found for a, b in combinations(each, 2))
    if count <= 8:
        assert len(chosen) == count * (count - 1) // 2 and words.startswith("all ")
    else:
        ring = {frozenset((names[i], names[(i + 1) % count])) for i in range(count)}
        assert ring <= {frozenset(pair) for pair in chosen}
        most = count * (count - 1) // 2
        assert len(chosen) == min(3 * count, most)
        assert f"{len(chosen)} of {most} pairs" in words
