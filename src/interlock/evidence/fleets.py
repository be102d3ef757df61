"""What `qualify --fleet` says: what is to be mended among many devices and their links."""

from collections.abc import Sequence

from interlock.evidence import naming
from interlock.evidence.record import (
    EvidenceRow,
    EvidenceSection,
    EvidenceSource,
    EvidenceTable,
    Sentence,
    SourceKind,
    cite,
    derive,
    pointer,
    row,
    say,
    shown,
)
from interlock.evidence.written import FleetFile
from interlock.records.trust import Trust

_HOW = "interlock qualify --fleet: all devices of all nodes at once, then the links between nodes"
_RATED = "interlock qualify --fleet: what two nodes send each other, one way, the link alone"
_LINKS = 12  # shown, the slowest first


def fleets(sources: Sequence[EvidenceSource]) -> EvidenceSection:
    found = [each for each in sources if each.origin.kind is SourceKind.FLEET]
    tables = [
        table for each in found for table in (*_troubles(each), _devices(each), *_links(each))
    ]
    return EvidenceSection(
        "Whole fleets",
        "Every device of every node, and every link that was tried.",
        brief=(said := [_tally(each) for each in found]),
        sentences=said,
        tables=tables,
    )


def _tally(source: EvidenceSource) -> Sentence:
    found: FleetFile = source.content
    devices = [each.trust for node in found.nodes for each in node.devices]
    field = "number of /nodes/*/devices/*/trust"

    def count(*trusts: Trust) -> int:
        return sum(each in trusts for each in devices)

    return say(
        "Of {} devices on {} nodes {} may train, {} more may only generate, {} are rejected; {} "
        "things are to be mended.",
        derive(source, len(devices), field, shown),
        derive(source, len(found.nodes), "number of /nodes", shown),
        derive(source, count(Trust.TRAIN), f'{field} that are "train"', shown),
        derive(source, count(Trust.GENERATE), f'{field} that are "generate"', shown),
        derive(source, count(Trust.REJECT), f'{field} that are "reject"', shown),
        derive(source, len(found.troubles), "number of /troubles", shown),
        how=_HOW,
    )


def _devices(source: EvidenceSource) -> EvidenceTable:
    found: FleetFile = source.content
    rows = [
        _device(source, n, d)
        for n, node in enumerate(found.nodes)
        for d in range(len(node.devices))
    ]
    return EvidenceTable(["Devices"], ["Node", "Device", "Chip", "Verdict"], rows)


def _device(source: EvidenceSource, n: int, d: int) -> EvidenceRow:
    device = source.content.nodes[n].devices[d]
    place = pointer("nodes", n, "devices", d)
    return row(
        cite(source, pointer("nodes", n, "name")),
        naming.device(source, f"{place}/name"),
        cite(source, f"{place}/chip"),
        cite(source, f"{place}/trust"),
        how=_HOW,
        bad=device.trust is Trust.REJECT,
    )


def _troubles(source: EvidenceSource) -> list[EvidenceTable]:
    rows = [
        row(
            *(cite(source, pointer("troubles", i, name)) for name in ("what", "name", "line")),
            how=_HOW,
            bad=True,
        )
        for i in range(len(source.content.troubles))
    ]
    return [EvidenceTable(["To be mended"], ["What", "Which", "Why"], rows)] if rows else []


def _links(source: EvidenceSource) -> list[EvidenceTable]:
    """The slowest of those that were measured."""
    found: FleetFile = source.content
    rates = [(min(each.up, each.down), i) for i, each in enumerate(found.links) if not each.error]
    rows = [
        row(
            [cite(source, pointer("links", i, "a")), " – ", cite(source, pointer("links", i, "b"))],
            cite(source, pointer("links", i, "up"), _megabytes),
            cite(source, pointer("links", i, "down"), _megabytes),
            cite(source, pointer("links", i, "latency_s"), _milliseconds),
            how=_RATED,
        )
        for _, i in sorted(rates)[:_LINKS]
    ]
    columns = ["Between", "There, MB/s", "Back, MB/s", "Latency, ms"]
    title = "Links, the slowest of them" if len(rates) > _LINKS else "Links"
    return [EvidenceTable([title], columns, rows)] if rows else []


def _megabytes(rate: float) -> str:
    return shown(rate / 1e6)


def _milliseconds(seconds: float) -> str:
    return shown(1e3 * seconds)
