"""The page names what is to be mended, draws what there is, and shows foreign text as text."""

import math
from itertools import combinations
from pathlib import Path

import msgspec
import pytest
from scripted_nodes import certificate, facts

from interlock.chips import certificates
from interlock.qualify.fleet import chart
from interlock.qualify.fleet.found import DeviceFound, FleetFound, LinkFound, NodeFound
from interlock.qualify.fleet.page import headline, page, write
from interlock.qualify.fleet.verdict import link_fault, troubles
from interlock.records.trust import Trust

ATTACK = "<script>alert(1)</script>"


def fleet(count: int, devices: int = 4) -> FleetFound:
    """A sound one."""
    found = FleetFound("hosts", "quick", [], "0.1.0", 86400.0, tried="all pairs")
    found.nodes = [
        NodeFound(
            f"n{i}",
            f"10.0.0.{i}",
            facts(),
            devices=[
                DeviceFound(f"npu:{j}", f"n{i}/{j}", trust=Trust.TRAIN, done=True)
                for j in range(devices)
            ],
        )
        for i in range(count)
    ]
    found.links = [
        LinkFound(a.name, b.name, "npu", 1e8, 1e8, 1e-4) for a, b in combinations(found.nodes, 2)
    ]
    return found


def judged(found: FleetFound) -> FleetFound:
    found.troubles = troubles(found.nodes, found.links, found.together)
    return found


def drawn(found: FleetFound) -> chart.FleetDrawing:
    faults = {(link.a, link.b): link_fault(link, found.links) for link in found.links}
    return chart.drawn(found, faults)


def test_what_is_to_be_mended_stands_first() -> None:
    found = fleet(4)
    found.nodes[2].devices[1].trust = Trust.REJECT
    found.nodes[2].devices[1].failed = ["forward failed: 3 of 5 are wrong"]
    found.links[4].up = 1e7
    shown = page(judged(found))
    head = shown[: shown.index("<h2>Map</h2>")]
    assert "2 things to mend" in head
    assert "n2 npu:1" in head and "n1 – n3" in head and "n1 – n2" not in head
    assert 'href="n2/1/report.html"' in shown


def test_the_headline_claims_no_more_than_was_found() -> None:
    found = fleet(2)
    assert headline(judged(found)) == "Nothing to mend"
    found.nodes[0].devices[0].trust = Trust.UNKNOWN
    assert headline(judged(found)) == "Nothing wrong was found, and not all is decided"
    found.nodes[0].error = "gone"
    assert headline(judged(found)) == "1 thing to mend"


def test_states_on_the_map() -> None:
    found = fleet(3, devices=4)
    of = found.nodes[0].devices
    of[0].trust, of[0].failed = Trust.GENERATE, ["backward failed"]
    of[1].trust, of[1].failed = Trust.REJECT, ["forward failed"]
    of[2].trust, of[2].done = Trust.UNKNOWN, False
    found.links[0].down = 1e7
    found.links[1].error, found.links[1].hangs = "hangs in pings", True
    seen = drawn(judged(found))
    assert [square.state for square in seen.boxes[0].squares] == ["half", "bad", "unknown", "good"]
    assert [(line.state, line.label) for line in seen.lines] == [
        ("good", ""),
        ("bad", "10 MB/s"),
        ("cut", "hangs"),
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 12, 30])
@pytest.mark.parametrize("devices", [0, 1, 8, 16])
def test_boxes_lie_in_the_frame_and_on_nothing(count: int, devices: int) -> None:
    seen = drawn(fleet(count, devices))
    left, top, width, height = seen.frame
    for box in seen.boxes:
        assert left <= box.x and box.x + seen.width <= left + width
        assert top <= box.y and box.y + box.height <= top + height
        for square in box.squares:
            assert box.x <= square.x and square.x + seen.side <= box.x + seen.width
            assert box.y <= square.y and square.y + seen.side <= box.y + box.height
    for a, b in combinations(seen.boxes, 2):
        apart_x = abs(a.x - b.x) >= seen.width
        apart_y = abs(a.y + a.height / 2 - b.y - b.height / 2) >= (a.height + b.height) / 2
        assert apart_x or apart_y, (count, devices, a.name, b.name)
    assert math.isfinite(width) and math.isfinite(height)


def test_many_nodes_are_a_list_with_the_slowest_first() -> None:
    found = fleet(17, devices=1)
    found.links[100].up = 1e7
    shown = page(judged(found))
    rows = shown[shown.index("the slowest first") :]
    assert found.links[100].name in rows[: rows.index("</tr>", rows.index("<tbody>"))]


def test_foreign_text_is_shown_and_does_not_act() -> None:
    found = fleet(2)
    found.nodes[0].error = ATTACK
    found.nodes[1].name = found.links[0].b = ATTACK
    found.nodes[1].devices[0].name = ATTACK
    found.nodes[1].devices[0].failed = [ATTACK]
    found.links[0].error = ATTACK
    shown = page(judged(found))
    assert "<script" not in shown and "&lt;script&gt;alert(1)" in shown


def test_what_is_written(tmp_path: Path) -> None:
    found = fleet(2, devices=2)
    bad = found.nodes[0].devices[1]
    bad.trust, bad.failed = Trust.REJECT, ["forward failed"]
    (tmp_path / bad.folder).mkdir(parents=True)
    certificates.save(certificate("npu:1", "wrong"), tmp_path / bad.folder / "certificate.json")
    assert write(judged(found), tmp_path) == tmp_path / "fleet.html"
    again = msgspec.json.decode((tmp_path / "fleet.json").read_bytes(), type=FleetFound)
    assert again == found
    reports = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("report.html"))
    assert reports == ["n0/1/report.html"]
