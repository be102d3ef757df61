"""One run, one directory, one writer at a time.

    config.json     the resolved config; a resumed run must match it
    config-history.jsonl  what config.json held before each change, and when that was
    manifest.json   versions, platform, when and how the run began and ended, and the moves of its
                    parts to other devices, which its config is read with; written last at
                    creation: a directory with a manifest is a run
    moves/          01/checkpoint/, …: where each move was made; 02/discarded/: what came after it
    lock            held (flock) by the writing process; its pid inside
    metrics.jsonl   one line per optimizer step
    events.jsonl    one line per event: resumed, non-finite step skipped, verifier killed, …
    plan.json       what `interlock plan` had said of it, where it was given that
    cost.json       what was used, by session, stage and role; entered every few seconds
    ledger.sqlite   scored groups, evaluations, groups not used yet; problems drawn and set aside
    workers/        the output of each generator process
    sync/           weight versions on their way to generators; emptied when a session begins
    checkpoints/    stage00-step000020/ …: all it takes to go on; only the newest are kept
    teachers/       what endpoints said of a distill stage's texts, until a checkpoint is past it
    stages/         00-NAME/, …: the model as each stage left it that another came after;
                    03-NAME-begin/: the smaller one that a stage with every_layer begins with
    data/           what a stage made to learn from, to be read: JSONL
    weights/        the final model in the Hugging Face layout
    report.html     written from the above by `report`

Steps count from 1 within each stage; an evaluation or a checkpoint at step s is of the weights
after s updates, so an evaluation at step 0 is of the weights the stage began with. After a resume
a step may be logged again: the last line of each (stage, step) counts.
"""

import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import msgspec

from interlock.config.secrets import redacted
from interlock.errors import BudgetSpent, RunError, UserError
from interlock.records.cost import RunCost
from interlock.records.metrics import Event, EventKind, StepMetrics
from interlock.records.moves import Move
from interlock.records.trust import Stack
from interlock.rundir.changes import with_moves
from interlock.rundir.files import (
    JsonLines,
    atomic_directory,
    recover,
    remove_directory,
    storage_errors,
    unlinked,
    write_atomically,
)
from interlock.rundir.ledger import Ledger
from interlock.rundir.locking import locked
from interlock.rundir.view import STOPPED_BY_BUDGET, Manifest, RunView, Session, as_on_disk
from interlock.text import error_line, hide_credentials

_TOLD = 8  # changed settings that one event names


