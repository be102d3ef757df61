"""Every problem of a stage is used once, in time, whoever answers it and whenever.

The generators are a simulation: workers of different speed that count ticks instead of seconds.
The ledger is a real one. `Killed` ends a session anywhere; the next one has only the ledger.
"""

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from interlock.config.schema import FleetSettings, Grpo, ModelSettings, Recipe, TaskSettings
from interlock.errors import TrainingError
from interlock.recipes.rollouts import Rollouts
from interlock.recipes.sinks import Sink
from interlock.recipes.stage import Stage
from interlock.records.metrics import RolloutMetrics
from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Problem,
    ScoredGroup,
    Segment,
    Verdict,
)
from interlock.rundir import RunDir
from interlock.workers.generators import Forget, Keep, Outcome, Purpose, Work, no_forget, no_keep

STAGE = 1  # not the first, so that a confusion of stages shows


class Killed(Exception):
    """The process is gone."""


class FakeTask:
    dropped = 0

    def train(self, step: int, count: int) -> list[Problem]:
        return [Problem(f"{step}-{index}", [], "") for index in range(count)]

    def held_out(self, count: int) -> list[Problem]:
        raise AssertionError("not asked for here")


def group_of(problem: Problem, version: int, worker: str, later: int | None = None) -> Group:
    """Begun with one version; with `later`, newer weights were loaded under the second answer."""
    first = Completion.sampled([1], [-1.0], FinishReason.STOP, "", version)
    newer = [] if later in (None, version) else [Segment([2], [-1.0], later)]
    second = Completion([*first.segments, *newer], FinishReason.STOP, "")
    return Group(problem, [1], [second, first], worker)


class FakeGenerators:
    """Workers that each answer one unit at a time: an exact one whole, with the weights it was
    begun with; of another they give group by group, sampled by whatever was published since.
    """

    def __init__(self, delays: Callable[[], int], workers: int = 2, loading: int = 0) -> None:
        """`loading`: ticks from the publication of weights until the workers serve them."""
        self.keep: Keep = no_keep
        self.forget: Forget = no_forget
        self.version: int | None = 0
        self.size = workers
        self.out: set[str] = set()
        self.taken_back: set[int] = set()  # groups of a worker that is no longer out
        self.dropped_groups: Counter[str] = Counter()
        self.ordered: list[Work] = []
        self.unfinished: set[int] = set()
        self.set_aside: set[int] = set()  # sequences that nobody can answer
        self.kill_after: int | None = None  # ticks
        self._delays, self._loading, self._ticks = delays, loading, 0
        self._published: list[tuple[int, int]] = []  # tick and version
        self._waiting: list[Work] = []
        self._busy: dict[str, tuple[int, Work, int]] = {}  # worker -> ticks left, unit, version
        self._outcomes: list[Outcome] = []

    def order(self, work: Sequence[Work]) -> None:
        for unit in work:
            assert unit.purpose is Purpose.TRAIN and unit.completions == 2
            assert not self.unfinished & set(unit.keys), "ordered while it is under way"
            self.unfinished.update(unit.keys)
            self.taken_back.difference_update(unit.keys)
        self.ordered += work
        self._waiting += work

    def collect(self, purpose: Purpose, timeout_s: float) -> list[Outcome]:
        assert purpose is Purpose.TRAIN
        if timeout_s:
            assert self.unfinished, "waits for nothing"
            self.tick()
        found, self._outcomes = self._outcomes, []
        self.unfinished.difference_update(outcome.key for outcome in found)
        return found

    def tick(self) -> None:
        self._ticks += 1
        assert self._ticks < 5000, "goes on for ever"
        if self.kill_after is not None:
            self.kill_after -= 1
            if self.kill_after < 0:
                raise Killed
        self._waiting.sort(key=lambda unit: unit.keys)
        for name in (f"w{index}" for index in range(self.size)):
            if name in self.out:
                continue
            if name not in self._busy:
                served = self._served()
                if unit := next((unit for unit in self._waiting if unit.since <= served), None):
                    self._waiting.remove(unit)
                    self._busy[name] = (self._delays(), unit, served)
            elif name in self._busy:
                left, unit, version = self._busy.pop(name)
                if left > 0:
                    self._busy[name] = (left - 1, unit, version)
                else:
                    self._finish(name, unit, version)

    def _served(self) -> int:
        assert self.version is not None
        if not self._loading:
            return self.version
        if not self._published or self._published[-1][1] != self.version:
            self._published.append((self._ticks, self.version))
        latest = self._ticks - self._loading
        return max((version for tick, version in self._published if tick <= latest), default=0)

    def _finish(self, name: str, unit: Work, version: int) -> None:
        found = []
        if not unit.exact and len(unit.keys) > 1:
            self._busy[name] = (0, unit.part(range(1, len(unit.keys))), version)
            unit = unit.part([0])
        later = None if unit.exact else self._served()
        for key, problem in zip(unit.keys, unit.problems, strict=True):
            if key in self.set_aside:
                self._outcomes.append(Outcome(key, None, "it kills"))
            else:
                found.append((key, group_of(problem, version, name, later)))
        self.keep(found)
        self._outcomes += [Outcome(key, group) for key, group in found]

    def quarantine(self, worker: str, reason: str) -> None:
        self.out.add(worker)
        self.taken_back.update(self.forget(worker))
        if lost := self._busy.pop(worker, None):
            self._waiting.append(lost[1])

    def quarantined(self) -> frozenset[str]:
        return frozenset(self.out)

    def withdrawn(self) -> set[int]:
        return self.taken_back - self.unfinished

    def dropped(self, worker: str) -> None:
        self.dropped_groups[worker] += 1

    def facts(self) -> dict[str, Any]:
        return {}


