"""What a run wrote, to be read; and whether it may go on as it is now asked to."""

import fcntl
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from interlock.config.secrets import redacted
from interlock.errors import RunError
from interlock.records.coding import Time, from_json
from interlock.records.cost import RunCost
from interlock.records.metrics import Event, StepMetrics
from interlock.records.moves import Move
from interlock.records.planned import PlannedRun, planned_run
from interlock.records.trust import Stack
from interlock.regular import open_regular, read_regular
from interlock.rundir.changes import (
    FREE_TO_CHANGE,
    differences,
    is_of_new_stage,
    stages_taken_away,
    steps_ahead,
    with_moves,
    without_new_stages,
)
from interlock.rundir.files import JsonLines
from interlock.rundir.ledger import Ledger
from interlock.rundir.lines import read_events, read_metrics
from interlock.text import one_line


class Session(msgspec.Struct):
    """One process's time on the run, unix seconds; `ended` is None while it runs or if killed."""

    started: Time
    ended: Time | None = None
    learner: Stack | None = None  # where it learned; None: an older version began it


STOPPED_BY_BUDGET = "stopped by budget"


class Manifest(msgspec.Struct):
    """How the run began and ended. `status`: running, finished, failed, interrupted or stopped by
    budget.
    """

    versions: dict[str, str]
    platform: str
    created: Time  # unix seconds
    sessions: list[Session]
    status: str = "running"
    reason: str | None = None  # one line, when failed
    inputs: dict[str, str] = {}  # digest of all that it was made of, by name; {}: of older runs
    moves: list[Move] = []  # of parts of the run to other devices, oldest first: `migrate`
    ledger: int = 0  # whose groups it learns from, see Ledger.identity; 0: of older runs


class Checkpoint(NamedTuple):
    stage: int
    step: int
    path: Path


Table = dict[str, Any]


class _Generator(msgspec.Struct):
    env: Table | None = None
    options: Table | None = None


class _Config(msgspec.Struct):
    """The shape of config.json: what every reader goes into without asking what it is."""

    generator: list[_Generator] | None = None
    stage: list[Table] = []
    model: Table | None = None
    learner: Table = {}
    fleet: Table | None = None


class RunView:
    """What a run wrote, for reading only: changes no file, and works on a run that is going on.

    (SQLite may leave its own empty -wal and -shm files beside the ledger.)
    """

    def __init__(self, path: Path, *, needs_ledger: bool = True) -> None:
        """Raises RunError when `path` holds no run, or one that cannot be read; a ledger that
        cannot is as an empty one for whom that is enough, and `damage` tells of it.
        """
        self.path = path
        self.damage = ""
        self.manifest = self._read_json("manifest.json", Manifest)
        self._read_json("config.json", _Config)
        begun = redacted(self._read_json("config.json", Table))
        self.config = with_moves(begun, self.manifest.moves)
        try:
            self.ledger = self._open_ledger()
        except RunError as error:
            if needs_ledger:
                raise
            self.ledger, self.damage = Ledger.empty(path / "ledger.sqlite"), str(error)
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
        except OSError as error:
            raise RunError(f"cannot read {self.path / name}: {error.strerror}") from None
        except ValueError as error:
            raise RunError(
                f"cannot read {self.path / name}: {error}; put it back from a copy of the run"
            ) from None

    def _open_ledger(self) -> Ledger:
        return Ledger.read_only(self.path / "ledger.sqlite")

    @property
    def status(self) -> str:
        """running, finished, failed, interrupted (stopped by the user, or killed) or stopped by
        budget.
        """
        if self.manifest.status == "running" and not self._is_locked():
            return "interrupted"
        return self.manifest.status

    def _is_locked(self) -> bool:
        try:
            with open_regular(self.path / "lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def cost(self) -> RunCost:
        """What it has used; nothing where it was run without a meter."""
        file = self.path / "cost.json"
        try:
            return from_json(read_regular(file), RunCost)
        except FileNotFoundError:
            return RunCost()
        except (OSError, ValueError) as error:
            raise RunError(
                f"cannot read {file}: {error}; remove it: what is used is then counted anew"
            ) from None

    def plan(self) -> PlannedRun | None:
        """What it was planned to take; None where nobody said."""
        file = self.path / "plan.json"
        try:
            return planned_run(from_json(read_regular(file)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {file}: {error}; remove it") from None

    def metrics(self) -> list[StepMetrics]:
        """The metrics of each (stage, step), in order: those that were logged last."""
        last = {(line.stage, line.step): line for line in read_metrics(self._metrics)}
        return [last[key] for key in sorted(last)]

    def events(self) -> list[Event]:
        """All events, oldest first."""
        return read_events(self._events)

    @property
    def torn(self) -> list[str]:
        """Names of the files that end within a line, of a run that nobody goes on with."""
        files = [] if self.status == "running" else [self._metrics, self._events]
        return [each.path.name for each in files if each.torn]

    def checkpoints(self) -> list[Checkpoint]:
        """The finished checkpoints, oldest first."""
        found = []
        for path in (self.path / "checkpoints").glob("stage*-step*"):
            if name := re.fullmatch(r"stage(\d+)-step(\d+)", path.name):
                found.append(Checkpoint(int(name[1]), int(name[2]), path))
        return sorted(found)

    def latest_checkpoint(self) -> Checkpoint | None:
        return max(self.checkpoints(), default=None)

    def rows_file(self, index: int, name: str) -> Path:
        """Where the rows are that a stage made."""
        return self.path / "data" / (f"{index:02d}-{name}.jsonl" if name else f"{index:02d}.jsonl")

    def check_same_config(self, tree: dict[str, Any]) -> None:
        """Raise RunError naming the first setting in which `tree` differs from the run's config."""
        reached = max(((line.stage, line.step) for line in self.metrics()), default=(0, 0))
        free = FREE_TO_CHANGE | steps_ahead(tree, reached)
        difference = stages_taken_away(self.config, tree) or next(self._changes(tree, free), None)
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
            # A data set of the hub that a new stage reads is known by its revision.
            new = name not in recorded and now.startswith("revision ")
            if was != now and not (new or is_of_new_stage(name, self.config)):
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

    def _changes(self, tree: dict[str, Any], free: Set[str] = frozenset()) -> Iterator[str]:
        """ "key = old, not new" for every setting that differs, those in `free` apart."""
        given = without_new_stages(self.config, as_on_disk(tree))
        return differences(self.config, given, "", free)

    def close(self) -> None:
        self.ledger.close()


def as_on_disk(config: dict[str, Any]) -> dict[str, Any]:
    """As config.json would have it."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(redacted(config)))
    return found
