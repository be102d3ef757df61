"""The verb `migrate`: a run goes on on another device, or on another machine."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlock.cli.numbers import at_least
from interlock.errors import ConfigError
from interlock.text import one_line

if TYPE_CHECKING:
    from interlock.records.moves import Move


def add_migrate(choices: Any) -> None:
    verb = choices.add_parser(
        "migrate",
        help="let a run go on on another device, once that has proved itself",
        description="Exit code 0: the run goes on there, with train --resume; 1: the device was "
        "refused, with the reason, and the run is as it was; 2: a mistake.",
    )
    verb.add_argument("run", type=Path, metavar="RUN", help="a run directory, or a bundle of one")
    verb.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="of the learner on that device: learner.micro_batch_tokens=4096, …",
    )
    what = verb.add_mutually_exclusive_group()
    what.add_argument("--learner", metavar="DEVICE", help="cuda:1, npu, cpu, sim, …")
    what.add_argument("--back", action="store_true", help="take the last move back")
    what.add_argument(
        "--bundle",
        type=Path,
        metavar="PATH",
        help="write the run with all that it needs for another machine: FILE.tar, or a folder",
    )
    verb.add_argument(
        "--into", type=Path, metavar="DIR", help="of a bundle: the run directory to make of it"
    )
    verb.add_argument(
        "--discard",
        action="store_true",
        help="with --back: from the checkpoint of that move; what came since is put aside",
    )
    verb.add_argument(
        "--updates", type=at_least(1), default=3, metavar="N", help="repeated, at most (default: 3)"
    )
    verb.add_argument(
        "--tokens",
        type=at_least(1),
        default=8192,
        metavar="N",
        help="of an update, at most: of a longer one its first groups (default: 8192)",
    )
    verb.add_argument(
        "--timeout",
        type=float,
        default=1800.0,
        metavar="S",
        help="for the updates on one side (default: 1800)",
    )
    verb.add_argument(
        "--unqualified",
        action="store_true",
        help="without a certificate; the updates are repeated all the same",
    )
    verb.set_defaults(verb=migrate)


def migrate(given: argparse.Namespace) -> None:
    """Prove the device, record the move, and say how to go on."""
    from interlock.migrate import moving
    from interlock.rundir import RunDir

    if not 0 < given.timeout < 1e9:
        raise ConfigError(f"--timeout {given.timeout:g}: give a number of seconds above 0")
    if given.discard and not given.back:
        raise ConfigError("--discard is of --back: it puts aside what came since the last move")
    if given.settings and given.learner is None:
        shown = one_line(given.settings[0], 60)
        raise ConfigError(f"{shown} is of a device that the learner moves to; give --learner, too")
    if not given.run.exists():
        raise ConfigError(f"there is no {given.run}; give a run directory, or a bundle of one")
    if given.bundle is not None:
        _bundle(given)
        return
    run = _unpacked(given)
    if not given.back and given.learner is None:
        if given.into is None:
            raise ConfigError("say where to: --learner DEVICE, --bundle PATH, or --back")
        print(_to_go_on(run, RunDir.read(run).manifest.moves))
        return
    wish = moving.MoveWish(
        given.learner or "",
        given.settings,
        given.updates,
        given.tokens,
        given.timeout,
        given.unqualified,
    )
    if given.back:
        made = moving.back(run, wish, given.discard, _tell)
    else:
        made = moving.move(run, wish, _tell)
    _print(made, run)


def _bundle(given: argparse.Namespace) -> None:
    from interlock.migrate import bundle

    if given.into is not None:
        raise ConfigError("--bundle writes one, and --into reads one; give one of them")
    made = bundle.write(given.run, given.bundle, _tell)
    size = sum(each.bytes for each in made.files.values())
    print(f"{given.bundle}: {len(made.files)} files, {size / 1e6:,.1f} MB")


def _unpacked(given: argparse.Namespace) -> Path:
    """The run directory, made of the bundle where it is one."""
    from interlock.migrate import bundle

    run: Path = given.run
    if not bundle.is_bundle(run):
        if given.into is not None:
            raise ConfigError(f"--into is of a bundle, and {run} is none; leave it out")
        return run
    if given.into is None:
        raise ConfigError(f"{run} is a bundle; give --into DIR, the run directory to make of it")
    bundle.unpack(run, given.into, _tell)
    return Path(given.into)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(made: "Move", run: Path) -> None:
    for finding in made.findings:
        print(f"{finding.check}: {finding.result}: {finding.summary}")
    print(
        f"{made.part}: {made.before.device} -> {made.after.device}, from stage {made.stage} step "
        f"{made.step}\n{_to_go_on(run, [made])}"
    )


def _to_go_on(run: Path, moves: Sequence["Move"]) -> str:
    from interlock.chips.admission import UNQUALIFIED

    unqualified = bool(moves) and moves[-1].trust == UNQUALIFIED
    return (
        f"to go on: interlock train {shlex.quote(str(run))} --resume"
        + " --unqualified" * unqualified
    )
