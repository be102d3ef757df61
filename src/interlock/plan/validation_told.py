"""A validation as text, and as JSON.

Validation ─┬─ lines_of ──> the terminal
                └─ tree_of ──> JSON
"""

from collections.abc import Iterator
from typing import Any

from interlock.plan.chips import catalogue
from interlock.plan.decode_rows import chip_of
from interlock.plan.told import figure
from interlock.plan.validate import (
    BEYOND,
    Errors,
    Recomputed,
    Validation,
    errors,
    explained,
)

_NEVER = "no reason is known"


def summaries(found: Validation) -> list[Errors]:
    """By family; then all, those with their lengths stated, and the modes that bars are for."""
    families = dict.fromkeys(each.row.family for each in found.rows)
    told = [
        errors(family, [each for each in found.rows if each.row.family == family])
        for family in families
    ]
    for name, rows in selections(found).items():
        if rows:
            told.append(errors(name, rows))
    return told


def selections(found: Validation) -> dict[str, list[Recomputed]]:
    known = [each for each in found.rows if each.lengths_known]
    decode = [each for each in found.rows if each.row.part == "decode"]
    usual = next(iter(catalogue().values())).vendor
    other = [
        each for each in decode if chip_of(each.row.family.removeprefix("decode, ")).vendor != usual
    ]
    return {
        "all": found.rows,
        "lengths stated": known,
        "lengths not stated": [each for each in found.rows if not each.lengths_known],
        "one step off, lengths stated": [each for each in known if "off" in each.row.family],
        "decode": decode,
        "decode, other vendors": other,
    }


def beyond(found: Validation) -> list[tuple[Recomputed, str]]:
    known = explained()
    return [
        (each, known.get(f"{each.row.run}: {each.row.part}") or known.get(each.row.run, _NEVER))
        for each in found.rows
        if abs(each.error) > BEYOND
    ]


def lines_of(found: Validation) -> Iterator[str]:
    yield f"{'family':44s} {'rows':>4s} {'median':>7s} {'p90':>6s} {'worst':>6s}"
    for each in summaries(found):
        yield (
            f"{each.family:44.44s} {each.rows:4d} {each.median:7.1%} {each.ninth:6.1%} "
            f"{each.worst:6.0%}"
        )
    yield ""
    inside = sum(each.inside for each in found.rows)
    yield f"{inside} of {len(found.rows)} lie in the range that a plan would have given"
    yield f"coverage: {found.coverage:.1%} of the runs that state a time; left out:"
    for left in found.excluded:
        if left.timed:
            yield f"  {left.run}: {left.why}"
    yield ""
    yield f"beyond {BEYOND:.0%}:"
    for row, why in beyond(found):
        yield (
            f"  {row.row.run}, {row.row.part}: {figure(row.row.seconds)} s, predicted "
            f"{figure(row.held_out)} s ({row.error:+.0%}): {why}"
        )
    yield ""
    held = sum(each.holds for each in found.identities)
    yield f"identities: {held} of {len(found.identities)} hold within 1 %; the others:"
    for odd in found.identities:
        if not odd.holds:
            yield (
                f"  {odd.run}: {odd.what}: {figure(odd.stated)} stated, "
                f"{figure(odd.computed)} computed ({odd.computed / odd.stated - 1:+.1%})"
            )
    for total in found.totals:
        yield (
            f"{total.what}: {total.parts} = ${total.computed:,.0f}, published "
            f"${total.stated:,.0f} ({total.computed / total.stated - 1:+.2%})"
        )


def tree_of(found: Validation) -> dict[str, Any]:
    return {
        "coverage": found.coverage,
        "families": [each._asdict() for each in summaries(found)],
        "rows": [
            {
                "run": each.row.run,
                "family": each.row.family,
                "part": each.row.part,
                "published_s": each.row.seconds,
                "held_out_s": each.held_out,
                "within_s": each.within,
                "error": each.error,
                "inside": each.inside,
                "assumed": list(each.row.assumed),
            }
            for each in found.rows
        ],
        "excluded": [each._asdict() for each in found.excluded],
        "beyond": [
            {"run": row.row.run, "part": row.row.part, "why": why} for row, why in beyond(found)
        ],
        "identities": [each._asdict() for each in found.identities],
        "totals": [each._asdict() for each in found.totals],
    }
