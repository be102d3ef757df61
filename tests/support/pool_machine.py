"""A pool at random: rules for hypothesis to choose from, and workers of which one is sound."""

import random
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from scripted_pool import CPU, FOR_GOOD, FOR_NOW, Scene, make_certificate

from interlock.config.schema import FleetSettings
from interlock.fleet.base import Lost
from interlock.records.metrics import WorkerState
from interlock.records.trust import Trust
from interlock.workers.generators import Outcome
from interlock.workers.protocol import Alive, Finished, Open, Opened, Qualified, Qualify, Reply

NAMES = ("a", "b", "c")


class PoolMachine(RuleBasedStateMachine):
    """Anything happens in any order. At the end those that are left work well, and then every
    problem that was ever ordered has ended in exactly one outcome.

    FakeFleet asserts that nobody is asked for two things at a time, or with unproven weights.
    """

    @initialize(
        failures=st.sampled_from([2, 50]), strikes=st.integers(1, 4), requalify=st.integers(0, 2)
    )
    def start(self, failures: int, strikes: int, requalify: int) -> None:
        settings = FleetSettings(failures=failures, strikes=strikes, requalify=requalify)
        self.scene = Scene(*NAMES, fleet=settings)
        self.requalify = requalify
        self.version = self.faults = 0
        self.ordered: list[int] = []
        self.found: list[Outcome] = []
        self.makers: dict[int, tuple[str, int]] = {}  # of groups: worker, quarantines before

    @rule(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
    def order(self, sizes: list[int]) -> None:
        for size in sizes:
            keys = range(len(self.ordered), len(self.ordered) + size)
            self.ordered += keys
            self.scene.order(*keys)
        self._look()

    @rule()
    def publish(self) -> None:
        self.version += 1
        self.scene.publish(self.version)
        self._look()

    @precondition(lambda self: self.scene.fleet.asked)
    @rule(data=st.data(), count=st.integers(1, 6))
    def answer(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            if self.scene.fleet.asked:
                self.scene.answer(data.draw(st.sampled_from(sorted(self.scene.fleet.asked))))
                self._look()

    @precondition(lambda self: self.scene.fleet.alive)
    @rule(
        data=st.data(),
        said=st.sampled_from(
            [
                Lost("signal 9"),
                b"\xc1",
                FOR_NOW,
                FOR_GOOD,
                Opened("e", "d", "t"),
                Finished(1, []),
                Qualified(make_certificate(CPU)),
                Qualified(make_certificate(CPU, Trust.REJECT, "forward")),
                Alive(),
            ]
        ),
    )
    def say(self, data: st.DataObject, said: Reply | Lost | bytes) -> None:
        name = data.draw(st.sampled_from(sorted(self.scene.fleet.alive)))
        if said == FOR_GOOD and not self.scene.unit(name):
            return  # retires it, and few would be left
        if isinstance(said, Opened) and isinstance(self.scene.fleet.asked.get(name), Open):
            return  # that is right
        qualifying = isinstance(self.scene.fleet.asked.get(name), Qualify)
        if said == Qualified(make_certificate(CPU)) and qualifying:
            return
        self.faults += 1
        self.scene.hear(name, said)
        self._look()

    @rule(seconds=st.sampled_from([0.5, 1, 4, 31, 700, 2000]), data=st.data(), look=st.booleans())
    def wait(self, seconds: float, data: st.DataObject, look: bool) -> None:
        heard = " ".join(sorted(data.draw(st.sets(st.sampled_from(NAMES)))))
        (self.scene.wait if look else self.scene.jump)(seconds, heard)
        self._look()

    @precondition(lambda self: self.faults > 3)
    @rule(name=st.sampled_from(NAMES))
    def quarantine(self, name: str) -> None:
        self.faults = 0
        self.scene.pool.quarantine(name, "odd")
        self.scene.pool.attend([])
        self._look()

    def _look(self) -> None:
        """What must hold after every call."""
        new = self.scene.outcomes()
        self.found += new
        quarantines = Counter(
            worker for _, message, worker in self.scene.events if " is quarantined" in message
        )
        for key, group, _ in new:
            if group is not None:
                self.makers[key] = group.worker, quarantines[group.worker]
        assert self.scene.pool.withdrawn == {
            key for key, (worker, before) in self.makers.items() if quarantines[worker] > before
        }
        done = Counter(outcome.key for outcome in self.found)
        under_way = Counter(key for name in NAMES for key in self.scene.unit(name))
        assert not (done + under_way) - Counter(self.ordered), "given out or answered twice"
        for name in NAMES:
            facts = self.scene.pool.facts()[name]
            assert facts.state is not WorkerState.RESTARTING or name not in self.scene.fleet.alive
            assert facts.requalified <= self.requalify
            qualified = self.scene.fleet.modules[name] != "module"
            assert facts.state is not WorkerState.QUALIFYING or qualified
            at_work = (
                WorkerState.STARTING,
                WorkerState.READY,
                WorkerState.LOADING,
                WorkerState.GENERATING,
            )
            assert facts.state not in at_work or not qualified
            if facts.state is WorkerState.GENERATING:
                assert self.scene.asked(name).number == facts.weight_version

    def teardown(self) -> None:
        if hasattr(self, "scene"):
            with self.scene:
                self._settle()

    def _settle(self) -> None:
        s = self.scene
        if self.version == 0:
            self.publish()
        for _ in range(400):
            s.pool.attend([])
            self._look()
            if s.pool.all_gone or (not s.fleet.asked and len(self.found) == len(self.ordered)):
                break
            for name in sorted(s.fleet.asked):
                if name in s.fleet.asked:
                    s.answer(name)
                    self._look()
            s.wait(61 if not s.fleet.asked else 0.5, " ".join(s.fleet.alive))
            self._look()
        keys = Counter(outcome.key for outcome in self.found)
        assert set(keys.values()) <= {1}
        assert s.pool.all_gone or keys.keys() == set(self.ordered)
        given = [outcome.key for outcome in self.found if outcome.group is not None]
        assert sorted(s.kept) == sorted(given), "kept is what is handed out"
        assert s.kinds().count("problem_set_aside") == len(self.found) - len(given)


PoolMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def one_sound_worker(sound: str, problems: int, noise: random.Random) -> list[Outcome]:
    """The others fail at random, up to their retirement; units are of one problem each."""
    found: list[Outcome] = []
    with Scene(*NAMES, fleet=FleetSettings(failures=3, strikes=3)) as s:
        s.publish(1)
        for key in range(problems):
            s.order(key)
        for _ in range(200):
            for name in sorted(s.fleet.asked):
                if name not in s.fleet.asked:
                    continue
                if name != sound and noise.random() < 0.5:
                    s.hear(name, noise.choice([Lost("x"), b"\xc1", FOR_NOW]))
                elif noise.random() < 0.7:
                    s.answer(name)
            s.wait(noise.random(), " ".join(s.fleet.alive))
            found += s.outcomes()
    return found
