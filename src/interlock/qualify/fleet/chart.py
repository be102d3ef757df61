"""Where things stand on the map of a fleet: nodes on a ring, their devices in them, links between.

A node is a box with its name and a square a device. Coordinates are the picture's own, around
(0, 0); the page scales them. What is bad is drawn last, over the rest.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from interlock.qualify.fleet.found import DeviceFound, FleetFound, LinkFound, NodeFound
from interlock.qualify.fleet.verdict import rate
from interlock.records.trust import Trust
from interlock.text import one_line

_WIDTH, _IN_A_ROW, _SIDE, _GAP = 152, 4, 28, 8  # of a box; devices; a square's side
_PAD = (_WIDTH - _IN_A_ROW * (_SIDE + _GAP) + _GAP) / 2
_HEAD = 32  # from a box's top to its first row
_MARGIN = 12
_NAME = 16  # characters of a name that a box has room for
_LABELS = 12  # bad links with their figure beside them; of more, the list has it
_AT = 0.36  # of a line's length: where its label is, off the crossing of diagonals

Point = tuple[float, float]


class Square(NamedTuple):
    """A device."""

    x: float
    y: float
    state: str
    title: str


class Box(NamedTuple):
    """A node; x and y are its upper left corner."""

    x: float
    y: float
    height: float
    name: str
    lost: bool
    title: str
    squares: list[Square]


class Line(NamedTuple):
    """A link; `label` stands at the third point."""

    ends: tuple[Point, Point]
    at: Point
    state: str  # "good", "bad", "cut" (nothing was measured)
    title: str
    label: str


class FleetDrawing(NamedTuple):
    """The map; left, top, width and height of what it covers."""

    frame: tuple[float, float, float, float]
    width: float  # of a box
    side: float  # of a square
    lines: list[Line]
    boxes: list[Box]


def state(device: DeviceFound) -> str:
    """ "good", "half" (a check that only training needs failed), "bad" or "unknown"."""
    if device.error or device.trust is Trust.REJECT:
        return "bad"
    if device.failed:
        return "half"
    return "good" if device.done else "unknown"


def drawn(found: FleetFound, faults: Mapping[tuple[str, str], str]) -> FleetDrawing:
    """The map; `faults` says what is wrong with each link."""
    centres = _centres(found.nodes)
    boxes = [_box(node, *centres[node.name]) for node in found.nodes]
    lines = [_line(link, faults[link.a, link.b], centres) for link in found.links]
    lines.sort(key=lambda line: line.state != "good")
    if sum(line.state != "good" for line in lines) > _LABELS:
        lines = [line._replace(label="") for line in lines]
    left, top = min(box.x for box in boxes) - _MARGIN, min(box.y for box in boxes) - _MARGIN
    right = max(box.x for box in boxes) + _WIDTH + _MARGIN
    bottom = max(box.y + box.height for box in boxes) + _MARGIN
    return FleetDrawing((left, top, right - left, bottom - top), _WIDTH, _SIDE, lines, boxes)


def _centres(nodes: list[NodeFound]) -> dict[str, Point]:
    count, tall = len(nodes), max(map(_height, nodes))
    # So far out that neighbours, whatever their angle, do not touch.
    radius = (math.hypot(_WIDTH, tall) + 30) / (2 * math.sin(math.pi / max(count, 2)))
    wide, high = max(radius, 205.0), radius if count > 4 else tall + 60.0
    turned = -math.pi / 4 if count == 4 else 0.0  # at the corners
    angles = [turned - math.pi / 2 + 2 * math.pi * i / count for i in range(count)]
    if count == 2:
        angles = [math.pi, 0.0]
    return {
        node.name: (wide * math.cos(angle) if count > 1 else 0.0, high * math.sin(angle))
        for node, angle in zip(nodes, angles, strict=True)
    }


def _height(node: NodeFound) -> float:
    rows = max(1, -(-len(node.devices) // _IN_A_ROW))
    return _HEAD + rows * (_SIDE + _GAP) - _GAP + _PAD


def _box(node: NodeFound, x: float, y: float) -> Box:
    height = _height(node)
    left, top = x - _WIDTH / 2, y - height / 2
    squares = [
        Square(
            left + _PAD + i % _IN_A_ROW * (_SIDE + _GAP),
            top + _HEAD + i // _IN_A_ROW * (_SIDE + _GAP),
            state(device),
            f"{device.name}: {device.error or '; '.join(device.failed) or device.trust}",
        )
        for i, device in enumerate(node.devices)
    ]
    name = one_line(node.name, _NAME)
    return Box(left, top, height, name, bool(node.error), f"{node.name} {node.error}", squares)


def _line(link: LinkFound, fault: str, centres: Mapping[str, Point]) -> Line:
    a, b = centres[link.a], centres[link.b]
    at = (a[0] + _AT * (b[0] - a[0]), a[1] + _AT * (b[1] - a[1]))
    if link.error:
        return Line((a, b), at, "cut", f"{link.name}: {link.error}", _short(link))
    speed = f"{rate(link.up)} there, {rate(link.down)} back"
    title = f"{link.name}: {speed}, {1e3 * link.latency_s:.2g} ms"
    return Line((a, b), at, "bad" if fault else "good", title, _short(link) if fault else "")


def _short(link: LinkFound) -> str:
    if link.error:
        return "hangs" if link.hangs else "broken"
    return "wrong sums" if link.off else rate(min(link.up, link.down))