class RunDir(RunView):
    """A run being written. As a context manager it records how the run ended and lets go of it."""

    def __init__(self, path: Path, lock: TextIO) -> None:
        """Use `create` or `open`."""
        super().__init__(path)
        self._lock = lock

    def _open_ledger(self) -> Ledger:
        return Ledger(self.path / "ledger.sqlite")

    @classmethod
    def create(
        cls,
        path: Path,
        config: dict[str, Any],
        versions: dict[str, str],
        inputs: Mapping[str, str] | None = None,
    ) -> "RunDir":
        """Start a run in a new or empty directory.

        Raises RunError when it holds a run or anything else, is in use, is inside a run, or cannot
        be written to.
        """
        _apart(path)  # before there is anything of it
        with storage_errors(path):
            path.mkdir(0o700, parents=True, exist_ok=True)
        vacant(path)
        with storage_errors(path):
            path.chmod(0o700)  # also one that was there
        now = time.time()
        manifest = Manifest(
            versions,
            f"{platform.system()} {platform.machine()}",
            now,
            [Session(now)],
            inputs=dict(inputs or {}),
        )
        lock = _acquire(path)
        try:
            recover(path)
            _write_json(path / "config.json", redacted(config))
            with closing(Ledger(path / "ledger.sqlite")) as ledger:  # without one, it is lost
                manifest.ledger = ledger.identity
            _write_json(path / "manifest.json", manifest)
            return cls(path, lock)
        except BaseException:
            lock.close()
            raise

    @classmethod
    def open(
        cls,
        path: Path,
        config: dict[str, Any] | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> "RunDir":
        """Go on with a run: repair what a kill left torn, and note it as an event.

        Raises RunError when there is no run, when it is in use or of an older format, or when
        `config` or `inputs` are given and differ from what is recorded; then nothing was changed.
        """
        with closing(RunView(path)) as view:
            view.ledger.check_current()
            if config is not None:
                view.check_same_config(config)
            if inputs is not None:
                view.check_same_inputs(inputs)
            view.check_ledger()
        lock = _acquire(path)
        try:
            run = cls(path, lock)
            run._resume()
            if config is not None:
                run._take(config, inputs or {})
            return run
        except BaseException:
            lock.close()
            raise

    @classmethod
    @contextmanager
    def held(cls, path: Path) -> Iterator["RunDir"]:
        """A run that no process goes on with meanwhile; this is no session of it.

        Raises RunError when there is no run, or it is in use or damaged.
        """
        with closing(RunView(path)) as view:
            view.ledger.check_current()
            view.check_ledger()
        lock = _acquire(path)
        try:
            run = cls(path, lock)
        except BaseException:
            lock.close()
            raise
        with closing(run):
            recover(path)
            yield run

    @classmethod
    def read(cls, path: Path) -> RunView:
        """A read-only view, for reports. Raises RunError when `path` holds no run."""
        return RunView(path)

    def _resume(self) -> None:
        leftovers = recover(self.path)
        folders = [self.path / name for name in ("checkpoints", "stages", "data")]
        for folder in (*folders, *sorted(self.path.glob("moves/*"))):
            if folder.is_dir():
                leftovers += recover(folder)
        history = JsonLines(self.path / "config-history.jsonl")
        torn = self._metrics.repair() + self._events.repair() + history.repair()
        self.manifest.sessions.append(Session(time.time()))
        self._set_status("running")
        newest = self.latest_checkpoint()
        where = f"stage {newest.stage} step {newest.step}" if newest else "the beginning"
        self.event("resumed", f"resumed from {where}")
        if leftovers or torn:
            removed = ", ".join(leftovers) or "nothing"
            self.event("recovered", f"unfinished: {removed}; {torn} bytes of torn lines cut off")

    def _take(self, config: dict[str, Any], inputs: Mapping[str, str]) -> None:
        """Remember what was changed: how long the run is to be, the next to resume it must ask for
        no less. What config.json held before is kept.
        """
        changes = list(self._changes(config))
        stages = as_on_disk(config).get("stage", [])
        new = stages[len(self.config.get("stage", [])) :]
        if changes:
            more = f"; and {len(changes) - _TOLD} more" if len(changes) > _TOLD else ""
            told = "; ".join(changes[:_TOLD]) + more
            self.event("settings_changed", f"resumed with another setting: {told}")
        if new:
            names = ", ".join(stage.get("name") or stage["kind"] for stage in new)
            self.event("extended", f"resumed with more stages: {names}")
        if stages == self.config.get("stage", []):
            return
        former = {"until": time.time(), "config": self.config}
        JsonLines(self.path / "config-history.jsonl").append(former)
        if self.manifest.inputs:  # none were kept of older runs
            known = self.manifest.inputs
            added = {name: each for name, each in inputs.items() if name not in known}
            self.manifest.inputs |= added
            _write_json(self.path / "manifest.json", self.manifest)
        self.config["stage"] = stages
        _write_json(self.path / "config.json", self.config)

    def computes_on(self, stack: Stack) -> None:
        """Keep where this session learns."""
        self.manifest.sessions[-1].learner = stack
        _write_json(self.path / "manifest.json", self.manifest)

    def moved(self, move: Move) -> None:
        """Let a part of the run go on elsewhere: from one rename on, and not before."""
        self.manifest.moves.append(move)
        _write_json(self.path / "manifest.json", self.manifest)
        self.config = with_moves(self.config, [move])
        message = f"{move.part} goes on on {move.after.device}, from stage {move.stage} step "
        message += f"{move.step}; it was on {move.before.device}"
        self.event("moved", message, part=move.part, device=move.after.device)

    def log(self, metrics: StepMetrics) -> StepMetrics:
        """Append the metrics of one step; durable. -> with the time in them"""
        timed = msgspec.structs.replace(metrics, time=time.time())
        self._metrics.append(timed)
        return timed

    def keep_cost(self, cost: RunCost) -> None:
        """Enter what the run has used; durable."""
        write_atomically(self.path / "cost.json", msgspec.json.encode(cost) + b"\n")

    def keep_plan(self, plan: dict[str, Any]) -> None:
        """Beside what happens, for the report."""
        _write_json(self.path / "plan.json", plan)

    def event(
        self, kind: EventKind, message: str, worker: str | None = None, **facts: str
    ) -> Event:
        """Append one event; durable. -> as it was written"""
        facts = {name: hide_credentials(value) for name, value in facts.items()}
        event = Event(time.time(), kind, hide_credentials(message), worker, facts)
        self._events.append(event)
        return event

    @contextmanager
    def checkpoint(self, stage: int, step: int, keep: int) -> Iterator[Path]:
        """Yield a directory to fill; it appears whole, then all but it and the newest `keep` go."""
        name = f"stage{stage:02d}-step{step:06d}"
        with atomic_directory(self.path / "checkpoints" / name) as directory:
            yield directory
        self.prune_checkpoints(max(1, keep))

    def prune_checkpoints(self, keep: int) -> None:
        """Remove all but the newest `keep`."""
        found = self.checkpoints()
        for old in found[: max(0, len(found) - keep)]:
            remove_directory(old.path)

    @contextmanager
    def weights(self) -> Iterator[Path]:
        """Yield a directory to fill; it becomes weights/ as a whole."""
        with atomic_directory(self.path / "weights") as directory:
            yield directory

    def stage_weights(self, index: int, name: str) -> Path:
        """Where the weights are kept that a stage left."""
        return self.path / "stages" / (f"{index:02d}-{name}" if name else f"{index:02d}")

    def data_file(self, index: int, name: str) -> Path:
        """Where the rows are to be that a stage makes."""
        with storage_errors(self.path):
            (self.path / "data").mkdir(0o700, exist_ok=True)
        return self.rows_file(index, name)

    def worker_log(self, name: str) -> Path:
        """The file for the output of one generator process."""
        directory = self.path / "workers"
        with storage_errors(self.path):
            directory.mkdir(0o700, exist_ok=True)
        return directory / f"{name}.log"

    def fresh_sync(self, session: str) -> Path:
        """An empty directory for the weight versions of this session; those of others go."""
        with storage_errors(self.path):
            shutil.rmtree(self.path / "sync", ignore_errors=True)
            (self.path / "sync" / session).mkdir(parents=True)
        return self.path / "sync" / session

    def finish(self, status: str = "finished", reason: str | None = None) -> None:
        """Record how the run ended, and let go of the directory."""
        try:
            self.manifest.sessions[-1].ended = time.time()
            self._set_status(status, reason)
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the directory; the status stays as it is."""
        super().close()
        self._lock.close()

    def _is_untouched(self) -> bool:
        """Whether it has only just been created: a mistake that shows then leaves no run behind."""
        return len(self.manifest.sessions) == 1 and not self.metrics() and not self.checkpoints()

    def _set_status(self, status: str, reason: str | None = None) -> None:
        self.manifest.status, self.manifest.reason = status, reason
        _write_json(self.path / "manifest.json", self.manifest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
            return
        with suppress(RunError):  # a full disk must not hide the error that is on its way up
            if isinstance(error, UserError) and self._is_untouched():
                self.close()
                remove_directory(self.path)
            elif isinstance(error, BudgetSpent):
                self.finish(STOPPED_BY_BUDGET, hide_credentials(error_line(error)))
            elif isinstance(error, Exception):
                self.finish("failed", hide_credentials(error_line(error)))
            else:
                self.finish("interrupted")


def vacant(path: Path) -> None:
    """Raises RunError when a run cannot be begun there: it holds one, or anything else, or is
    inside one.
    """
    _apart(path)
    with storage_errors(path):  # a name may be longer than there are any
        if not path.is_dir():
            return
        ours = re.compile(r"lock|config\.json|manifest\.json|ledger\.sqlite.*|\.tmp-.*")
        strangers = [name for name in os.listdir(path) if not ours.fullmatch(name)]
    if (path / "manifest.json").exists():
        raise RunError(f"{path} holds a run already; add --resume, or give another directory")
    if strangers:
        raise RunError(f"{path} is not empty and holds no run; give another directory")


def _apart(path: Path) -> None:
    """Raises RunError inside a run: what removes, bundles or moves that would take this one along.

    A manifest.json alone is of no run: others have files of that name in the folders they work in.
    """
    place = Path(os.path.realpath(path))  # as resolve(), but for a circle of links
    for above in place.parents:
        # Not by Path: what may not be looked into raises there.
        if all(os.path.isfile(above / name) for name in ("manifest.json", "ledger.sqlite")):
            raise RunError(
                f"{path} is inside the run {above}, which it would become a part of; give a "
                "directory outside of it"
            )


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def _acquire(directory: Path) -> TextIO:
    """Lock `directory` until the file is closed or the process ends, however it ends."""
    with storage_errors(directory):
        # The open file is the lock.
        file = open(directory / "lock", "a+", opener=unlinked)  # noqa: SIM115
        ours = locked(file)
    if not ours:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise RunError(
            f"{directory} is in use by process {holder}; wait for it, or give another directory"
        )
    with storage_errors(directory):
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    return file