def open_stage(
    run: RunDir,
    generators: FakeGenerators,
    *,
    steps: int,
    problems: int,
    cap: int | None,
    unit: int = 0,
) -> Stage[Grpo]:
    task = TaskSettings(name="arithmetic")
    grpo = Grpo(task=task, steps=steps, problems_per_step=problems, completions=2, staleness=cap)
    recipe = Recipe(
        model=ModelSettings("m"), stage=[grpo], fleet=FleetSettings(kind="local", unit=unit), seed=5
    )
    learner: Any = SimpleNamespace(version=0, steps=0, bad_steps=0, unpublished=False)
    fleet: Any = generators
    return Stage(STAGE, grpo, recipe, run, learner, fleet, Sink())


class Session:
    """One process's time on a stage: what the loop of recipes/grpo.py does with `Rollouts`."""

    def __init__(
        self,
        run: RunDir,
        generators: FakeGenerators,
        *,
        pause: Callable[[], int] = lambda: 0,
        **given: Any,
    ) -> None:
        self.run, self.generators, self.pause = run, generators, pause
        self.stage = open_stage(run, generators, **given)
        self.rollouts = Rollouts(self.stage, FakeTask())
        self.taken: dict[int, list[int]] = {}
        self.metrics = RolloutMetrics()  # of the last step
        self.stale = 0

    def publish(self, version: int) -> None:
        self.stage.learner.version = self.generators.version = version

    def step(self, step: int) -> list[tuple[int, Group]]:
        """Publish, take, record, learn."""
        self.publish(step - 1)
        if self.run.ledger.read(STAGE, step):
            return []
        try:
            found = self.rollouts.take(step)
        finally:
            self.stale += self.rollouts.stale
        self.taken[step] = [sequence for sequence, _ in found]
        scored = [ScoredGroup(group, [Verdict(0.0)] * 2) for _, group in found]
        self.run.ledger.record(STAGE, step, scored, self.taken[step])
        self.metrics = self.rollouts.metrics(scored, skipped=len(scored))
        for _ in range(self.pause()):  # the workers go on while the learner learns
            self.generators.tick()
        return found

    @property
    def ahead(self) -> int:
        """Problems ordered or at hand, and not used."""
        asked = {key for work in self.generators.ordered for key in work.keys}
        spent = self.run.ledger.used(STAGE) | set(self.run.ledger.set_asides(STAGE))
        return len(asked - spent)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    with RunDir.create(tmp_path / "run", {}, {}) as made:
        made.ledger._database.execute("PRAGMA synchronous=OFF")
        yield made


