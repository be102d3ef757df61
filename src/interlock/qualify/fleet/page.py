"""The page of a fleet: what is to be mended, the map, every link and every device as figures.

    FleetFound ── fleet.json
               └─ chart.py (where things stand) ──> page.html on report/sheet.py's skeleton

It loads nothing. A device on which a check failed has a page of its own beside its certificate.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from markupsafe import Markup

from interlock.chips import certificates, vendors
from interlock.qualify import page as device_page
from interlock.qualify.fleet import chart, verdict
from interlock.qualify.fleet.found import DeviceFound, FleetFound, LinkFound, NodeFound
from interlock.records.sealing import SealedDocument, sealed
from interlock.records.trust import Trust
from interlock.report import sheet
from interlock.rundir import write_atomically

_HERE = Path(__file__).parent
_MATRIX = 16  # nodes at most; the links of more are a list
_LISTED = 200  # links of that list, the slowest first
SIGNS = {"good": "✔", "half": "◐", "bad": "✖", "unknown": "?"}
_WORDS = {
    Trust.TRAIN: "train, generate",
    Trust.GENERATE: "generate",
    Trust.REJECT: "rejected",
    Trust.UNKNOWN: "not decided",
}


def write(found: FleetFound, out: Path) -> Path:
    """Write fleet.json, fleet.html and a report.html for each device that failed a check.

    Returns the path of fleet.html. Raises RunError.
    """
    tree = sealed(SealedDocument.FLEET, found)
    data = msgspec.json.format(msgspec.json.encode(tree), indent=2)
    write_atomically(out / "fleet.json", data + b"\n")
    for device in found.devices:
        if device.failed:
            where = out / device.folder
            device_page.write_page(
                certificates.load(where / "certificate.json"), where / "report.html"
            )
    return sheet.write(out / "fleet.html", page(found))


def headline(found: FleetFound) -> str:
    """What came of it, in one line."""
    count = len(found.troubles)
    if count:
        return f"{count} thing{'s' if count > 1 else ''} to mend"
    return "Nothing to mend" if found.fit else "Nothing wrong was found, and not all is decided"


def page(found: FleetFound) -> str:
    """The whole HTML document."""
    speed, latency = verdict.usual(found.links)
    names = [node.name for node in found.nodes]
    faults = {(link.a, link.b): verdict.link_fault(link, found.links) for link in found.links}
    body = (
        sheet.environment(_HERE)
        .get_template("page.html")
        .render(
            found=found,
            headline=headline(found),
            ruling="reject" if found.troubles else "train" if found.fit else "none",
            simulated=any(vendors.simulated(device.kind) for device in found.devices),
            tally=_tally(found, faults),
            map=chart.drawn(found, faults),
            matrix=_matrix(found.links, names) if len(names) <= _MATRIX else None,
            listed=sorted(found.links, key=lambda link: min(link.up, link.down))[:_LISTED],
            faults=faults,
            usual=f"{verdict.rate(speed)} and {1e3 * latency:.2g} ms" if speed else "",
            slow=f"{verdict.SLOW:.0%}",
            late=f"{verdict.LATE:g}",
            rows=[(node, _software(node), _devices(node)) for node in found.nodes],
            signs=SIGNS,
            minutes=f"{found.seconds / 60:.1f}",
        )
    )
    style = Markup((_HERE / "page.css").read_text(encoding="utf-8"))
    return sheet.sheet(f"{headline(found)}: a fleet of {len(names)} · Interlock", body, style)


def _tally(found: FleetFound, faults: Mapping[tuple[str, str], str]) -> list[tuple[str, str, int]]:
    """(class, label, count) of all that there are."""
    states = Counter(chart.state(device) for device in found.devices)
    bad = sum(bool(fault) for fault in faults.values())
    counts = [
        ("", "nodes", len(found.nodes)),
        ("fail", "nodes lost", sum(bool(node.error) for node in found.nodes)),
        ("pass", "devices good", states["good"]),
        ("half", "only generate", states["half"]),
        ("fail", "devices bad", states["bad"]),
        ("", "not tried", states["unknown"]),
        ("pass", "links good", len(faults) - bad),
        ("fail", "links bad", bad),
    ]
    return [each for each in counts if each[2]]


# A link and whether its way is the one from a to b; None: none was tried.
_Cell = tuple[LinkFound | None, bool]


def _matrix(links: Sequence[LinkFound], names: Sequence[str]) -> list[tuple[str, list[_Cell]]]:
    """A row a node, from which it goes to the node of the column."""
    ways: dict[tuple[str, str], _Cell] = {}
    for link in links:
        ways[link.a, link.b], ways[link.b, link.a] = (link, True), (link, False)
    return [(a, [ways.get((a, b), (None, True)) for b in names]) for a in names]


def _software(node: NodeFound) -> str:
    if node.facts is None:
        return ""
    facts = node.facts
    commit = f", commit {facts.commit[:7]}" if facts.commit else ""
    software = f"torch {facts.torch}, Interlock {facts.interlock}{commit}"
    return f"{node.address} · {facts.cores} cores · {software}"


def _devices(node: NodeFound) -> list[tuple[DeviceFound, str, str]]:
    """Each with its state and what it may be used for."""
    return [(each, chart.state(each), _WORDS[each.trust]) for each in node.devices]
