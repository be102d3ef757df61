"""One run, one directory, one writer at a time.

    config.json     the resolved config; a resumed run must match it
    manifest.json   versions, platform, when and how the run began and ended; written last at
                    creation: a directory with a manifest is a run
    lock            held (flock) by the writing process; its pid inside
    metrics.jsonl   one line per optimizer step
    events.jsonl    one line per event: resumed, non-finite step skipped, verifier killed, …
    ledger.sqlite   scored groups, evaluations, groups finished and not used, problems set aside
    workers/        the output of each generator process
    sync/           weight versions on their way to generators; emptied when a session begins
    checkpoints/    stage00-step000020/ …: all it takes to go on; only the newest are kept
    teachers/       what endpoints said of a distill stage's texts, until a checkpoint is past it
    weights/        the final model in the Hugging Face layout
    report.html     written from the above by `report`

Steps count from 1 within each stage; an evaluation or a checkpoint at step s is of the weights
after s updates, so an evaluation at step 0 is of the weights the stage began with. After a resume
a step may be logged again: the last line of each (stage, step) counts.
"""

import fcntl
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TextIO

import msgspec

from interlock.config.secrets import redacted
from interlock.errors import RunError, UserError
from interlock.processes.deadline import Deadline
from interlock.records.coding import Time, from_json
from interlock.records.metrics import Event, EventKind, StepMetrics
from interlock.regular import read_regular
from interlock.rundir.changes import FREE_TO_CHANGE, first_difference, steps_ahead
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
from interlock.rundir.lines import read_events, read_metrics
from interlock.text import error_line, hide_credentials, one_line

_LOCK_PATIENCE_S = 1.0  # a reader holds the lock for an instant to learn the status


class Session(msgspec.Struct):
    """One process's time on the run, unix seconds; `ended` is None while it runs or if killed."""

    started: Time
    ended: Time | None = None


class Manifest(msgspec.Struct):
    """How the run began and ended. `status`: running, finished, failed or interrupted."""

    versions: dict[str, str]
    platform: str
    created: Time  # unix seconds
    sessions: list[Session]
    status: str = "running"
    reason: str | None = None  # one line, when failed
    inputs: dict[str, str] = {}  # digest of all that it was made of, by name; {}: of older runs
    ledger: int = 0  # whose groups it learns from, see Ledger.identity; 0: of older runs


class Checkpoint(NamedTuple):
    stage: int
    step: int
    path: Path