def constant(ticks: int) -> Callable[[], int]:
    return lambda: ticks


@pytest.mark.parametrize("cap", [1, 2, 3])
def test_nothing_is_begun_with_weights_that_will_be_too_old(run: RunDir, cap: int) -> None:
    """Workers that are slow to load would begin the newest problems with the weights before."""
    generators = FakeGenerators(constant(2), workers=4, loading=3)
    session = Session(run, generators, pause=constant(4), steps=12, problems=4, cap=cap)
    for step in range(1, 13):
        session.step(step)
    assert session.stale == 0
    assert sorted(run.ledger.used(STAGE)) == list(range(48))
    assert session.metrics.staleness_max <= cap


def test_synchronous_steps_take_their_own_problems_in_order(run: RunDir) -> None:
    delays = random.Random(0)
    generators = FakeGenerators(lambda: delays.randrange(5), workers=3)
    s = Session(run, generators, steps=4, problems=5, cap=0)
    for step in range(1, 5):
        found = s.step(step)
        assert [sequence for sequence, _ in found] == list(range(5 * step - 5, 5 * step))
        assert [group.problem.id for _, group in found] == [f"{step}-{i}" for i in range(5)]
        assert {s.rollouts.staleness(group) for _, group in found} == {0}
        assert s.ahead == 0  # nothing is begun before the next weights
    assert s.stale == s.rollouts.set_aside == 0


def test_units_are_of_one_step_and_as_asked_for(run: RunDir) -> None:
    generators = FakeGenerators(constant(0), workers=2)
    s = Session(run, generators, steps=3, problems=5, cap=0)
    s.step(1)
    s.step(2)
    # Five problems for two workers, where bits count: three and two.
    assert [work.keys for work in generators.ordered] == [(0, 1, 2), (3, 4), (5, 6, 7), (8, 9)]
    seeds = [s.stage.seed(step) for step in (1, 1, 2, 2)]
    assert [work.seed for work in generators.ordered] == seeds and seeds[1] != seeds[2]
    assert [p.id for p in generators.ordered[3].problems] == ["2-3", "2-4"]
    assert all(work.exact for work in generators.ordered)
    small = FakeGenerators(constant(0), workers=2)
    again = Session(run, small, steps=4, problems=5, cap=0, unit=2)
    again.step(3)
    again.step(4)
    assert [work.keys for work in small.ordered][-3:] == [(15, 16), (17, 18), (19,)]


def test_ahead_of_the_learner_every_problem_is_a_unit(run: RunDir) -> None:
    """Nothing has to be computed together, and no group waits for another."""
    generators = FakeGenerators(constant(0), workers=2)
    s = Session(run, generators, steps=3, problems=3, cap=1)
    s.step(1)
    assert [work.keys for work in generators.ordered] == [(key,) for key in range(6)]
    assert [work.seed for work in generators.ordered] == [s.stage.seed(1)] * 3 + [
        s.stage.seed(2)
    ] * 3
    assert not any(work.exact for work in generators.ordered)


def test_staleness_is_by_default_two_versions(run: RunDir) -> None:
    generators = FakeGenerators(constant(0))
    s = Session(run, generators, steps=9, problems=2, cap=None)
    s.step(1)
    assert max(key for work in generators.ordered for key in work.keys) == 5  # 3 steps of 2


def test_groups_that_are_too_old_are_dropped_counted_and_made_again(run: RunDir) -> None:
    generators = FakeGenerators(constant(0), workers=1)
    s = Session(run, generators, steps=9, problems=2, cap=1, unit=2, pause=constant(9))
    s.step(1)  # sequences 0 and 1; 2 and 3 are made by version 0 during the pause
    generators.ordered.clear()
    s.publish(2)  # as after two updates in one step
    found = s.rollouts.take(2)
    assert [sequence for sequence, _ in found] == [2, 3]
    assert {group.completions[0].weight_version for _, group in found} == {2}
    assert [work.keys for work in generators.ordered] == [(2, 3), (4, 5)]
    assert s.rollouts.stale == 2 and generators.dropped_groups == {"w0": 2}
    (event,) = (event for event in run.events() if event.kind == "groups_stale")
    assert event.message == "step 2: 2 groups are not of the last 2 versions: made again"
    assert [sequence for sequence, _ in run.ledger.arrivals(STAGE)][:2] == [2, 3]


