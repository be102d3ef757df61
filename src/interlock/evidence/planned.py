"""What plans say: hours and money of each alternative as ranges, and what these rest on."""

from collections.abc import Callable, Iterator, Sequence

from interlock.evidence.record import (
    Cell,
    EvidenceRow,
    EvidenceSection,
    EvidenceSource,
    EvidenceTable,
    Piece,
    RangeBar,
    RangePicture,
    Sentence,
    SourceKind,
    amount,
    cite,
    derive,
    giga,
    joined,
    pointer,
    row,
    say,
    shown,
    tera,
)
from interlock.evidence.written import PlanFile, WrittenSpan

_HOW = (
    "interlock plan: computed, nothing was run; each range holds about four of five published runs "
    "that were recomputed (docs/planning.md)"
)
_PRICE = "interlock plan: a price that was given, or of its catalogue; not measured"
_VENDOR = "interlock plan: its catalogue of published figures; not measured"


def plans(sources: Sequence[EvidenceSource]) -> list[EvidenceSource]:
    return [each for each in sources if each.origin.kind is SourceKind.PLAN]


def alternatives(sources: Sequence[EvidenceSource]) -> EvidenceSection:
    """One row for each placement."""
    found = plans(sources)
    columns = ["Chips", "Recipe, model", "Hours", "Chip-hours", "Money", "Energy, kWh"]
    rows = [_alternative(each) for each in found]
    tables = [EvidenceTable([], columns, rows), _verdicts(found)]
    pictures = [_picture(found, "hours", "Hours"), _money(found)]
    return EvidenceSection(
        "What the alternatives would take",
        "Planned, not run. A range says between which figures about four of five published runs "
        "lie; behind it stands the middle.",
        brief=[_said(each) for each in found],
        tables=[each for each in tables if each.rows],
        pictures=[each for each in pictures if each.bars],
    )


def _money(sources: Sequence[EvidenceSource]) -> RangePicture:
    """Of plans in one currency: amounts in several are not drawn to one scale."""
    currencies = {each.content.currency for each in sources if each.content.money is not None}
    if len(currencies) != 1:
        return RangePicture("Money", [])
    return _picture(sources, "money", "Money", amount(currencies.pop()))


def _picture(
    sources: Sequence[EvidenceSource],
    name: str,
    title: str,
    form: Callable[[float | None], str] | None = None,
) -> RangePicture:
    """Ranges side by side; one alone shows nothing."""
    bars = [
        RangeBar(
            cite(each, "/placement"),
            *(cite(each, f"/{name}/{end}", form) for end in ("low", "middle", "high")),
        )
        for each in sources
        if each.content.fits and _is_drawn(getattr(each.content, name))
    ]
    drawn = RangePicture(title, bars if len(bars) > 1 else [])
    return drawn if drawn.bars and drawn.most > 0 else RangePicture(title, [])


def _is_drawn(span: WrittenSpan | None) -> bool:
    return span is not None and None not in (span.low, span.middle, span.high)


def _verdicts(sources: Sequence[EvidenceSource]) -> EvidenceTable:
    rows = [
        row(cite(each, "/placement"), cite(each, pointer("verdicts", i)), how=_HOW)
        for each in sources
        for i in range(len(each.content.verdicts))
    ]
    return EvidenceTable(["What the plan advises"], ["Chips", "Advice"], rows)


def _alternative(source: EvidenceSource) -> EvidenceRow:
    found: PlanFile = source.content
    what: list[Piece] = [cite(source, "/recipe"), ", ", cite(source, "/model/name")]
    if not found.fits:
        return row(
            *(cite(source, "/placement"), what, "does not fit", "–", "–", "–"), how=_HOW, bad=True
        )
    return row(
        cite(source, "/placement"),
        what,
        _span(source, "hours"),
        _span(source, "chip_hours"),
        _span(source, "money", amount(found.currency)) if found.money else "not known",
        _span(source, "kwh"),
        how=_HOW,
    )


def _span(
    source: EvidenceSource, name: str, form: Callable[[float | None], str] | None = None
) -> list[Piece]:
    low, middle, high = (
        cite(source, f"/{name}/{each}", form) for each in ("low", "middle", "high")
    )
    return [low, " to ", high, " (", middle, ")"]


