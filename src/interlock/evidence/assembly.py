"""The question decides the order; all that is cited gets its footnotes."""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from interlock import __version__
from interlock.evidence import naming
from interlock.evidence.at_odds import at_odds
from interlock.evidence.certified import failures, trusted
from interlock.evidence.compared import compared
from interlock.evidence.fleets import fleets
from interlock.evidence.lacking import lacking
from interlock.evidence.planned import alternatives, rests_on
from interlock.evidence.ran import ran
from interlock.evidence.record import (
    Cited,
    EvidenceReport,
    EvidenceRow,
    EvidenceSection,
    EvidenceSource,
    EvidenceTable,
    Footnote,
    NotShown,
    Piece,
    Sentence,
    Wanted,
)
from interlock.evidence.speeds import speeds

_BRIEF = 16  # sentences at the beginning
Build = Callable[[Sequence[EvidenceSource]], EvidenceSection]
_ORDER: dict[Wanted, tuple[Build, ...]] = {
    Wanted.PURCHASE: (
        *(trusted, speeds, alternatives, rests_on, compared, ran, fleets),
        *(failures, at_odds),
    ),
    Wanted.REFUSAL: (
        *(trusted, failures, ran, compared, fleets, at_odds),
        *(speeds, alternatives, rests_on),
    ),
}


def assemble(
    wanted: Wanted,
    claim: str,
    date: str,
    sources: Sequence[EvidenceSource],
    not_shown: Sequence[NotShown] = (),
) -> EvidenceReport:
    """All of the page. The same sources give the same, whenever that is."""
    notes = _Footnotes()
    built = [build(sources) for build in _ORDER[wanted]]
    sections = [notes.of_section(each) for each in built if not each.empty]
    brief = [said for each in sections for said in each.brief]
    return EvidenceReport(
        question=wanted,
        claim=claim,
        date=date,
        interlock=__version__,
        simulated=any(naming.SIMULATED in each.origin.machine for each in sources),
        brief=brief[:_BRIEF],
        more=len(brief) > _BRIEF,
        sections=sections,
        missing=[notes.of_sentence(each) for each in lacking(sources, not_shown)],
        notes=notes.found,
        sources=[each.origin for each in sources],
    )


class _Footnotes:
    """Numbers them by their first use; two that say the same are one."""

    def __init__(self) -> None:
        self.found: list[Footnote] = []
        self._numbers: dict[tuple[int, tuple[str, ...], str], int] = {}

    def of_section(self, section: EvidenceSection) -> EvidenceSection:
        return msgspec.structs.replace(
            section,
            brief=[self.of_sentence(each) for each in section.brief],
            sentences=[self.of_sentence(each) for each in section.sentences],
            tables=[self._of_table(each) for each in section.tables],
        )

    def of_sentence(self, said: Sentence) -> Sentence:
        return msgspec.structs.replace(said, notes=self._of(said.pieces, said.how))

    def _of_table(self, table: EvidenceTable) -> EvidenceTable:
        """Rows of one source, found by the same means, share a footnote."""
        shared: dict[tuple[int, str], list[str]] = {}
        for each in table.rows:
            for source, places in _fields(_pieces(each)).items():
                shared.setdefault((source, each.how), []).extend(places)
        rows = [
            msgspec.structs.replace(
                each,
                notes=[
                    self._number(source, shared[source, each.how], each.how)
                    for source in _fields(_pieces(each))
                ],
            )
            for each in table.rows
        ]
        return msgspec.structs.replace(table, rows=rows)

    def _of(self, pieces: Iterable[Piece], how: str) -> list[int]:
        return [self._number(source, places, how) for source, places in _fields(pieces).items()]

    def _number(self, source: int, fields: Sequence[str], how: str) -> int:
        key = (source, tuple(dict.fromkeys(fields)), how)
        if key not in self._numbers:
            number = len(self._numbers) + 1
            self._numbers[key] = number
            self.found.append(Footnote(number, source, list(key[1]), how))
        return self._numbers[key]


def _pieces(row: EvidenceRow) -> list[Piece]:
    return [piece for cell in row.cells for piece in cell]


def _fields(pieces: Iterable[Piece]) -> dict[int, list[str]]:
    """What is cited of each source."""
    found: dict[int, list[str]] = {}
    for piece in pieces:
        if isinstance(piece, Cited):
            found.setdefault(piece.source, []).append(piece.field)
    return found
