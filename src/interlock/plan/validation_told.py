"""A validation as text, and as JSON.

Validation ─┬─ lines_of ──> the terminal
                └─ tree_of ──> JSON
"""

from collections.abc import Iterator, Sequence
from typing import Any

from interlock.plan.chips import catalogue
from interlock.plan.told import figure
from interlock.plan.validate import (
    BEYOND,
    Errors,
    Recomputed,
    Validation,
    errors,
    reason,
)

_NEVER = "no reason is known"


def summaries(found: Validation) -> list[Errors]:
    """By family; then all, those with their lengths stated, and the modes that bars are for."""
    return _by_family(found.rows) + _of_each(selections(found))


def unseen_summaries(found: Validation) -> list[Errors]:
    """The same of rows that nothing was fitted on: by family, and by whether the chip is proven."""
    known = [each for each in found.unseen if each.row.chip.proven]
    stated = [each for each in known if each.lengths_known]
    return _by_family(found.unseen) + _of_each(
        {
            "all": found.unseen,
            "proven chips": known,
            "proven chips, lengths stated": stated,
            "NeMo-RL": [each for each in stated if each.row.run.startswith("NeMo-RL")],
            "other chips": [each for each in found.unseen if not each.row.chip.proven],
        }
    )


def _by_family(rows: Sequence[Recomputed]) -> list[Errors]:
    families = dict.fromkeys(each.row.family for each in rows)
    return _of_each({name: [each for each in rows if each.row.family == name] for name in families})


def _of_each(chosen: dict[str, list[Recomputed]]) -> list[Errors]:
    return [errors(name, rows) for name, rows in chosen.items() if rows]


def selections(found: Validation) -> dict[str, list[Recomputed]]:
    known = [each for each in found.rows if each.lengths_known]
    decode = [each for each in found.rows if each.row.part == "decode"]
    usual = next(iter(catalogue().values())).vendor
    other = [each for each in decode if each.row.chip.vendor != usual]
    return {
        "all": found.rows,
        "lengths stated": known,
        "lengths not stated": [each for each in found.rows if not each.lengths_known],
        "one step off, lengths stated": [each for each in known if "off" in each.row.family],
        "decode": decode,
        "decode, other vendors": other,
    }


def beyond(rows: Sequence[Recomputed]) -> list[tuple[Recomputed, str]]:
    return [(each, reason(each.row) or _NEVER) for each in rows if abs(each.error) > BEYOND]


def _summary_lines(summed: Sequence[Errors], rows: Sequence[Recomputed]) -> Iterator[str]:
    yield f"{'family':44s} {'rows':>4s} {'median':>7s} {'p90':>6s} {'worst':>6s}"
    for each in summed:
        yield (
            f"{each.family:44.44s} {each.rows:4d} {each.median:7.1%} {each.ninth:6.1%} "
            f"{each.worst:6.0%}"
        )
    yield ""
    inside = sum(each.inside for each in rows)
    yield f"{inside} of {len(rows)} lie in the range that a plan would have given"


def _beyond_lines(rows: Sequence[Recomputed]) -> Iterator[str]:
    yield f"beyond {BEYOND:.0%}:"
    for row, why in beyond(rows):
        yield (
            f"  {row.row.run}, {row.row.part}: {figure(row.row.seconds)} s, predicted "
            f"{figure(row.held_out)} s ({row.error:+.0%}): {why}"
        )


def lines_of(found: Validation) -> Iterator[str]:
    yield from _summary_lines(summaries(found), found.rows)
    yield f"coverage: {found.coverage:.1%} of the runs that state a time; left out:"
    for left in found.excluded:
        if left.timed:
            yield f"  {left.run}: {left.why}"
    yield ""
    yield from _beyond_lines(found.rows)
    yield ""
    if found.unseen:
        yield "rows that nothing was ever fitted on, by the constants as shipped:"
        yield from _summary_lines(unseen_summaries(found), found.unseen)
        yield from _beyond_lines(found.unseen)
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
        "rows": [_tree_of_row(each) for each in found.rows],
        "unseen": [_tree_of_row(each) for each in found.unseen],
        "unseen_families": [each._asdict() for each in unseen_summaries(found)],
        "excluded": [each._asdict() for each in found.excluded],
        "beyond": [
            {"run": row.row.run, "part": row.row.part, "why": why}
            for row, why in beyond([*found.rows, *found.unseen])
        ],
        "identities": [each._asdict() for each in found.identities],
        "totals": [each._asdict() for each in found.totals],
    }


def _tree_of_row(each: Recomputed) -> dict[str, Any]:
    return {
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