def test_a_group_as_old_as_the_cap_is_used(run: RunDir) -> None:
    generators = FakeGenerators(constant(0), workers=1)
    s = Session(run, generators, steps=9, problems=2, cap=1, unit=2, pause=constant(9))
    s.step(1)
    s.publish(1)
    assert [s.rollouts.staleness(group) for _, group in s.rollouts.take(2)] == [1, 1]
    assert s.rollouts.stale == 0


def test_a_group_is_as_old_as_the_oldest_token_in_it(run: RunDir) -> None:
    for sequence, (version, later) in enumerate([(2, 4), (3, 4), (4, None)]):
        group = group_of(Problem(f"1-{sequence}", [], ""), version, "w0", later)
        assert group.completions[0].weight_version == version  # the first is the mixed one
        run.ledger.arrive(STAGE, [(sequence, group)])
    s = Session(run, FakeGenerators(constant(0), workers=1), steps=9, problems=3, cap=1)
    s.publish(4)
    found = dict(s.rollouts.take(5))
    assert s.rollouts.stale == 1 and sorted(found) == [0, 1, 2]
    assert {sequence: s.rollouts.staleness(group) for sequence, group in found.items()} == {
        0: 0,  # made again
        1: 1,
        2: 0,
    }


def test_unused_groups_of_a_quarantined_worker_are_made_again_by_others(run: RunDir) -> None:
    generators = FakeGenerators(constant(0), workers=2)
    s = Session(run, generators, steps=9, problems=4, cap=1, unit=2, pause=constant(9))
    s.step(1)
    waiting = {sequence: group.worker for sequence, group in run.ledger.arrivals(STAGE)}
    assert waiting == {4: "w0", 5: "w0", 6: "w1", 7: "w1"}
    generators.quarantine("w1", "odd")
    found = s.step(2)
    assert [sequence for sequence, _ in found] == [4, 5, 6, 7]
    assert {group.worker for _, group in found} == {"w0"}
    assert generators.dropped_groups == {"w1": 2} and s.rollouts.stale == 0
    assert not [event for event in run.events() if event.kind == "groups_stale"]


def test_what_a_worker_made_before_its_quarantine_is_not_used_when_it_is_back(run: RunDir) -> None:
    generators = FakeGenerators(constant(0), workers=2)
    s = Session(run, generators, steps=9, problems=4, cap=1, unit=2, pause=constant(9))
    s.step(1)
    generators.taken_back = {6, 7}  # as in a quarantine that is over by now
    generators.size = 1  # what comes first is then the oldest
    before = len(generators.ordered)
    found = s.step(2)
    assert [sequence for sequence, _ in found] == [4, 5, 6, 7]
    assert generators.ordered[before].keys == (6, 7)
    assert generators.dropped_groups == {"w1": 2} and s.rollouts.stale == 0
    assert not [event for event in run.events() if event.kind == "groups_stale"]


def test_what_was_withdrawn_is_not_used_when_the_run_stops_before_the_next_step(
    run: RunDir,
) -> None:
    shape: dict[str, Any] = {"steps": 9, "problems": 4, "cap": 1, "unit": 2}
    first = FakeGenerators(constant(0), workers=2)
    Session(run, first, pause=constant(9), **shape).step(1)
    assert [sequence for sequence, _ in run.ledger.arrivals(STAGE)] == [4, 5, 6, 7]
    first.quarantine("w1", "odd")  # and the process is gone
    second = FakeGenerators(constant(0), workers=1)
    s = Session(run, second, **shape)
    assert [sequence for sequence, _ in s.step(2)] == [4, 5, 6, 7]
    assert second.ordered[0].keys == (6, 7)


