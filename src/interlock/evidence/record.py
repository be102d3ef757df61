"""What a page of evidence is made of: sentences and tables whose every figure is cited.

EvidenceSource ──cite("/hours/low")──> Cited ──> Sentence, EvidenceRow ──> EvidenceReport
"""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from interlock.plan.told import figure
from interlock.text import one_line

_MOST_TEXT = 600  # characters of a foreign text that are shown
_MOST_NAMES = 8  # in one sentence
Value = float | int | str | bool | None


class Wanted(StrEnum):
    """What the evidence is for."""

    PURCHASE = "purchase"
    REFUSAL = "refusal"


class SourceKind(StrEnum):
    """What a source is."""

    CERTIFICATE = "certificate"
    PARITY = "parity"
    FLEET = "fleet"
    PREFLIGHT = "preflight"
    BENCH = "bench"
    RUN = "run"
    PLAN = "plan"


class SourceFile(msgspec.Struct, frozen=True):
    """One file as it was read."""

    name: str
    sha256: str
    bytes: int


class SourceOrigin(msgspec.Struct, frozen=True):
    """Where a source is from, as the page lists it."""

    number: int  # from 1
    kind: SourceKind
    name: str  # as it was given
    also: list[str]  # other names of the same file
    files: list[SourceFile]
    made: float  # since 1970; 0: it does not say
    software: str
    machine: str
    sealed: bool


class EvidenceSource(msgspec.Struct, frozen=True):
    """A source with what is in it."""

    origin: SourceOrigin
    tree: Any  # as the file has it; of a run, by file, and lines as a list
    content: Any  # the same as a record


class Cited(msgspec.Struct, frozen=True):
    """Something that a source says.

    `field` is a JSON pointer (RFC 6901) into the source; with `derived`, what it was computed from.
    """

    value: Value
    shown: str
    source: int
    field: str
    derived: bool = False


class PassedOver(msgspec.Struct, frozen=True):
    """A folder that stands for its files: what of it was not looked into."""

    folder: str
    within: list[str]  # the folders in it

    @property
    def words(self) -> str:
        count = len(self.within)
        what = "a folder" if count == 1 else f"{count} folders"
        names = _listed(self.within)
        return f"What is in {what} of {one_line(self.folder, 200)}, not looked into: {names}."


class Uncertified(msgspec.Struct, frozen=True):
    """Devices of a fleet whose certificates were not read with it."""

    fleet: str  # its file
    of: int  # devices
    devices: list[str]

    @property
    def words(self) -> str:
        return (
            f"Of {len(self.devices)} of the {self.of} devices of {one_line(self.fleet, 200)} there "
            f"is no certificate among the sources: {_listed(self.devices)}."
        )


NotShown = PassedOver | Uncertified


def _listed(names: list[str]) -> str:
    shown = [one_line(each, 60) for each in names[:_MOST_NAMES]]
    return ", ".join([*shown, "…"] if len(names) > _MOST_NAMES else shown)


Piece = str | Cited
Cell = Cited | list[Piece] | str


class Sentence(msgspec.Struct, frozen=True):
    """What is said; `how`: by what means that was found."""

    pieces: list[Piece]
    how: str
    notes: list[int] = []


class EvidenceRow(msgspec.Struct, frozen=True):
    cells: list[list[Piece]]
    how: str
    notes: list[int] = []
    bad: bool = False  # it is the reason of a refusal


class EvidenceTable(msgspec.Struct, frozen=True):
    title: list[Piece]
    columns: list[str]
    rows: list[EvidenceRow]


class RangeBar(msgspec.Struct, frozen=True):
    """A range with its middle, to be drawn beside others."""

    of: Cited
    low: Cited
    middle: Cited
    high: Cited


class RangePicture(msgspec.Struct, frozen=True):
    title: str
    bars: list[RangeBar]

    @property
    def most(self) -> float:
        return max(float(each.high.value or 0.0) for each in self.bars)


class EvidenceSection(msgspec.Struct, frozen=True):
    title: str
    lead: str
    brief: list[Sentence] = []  # said at the beginning of the page
    sentences: list[Sentence] = []
    tables: list[EvidenceTable] = []
    pictures: list[RangePicture] = []

    @property
    def empty(self) -> bool:
        return not (self.brief or self.sentences or self.tables)


class Footnote(msgspec.Struct, frozen=True):
    """A footnote: which source says it, where in it, and how it was found."""

    number: int
    source: int
    fields: list[str]
    how: str


class EvidenceReport(msgspec.Struct, frozen=True):
    """All of the page, and what --json prints."""

    question: Wanted
    claim: str  # in the words of whoever asked; "": none were given
    date: str
    interlock: str
    simulated: bool  # some of what was measured was not measured on a real chip
    brief: list[Sentence]
    more: bool  # that `brief` has not all of what sections would have said there
    sections: list[EvidenceSection]
    missing: list[Sentence]
    notes: list[Footnote]
    sources: list[SourceOrigin]


def cite(source: EvidenceSource, field: str, form: Callable[[Any], str] | None = None) -> Cited:
    """What stands at a place of a source, and nothing else."""
    value = at(source.tree, field)
    return Cited(value, (form or shown)(value), source.origin.number, field)


def derive(source: EvidenceSource, value: Value, field: str, form: Callable[[Any], str]) -> Cited:
    """What follows from some places of a source; `field` says from which, and how."""
    return Cited(value, form(value), source.origin.number, field, True)


def say(template: str, *pieces: Piece, how: str) -> Sentence:
    """A sentence with each "{}" of the template replaced."""
    words = template.split("{}")
    assert len(words) == len(pieces) + 1, template
    found: list[Piece] = [words[0]]
    for piece, following in zip(pieces, words[1:], strict=True):
        found += [piece, following]
    return Sentence([each for each in found if each != ""], how)


def row(*cells: Cell, how: str, bad: bool = False) -> EvidenceRow:
    return EvidenceRow([each if isinstance(each, list) else [each] for each in cells], how, bad=bad)


def at(tree: Any, field: str) -> Value:
    """The value at a JSON pointer. Certificates hold what is not finite as {"$float": "inf"}."""
    for token in field.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        tree = tree[int(name)] if isinstance(tree, list) else tree[name]
    if isinstance(tree, dict):
        return float(tree["$float"])
    assert not isinstance(tree, list), field
    found: Value = tree
    return found


def pointer(*tokens: str | int) -> str:
    """pointer("figures", "GB/s") -> "/figures/GB~1s"."""
    return "".join(f"/{str(each).replace('~', '~0').replace('/', '~1')}" for each in tokens)


def shown(value: Value) -> str:
    """A value for a reader: three digits, or one line of text."""
    if value is None:
        return "not finite, or not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return one_line(value, _MOST_TEXT)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    return figure(value)


def amount(currency: str | None) -> Callable[[float | None], str]:
    """Money in this currency."""
    return lambda value: "not known" if value is None else f"{figure(value)} {currency}"


def percent(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1%}"


def gflops(value: float) -> str:
    """GFLOP/s with their unit."""
    return f"{figure(value)} GFLOP/s"


def tera(value: float) -> str:
    """FLOP/s or bytes/s in units of 1e12."""
    return figure(value / 1e12)


def giga(value: float) -> str:
    return figure(value / 1e9)


def joined(pieces: Sequence[Piece], by: str = ", ") -> list[Piece]:
    """["a", ", ", "b"]."""
    found: list[Piece] = []
    for piece in pieces:
        found += [by, piece] if found else [piece]
    return found
