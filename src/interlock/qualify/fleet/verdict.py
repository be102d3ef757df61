"""What is wrong with a fleet, by name. Rules only: nothing is measured here.

    a device   a check of it failed, or it could not be tried
    a node     cannot be reached, was lost; or all its links (two and more) are bad; or all its
               devices are slow
    a link     hangs, breaks, adds up wrongly, or is slow: below half of the usual bandwidth one
               way, or ten times the usual latency
    the fleet  sums over all nodes fail though every link alone is sound

Usual is the median over the nodes of each one's best link: one bad cable to one node makes a half
of four nodes' links slow, but not the best link of the others. A device is slow below half of the
median of its kind; fewer than three of a kind tell nothing.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from interlock.chips import vendors
from interlock.qualify.fleet.found import (
    DeviceFound,
    LinkFound,
    NodeFound,
    TogetherFound,
    Trouble,
    What,
)

SLOW = 0.5  # of the usual speed
LATE = 10.0  # times the usual latency
_LATE_S = 1e-3  # and so much more than it at least
_ENOUGH = 3  # of a kind, to tell what is usual


def troubles(
    nodes: Sequence[NodeFound], links: Sequence[LinkFound], together: TogetherFound | None
) -> list[Trouble]:
    """Everything that is to be mended: nodes first, then devices, then links."""
    bad_links = {id(link): line for link in links if (line := link_fault(link, links))}
    bad_nodes = dict(_all_bad(nodes, links, bad_links))
    slow = _stragglers(nodes)
    found = [Trouble(What.NODE, node.name, node.error) for node in nodes if node.error]
    found += [Trouble(What.NODE, name, line) for name, line in bad_nodes.items()]
    for node in nodes:
        lines = {i: _device_fault(each) for i, each in enumerate(node.devices)}
        speeds = [slow.get((node.name, i), "") for i in lines]
        if len(speeds) > 1 and all(speeds):
            line = f"a straggler: all its devices are slow; {node.devices[0].name} {speeds[0]}"
            found.append(Trouble(What.NODE, node.name, line))
            speeds = [""] * len(speeds)
        for i, each in enumerate(node.devices):
            lost = node.error and each.error  # the node's line says so
            if (line := lines[i] or speeds[i]) and not lost:
                found.append(Trouble(What.DEVICE, device_name(node, i), line))
    for link in links:
        line = bad_links.get(id(link), "")
        if line and not {link.a, link.b} & (bad_nodes.keys() | _lost(nodes)):
            found.append(Trouble(What.LINK, link.name, line))
    if together is not None and not bad_links and (line := _together_fault(together)):
        found.append(Trouble(What.FLEET, "all nodes at once", line))
    return found


def device_name(node: NodeFound, number: int) -> str:
    """ "n2 sim:crash", with its number where the node has several of that name."""
    name = node.devices[number].name
    several = sum(each.name == name for each in node.devices) > 1
    return f"{node.name} {name}{f' (number {number})' if several else ''}"


def usual(links: Sequence[LinkFound]) -> tuple[float, float]:
    """The usual bandwidth, bytes a second one way, and the usual latency in seconds; 0: unknown."""
    fast: dict[str, float] = {}
    near: dict[str, float] = {}
    for link in filter(measured, links):
        for end in (link.a, link.b):
            fast[end] = max(fast.get(end, 0.0), link.up, link.down)
            near[end] = min(near.get(end, link.latency_s), link.latency_s)
    return (median(fast.values()), median(near.values())) if fast else (0.0, 0.0)


def measured(link: LinkFound) -> bool:
    return not link.error


def link_fault(link: LinkFound, links: Sequence[LinkFound]) -> str:
    """What is wrong with one of `links`; "": nothing."""
    if link.error:
        return link.error
    if link.off:
        return f"{link.worst} is off by {link.off:g}"
    speed, latency = usual(links)
    ways = [(link.up, link.a, link.b), (link.down, link.b, link.a)]
    slow = [
        f"{rate(found)} from {start} to {end}" for found, start, end in ways if found < SLOW * speed
    ]
    if slow:
        return f"slow: {', '.join(slow)}, where {rate(speed)} is usual"
    if link.latency_s > max(LATE * latency, latency + _LATE_S):
        return f"late: {1e3 * link.latency_s:.2g} ms one way, where {1e3 * latency:.2g} is usual"
    return ""


def rate(bytes_per_s: float) -> str:
    """ "9.42 MB/s", "1,250 MB/s"."""
    speed = bytes_per_s / 1e6
    return f"{speed:.3g} MB/s" if speed < 100 else f"{speed:,.0f} MB/s"


def _lost(nodes: Sequence[NodeFound]) -> set[str]:
    return {node.name for node in nodes if node.error}


def _all_bad(
    nodes: Sequence[NodeFound], links: Sequence[LinkFound], bad: dict[int, str]
) -> Iterator[tuple[str, str]]:
    """Nodes whose links are all bad, and what is said of it, while others' are not."""
    if len(bad) == len(links):
        return
    for node in nodes:
        own = [link for link in links if node.name in (link.a, link.b)]
        if len(own) > 1 and not node.error and all(id(link) in bad for link in own):
            yield node.name, f"all its {len(own)} links are bad: {bad[id(own[0])]}"


def _device_fault(device: DeviceFound) -> str:
    return device.error or "; ".join(device.failed)


def _stragglers(nodes: Sequence[NodeFound]) -> dict[tuple[str, int], str]:
    """Slow devices, by node and number. What is simulated says nothing of speed."""
    kinds: dict[tuple[str, str, str], dict[tuple[str, int], float]] = defaultdict(dict)
    for node in nodes:
        for i, each in enumerate(node.devices):
            for figure, value in () if vendors.simulated(each.kind) else each.speeds.items():
                kinds[each.kind, each.chip, figure][node.name, i] = value
    found: dict[tuple[str, int], str] = {}
    for (_, chip, figure), values in kinds.items():
        middle = median(values.values())
        for where, value in values.items() if len(values) >= _ENOUGH else ():
            if value < SLOW * middle:
                line = f"slow: {figure} {value:.3g}, where {middle:.3g} is usual of {chip}"
                found.setdefault(where, line)
    return found


def _together_fault(together: TogetherFound) -> str:
    if together.error:
        return together.error
    return f"{together.worst} is off by {together.off:g}" if together.off else ""
