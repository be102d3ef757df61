"""Follows the directory of a run while others write it: what is new in its files, and no more.

    metrics.jsonl ──from where it stopped──> StepMetrics ──> a Series for each figure
    events.jsonl  ─────────────────────────> Event       ──> the newest, and how many there are
    manifest.json, config.json ────────────> status, name, how long it will be

Nothing is written, nothing is kept but what is drawn: memory does not grow with the run.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

from interlock.config.reading import parse_recipe
from interlock.errors import ConfigError, RunError
from interlock.records.metrics import Event, StepMetrics, WorkerMetrics
from interlock.regular import open_regular
from interlock.report.live.pace import Pace
from interlock.report.live.series import Points, Series
from interlock.rundir import RunDir, RunView
from interlock.rundir.lines import event_of, steps_of

_AT_ONCE = 8 * 2**20  # bytes that are read at a time
_LONGEST = 64 * 2**20  # bytes of a line: beyond, it is none
_EVENTS = 200  # kept; the others are counted

# What is drawn, by the paths of StepMetrics.
FIGURES = (
    *("accuracy", "held_out_reward", "held_out_loss"),
    *("rollout.reward", "rollout.correct", "rollout.length", "rollout.truncated"),
    *("rollout.tokens", "rollout.groups_skipped", "rollout.staleness_mean"),
    *("update.loss", "update.grad_norm", "update.entropy", "update.kl", "update.lr"),
    *("update.clipped_share", "update.effective_share", "update.mismatch.k3"),
    *("seconds.generate", "seconds.wait", "seconds.verify", "seconds.update"),
    *("seconds.publish", "seconds.step", "published.bytes", "cost.chip_hours"),
)
_direct = attrgetter(*(name for name in FIGURES if name != "update.mismatch.k3"))
_DIRECT = [name for name in FIGURES if name != "update.mismatch.k3"]


class Tail:
    """The finished lines that were added to a file since they were last asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0
        self._rest = b""

    def lines(self) -> tuple[list[bytes], bool]:
        """-> new lines, at most some megabytes of them; whether the file is another than it was.

        One that is shorter than what was read of it, as after a repair, is read from its start.
        """
        try:
            with open_regular(self.path) as file:
                shrunk = file.seek(0, 2) < self._at
                if shrunk:
                    self._at, self._rest = 0, b""
                file.seek(self._at)
                data = file.read(_AT_ONCE)
        except FileNotFoundError:
            return [], False
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}") from None
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            raise RunError(f"{self.path} has a line without an end; it is no run's")
        return lines, shrunk