class RunView:
    """What a run wrote, for reading only: changes no file, and works on a run that is going on.

    (SQLite may leave its own empty -wal and -shm files beside the ledger.)
    """

    def __init__(self, path: Path) -> None:
        """Raises RunError when `path` holds no run, or one that cannot be read."""
        self.path = path
        self.manifest = self._read_json("manifest.json", Manifest)
        self.config = redacted(self._read_json("config.json", dict[str, Any]))
        self.ledger = self._open_ledger()
        self._metrics = JsonLines(path / "metrics.jsonl")
        self._events = JsonLines(path / "events.jsonl")

    def _read_json(self, name: str, kind: Any) -> Any:
        try:
            return from_json(read_regular(self.path / name), kind)
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"no run in {self.path} ({name} is missing); give the directory a run was "
                "written to"
            ) from None
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {self.path / name}: {error}") from None

    def _open_ledger(self) -> Ledger:
        return Ledger.read_only(self.path / "ledger.sqlite")

    @property
    def status(self) -> str:
        """running, finished, failed or interrupted (stopped by the user, or killed)."""
        if self.manifest.status == "running" and not self._is_locked():
            return "interrupted"
        return self.manifest.status

    def _is_locked(self) -> bool:
        try:
            with open(self.path / "lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def metrics(self) -> list[StepMetrics]:
        """The metrics of each (stage, step), in order: those that were logged last."""
        last = {(line.stage, line.step): line for line in read_metrics(self._metrics)}
        return [last[key] for key in sorted(last)]

    def events(self) -> list[Event]:
        """All events, oldest first."""
        return read_events(self._events)

    def checkpoints(self) -> list[Checkpoint]:
        """The finished checkpoints, oldest first."""
        found = []
        for path in (self.path / "checkpoints").glob("stage*-step*"):
            if name := re.fullmatch(r"stage(\d+)-step(\d+)", path.name):
                found.append(Checkpoint(int(name[1]), int(name[2]), path))
        return sorted(found)

    def latest_checkpoint(self) -> Checkpoint | None:
        return max(self.checkpoints(), default=None)

    def check_same_config(self, tree: dict[str, Any]) -> None:
        """Raise RunError naming the first setting in which `tree` differs from the run's config."""
        reached = max(((line.stage, line.step) for line in self.metrics()), default=(0, 0))
        difference = self._change(tree, FREE_TO_CHANGE | steps_ahead(tree, reached))
        if difference is not None:
            raise RunError(
                f"{self.path} was run with {difference}; resume it with its own settings, or give "
                "another directory"
            )

    def check_same_inputs(self, inputs: Mapping[str, str]) -> None:
        """Raise RunError naming the first input that is not what the run began with."""
        recorded = self.manifest.inputs
        for name in [*recorded, *inputs] if recorded else ():
            was, now = recorded.get(name, "not there"), inputs.get(name, "not there")
            if was != now:
                raise RunError(
                    f"{self.path} began with another {name} ({one_line(was, 20)}, now "
                    f"{one_line(now, 20)}); put that back to resume, or give another directory"
                )

    def check_ledger(self) -> None:
        """Raise RunError when it is another run's, or lacks groups that steps have learned from."""
        used = {(line.stage, line.step) for line in self.metrics() if line.rollout.groups}
        lost = sorted(used - set(self.ledger.steps()))
        if lost or self.ledger.missing:
            first = "lacks the groups of stage {} step {}".format(*lost[0]) if lost else ""
            what = "is gone" if self.ledger.missing else first
        elif self.manifest.ledger not in (0, self.ledger.identity):
            what = "is another run's"
        else:
            return
        raise RunError(
            f"{self.path}/ledger.sqlite {what}; restore it from a copy, or start a new run"
        )

    def _change(self, tree: dict[str, Any], free: Set[str] = frozenset()) -> str | None:
        """ "key = old, not new" for the first setting that differs, those in `free` apart."""
        given = msgspec.json.decode(msgspec.json.encode(redacted(tree)))  # as on disk
        return first_difference(self.config, given, "", free)

    def close(self) -> None:
        self.ledger.close()


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

        Raises RunError when it holds a run or anything else, is in use, or cannot be written to.
        """
        with storage_errors(path):
            path.mkdir(0o700, parents=True, exist_ok=True)
            ours = re.compile(r"lock|config\.json|manifest\.json|ledger\.sqlite.*|\.tmp-.*")
            strangers = [name for name in os.listdir(path) if not ours.fullmatch(name)]
        if (path / "manifest.json").exists():
            raise RunError(f"{path} holds a run already; add --resume, or give another directory")
        if strangers:
            raise RunError(f"{path} is not empty and holds no run; give another directory")
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
            if config is not None and (change := run._change(config)):
                run.event("settings_changed", f"resumed with another setting: {change}")
                run._take_steps(config)
            return run
        except BaseException:
            lock.close()
            raise

    @classmethod
    def read(cls, path: Path) -> RunView:
        """A read-only view, for reports. Raises RunError when `path` holds no run."""
        return RunView(path)

    def _resume(self) -> None:
        leftovers = recover(self.path)
        if (self.path / "checkpoints").is_dir():
            leftovers += recover(self.path / "checkpoints")
        torn = self._metrics.repair() + self._events.repair()
        self.manifest.sessions.append(Session(time.time()))
        self._set_status("running")
        newest = self.latest_checkpoint()
        where = f"stage {newest.stage} step {newest.step}" if newest else "the beginning"
        self.event("resumed", f"resumed from {where}")
        if leftovers or torn:
            removed = ", ".join(leftovers) or "nothing"
            self.event("recovered", f"unfinished: {removed}; {torn} bytes of torn lines cut off")

    def _take_steps(self, config: dict[str, Any]) -> None:
        """Remember how long the run is to be: the next to resume it must ask for no less."""
        steps = [stage["steps"] for stage in config.get("stage", [])]
        for stage, number in zip(self.config.get("stage", []), steps, strict=True):
            stage["steps"] = number
        _write_json(self.path / "config.json", self.config)

    def log(self, metrics: StepMetrics) -> StepMetrics:
        """Append the metrics of one step; durable. -> with the time in them"""
        timed = msgspec.structs.replace(metrics, time=time.time())
        self._metrics.append(timed)
        return timed

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
            elif isinstance(error, Exception):
                self.finish("failed", hide_credentials(error_line(error)))
            else:
                self.finish("interrupted")


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def _acquire(directory: Path) -> TextIO:
    """Lock `directory` until the file is closed or the process ends, however it ends."""
    with storage_errors(directory):
        # The open file is the lock.
        file = open(directory / "lock", "a+", opener=unlinked)  # noqa: SIM115
    deadline = Deadline(_LOCK_PATIENCE_S)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not deadline.over:
                time.sleep(0.05)
                continue
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise RunError(
                f"{directory} is in use by process {holder}; wait for it, or give another directory"
            ) from None
    with storage_errors(directory):
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    return file
