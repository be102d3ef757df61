"""The cost meter of one session: who holds which chip, how much of it is work, and what it costs.

    train ── learner, stages, steps ──┐
    MeteredFleet ── began, ended ─────┼─> CostMeter ── RunCost ──> cost.json, by steps and TICK_S
    generators.facts() ── busy, tokens┘     └─ CostMetrics ──> the step's line of metrics.jsonl

A chip is held from its process's start to its end, at work or not; the learner's from the call that
trains. Processes on one chip share its time (holds.py). An inline generator takes turns with the
learner in one process: what it generates for is its own, and all else the learner's. A worker that
waits for its restart holds nothing. What was used is entered, durable, every few seconds, so that
of a killed session no more is lost than that.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from interlock.chips.power import PowerMeter
from interlock.errors import InterlockError
from interlock.recipes.holds import Hold, held
from interlock.records.cost import (
    ChipPrice,
    ChipUse,
    HeldChip,
    MemoryPeak,
    RunCost,
    SessionCost,
)
from interlock.records.metrics import CostMetrics, StepMetrics, WorkerMetrics
from interlock.workers.generators import Generators

TICK_S = 10.0  # between two entries, and two looks at the power
LEARNER, GENERATOR = "learner", "generator"

PriceOf = Callable[[HeldChip], ChipPrice | None]
_Whose = tuple[int | None, str, str]  # stage, role, name of the process


class HeldBy(NamedTuple):
    """What a worker holds before it has told of its chip, and how many of them."""

    chip: HeldChip
    chips: int = 1


class _Counts(msgspec.Struct):
    busy_s: float = 0.0
    tokens: float = 0.0
    bytes: float = 0.0


class CostMeter:
    """Of one session. The fleet's thread, the recipe's and its own may call it."""

    def __init__(
        self,
        earlier: RunCost,
        learners: Sequence[HeldChip],
        price_of: PriceOf,
        workers: Mapping[str, HeldBy] | None = None,
        power: PowerMeter | None = None,
        now: Callable[[], float] = time.monotonic,
        memory: Callable[[], MemoryPeak] = MemoryPeak,
    ) -> None:
        """`learners`: the chip of each of the learner's processes; `workers`: by name; `memory`: of
        this process, the first of these, since it was last asked.
        """
        self._earlier, self._price_of, self._now = earlier, price_of, now
        self._power = power or PowerMeter(now)
        self._memory = memory
        self._expected = dict(workers or {})
        self._entering = threading.RLock()  # one entry after another; taken before the other one
        self._lock = threading.RLock()  # of what follows; nothing is waited for under it
        self._began, self._began_at = now(), time.time()
        self._holds = [Hold(LEARNER, f"{n}", chip, self._began) for n, chip in enumerate(learners)]
        self._stages: list[tuple[float, int | None]] = []
        self._counts: dict[_Whose, _Counts] = defaultdict(_Counts)
        self._energy: dict[tuple[int | None, str], tuple[float, float]] = {}  # by stage and place
        self._peaks: dict[_Whose, MemoryPeak] = defaultdict(MemoryPeak)
        self._seen: dict[str, _Counts] = {}  # what each worker's counters said last
        self._prices: dict[str, ChipPrice] = {}
        self._asked: set[str] = set()  # chips whose price was looked up
        self._generators: Generators | None = None
        self._loaded = 0.0  # seconds that an inline generator has loaded for, by the last step
        self._turns = False  # the generator is part of the learner's process, on its chip
        self._ended: float | None = None
        self._keep: Callable[[RunCost], None] | None = None

    # -- who holds what: MeteredFleet's Occupancy --------------------------------------------------

    def began(self, name: str) -> None:
        expected = self._expected[name]
        with self._lock:
            hold = Hold(GENERATOR, name, expected.chip, self._now(), chips=expected.chips)
            self._holds.append(hold)

    def ended(self, name: str) -> None:
        with self._lock:
            for hold in self._holds:
                if hold.role == GENERATOR and hold.name == name and hold.ended is None:
                    hold.ended = self._now()

    def generates(self, generators: Generators, inline: HeldChip | None = None) -> None:
        """From now on these generate; `inline`: the chip of one in this process."""
        self.entered()
        with self._lock:
            self._generators = generators
            self._seen.clear()
            self._loaded = 0.0
            self._turns = inline is not None and inline.place == self._holds[0].chip.place
            if inline is not None and not self._turns:
                (name,) = generators.facts()
                self.ended(name)
                self._holds.append(Hold(GENERATOR, name, inline, self._now()))

    # -- what is done ------------------------------------------------------------------------------

    @contextmanager
    def stage(self, index: int) -> Iterator[None]:
        """All that is used in the block is this stage's."""
        self._enter(index)
        try:
            yield
        finally:
            self._enter(None)

    def step(self, metrics: StepMetrics) -> StepMetrics:
        """A step is done. -> with what the run has used until now"""
        seconds = metrics.seconds
        loaded = sum(worker.seconds_loading for worker in metrics.workers.values())
        with self._lock:
            own = self._counts[self._stage, LEARNER, "0"]
            publish = seconds.publish or 0.0
            if self._turns:  # while it publishes, the generator loads
                publish -= min(publish, max(0.0, loaded - self._loaded))
                self._loaded = loaded
            own.busy_s += (seconds.update or 0.0) + publish
            own.tokens += metrics.update.tokens or 0
            own.bytes += metrics.published.bytes or 0
        return replace(metrics, cost=cost_metrics(self.entered()))

    def entered(self) -> RunCost:
        """What the run has used until now, entered where it is kept."""
        with self._entering:
            self._look()
            with self._lock:
                cost = RunCost([*self._earlier.sessions, self._session()])
            if self._keep is not None:
                self._keep(cost)
        return cost

    @contextmanager
    def running(self, keep: Callable[[RunCost], None]) -> Iterator[None]:
        """Enter what is used every TICK_S until the block ends."""
        self._keep = keep
        self.entered()
        done = threading.Event()

        def tick() -> None:
            while not done.wait(TICK_S):
                with suppress(InterlockError):  # a full disk, of which the next step tells
                    self.entered()

        thread = threading.Thread(target=tick, name="meter", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self._ended = self._now()
            with suppress(InterlockError):  # it must not hide what the block raised
                self.entered()

    # -- in numbers --------------------------------------------------------------------------------

    @property
    def _stage(self) -> int | None:
        return self._stages[-1][1] if self._stages else None

    def _enter(self, stage: int | None) -> None:
        with self._entering:
            self._look()
            with self._lock:
                self._stages.append((self._now(), stage))

    def _look(self) -> None:
        """At the generators' counters, at memory and power, for the stage that goes on.

        Both may wait for others, the fleet's thread among them, which waits for our lock.
        """
        generators = self._generators
        facts = {} if generators is None else generators.facts()
        peaks = {} if generators is None else generators.peaks()
        own = self._memory()
        with self._lock:
            self._peaks[self._stage, LEARNER, "0"] |= own
            for name, peak in peaks.items():
                self._peaks[self._stage, GENERATOR, name] |= peak
            for name, worker in facts.items():
                self._identify(name, worker)
                self._count(name, worker)
            there = {h.chip.place: h.chip for h in self._holds if h.ended is None}
        taken = self._power.look(there.values())
        with self._lock:
            for place, one in taken.items():
                joules, told = self._energy.get((self._stage, place), (0.0, 0.0))
                self._energy[self._stage, place] = joules + one.joules, told + one.seconds

    def _identify(self, name: str, worker: WorkerMetrics) -> None:
        """Its process has told which chip it has."""
        if not worker.chip:
            return
        for hold in reversed(self._holds):
            if (hold.role, hold.name) == (GENERATOR, name):
                chip, serial = hold.chip, worker.serial or ""
                place = serial or chip.place
                hold.chip = replace(chip, chip=worker.chip, serial=serial, place=place)
                return

    def _count(self, name: str, worker: WorkerMetrics) -> None:
        """Counters are of a session, and begin anew with a new pool of workers."""
        now = _Counts(worker.seconds_busy, worker.tokens, worker.fetched_bytes)
        before = self._seen.get(name, _Counts())
        own = self._counts[self._stage, GENERATOR, name]
        for field in _Counts.__struct_fields__:
            grown = getattr(now, field) - getattr(before, field)
            setattr(own, field, getattr(own, field) + max(0.0, grown))
        self._seen[name] = now

    def _session(self) -> SessionCost:
        now = self._now() if self._ended is None else self._ended
        uses = self._uses(now)
        for hold in self._holds:
            chip = hold.chip.chip
            if chip not in self._asked:
                self._asked.add(chip)
                if (price := self._price_of(hold.chip)) is not None:
                    self._prices[chip] = price
        seconds, ended = now - self._began, self._ended is not None
        return SessionCost(self._began_at, seconds, ended, uses, dict(self._prices))

    def _uses(self, now: float) -> list[ChipUse]:
        shares = held(self._holds, self._stages, now)
        at_place: dict[tuple[int | None, str], float] = defaultdict(float)
        for (stage, number), share in shares.items():
            at_place[stage, self._holds[number].chip.place] += share.chip_s
        found: dict[_Whose, ChipUse] = {}
        for (stage, number), share in shares.items():
            hold = self._holds[number]
            use = ChipUse(stage, hold.role, hold.chip.chip, share.chip_s, share.process_s)
            whole = at_place[stage, hold.chip.place]
            joules, told = self._energy.get((stage, hold.chip.place), (0.0, 0.0))
            part = share.chip_s / whole if whole else 0.0
            use.joules, use.told_s = part * joules, part * min(told, whole)
            key = stage, hold.role, hold.name
            found[key] = found[key] + use if key in found else use
        for key, counts in self._counts.items():
            if key not in found and counts == _Counts():
                continue
            stage, role, name = key
            use = found.setdefault(key, ChipUse(stage, role, self._chip(role, name)))
            use.busy_s, use.tokens, use.bytes = counts.busy_s, counts.tokens, counts.bytes
            learner = found.get((stage, LEARNER, "0"))
            if role == GENERATOR and self._turns and learner is not None:
                _take_turns(learner, use)
        for key, peak in self._peaks.items():
            if (there := found.get(key)) is not None:
                there.chip_bytes, there.resident_bytes = peak.chip, peak.resident
        return RunCost([SessionCost(0.0, uses=list(found.values()))]).rows()

    def _chip(self, role: str, name: str) -> str:
        """The last that it had; that of the learner where it is part of that."""
        had = [hold.chip.chip for hold in self._holds if (hold.role, hold.name) == (role, name)]
        return had[-1] if had else self._holds[0].chip.chip


def _take_turns(learner: ChipUse, generator: ChipUse) -> None:
    """One process, one chip: while it generates it does not learn."""
    seconds = min(generator.busy_s, learner.chip_s)
    part = seconds / learner.chip_s if learner.chip_s else 0.0
    generator.chip_s, learner.chip_s = seconds, learner.chip_s - seconds
    generator.process_s, learner.process_s = seconds, learner.process_s - seconds
    for name in ("joules", "told_s"):
        whole = getattr(learner, name)
        setattr(generator, name, part * whole)
        setattr(learner, name, (1 - part) * whole)


def cost_metrics(cost: RunCost) -> CostMetrics:
    of_role: dict[str, float] = defaultdict(float)
    for row in cost.rows():
        of_role[row.role] += row.chip_s / 3600
    return CostMetrics(
        hours=cost.hours,
        chip_hours=cost.chip_hours,
        chip_hours_of=dict(of_role),
        unpriced_hours=sum(cost.unpriced().values()),
        money={currency: money.middle for currency, money in cost.money().items()},
        kwh=cost.kwh if cost.energy_told else None,
        tokens=cost.tokens,
    )
