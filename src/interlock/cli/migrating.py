"""The verb `migrate`: a run goes on on another device, or on another machine."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlock.errors import ConfigError

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
    verb.add_argument(
        "--discard",
        action="store_true",
        help="with --back: from the checkpoint of that move; what came since is put aside",
    )
    verb.add_argument(
        "--updates", type=int, default=3, metavar="N", help="repeated, at most (default: 3)"
    )
    verb.add_argument(
        "--tokens",
        type=int,
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

    if given.updates < 1 or given.tokens < 1 or not 0 < given.timeout < 1e9:
        raise ConfigError("--updates, --tokens and --timeout are numbers above 0")
    if given.discard and not given.back:
        raise ConfigError("--discard is of --back: it puts aside what came since the last move")
    if not given.back and given.learner is None:
        raise ConfigError("say where to: --learner DEVICE, or --back")
    wish = moving.MoveWish(
        given.learner or "",
        given.settings,
        given.updates,
        given.tokens,
        given.timeout,
        given.unqualified,
    )
    if given.back:
        made = moving.back(given.run, wish, given.discard, _tell)
    else:
        made = moving.move(given.run, wish, _tell)
    _print(made, given.run)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(made: "Move", run: Path) -> None:
    for finding in made.findings:
        print(f"{finding.check}: {finding.result}: {finding.summary}")
    print(
        f"{made.part}: {made.before.device} -> {made.after.device}, from stage {made.stage} step "
        f"{made.step}\nto go on: interlock train {run} --resume"
    )