def test_what_an_earlier_session_had_of_a_worker_is_withdrawn_with_its_own(run: RunDir) -> None:
    """Also when the worker is back before the next step."""
    shape: dict[str, Any] = {"steps": 9, "problems": 4, "cap": 1, "unit": 2}
    Session(run, FakeGenerators(constant(0)), pause=constant(9), **shape).step(1)
    second = FakeGenerators(constant(0), workers=1)
    s = Session(run, second, **shape)
    second.quarantine("w1", "odd")
    second.out.clear()
    assert [sequence for sequence, _ in s.step(2)] == [4, 5, 6, 7]
    assert second.ordered[0].keys == (6, 7) and second.dropped_groups == {"w1": 2}


def test_what_was_dropped_does_not_come_back_after_a_kill(run: RunDir) -> None:
    shape: dict[str, Any] = {"steps": 9, "problems": 4, "cap": 1, "unit": 2}
    Session(run, FakeGenerators(constant(0)), pause=constant(9), **shape).step(1)
    assert [sequence for sequence, _ in run.ledger.arrivals(STAGE)] == [4, 5, 6, 7]
    second = FakeGenerators(constant(0), workers=1)
    second.quarantine("w1", "odd")
    second.kill_after = 0
    with pytest.raises(Killed):
        Session(run, second, **shape).step(2)
    assert [sequence for sequence, _ in run.ledger.arrivals(STAGE)] == [4, 5]
    third = FakeGenerators(constant(0), workers=1)
    found = Session(run, third, **shape).step(2)
    assert [sequence for sequence, _ in found] == [4, 5, 6, 7]
    assert third.ordered[0].keys == (6, 7)


def test_the_oldest_are_used_first_and_a_slow_one_when_it_comes(run: RunDir) -> None:
    delays = iter([100, *[0] * 100])  # the first unit takes long
    generators = FakeGenerators(lambda: next(delays), workers=2)
    s = Session(run, generators, steps=9, problems=2, cap=2, unit=1)
    assert s.step(1) and s.taken[1] == [1, 2]
    assert s.step(2) and s.taken[2] == [3, 4]
    _, unit, version = generators._busy["w0"]
    assert unit.keys == (0,)
    generators._busy["w0"] = (0, unit, version)
    generators.tick()
    s.step(3)
    assert s.taken[3][0] == 0  # by version 0, two behind: just within the cap
    assert s.rollouts.stale == 0


def test_the_oldest_goes_first_also_when_it_came_between_two_steps(run: RunDir) -> None:
    delays = iter([12, *[0] * 100])
    pauses = iter([4, 20, 0])
    generators = FakeGenerators(lambda: next(delays), workers=2)
    s = Session(run, generators, steps=9, problems=1, cap=3, pause=lambda: next(pauses))
    s.step(1)
    s.step(2)
    assert (s.taken[1], s.taken[2]) == ([1], [2])
    assert 0 in dict(run.ledger.arrivals(STAGE)) and 3 in dict(run.ledger.arrivals(STAGE))
    s.step(3)
    assert s.taken[3] == [0]


def test_a_problem_set_aside_is_replaced_by_the_next_and_never_tried_again(run: RunDir) -> None:
    generators = FakeGenerators(constant(0))
    generators.set_aside = {1, 4}
    s = Session(run, generators, steps=4, problems=2, cap=0)
    for step in (1, 2):
        s.step(step)
        assert s.rollouts.set_aside == 1
    assert s.taken == {1: [0, 2], 2: [3, 5]}
    assert run.ledger.set_asides(STAGE) == {1: "it kills", 4: "it kills"}
    healthy = FakeGenerators(constant(0))
    resumed = Session(run, healthy, steps=4, problems=2, cap=0)
    resumed.step(3)
    assert resumed.taken == {3: [6, 7]}
    assert {key for work in healthy.ordered for key in work.keys} == {6, 7}