class Following:
    """One run, as far as it has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.series: dict[str, Series] = {}
        self.events: deque[Event] = deque(maxlen=_EVENTS)
        self.event_count = 0
        self.kinds: Counter[str] = Counter()
        self.workers: dict[str, WorkerMetrics] = {}
        self.last: StepMetrics | None = None
        self.x = -1  # of the last step: steps of earlier stages are counted
        self.version = 0  # grows with everything that is new
        self.generation = 0  # grows where something that was told does not hold any more
        self.trouble = ""  # why it cannot be read on
        self._damaged = ""  # the last line that is none
        self._before: dict[int, int] = {}  # steps of the run before each stage
        self._pace = Pace()
        self._metrics, self._events = (
            Tail(path / f"{name}.jsonl") for name in ("metrics", "events")
        )
        self.steps: int | None = None  # of all stages, as the recipe has them
        self._view: RunView | None = None
        self._manifest: tuple[int, int] | None = None  # mtime and inode of the one that was read
        self.status = "not begun"

    def poll(self) -> bool:
        """Read what is new. -> whether there is more to read at once"""
        before = self.version
        try:
            self._look_at_manifest()
            more = self._take_steps()
            self._take_events()
            trouble = self._damaged
        except RunError as error:
            more, trouble = False, str(error)
        if trouble != self.trouble:
            self.trouble = trouble
            self.version += 1
        return more and self.version > before

    def after(self, x: float) -> dict[str, Points]:
        """The points of every figure that has some behind `x`."""
        found = {name: series.after(x) for name, series in self.series.items()}
        return {name: points for name, points in found.items() if points.x}

    @property
    def view(self) -> RunView | None:
        """For its ledger and its settings; None: it has not begun."""
        return self._view

    @property
    def seconds_left(self) -> float | None:
        """By the last steps' time; None where nothing tells."""
        return None if self._steps_left is None else self._pace.seconds(self._steps_left)

    @property
    def money_left(self) -> dict[str, float]:
        """That the rest costs, by currency, as the last steps did; nothing where nothing tells."""
        return {} if self._steps_left is None else self._pace.money(self._steps_left)

    @property
    def _steps_left(self) -> int | None:
        if self.status != "running" or self.steps is None:
            return None
        return max(0, self.steps - self.x + len(self._before) - 1)  # a later stage has a step 0

    def close(self) -> None:
        if self._view is not None:
            self._view.close()

    def _look_at_manifest(self) -> None:
        file = self.path / "manifest.json"
        try:
            stat = file.stat()
        except OSError:
            return
        seen = (stat.st_mtime_ns, stat.st_ino)
        if seen != self._manifest:
            with suppress(RunError):  # it may be on its way
                view = RunDir.read(self.path)
                self.close()
                self._view, self._manifest = view, seen
                self.steps = _length(view)
        status = self._view.status if self._view else "not begun"
        if status != self.status:
            self.status = status
            self.version += 1

    def _take_steps(self) -> bool:
        lines, another = self._metrics.lines()
        if another:
            self._forget()
        if not lines:
            return False
        batch: list[tuple[int, StepMetrics]] = []
        for step in self._readable(lines):
            x = self._place(step)
            if x <= self.x and self.last is not None:  # made again, by a resumed run
                self._add(batch)
                batch = []
                self._cut(x)
            self.x, self.last = x, step
            batch.append((x, step))
        self._add(batch)
        self.version += 1
        return True

    def _readable(self, lines: Sequence[bytes]) -> list[StepMetrics]:
        """All but the damaged ones, which are told of."""
        try:
            return steps_of(lines, self._metrics.path)
        except RunError as error:
            self._damaged = str(error)
        found = []
        for line in lines:
            with suppress(RunError):
                found += steps_of([line], self._metrics.path)
        return found

    def _place(self, step: StepMetrics) -> int:
        """Step 0 of a stage, the evaluation before it, is behind the last of the stage before."""
        if step.stage not in self._before:
            self._before[step.stage] = self.x + 1
        return self._before[step.stage] + step.step

    def _add(self, batch: Sequence[tuple[int, StepMetrics]]) -> None:
        if not batch:
            return
        xs = [float(x) for x, _ in batch]
        columns = zip(*(_direct(step) for _, step in batch), strict=True)
        for name, column in zip(_DIRECT, columns, strict=True):
            self._grow(name, xs, column)
        gaps = [step.update.mismatch.k3 if step.update.mismatch else None for _, step in batch]
        self._grow("update.mismatch.k3", xs, gaps)
        self._pace.add([step for _, step in batch])
        of_workers: defaultdict[tuple[str, str], tuple[list[float], list[float]]]
        of_workers = defaultdict(lambda: ([], []))
        for x, step in batch:
            for figure, value in _of_workers(step):
                at, values = of_workers[figure]
                at.append(x)
                values.append(value)
        for (worker, what), (at, values) in of_workers.items():
            self._grow(f"workers/{worker}/{what}", at, values)
        if batch[-1][1].workers:
            self.workers = batch[-1][1].workers

    def _grow(self, name: str, xs: Sequence[float], column: Sequence[Any]) -> None:
        if None in column:
            kept = [(x, y) for x, y in zip(xs, column, strict=True) if y is not None]
            if not kept:
                return
            xs, column = zip(*kept, strict=True)
        series = self.series.setdefault(name, Series())
        width = series.width
        series.add(xs, column)
        self.generation += series.width > width  # buckets that were told of are there no more

    def _cut(self, x: float) -> None:
        for series in self.series.values():
            series.cut(x)
        self.generation += 1

    def _forget(self) -> None:
        self.series, self.workers, self.last, self.x = {}, {}, None, -1
        self._before = {}
        self._damaged = ""
        self._pace = Pace()
        self.generation += 1

    def _take_events(self) -> None:
        lines, another = self._events.lines()
        if another:
            self.events.clear()
            self.kinds.clear()
            self.event_count = 0
            self.generation += 1
        for line in lines:
            try:
                event = event_of(line, self._events.path)
            except RunError as error:
                self._damaged = str(error)
                continue
            self.events.append(event)
            self.kinds[event.name] += 1
            self.event_count += 1
        self.version += bool(lines)


def _length(view: RunView) -> int | None:
    """None: another version's recipe, which this one cannot read."""
    try:
        recipe = parse_recipe(view.config, source="config.json")
    except ConfigError:
        return None
    return sum(stage.length for stage in recipe.stage)


def _of_workers(step: StepMetrics) -> Iterator[tuple[tuple[str, str], float]]:
    """Mismatch, staleness and speed of every worker, by its name and what it is."""
    for name, facts in step.workers.items():
        if gaps := facts.mismatch:
            yield (name, "k3"), _mean([(gap.k3, gap.tokens) for gap in gaps.values()])
            yield (name, "staleness"), _mean([(age, gap.tokens) for age, gap in gaps.items()])
        if facts.seconds_generating > 0:
            yield (name, "tokens_per_second"), facts.tokens / facts.seconds_generating


def _mean(figures: Sequence[tuple[float, int]]) -> float:
    """Of figures of so many tokens each; 0 without any."""
    if len(figures) == 1:  # as a rule
        return figures[0][0] if figures[0][1] else 0.0
    tokens = sum(count for _, count in figures) or 1
    return sum(value * count for value, count in figures) / tokens


def told(points: Points) -> dict[str, list[float | None]]:
    """As JSON: five digits, and null for what is not finite."""
    return {
        name: [_short(value) for value in column]
        for name, column in zip(points._fields, points, strict=True)
    }


def _short(value: float) -> float | None:
    if value != value or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.5g}") if value != int(value) else value
