"""A stage killed at any moment and resumed: every problem is used once, and units stay whole."""

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ticking_generators import STAGE, FakeGenerators, Killed, Session, constant

from interlock.records.rl import Group
from interlock.rundir import RunDir


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
