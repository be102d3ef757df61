"""Follows the directory of a run while others write it: what is new in its files, and no more.

    metrics.jsonl ──from where it stopped──> DrawnStep ──> a Series for each figure
                    └─ of the newest lines ─> StepMetrics ─> pace, cost, workers
    events.jsonl  ─────────────────────────> Event     ──> the newest, and how many there are
    manifest.json, config.json ────────────> status, name, how long it will be

Nothing is written, nothing is kept but what is drawn: memory does not grow with the run.
"""

from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from io import BufferedReader
from itertools import compress, count, groupby, pairwise
from operator import attrgetter, le
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec

from interlock.config.reading import parse_recipe
from interlock.errors import ConfigError, RunError
from interlock.records.metrics import CostMetrics, Event, StepMetrics, WorkerMetrics
from interlock.regular import open_regular
from interlock.report.live.drawn import DrawnStep, Steps, columns
from interlock.report.live.pace import RECENT, Pace
from interlock.report.live.series import Points, Series
from interlock.rundir import RunView
from interlock.rundir.lines import Lines, event_of, steps_of, whole_lines
from interlock.text import described

_AT_ONCE = 2**19  # bytes that are read at a time: they stay in the processor's cache
_LONGEST = 64 * 2**20  # bytes of a line: beyond, it is none
_KNOWN_BY = 64  # bytes before where it was read to, by which a file is known to be the same
_EVENTS = 200  # kept; the others are counted

_DRAWN = msgspec.json.Decoder(DrawnStep)


