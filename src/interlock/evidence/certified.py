"""What certificates say: the verdict on each chip, and the evidence of every check that failed."""

import math
from collections.abc import Iterator, Sequence

from interlock.chips.verdict import NEEDED
from interlock.evidence import naming
from interlock.evidence.record import (
    Cited,
    EvidenceRow,
    EvidenceSection,
    EvidenceSource,
    EvidenceTable,
    Piece,
    Sentence,
    SourceKind,
    cite,
    derive,
    pointer,
    row,
    say,
    shown,
)
from interlock.records.trust import Certificate, Finding, Measure, Result, Role, Trust

_CASES = 5  # of a check that failed, the furthest beyond their limits
_VERDICTS = {
    Trust.TRAIN: "may train and generate",
    Trust.GENERATE: "may only generate",
    Trust.REJECT: "rejected: may neither train nor generate",
    Trust.UNKNOWN: "not decided: a check that decides did not run",
}
_MAY = {
    Trust.TRAIN: {Role.TRAIN, Role.GENERATE},
    Trust.GENERATE: {Role.GENERATE},
    Trust.REJECT: set[Role](),
    Trust.UNKNOWN: set[Role](),
}


def certificates(sources: Sequence[EvidenceSource]) -> list[EvidenceSource]:
    return [each for each in sources if each.origin.kind is SourceKind.CERTIFICATE]


def verdict_of(source: EvidenceSource) -> Cited:
    trust: Trust = source.content.trust
    return derive(source, trust.value, "/trust", lambda _: _VERDICTS[trust])


def trusted(sources: Sequence[EvidenceSource]) -> EvidenceSection:
    """What every chip with a certificate may be used for."""
    rows = [_trusted(each) for each in certificates(sources)]
    columns = ["Chip", "Verdict", "Train", "Generate", "Passed", "Failed", "Did not run", "Level"]
    return EvidenceSection(
        "What each chip can be trusted with",
        "A chip may train when it passed every check, and generate when it passed those that "
        "generation needs. A certificate is of one chip with its software, and of nothing else.",
        brief=[_verdict(each) for each in certificates(sources)],
        tables=[EvidenceTable([], columns, rows)] if rows else [],
    )


def _how(source: EvidenceSource) -> str:
    return (
        f"interlock qualify, level {shown(source.content.level)}: each check in a process of its "
        "own, its results held against limits and a reference on the CPU"
    )


def _verdict(source: EvidenceSource) -> Sentence:
    return say(
        "{}: {}.",
        naming.chip(source, source.content.stack, "stack"),
        verdict_of(source),
        how=_how(source),
    )


def _trusted(source: EvidenceSource) -> EvidenceRow:
    found: Certificate = source.content
    may = _MAY[found.trust]
    roles = [
        derive(source, role in may, "/trust", lambda may: "yes" if may else "no")
        for role in (Role.TRAIN, Role.GENERATE)
    ]
    counts = [_count(source, result) for result in (Result.PASS, Result.FAIL, Result.UNKNOWN)]
    return row(
        naming.chip(source, found.stack, "stack"),
        verdict_of(source),
        *roles,
        *counts,
        cite(source, "/level"),
        how=_how(source),
        bad=found.trust is Trust.REJECT,
    )


def _count(source: EvidenceSource, result: Result) -> Cited:
    """How many checks came out so; what the rules ask for and the certificate lacks did not run."""
    found = {each.check: each.result for each in source.content.findings}
    results = [found.get(name, Result.UNKNOWN) for name in dict.fromkeys([*NEEDED, *found])]
    return derive(
        source, results.count(result), f'number of /findings/*/result that are "{result}"', shown
    )


def failures(sources: Sequence[EvidenceSource]) -> EvidenceSection:
    """Every check that failed, with its numbers."""
    found = [
        (source, place, finding)
        for source in certificates(sources)
        for place, finding in enumerate(source.content.findings)
        if finding.result is Result.FAIL
    ]
    return EvidenceSection(
        "What did not hold",
        "Each check that failed: in how many of its cases, and the cases that are furthest beyond "
        "what was allowed. The reference is the same figure as the CPU computes it.",
        brief=(said := [_failed(*each) for each in found]),
        sentences=said,
        tables=[_cases(*each) for each in found if _bad(each[2])],
    )


def _failed(source: EvidenceSource, place: int, finding: Finding) -> Sentence:
    return say(
        "{}, {}: {}.",
        naming.chip(source, source.content.stack, "stack"),
        cite(source, pointer("findings", place, "check")),
        cite(source, pointer("findings", place, "summary"), lambda text: shown(text).rstrip(".")),
        how=_how(source),
    )


def _cases(source: EvidenceSource, place: int, finding: Finding) -> EvidenceTable:
    bad, at = _bad(finding), pointer("findings", place, "measures")
    rows = [
        row(
            *(cite(source, pointer("findings", place, "measures", i, "name")),),
            *(cite(source, pointer("findings", place, "measures", i, "value")),),
            *(cite(source, pointer("findings", place, "measures", i, "limit")),),
            _times(source, place, measure),
            _reference(source, place, i, measure),
            how=_how(source),
            bad=True,
        )
        for i, measure in bad[:_CASES]
    ]
    title: list[Piece] = [
        naming.chip(source, source.content.stack, "stack"),
        ": ",
        cite(source, pointer("findings", place, "check")),
        ", ",
        derive(source, len(bad), f"number of {at}/*/value above its limit", shown),
        " of ",
        derive(source, len(finding.measures), f"number of {at}", shown),
        " listed cases; the worst",
    ]
    columns = ["Case", "Measured", "Allowed", "Measured ÷ allowed", "CPU reference"]
    return EvidenceTable(title, columns, rows)


def _bad(finding: Finding) -> list[tuple[int, Measure]]:
    """The cases beyond their limits, the worst first."""
    found = [(i, each) for i, each in enumerate(finding.measures) if not each.value <= each.limit]
    return sorted(found, key=lambda each: -_excess(each[1]))


def _excess(measure: Measure) -> float:
    if math.isnan(measure.value) or measure.limit <= 0:
        return math.inf
    return measure.value / measure.limit


def _times(source: EvidenceSource, place: int, measure: Measure) -> Cited | str:
    if not math.isfinite(_excess(measure)):
        return "–"
    field = f"{pointer('findings', place, 'measures')}/*/value ÷ limit of the same case"
    return derive(source, _excess(measure), field, shown)


def _reference(source: EvidenceSource, place: int, i: int, measure: Measure) -> Cited | str:
    if measure.reference is None:
        return "–"
    return cite(source, pointer("findings", place, "measures", i, "reference"))


def not_run(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    """What certificates leave open, for what is not shown."""
    for source in certificates(sources):
        chip = naming.chip(source, source.content.stack, "stack")
        found = {each.check for each in source.content.findings}
        for place, each in enumerate(source.content.findings):
            if each.result is Result.UNKNOWN:
                yield say(
                    "The check {} did not run on {}: {}.",
                    cite(source, pointer("findings", place, "check")),
                    chip,
                    cite(source, pointer("findings", place, "summary")),
                    how=_how(source),
                )
        if absent := sorted(NEEDED.keys() - found):
            names = derive(source, ", ".join(absent), "absent from /findings", shown)
            yield say("Not among the checks of {}: {}.", chip, names, how=_how(source))
        if source.content.level != "soak":
            yield say(
                "{} was qualified at level {}: not under hours of load.",
                chip,
                cite(source, "/level"),
                how=_how(source),
            )
