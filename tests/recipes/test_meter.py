"""The meter under a clock of the test's own: every second is known beforehand."""

import datetime
from collections.abc import Iterable
from typing import Any

import pytest

from interlock.chips.power import Energy, PowerMeter
from interlock.recipes.meter import CostMeter, HeldBy
from interlock.records.cost import (
    ChipPrice,
    ChipUse,
    HeldChip,
    MemoryPeak,
    RunCost,
    SessionCost,
)
from interlock.records.metrics import (
    PublishMetrics,
    StepMetrics,
    StepSeconds,
    UpdateMetrics,
    WorkerMetrics,
)

DAY = datetime.date(2026, 11, 1)
PRICES = {
    "A": ChipPrice(2.0, 2.0, "USD", DAY, "contract"),
    "B": ChipPrice(3.0, 5.0, "CNY", DAY, "offer"),
}


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at

    def passes(self, seconds: float) -> None:
        self.at += seconds


class NoPower(PowerMeter):
    def look(self, chips: Iterable[HeldChip]) -> dict[str, Energy]:
        return {}


class Told(PowerMeter):
    """100 W of chip a, look by look."""

    def __init__(self, now: Clock) -> None:
        super().__init__(now)
        self.since: float | None = None

    def look(self, chips: Iterable[HeldChip]) -> dict[str, Energy]:
        now, since = self._now(), self.since
        self.since = now
        return {} if since is None else {"a": Energy(100 * (now - since), now - since)}


class Generators:
    """Only what a meter asks."""

    def __init__(self, **facts: WorkerMetrics) -> None:
        self.told = facts

        self.peaks_told: dict[str, MemoryPeak] = {}

    def facts(self) -> dict[str, WorkerMetrics]:
        return self.told

    def peaks(self) -> dict[str, MemoryPeak]:
        taken, self.peaks_told = self.peaks_told, {}
        return taken


def meter(
    clock: Clock, *learners: str, power: PowerMeter | None = None, **workers: str
) -> CostMeter:
    """`learners` and `workers` by their places; chip A learns, chip B generates."""
    return CostMeter(
        RunCost(),
        [HeldChip("A", place) for place in learners],
        lambda chip: PRICES.get(chip.chip),
        {name: HeldBy(HeldChip("B", place)) for name, place in workers.items()},
        power or NoPower(),
        clock,
    )


def figures(cost: RunCost, name: str) -> dict[tuple[int | None, str, str], float]:
    return {(use.stage, use.role, use.chip): getattr(use, name) for use in cost.rows()}


def step(update: float, tokens: int, size: int) -> StepMetrics:
    return StepMetrics(
        stage=0,
        step=1,
        seconds=StepSeconds(update=update, publish=1.0),
        update=UpdateMetrics(tokens=tokens),
        published=PublishMetrics(size),
    )


def test_every_second_of_every_role_and_stage() -> None:
    """Two learner ranks; a worker that is lost after 30 s and started again 5 s later."""
    clock = Clock()
    made = meter(clock, "a", "a2", w="b")
    clock.passes(10)  # the model is opened
    made.began("w")
    generators: Any = Generators(w=WorkerMetrics(seconds_busy=12, tokens=500, fetched_bytes=70))
    made.generates(generators)
    clock.passes(10)
    with made.stage(0):
        clock.passes(20)
        made.ended("w")
        clock.passes(5)
        made.began("w")
        clock.passes(15)
        generators.told["w"] = WorkerMetrics(seconds_busy=30, tokens=900, fetched_bytes=70)
        logged = made.step(step(7.0, 400, 99))
    with made.stage(1):
        clock.passes(4)
    made.ended("w")
    clock.passes(6)
    cost = made.entered()
    assert figures(cost, "chip_s") == {
        (0, "learner", "A"): 80,
        (0, "generator", "B"): 35,
        (1, "learner", "A"): 8,
        (1, "generator", "B"): 4,
        (None, "learner", "A"): 52,
        (None, "generator", "B"): 10,
    }
    assert figures(cost, "process_s") == figures(cost, "chip_s")
    assert figures(cost, "busy_s")[0, "generator", "B"] == 18
    assert figures(cost, "busy_s")[None, "generator", "B"] == 12
    assert figures(cost, "busy_s")[0, "learner", "A"] == 8
    assert figures(cost, "tokens")[0, "generator", "B"] == 400
    assert figures(cost, "tokens")[0, "learner", "A"] == 400
    assert figures(cost, "bytes")[0, "learner", "A"] == 99
    assert cost.hours == pytest.approx(70 / 3600)
    assert cost.chip_hours == pytest.approx(189 / 3600)
    assert cost.money()["USD"].low == cost.money()["USD"].high == pytest.approx(140 / 3600 * 2)
    assert cost.money()["CNY"].low == pytest.approx(49 / 3600 * 3)
    assert cost.money()["CNY"].high == pytest.approx(49 / 3600 * 5)
    assert logged.cost.chip_hours == pytest.approx((120 + 45) / 3600)
    assert logged.cost.chip_hours_of["generator"] == pytest.approx(45 / 3600)
    assert logged.cost.tokens == 400 + 900
    assert logged.cost.kwh is None and cost.energy_told == 0