class Tail:
    """The finished lines that were added to a file since they were last asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.more = False  # behind the lines that were given last
        self._at = 0
        # Used again and again: to be given fresh memory takes longer than to read into it.
        self._buffer = bytearray()
        self._rest = b""
        self._known_by = b""
        self._endless = False  # what comes is still of a line that is too long

    def lines(self) -> tuple[Lines, bool]:
        """-> new lines, as many as are read at once, good until the next call; whether the file is
        another than it was.

        One that does not go on as it was read, as after a repair, is read from its start, whatever
        its length.
        """
        self.more = False
        try:
            with open_regular(self.path) as file:
                file.seek(self._at - len(self._known_by))
                another = file.read(len(self._known_by)) != self._known_by
                if another:
                    self._at, self._rest, self._known_by, self._endless = 0, b"", b"", False
                    file.seek(0)
                size = self._read(file)
        except FileNotFoundError:
            return whole_lines([]), False
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}") from None
        self._at += size
        self.more = size == _AT_ONCE
        return self._whole(len(self._rest) + size), another

    def _read(self, file: BufferedReader) -> int:
        """Behind the beginning of a line that was read before. -> how many bytes"""
        held = len(self._rest)
        if len(self._buffer) < held + _AT_ONCE:
            self._buffer = bytearray(2 * held + _AT_ONCE)
        self._buffer[:held] = self._rest
        size = file.readinto(memoryview(self._buffer)[held : held + _AT_ONCE])
        fresh = self._buffer[max(held, held + size - _KNOWN_BY) : held + size]
        self._known_by = (self._known_by + fresh)[-_KNOWN_BY:]
        return size

    def _whole(self, size: int) -> Lines:
        """Of a line without an end its beginning is given, which is damage, and no more is held."""
        end = self._buffer.rfind(b"\n", len(self._rest), size) + 1
        self._rest = bytes(self._buffer[end:size])
        lines = Lines(self._buffer, end)
        if self._endless and end:
            self._endless = False
            lines = whole_lines(lines.each()[1:])
        if len(self._rest) > _LONGEST:
            if not self._endless:
                lines = whole_lines([*lines.each(), self._rest[:_KNOWN_BY]])
            self._buffer, self._rest, self._endless = bytearray(), b"", True
        return lines


class Following:
    """One run, as far as it has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = Lock()  # while what is kept is changed, or told of
        self.series: dict[str, Series] = {}
        self.events: deque[Event] = deque(maxlen=_EVENTS)
        self.event_count = 0
        self.kinds: Counter[str] = Counter()
        self.workers: dict[str, WorkerMetrics] = {}
        self.last: DrawnStep | StepMetrics | None = None
        self.cost = CostMetrics()  # by the last step
        self.x = -1  # of the last step: steps of earlier stages are counted
        self.version = 0  # grows with everything that is new
        self.generation = 0  # grows where something that was told does not hold any more
        self.trouble = ""  # why it cannot be read on
        # By file: how many of its lines are none, and why the last is.
        self._damaged: dict[Path, tuple[int, str]] = {}
        self._before: dict[int, int] = {}  # steps of the run before each stage
        self._pace = Pace()
        self._recent: deque[bytes] = deque(maxlen=RECENT + 1)  # lines that no pace was told of
        self._metrics, self._events = (
            Tail(path / f"{name}.jsonl") for name in ("metrics", "events")
        )
        self.steps: int | None = None  # of all stages, as the recipe has them
        self._view: RunView | None = None
        self._seen: list[tuple[int, int]] = []  # stamps of what the view was made from
        self.status = "not begun"

    def poll(self) -> bool:
        """Read what is new. -> whether there is more to read at once"""
        told = []
        for read in (self._look_at_manifest, self._read_metrics, self._read_events):
            try:
                read()
            except RunError as error:
                told.append(str(error))
            except Exception as error:  # ours: it shall not end the page of the other runs
                told.append(f"{self.path} cannot be followed ({described(error)}); report this")
        told += [
            said if count == 1 else f"{said}, the last of {count:,}"
            for count, said in self._damaged.values()
        ]
        more = self._metrics.more or self._events.more
        trouble = " · ".join(told + ([] if more else self._torn()))
        if trouble != self.trouble:
            self.trouble = trouble
            self.version += 1
        return more

    def after(self, x: float) -> dict[str, Points]:
        """The points of every figure that has some behind `x`."""
        found = {name: series.after(x) for name, series in self.series.items()}
        return {name: points for name, points in found.items() if points.x}

    def newest(self) -> dict[str, float]:
        """The last point of every figure: of a long run a bucket tells the mean of many."""
        return {
            name: series.newest for name, series in self.series.items() if series.newest is not None
        }

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
        """Raises RunError where there is none any more, or it is none."""
        try:
            seen = [_stamp(self.path / "manifest.json")]
        except OSError as error:
            if self._view is None and isinstance(error, FileNotFoundError):
                return  # not begun
            self._is("gone")
            raise RunError(
                f"cannot read {self.path} any more: {error.strerror}; put it back, or watch it "
                "where it is now"
            ) from None
        if self._view is not None and self._view.damage:  # it may be put back
            with suppress(OSError):
                seen.append(_stamp(self._view.ledger.path))
        if seen != self._seen:
            try:
                view = RunView(self.path, needs_ledger=False)
            except RunError:
                if self._view is None:
                    self._is("unreadable")
                raise
            self.close()
            self._view, self._seen = view, seen
            self.steps = _length(view)
        self._is(self._view.status if self._view else "not begun")

    def _is(self, status: str) -> None:
        self.version += status != self.status
        self.status = status

    def _torn(self) -> list[str]:
        if self._view is None or self.status == "gone":
            return []
        told = [f"{name} ends within a line, which is not shown" for name in self._view.torn]
        damage = self._view.damage
        return [f"no answers are shown: {damage}", *told] if damage else told

    def _read_metrics(self) -> None:
        self._take_steps(*self._metrics.lines())

    def _read_events(self) -> None:
        self._take_events(*self._events.lines())

    def _note_damage(self, path: Path, error: RunError) -> None:
        count, _ = self._damaged.get(path, (0, ""))
        self._damaged[path] = (count + 1, str(error))

    def _take_steps(self, lines: Lines, another: bool) -> None:
        if another:
            self._damaged.pop(self._metrics.path, None)
            self._recent.clear()
        steps, readable = self._readable(lines, _DRAWN)
        newest = self._newest(readable)
        with self.held:
            if another:
                self._forget()
            for stage, its_own in groupby(steps, key=attrgetter("stage")):
                self._take_stage(stage, list(its_own))
            self._pace.add(newest)
            if newest:
                self.cost, self.workers = newest[-1].cost, newest[-1].workers or self.workers
            self.version += another or bool(lines.size or newest)

    def _take_stage(self, stage: int, steps: Steps) -> None:
        """Step 0 of a stage, the evaluation before it, is behind the last of the stage before."""
        before = self._before.setdefault(stage, self.x + 1)
        xs = [before + step.step for step in steps]
        again = compress(count(), map(le, xs, [self.x, *xs]))  # made again, by a resumed run
        for first, last in pairwise([0, *again, len(xs)]):
            self._draw(list(map(float, xs[first:last])), steps[first:last])
            if last < len(xs):
                self._cut(xs[last])
        self.x, self.last = xs[-1], steps[-1]

    def _newest(self, lines: Lines) -> list[StepMetrics]:
        """The last lines whole, once nothing more is there to be read at once."""
        self._recent.extend(lines.last(RECENT + 1))
        if self._metrics.more:
            return []
        found, _ = self._readable(whole_lines(self._recent))
        self._recent.clear()
        return found

    def _readable(
        self, lines: Lines, *decoder: msgspec.json.Decoder[Any]
    ) -> tuple[list[Any], Lines]:
        """-> what the lines say, and these; but the damaged ones, which are told of"""
        path = self._metrics.path
        with suppress(RunError):
            return steps_of(lines, path, *decoder), lines
        found, whole = [], []
        for line in lines.each():
            try:
                found += steps_of(whole_lines([line]), path, *decoder)
                whole.append(line)
            except RunError as error:
                self._note_damage(path, error)
        return found, whole_lines(whole)

    def _draw(self, xs: Sequence[float], steps: Steps) -> None:
        for name, (at, values) in columns(xs, steps):
            series = self.series.setdefault(name, Series())
            width = series.width
            series.add(at, values)
            # Buckets that were told of are there no more.
            self.generation += series.width > width

    def _cut(self, x: float) -> None:
        for series in self.series.values():
            series.cut(x)
        self.generation += 1

    def _forget(self) -> None:
        self.series, self.workers, self.last, self.x = {}, {}, None, -1
        self.cost = CostMetrics()
        self._before = {}
        self._pace = Pace()
        self.generation += 1

    def _take_events(self, lines: Lines, another: bool) -> None:
        with self.held:
            if another:
                self._damaged.pop(self._events.path, None)
                self.events.clear()
                self.kinds.clear()
                self.event_count = 0
                self.generation += 1
            for line in lines.each():
                try:
                    event = event_of(line, self._events.path)
                except RunError as error:
                    self._note_damage(self._events.path, error)
                    continue
                self.events.append(event)
                self.kinds[event.name] += 1
                self.event_count += 1
            self.version += another or bool(lines.size)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ino


def _length(view: RunView) -> int | None:
    """None: another version's recipe, which this one cannot read."""
    try:
        recipe = parse_recipe(view.config, source="config.json")
    except ConfigError:
        return None
    return sum(stage.length for stage in recipe.stage)