def _said(source: EvidenceSource) -> Sentence:
    found: PlanFile = source.content
    placement = cite(source, "/placement")
    if not found.fits:
        return say("On {} it does not fit.", placement, how=_HOW)
    low, high = (cite(source, f"/hours/{end}") for end in ("low", "high"))
    if found.money is None:
        template = "On {}: {} to {} hours; what they cost is not known."
        return say(template, placement, low, high, how=_HOW)
    ends = (cite(source, f"/money/{end}", amount(found.currency)) for end in ("low", "high"))
    return say("On {}: {} to {} hours, {} to {}.", placement, low, high, *ends, how=_HOW)


def rests_on(sources: Sequence[EvidenceSource]) -> EvidenceSection:
    """Prices with date and source, what vendors publish of the chips, and what is assumed."""
    found = plans(sources)
    prices = [
        row(*_price(source, name), how=_PRICE)
        for source in found
        for name, price in source.content.prices.items()
        if price
    ]
    chips = [
        row(*_published(source, i), how=_VENDOR)
        for source in found
        for i in range(len(source.content.chips))
    ]
    tables = [
        EvidenceTable(["Prices"], ["Chip", "A chip and hour", "Date", "Where from"], prices),
        EvidenceTable(
            ["Figures that vendors publish"],
            ["Chip", "TFLOP/s", "GB", "TB/s", "Where from", "How sure"],
            chips,
        ),
    ]
    return EvidenceSection(
        "What the plans rest on",
        "Prices as they were given or published, and chips as their vendors describe them.",
        sentences=list(_assumed(found)),
        tables=[each for each in map(_once, tables) if each.rows],
    )


def _price(source: EvidenceSource, name: str) -> list[Cell]:
    place = pointer("prices", name)
    price = source.content.prices[name]
    low, high = (cite(source, f"{place}/{end}", amount(price.currency)) for end in ("low", "high"))
    return [
        derive(source, name, place, shown),
        low if price.low == price.high else [low, " to ", high],
        cite(source, f"{place}/date"),
        cite(source, f"{place}/source"),
    ]


def _published(source: EvidenceSource, i: int) -> list[Cell]:
    place = pointer("chips", i)
    stock = source.content.chips[i]
    where: list[Piece] = [cite(source, f"{place}/source")]
    if stock.note:
        where += [": ", cite(source, f"{place}/note")]
    sure: list[Piece] = [cite(source, f"{place}/confidence")]
    for j in range(len(stock.assumed)):
        sure += ["; assumed: ", cite(source, f"{place}/assumed/{j}")]
    return [
        cite(source, f"{place}/name"),
        cite(source, f"{place}/flops", tera),
        cite(source, f"{place}/memory", giga),
        cite(source, f"{place}/bandwidth", tera),
        where,
        sure,
    ]


def _once(table: EvidenceTable) -> EvidenceTable:
    """Rows that say the same once: of several plans with the same chips, the first says it."""
    kept = {tuple(_text(cell) for cell in each.cells): each for each in reversed(table.rows)}
    return EvidenceTable(table.title, table.columns, list(reversed(kept.values())))


def _text(cell: Sequence[Piece]) -> str:
    return "".join(each if isinstance(each, str) else each.shown for each in cell)


def _assumed(sources: Sequence[EvidenceSource]) -> Iterator[Sentence]:
    """What is assumed alike for several plans is said once."""
    found: dict[str, list[tuple[EvidenceSource, int]]] = {}
    for source in sources:
        for i, text in enumerate(source.content.assumed):
            found.setdefault(text, []).append((source, i))
    for places in found.values():
        source, i = places[0]
        assumption = cite(source, pointer("assumed", i))
        if len(places) == len(sources) > 1:
            yield say("Assumed in every plan: {}.", assumption, how=_HOW)
            continue
        of = joined([cite(each, "/placement") for each, _ in places])
        yield say("Assumed for " + "{}" * len(of) + ": {}.", *of, assumption, how=_HOW)
