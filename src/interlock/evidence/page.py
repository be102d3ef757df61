"""The page: HTML that loads nothing and reads well on paper, the same for the same sources."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from interlock.evidence.record import EvidenceReport, Piece, Wanted
from interlock.report import sheet

_HERE = Path(__file__).parent
_SHORT = 40  # characters of what is shown as a name
TITLES = {
    Wanted.PURCHASE: "Evidence for a purchase of chips",
    Wanted.REFUSAL: "Evidence for a refusal of chips",
}


def render(report: EvidenceReport) -> str:
    """The whole HTML document."""
    environment = sheet.environment(_HERE)
    environment.filters["when"] = _when
    environment.filters["grouped"] = grouped
    environment.filters["class"] = _class
    body = environment.get_template("page.html").render(
        report=report,
        title=TITLES[report.question],
        origins={each.number: each for each in report.sources},
    )
    style = Markup((_HERE / "page.css").read_text(encoding="utf-8"))
    return sheet.sheet(f"{TITLES[report.question]} · Interlock", body, style)


def _when(seconds: float) -> str:
    if not seconds:
        return "it does not say"
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _class(cited: Piece) -> str:
    """Numbers are not broken, and what is long is no headline."""
    if isinstance(cited, str):
        return ""
    if isinstance(cited.value, int | float) and not isinstance(cited.value, bool):
        return "number"
    return "text" if len(cited.shown) > _SHORT else "name"


def grouped(fields: Sequence[str]) -> list[str]:
    """["/a/0/low", "/a/0/high", "/a/1/low", "/a/1/high"] -> ["/a/{0, 1}/{low, high}"]."""
    names: dict[str, list[str]] = {}
    for field in fields:
        parent, _, name = field.rpartition("/") if " " not in field else (field, "", "")
        names.setdefault(parent, []).append(name)
    lists: dict[tuple[str, str], list[str]] = {}
    for parent, own in names.items():
        above, _, place = parent.rpartition("/")
        if place.isdecimal() and own != [""]:
            lists.setdefault((above, _braced(own)), []).append(place)
        else:
            lists[parent, _braced(own)] = []
    return [
        "/".join(filter(None, [above, _braced(places), last])).replace("//", "/")
        if above or places
        else f"/{last}"
        for (above, last), places in lists.items()
    ]


def _braced(names: Sequence[str]) -> str:
    return f"{{{', '.join(names)}}}" if len(names) > 1 else "".join(names)
