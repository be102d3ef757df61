"""`interlock review FILE`: people decide on labelled rows; to and from other software."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from interlock.cli.watching import HOST, PORT, need_packages
from interlock.errors import ConfigError, RunError


def add_review(choices: Any) -> None:
    verb = choices.add_parser(
        "review",
        help="decide on labelled problems, as a page in the browser",
        description="FILE is what interlock label wrote; decisions are kept in it.",
    )
    verb.add_argument("file", type=Path, metavar="FILE")
    verb.add_argument("--all", action="store_true", help="rows that are useful or too easy, too")
    verb.add_argument("--host", default=HOST, help=f"default: {HOST}; others are given a key")
    verb.add_argument("--port", type=int, default=PORT + 1, help=f"default: {PORT + 1}; 0: any")
    other = verb.add_mutually_exclusive_group()
    other.add_argument("--to-trl", type=Path, metavar="OUT", help="JSONL of what was not rejected")
    other.add_argument("--to-label-studio", type=Path, metavar="OUT", help="JSON of its tasks")
    other.add_argument("--from-label-studio", type=Path, metavar="IN", help="take its decisions")
    verb.set_defaults(verb=review)


def review(given: argparse.Namespace) -> None:
    """Exchange, where that is asked for; else serve the page until interrupted."""
    from interlock.label.review.decisions import Decisions

    with Decisions(given.file) as decisions:
        if given.to_trl or given.to_label_studio:
            _export(given, decisions.rows)
        elif given.from_label_studio:
            _take(given.from_label_studio, decisions)
        else:
            _serve(given, decisions)


def _serve(given: argparse.Namespace, decisions: Any) -> None:
    need_packages()
    from interlock.label.review.app import FLAGGED, make_app
    from interlock.report.live.server import listen, names_of, new_key, run_server, url_of

    marks = frozenset(row.mark for row in decisions.rows) if given.all else FLAGGED
    listener, key = listen(given.host, given.port), new_key(given.host)
    print(f"review at {url_of(listener, given.host, key)}", flush=True)
    run_server(make_app(decisions, marks, names_of(given.host, key), key), listener)


def _export(given: argparse.Namespace, rows: Any) -> None:
    import msgspec

    from interlock.label.review.exchange import INTERFACE, TASKS, TRL_ROW, to_label_studio, to_trl
    from interlock.rundir import write_atomically

    out = given.to_trl or given.to_label_studio
    own = {given.file.resolve(), given.file.with_name(f"{given.file.name}.setting.json").resolve()}
    if out.is_dir() or out.resolve() in own:
        raise ConfigError(f"{out} is a directory, or the labels themselves; give another file")
    if given.to_label_studio:
        data = msgspec.json.format(msgspec.json.encode(to_label_studio(rows)), indent=1)
        interface = out.with_name(f"{out.name}.xml")
        write_atomically(out, data + b"\n", over=TASKS)
        write_atomically(interface, INTERFACE.encode(), over=b"<View>")
        print(f"{given.to_label_studio}: {len(rows)} tasks; their labelling interface: {interface}")
        return
    found, disputed = to_trl(rows)
    data = b"".join(msgspec.json.encode(row) + b"\n" for row in found)
    write_atomically(given.to_trl, data, over=TRL_ROW)
    rejected = len(rows) - len(found) - disputed
    print(f"{given.to_trl}: {len(found)} rows; {rejected} rejected, {disputed} disputed: left out")


def _take(path: Path, decisions: Any) -> None:
    from msgspec.structs import replace

    from interlock.label.review.exchange import from_label_studio
    from interlock.regular import read_regular

    try:
        content = read_regular(path)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; give the JSON that Label Studio exports"
        ) from None
    try:
        said = from_label_studio(content, decisions.rows)
    except RunError as error:
        raise RunError(f"{path}: {error}") from None
    for row in decisions.rows:
        for each in said.get(row.id, {}).values():
            if each.decision == "correct" and each.answer in (None, row.answer):
                raise ConfigError(
                    f"{path}: the correction of {row.id} says no other answer than the row has"
                )
    changed, replaced = {}, 0
    for place, row in enumerate(decisions.rows):
        if row.id in said:
            # The same again keeps its time, which Label Studio is not told.
            kept = {
                who: before
                for who, before in row.reviews.items()
                if who in said[row.id] and replace(before, time=0.0) == said[row.id][who]
            }
            replaced += len((row.reviews.keys() & said[row.id].keys()) - kept.keys())
            changed[place] = replace(row, reviews={**row.reviews, **said[row.id], **kept})
    decisions.keep(changed)
    counts = Counter(each.decision for of_row in said.values() for each in of_row.values())
    told = ", ".join(f"{count} {decision}" for decision, count in counts.most_common())
    others = f"; {replaced} in place of what its reviewer had decided" if replaced else ""
    print(f"{len(changed)} rows have decisions of {path}: {told or 'none'}{others}")
