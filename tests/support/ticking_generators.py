"""A stage's loop over generators that count ticks instead of seconds.

    test ── step ──> Session ── take ──> Rollouts ── order, collect ──> FakeGenerators
                        └── record ──> the ledger of a real run directory

`Killed` ends a session anywhere; the next one has only the ledger.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from interlock.config.schema import FleetSettings, ModelSettings, Recipe
from interlock.config.stages import Grpo
from interlock.config.tasks import TaskSettings
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

    def peaks(self) -> dict[str, Any]:
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
    task = [TaskSettings(name="arithmetic")]
    grpo = Grpo(task=task, steps=steps, problems_per_step=problems, completions=2, staleness=cap)
    recipe = Recipe(
        model=ModelSettings("m"), stage=[grpo], fleet=FleetSettings(kind="local", unit=unit), seed=5
    )
    learner: Any = SimpleNamespace(
        version=0,
        steps=0,
        bad_steps=0,
        unpublished=False,
        device=torch.device("cpu"),
        decoder=SimpleNamespace(arch=None),  # nothing of it is asked: no routes are repeated
    )
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
        self.metrics = self.rollouts.metrics(step, scored, skipped=len(scored))
        for _ in range(self.pause()):  # the workers go on while the learner learns
            self.generators.tick()
        return found

    @property
    def ahead(self) -> int:
        """Problems ordered or at hand, and not used."""
        asked = {key for work in self.generators.ordered for key in work.keys}
        spent = self.run.ledger.used(STAGE) | set(self.run.ledger.set_asides(STAGE))
        return len(asked - spent)


def constant(ticks: int) -> Callable[[], int]:
    return lambda: ticks
