"""`interlock evidence`: what other verbs found, as one page for whoever decides."""

import argparse
import datetime
import sys
from pathlib import Path
from typing import Any

from interlock.errors import ConfigError
from interlock.text import one_line

_MOST_CLAIM = 1000  # characters


def add_evidence(choices: Any) -> None:
    """The verb's place in the parser."""
    verb = choices.add_parser(
        "evidence",
        help="one page that shows what is known of chips, for a purchase or a refusal",
        description="Nothing is measured: all of it is from the files that are given, each figure "
        "with its source. The same files and date give the same page.",
    )
    verb.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="FILE|DIR",
        help="certificates, parity.json, fleet.json, preflight folders, runs, and what "
        "`bench --json` and `plan --json` print",
    )
    verb.add_argument(
        "--for",
        dest="wanted",
        required=True,
        choices=["purchase", "refusal"],
        help="why these chips, or why not",
    )
    verb.add_argument("--claim", metavar="TEXT", help="the question, in your words")
    verb.add_argument("--date", metavar="YYYY-MM-DD", help="of the page (default: today)")
    verb.add_argument(
        "--out", type=Path, default=Path("evidence.html"), metavar="FILE", help="the page"
    )
    verb.add_argument("--json", action="store_true", help="print the same as JSON, too")
    verb.set_defaults(verb=evidence)


def evidence(given: argparse.Namespace) -> None:
    """Read the sources, put the page together, and write it."""
    claim = given.claim or ""
    if len(claim) > _MOST_CLAIM:
        raise ConfigError(f"--claim has {len(claim):,} characters; give {_MOST_CLAIM:,}")
    date = _date(given.date)
    import msgspec

    from interlock.evidence.assembly import assemble
    from interlock.evidence.page import render
    from interlock.evidence.reading import passed_over, read, refuse_to_replace, uncertified
    from interlock.evidence.record import NotShown, Wanted
    from interlock.records.coding import to_json
    from interlock.report import sheet

    sources = read(given.sources)
    refuse_to_replace(given.out, sources)
    not_shown: list[NotShown] = [*passed_over(given.sources), *uncertified(sources)]
    report = assemble(Wanted(given.wanted), claim, date, sources, not_shown)
    written = sheet.write(given.out, render(report))
    if given.json:
        print(msgspec.json.format(to_json(report), indent=2).decode())
    for each in not_shown:
        print(f"not shown: {each.words}", file=sys.stderr)
    print(f"report: {written.resolve()}", file=sys.stderr if given.json else sys.stdout)


def _date(text: str | None) -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    if text is None:
        return today.isoformat()
    try:
        date = datetime.date.fromisoformat(text)
    except ValueError:
        shown = one_line(repr(text), 40)
        raise ConfigError(f"--date {shown} is no date; write one as 2026-11-29") from None
    if date > today + datetime.timedelta(days=1):  # it may be tomorrow elsewhere
        raise ConfigError(f"--date {date} is to come; the page tells what was found until {today}")
    return date.isoformat()