def test_an_inline_generator_takes_turns_with_the_learner_on_one_chip() -> None:
    clock = Clock()
    made = meter(clock, "a")
    facts = WorkerMetrics(chip="A")
    made.generates(Generators(g=facts), HeldChip("A", "a"))  # type: ignore[arg-type]
    with made.stage(0):
        clock.passes(20)
        facts.seconds_busy, facts.tokens, facts.seconds_loading = 15.0, 300, 2.0
        spent = StepSeconds(update=1.0, publish=2.5)
        made.step(StepMetrics(stage=0, step=1, seconds=spent, workers={"g": facts}))
    cost = made.entered()
    assert figures(cost, "chip_s") == {(0, "learner", "A"): 5, (0, "generator", "A"): 15}
    assert figures(cost, "process_s") == figures(cost, "chip_s")
    # Of 2.5 s of publishing 2 are the generator's, which loads.
    assert figures(cost, "busy_s") == {(0, "learner", "A"): 1.5, (0, "generator", "A"): 15}
    assert cost.chip_hours == pytest.approx(20 / 3600)


def test_an_inline_generator_with_a_chip_of_its_own_holds_that() -> None:
    clock = Clock()
    made = meter(clock, "a")
    made.generates(Generators(g=WorkerMetrics()), HeldChip("B", "b"))  # type: ignore[arg-type]
    clock.passes(20)
    assert figures(made.entered(), "chip_s") == {
        (None, "learner", "A"): 20,
        (None, "generator", "B"): 20,
    }


def test_two_processes_on_one_chip_share_its_time_and_its_serial_tells() -> None:
    """A worker that is not yet known to be on the learner's chip is known to have been, later."""
    clock = Clock()
    made = meter(clock, "a", w="unknown")
    made.began("w")
    facts = WorkerMetrics()
    made.generates(Generators(w=facts))  # type: ignore[arg-type]
    clock.passes(10)
    assert made.entered().chip_hours == pytest.approx(20 / 3600)
    facts.chip, facts.serial = "A", "a"
    cost = made.entered()
    assert figures(cost, "chip_s") == {(None, "learner", "A"): 5, (None, "generator", "A"): 5}
    assert figures(cost, "process_s") == {(None, "learner", "A"): 10, (None, "generator", "A"): 10}


def test_counters_of_a_new_pool_begin_anew_and_nothing_is_taken_away() -> None:
    clock = Clock()
    made = meter(clock, "a", w="b")
    made.began("w")
    made.generates(Generators(w=WorkerMetrics(tokens=500)))  # type: ignore[arg-type]
    made.entered()
    made.generates(Generators(w=WorkerMetrics(tokens=30)))  # type: ignore[arg-type]
    assert made.entered().tokens == 530


def test_energy_is_shared_as_the_chip_is_and_only_where_it_is_told() -> None:
    clock = Clock()
    made = meter(clock, "a", power=Told(clock), w="b")
    made.entered()
    made.began("w")
    clock.passes(36)
    cost = made.entered()
    assert figures(cost, "joules") == {
        (None, "learner", "A"): 3600,
        (None, "generator", "B"): 0,
    }
    assert cost.kwh == pytest.approx(0.001)
    assert cost.energy_told == pytest.approx(0.5) and not cost.energy_whole


def test_the_most_memory_of_a_role_is_of_one_process_and_one_stage() -> None:
    """What each look finds is the most since the one before, and of the stage that goes on."""
    clock, own = Clock(), iter([9, 4, 7, 5, 3, 2, 1])
    held = {name: HeldBy(HeldChip("B", name)) for name in ("v", "w")}
    made = CostMeter(
        RunCost(),
        [HeldChip("A", "a")],
        lambda _: None,
        held,
        NoPower(),
        clock,
        lambda: MemoryPeak(10 * (size := next(own)), size),
    )
    for name in held:
        made.began(name)
    generators: Any = Generators(v=WorkerMetrics(), w=WorkerMetrics())
    made.generates(generators)  # 9: while the model is opened
    clock.passes(1)
    with made.stage(0):  # 4, before it begins
        generators.peaks_told = {"v": MemoryPeak(600, 60), "w": MemoryPeak(400, 70)}
        clock.passes(1)
        made.entered()  # 7
        generators.peaks_told = {"v": MemoryPeak(500, 50)}
        clock.passes(1)  # 5, at its end
    with made.stage(1):  # 3
        clock.passes(1)
        cost = made.entered()  # 2
    assert figures(cost, "chip_bytes") == {
        (None, "learner", "A"): 90,
        (None, "generator", "B"): 0,
        (0, "learner", "A"): 70,
        (0, "generator", "B"): 600,
        (1, "learner", "A"): 20,
        (1, "generator", "B"): 0,
    }
    assert figures(cost, "resident_bytes")[0, "generator", "B"] == 70
    two = RunCost([*cost.sessions, *cost.sessions])  # as of a resumed run: no sum
    assert figures(two, "chip_bytes") == figures(cost, "chip_bytes")


def test_sessions_add_up_each_by_its_own_prices() -> None:
    first = SessionCost(
        1.0, 3600.0, False, [ChipUse(0, "learner", "A", chip_s=3600)], {"A": PRICES["A"]}
    )
    second = SessionCost(9e3, 1800.0, True, [ChipUse(0, "learner", "A", chip_s=1800)], {})
    cost = RunCost([first, second])
    assert (cost.hours, cost.chip_hours) == (1.5, 1.5)
    assert cost.money()["USD"].middle == 2.0 and cost.unpriced() == {"A": 0.5}
    assert list(cost.cut_off()) == [first]


def test_what_is_entered_lasts_until_the_end_and_no_longer() -> None:
    clock, kept = Clock(), list[RunCost]()
    made = meter(clock, "a")
    with made.running(kept.append):
        clock.passes(3)
    clock.passes(50)
    made.entered()
    assert [cost.sessions[-1].seconds for cost in kept] == [0, 3, 3]
    assert [cost.sessions[-1].ended for cost in kept] == [False, True, True]