def test_a_stage_ends_also_when_a_steps_worth_of_problems_was_set_aside(run: RunDir) -> None:
    generators = FakeGenerators(constant(0))
    generators.set_aside = {0}
    s = Session(run, generators, steps=3, problems=1, cap=0)
    for step in (1, 2, 3):
        assert len(s.step(step)) == 1
    assert s.taken == {1: [1], 2: [2], 3: [3]}  # 3 is one more than the stage's own


def test_metrics_by_hand(run: RunDir) -> None:
    generators = FakeGenerators(constant(0), workers=1)
    generators.set_aside = {3}
    for sequence, version in enumerate([4, 6, 7, 2]):
        group = group_of(Problem(f"1-{sequence}", [], ""), version, "w0")
        run.ledger.arrive(STAGE, [(sequence, group)])
    s = Session(run, generators, steps=9, problems=4, cap=3, unit=1)
    s.step(8)  # trained on version 7
    assert s.taken[8] == [0, 1, 2, 4]  # 3 is five versions old, and then nobody can answer it
    expected = RolloutMetrics(
        reward=0.0,
        correct=0.0,
        length=1.0,
        truncated=0.0,
        tokens=8,  # four groups of two completions of one token
        groups=4,
        groups_skipped=4,
        groups_stale=1,
        groups_set_aside=1,
        staleness_mean=1.0,  # 3, 1, 0, 0
        staleness_max=3,
        verifier_errors=0,
        completions=8,
    )
    assert s.metrics == expected
    s.step(9)
    fresh = {"staleness_mean": 0.0, "staleness_max": 0, "groups_stale": 0, "groups_set_aside": 0}
    assert s.metrics == replace(expected, **fresh)


def test_without_a_problem_left_the_stage_stops(run: RunDir) -> None:
    generators = FakeGenerators(constant(0))
    generators.set_aside = set(range(1000))
    s = Session(run, generators, steps=2, problems=2, cap=0)
    with pytest.raises(TrainingError, match="step 1: every problem left was set aside"):
        s.step(1)
    # Twice as many as the stage's own were tried: it does not go on for ever.
    assert run.ledger.set_asides(STAGE).keys() == set(range(8))


