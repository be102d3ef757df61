"""The published rows as a picture: predicted against published seconds, both as logarithms.

Validation ──picture──> one SVG, with nothing from outside
"""

import math
from collections.abc import Iterator
from html import escape

from interlock.plan.validate import BEYOND, Recomputed, Validation

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 760, 520, 60, 50, 20
_PLOT = 450  # of the square
_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")
_LOW, _HIGH = 1e-2, 1e3  # seconds


def _kind(row: Recomputed) -> str:
    """Framework, and what of it."""
    family = row.row.family.split(",")[0]
    return family.split(" ")[0] if row.row.part != "decode" else "decode, a token"


def _at(seconds: float) -> float:
    low, high = math.log(_LOW), math.log(_HIGH)
    return (math.log(min(_HIGH, max(_LOW, seconds))) - low) / (high - low) * _PLOT


def picture(found: Validation) -> str:
    """Every row a point, hollow where its lengths are assumed; the band is 35 % to either side."""
    return "\n".join(_lines(found))


def _lines(found: Validation) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">'
    )
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    yield f'<g transform="translate({_LEFT},{_TOP + _PLOT}) scale(1,-1)">'
    yield f'<rect width="{_PLOT}" height="{_PLOT}" fill="none" stroke="#888"/>'
    for factor, dash in ((1.0, ""), (1 + BEYOND, "4 3"), (1 - BEYOND, "4 3")):
        x1, x2 = max(_LOW, _LOW / factor), min(_HIGH, _HIGH / factor)
        yield (
            f'<line x1="{_at(x1):.1f}" y1="{_at(x1 * factor):.1f}" x2="{_at(x2):.1f}" '
            f'y2="{_at(x2 * factor):.1f}" stroke="#888" stroke-dasharray="{dash}"/>'
        )
    kinds = list(dict.fromkeys(map(_kind, found.rows)))
    for each in found.rows:
        color = _COLORS[kinds.index(_kind(each)) % len(_COLORS)]
        fill = color if each.lengths_known else "none"
        title = f"{each.row.run}, {each.row.part}: {each.error:+.0%}"
        yield (
            f'<circle cx="{_at(each.row.seconds):.1f}" cy="{_at(each.held_out):.1f}" r="4" '
            f'fill="{fill}" stroke="{color}"><title>{escape(title)}</title></circle>'
        )
    yield "</g>"
    yield from _axes()
    for place, kind in enumerate(kinds):
        y = _TOP + 14 + 18 * place
        color = _COLORS[place % len(_COLORS)]
        yield f'<circle cx="{_LEFT + _PLOT + 20}" cy="{y - 4}" r="4" fill="{color}"/>'
        yield f'<text x="{_LEFT + _PLOT + 32}" y="{y}">{escape(kind)}</text>'
    y = _TOP + 14 + 18 * len(kinds)
    yield f'<text x="{_LEFT + _PLOT + 14}" y="{y}">hollow: lengths assumed</text>'
    yield f'<text x="{_LEFT + _PLOT + 14}" y="{y + 18}">dashed: 35 % off</text>'
    yield "</svg>"


def _axes() -> Iterator[str]:
    power = round(math.log10(_LOW))
    while 10.0**power <= _HIGH:
        at, label = _at(10.0**power), f"{10.0**power:g}"
        yield (
            f'<text x="{_LEFT + at:.1f}" y="{_TOP + _PLOT + 16}" text-anchor="middle">'
            f"{label}</text>"
        )
        yield (
            f'<text x="{_LEFT - 6}" y="{_TOP + _PLOT - at + 4:.1f}" text-anchor="end">'
            f"{label}</text>"
        )
        power += 1
    middle = _LEFT + _PLOT / 2
    yield (
        f'<text x="{middle:.0f}" y="{_HEIGHT - 12}" text-anchor="middle">published, seconds</text>'
    )
    yield (
        f'<text transform="translate(16,{_TOP + _PLOT / 2:.0f}) rotate(-90)" '
        'text-anchor="middle">predicted without its family, seconds</text>'
    )
