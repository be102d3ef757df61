"""The files of a move: the checkpoint that it was made at is kept; what came after it can be put
aside.

    checkpoints/stage00-step000020 ══ the same files ══> moves/01/checkpoint
    moves/02/discarded <── ledger, metrics, later checkpoints and data, before they are cut back

Every step leaves a run that can be resumed; what is put aside is whole before anything goes.
"""

import errno
import os
import shutil
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from interlock.errors import RunError
from interlock.records.moves import Move
from interlock.rundir.draws import Draws
from interlock.rundir.files import (
    JsonLines,
    atomic_directory,
    remove_directory,
    storage_errors,
    write_atomically,
)
from interlock.rundir.run import RunDir
from interlock.rundir.view import Checkpoint

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)


def place(run: RunDir, number: int) -> Path:
    """The directory of a move, whose numbers begin at 1."""
    return run.path / "moves" / f"{number:02d}"


def keep_checkpoint(run: RunDir, newest: Checkpoint, number: int) -> None:
    """Keep the checkpoint that a move is made at as long as the run."""
    with atomic_directory(place(run, number) / "checkpoint") as directory:
        _copy_tree(newest.path, directory)


def discard_since(run: RunDir, move: Move, number: int, into: int) -> Checkpoint:
    """Put the run back to where move `number` was made; what came since goes to that of `into`.

    -> the checkpoint it goes on from. Raises RunError when that is gone.
    """
    kept = place(run, number) / "checkpoint"
    name = f"stage{move.stage:02d}-step{move.step:06d}"
    if not kept.is_dir():
        raise RunError(f"{kept} is gone; give --back without --discard")
    back = Checkpoint(move.stage, move.step, run.path / "checkpoints" / name)
    _put_aside(run, move, into)
    if not back.path.is_dir():
        with atomic_directory(back.path) as directory:
            _copy_tree(kept, directory)
    for later in reversed([each for each in run.checkpoints() if each[:2] > back[:2]]):
        remove_directory(later.path)
    for path in _made_since(run, move):
        path.unlink()
    for gone in ("weights", "teachers"):
        remove_directory(run.path / gone)
    _cut_metrics(run, move)
    run.ledger.forget_after(move.stage, move.step)
    Draws(run.ledger, move.stage).forget_after(move.step)  # last: no group is without its draw
    return back


def _put_aside(run: RunDir, move: Move, into: int) -> None:
    """Keep what is about to be cut back, whole; beside what an attempt that was killed has kept."""
    folder = place(run, into)
    names = chain(["discarded"], (f"discarded-{number}" for number in count(2)))
    free = (each for name in names if not (each := folder / name).exists())
    with atomic_directory(next(free)) as directory:
        run.ledger.copy_to(directory / "ledger.sqlite")
        for name in ("metrics.jsonl", "weights", "teachers"):
            if (run.path / name).exists():
                _copy(run.path / name, directory / name)
        for later in run.checkpoints():
            if later[:2] > (move.stage, move.step):
                _copy(later.path, directory / "checkpoints" / later.path.name)
        for path in _made_since(run, move):
            _copy(path, directory / "data" / path.name)


def _made_since(run: RunDir, move: Move) -> list[Path]:
    """The rows that stages made after the move."""
    found = sorted((run.path / "data").glob("*.jsonl"))
    return [path for path in found if path.stat().st_mtime > move.time]


def _cut_metrics(run: RunDir, move: Move) -> None:
    """Leave the lines of steps up to the move's."""
    file = JsonLines(run.path / "metrics.jsonl")
    file.repair()
    pairs = zip(file.path.read_bytes().splitlines(keepends=True), file.read(), strict=True)
    kept = [
        line for line, read in pairs if (read["stage"], read["step"]) <= (move.stage, move.step)
    ]
    write_atomically(file.path, b"".join(kept))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        _copy_tree(source, target)
    else:
        shutil.copyfile(source, target)


def _copy_tree(source: Path, target: Path) -> None:
    """A directory that nothing writes to any more: as links where the disk has them."""
    with storage_errors(target.parent):
        shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with suppress(FileNotFoundError):
            os.unlink(target)
        shutil.copyfile(source, target)