def test_no_generator_left_is_passed_on(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    generators = FakeGenerators(constant(0))
    s = Session(run, generators, steps=2, problems=2, cap=0)

    def collect(purpose: Purpose, timeout_s: float) -> list[Outcome]:
        raise TrainingError("no generator is left")

    monkeypatch.setattr(generators, "collect", collect)
    with pytest.raises(TrainingError, match="no generator is left"):
        s.step(1)


@pytest.mark.parametrize("after", range(8))
def test_a_synchronous_step_killed_anywhere_is_resumed_with_the_same_units(
    run: RunDir, after: int
) -> None:
    """Whole units, or none of it: what a worker computes together rounds together."""
    units = [(0, 1), (2, 3), (4, 5), (6,)]
    shape: dict[str, Any] = {"steps": 2, "problems": 7, "cap": 0, "unit": 2}
    first = FakeGenerators(iter([2, 0, 4, 1]).__next__, workers=2)
    first.kill_after = after
    with pytest.raises(Killed):
        Session(run, first, **shape).step(1)
    assert [work.keys for work in first.ordered] == units
    arrived = {sequence for sequence, _ in run.ledger.arrivals(STAGE)}
    second = FakeGenerators(constant(0), workers=2)
    s = Session(run, second, **shape)
    found = s.step(1)
    assert [work.keys for work in second.ordered] == [
        unit for unit in units if not arrived & set(unit)
    ]
    assert [sequence for sequence, _ in found] == list(range(7))
    assert {work.seed for work in second.ordered} == {s.stage.seed(1)}
    assert s.rollouts.stale == 0


class Simulation:
    """A stage killed and resumed at random, with slow workers, set-asides and quarantines."""

    def __init__(self, run: RunDir, noise: random.Random, shape: dict[str, Any]) -> None:
        self.run, self.noise, self.shape = run, noise, shape
        self.size, self.cap = shape["problems"], shape["cap"]
        total = shape["steps"] * self.size
        few = noise.randrange(self.size) if noise.random() < 0.3 else 0
        self.hopeless = set(noise.sample(range(total), few))
        self.stale = 0

    def session(self, kills: bool) -> None:
        """Raises Killed at a random moment when `kills`."""
        slowest = self.noise.choice([0, 1, 5, 20])
        delays = lambda: self.noise.choice([0, 0, self.noise.randint(0, slowest)])  # noqa: E731
        generators = FakeGenerators(delays, workers=self.noise.randint(1, 4))
        generators.set_aside = self.hopeless
        if kills:
            generators.kill_after = self.noise.randrange(60)
        pause = lambda: self.noise.choice([0, 0, 2, 10])  # noqa: E731
        s = Session(self.run, generators, pause=pause, **self.shape)
        try:
            for step in range(1, self.shape["steps"] + 1):  # no checkpoint is kept: replays all
                arrived = dict(self.run.ledger.arrivals(STAGE))
                found = s.step(step)
                if found:
                    self.check(s, step, found, arrived)
                if generators.size - len(generators.out) > 1 and self.noise.random() < 0.1:
                    generators.quarantine(f"w{self.noise.randrange(generators.size)}", "odd")
        finally:
            self.stale += s.stale
            stale = [e for e in self.run.events() if e.kind == "groups_stale"]
            assert sum(int(e.message.split()[2]) for e in stale) == self.stale
            assert sum(generators.dropped_groups.values()) >= s.stale

    def check(
        self, s: Session, step: int, found: list[tuple[int, Group]], arrived: dict[int, Group]
    ) -> None:
        sequences = [sequence for sequence, _ in found]
        assert sequences == sorted(sequences)
        behind = [step - 1 - group.weight_version for _, group in found]
        assert s.metrics.staleness_mean == pytest.approx(sum(behind) / len(behind))
        assert s.metrics.staleness_max == max(behind) <= self.cap and min(behind) >= 0
        for sequence, group in found:
            place, index = divmod(sequence, self.size)
            assert group.problem.id == f"{place + 1}-{index}"
        # Of those that were there and could be used, none that is older was left behind.
        usable = {
            sequence
            for sequence, group in arrived.items()
            if 0 <= s.rollouts.staleness(group) <= self.cap and group.worker not in s.generators.out
        }
        assert not {sequence for sequence in usable if sequence < max(sequences)} - set(sequences)
        assert s.ahead <= (1 + self.cap) * self.size
        for work in s.generators.ordered:
            (place,) = {key // self.size for key in work.keys}
            assert work.seed == s.stage.seed(place + 1)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 2**32),
    shape=st.fixed_dictionaries(
        {
            "steps": st.integers(1, 8),
            "problems": st.integers(1, 6),
            "cap": st.integers(0, 3),
            "unit": st.integers(0, 4),
        }
    ),
    kills=st.integers(0, 3),
)
def test_every_problem_is_used_once_whatever_the_order_of_arrival(
    seed: int, shape: dict[str, Any], kills: int
) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        RunDir.create(Path(directory) / "run", {}, {}) as run,
    ):
        run.ledger._database.execute("PRAGMA synchronous=OFF")  # a power cut is not simulated
        simulation = Simulation(run, random.Random(seed), shape)
        for _ in range(kills):
            try:
                simulation.session(kills=True)
            except Killed:
                continue
        simulation.session(kills=False)
        ledger, total = run.ledger, shape["steps"] * shape["problems"]
        steps = [ledger.sequences(STAGE, step) for step in range(1, shape["steps"] + 1)]
        used = [sequence for step in steps for sequence in step]
        assert {len(step) for step in steps} == {shape["problems"]}
        # Each once, and one more for each that was set aside.
        hopeless = simulation.hopeless
        assert sorted(used) == sorted(set(range(total + len(hopeless))) - hopeless)
        assert ledger.arrivals(STAGE) == []
        assert set(ledger.set_asides(STAGE)) == hopeless
        if shape["cap"] == 0 and not hopeless:
            assert used == list(range(total))
