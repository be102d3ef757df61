"""What was measured of speed: `bench`, and the sections of preflights. Of runs, see ran.py."""

from collections.abc import Iterator, Sequence

from interlock.chips import vendors
from interlock.evidence import naming
from interlock.evidence.record import (
    EvidenceRow,
    EvidenceSection,
    EvidenceSource,
    EvidenceTable,
    Piece,
    Sentence,
    SourceKind,
    cite,
    derive,
    gflops,
    percent,
    pointer,
    row,
    say,
    shown,
)
from interlock.evidence.written import BenchFile, PreflightFile

_BENCH = (
    "interlock bench: products of the sizes of decoding, and of learning with both gradients; the "
    "fastest of several runs taken in turns"
)
_TIMED = ("decode", "learner")  # the sections of a preflight that tell a speed


def speeds(sources: Sequence[EvidenceSource]) -> EvidenceSection:
    benches = [each for each in sources if each.origin.kind is SourceKind.BENCH]
    real = [each for each in benches if not vendors.simulated(each.content.stack.kind)]
    preflights = [each for each in sources if each.origin.kind is SourceKind.PREFLIGHT]
    tables = [*(_bench(each) for each in real), *(_sections(each) for each in preflights)]
    tables += [table for each in preflights for table in _figures(each)]
    return EvidenceSection(
        "How fast it was",
        "Measured on the machines at hand. What vendors publish stands with the plans, by itself.",
        brief=(said := [sentence for each in real for sentence in _taken(each)]),
        sentences=[*said, *(_left_out(each) for each in benches if each not in real)],
        tables=tables,
    )


def _taken(source: EvidenceSource) -> Iterator[Sentence]:
    """What is chosen there; nothing where that was not measured."""
    found: BenchFile = source.content
    places = {(each.dtype, each.kernel): i for i, each in enumerate(found.measured.speeds)}
    decode = places.get((found.taken.dtype, found.taken.generator))
    learn = places.get((found.taken.dtype, found.taken.learner))
    if decode is None or learn is None:
        return
    yield say(
        "{} in {}: {} in decoding, {} in learning; {} of the time its threads waited for others.",
        naming.chip(source, found.stack, "stack"),
        cite(source, "/taken/dtype"),
        cite(source, pointer("measured", "speeds", decode, "decode"), gflops),
        cite(source, pointer("measured", "speeds", learn, "learn"), gflops),
        cite(source, "/measured/waited", percent),
        how=_BENCH,
    )


def _left_out(source: EvidenceSource) -> Sentence:
    return say(
        "{}: no speed is told, for what is simulated has the CPU's.",
        naming.chip(source, source.content.stack, "stack"),
        how=_BENCH,
    )


def _bench(source: EvidenceSource) -> EvidenceTable:
    found: BenchFile = source.content
    rows = [
        row(
            *(
                cite(source, pointer("measured", "speeds", i, name))
                for name in ("dtype", "kernel", "decode", "learn", "error")
            ),
            how=_BENCH,
        )
        for i, each in enumerate(found.measured.speeds)
        if each.decode
    ]
    chip = naming.chip(source, found.stack, "stack")
    columns = ["Dtype", "Kernel", "Decoding, GFLOP/s", "Learning, GFLOP/s", "Relative error"]
    return EvidenceTable(["Products on ", chip], columns, rows)


def _sections(source: EvidenceSource) -> EvidenceTable:
    found: PreflightFile = source.content
    rows = [_section(source, i) for i in range(len(found.sections))]
    return EvidenceTable(
        ["Preflight of ", naming.device(source, "/device"), ": its sections"],
        ["Section", "Ended", "What it found", "Shortened"],
        rows,
    )


def _section(source: EvidenceSource, i: int) -> EvidenceRow:
    section = source.content.sections[i]
    simulated = vendors.simulated(source.content.identity.stack.kind)
    untold = {"headline"} if simulated and section.name in _TIMED else set[str]()
    return row(
        *(
            cite(source, pointer("sections", i, name))
            if getattr(section, name) and (name not in untold or section.status == "failed")
            else "–"
            for name in ("name", "status", "headline", "shortened")
        ),
        how=_how(section.command) if section.command else "interlock preflight",
        bad=section.status == "failed",
    )


def _figures(source: EvidenceSource) -> list[EvidenceTable]:
    """Speed, section by section."""
    found: PreflightFile = source.content
    tables: list[EvidenceTable] = []
    if vendors.simulated(found.identity.stack.kind):
        return tables
    for i, section in enumerate(found.sections):
        if section.name not in _TIMED or not section.figures:
            continue
        rows = [
            row(
                derive(source, name, pointer("sections", i, "figures", name), shown),
                cite(source, pointer("sections", i, "figures", name)),
                how=_how(section.command),
            )
            for name in section.figures
        ]
        title: list[Piece] = [
            cite(source, pointer("sections", i, "name")),
            " on ",
            naming.device(source, "/device"),
        ]
        tables.append(EvidenceTable(title, ["Figure", "Value"], rows))
    return tables


def _how(command: str) -> str:
    return f"interlock preflight: {shown(command)}"
