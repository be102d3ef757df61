"""A pool at random: rules for hypothesis to choose from, and workers of which one is sound."""

import random
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from scripted_pool import CPU, Scene, answers, make_certificate

from interlock.config.schema import FleetSettings
from interlock.fleet.base import Lost
from interlock.records.metrics import WorkerState
from interlock.records.trust import Trust
from interlock.workers.generators import Outcome
from interlock.workers.protocol import (
    Alive,
    Answered,
    Failed,
    Failure,
    Generate,
    Open,
    Opened,
    Qualified,
    Qualify,
    Reply,
    Room,
)

NAMES = ("a", "b", "c")


class PoolMachine(RuleBasedStateMachine):
    """Anything happens in any order. At the end those that are left work well, and then every
    problem that was ever ordered has ended in exactly one outcome.

    FakeFleet asserts that a worker is asked only for what it may be asked beside what it holds.
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

    @rule(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), exact=st.booleans())
    def order(self, sizes: list[int], exact: bool) -> None:
        for size in sizes:
            keys = range(len(self.ordered), len(self.ordered) + size)
            self.ordered += keys
            self.scene.order(*keys, exact=exact)
        self._look()

    @rule()
    def publish(self) -> None:
        self.version += 1
        self.scene.publish(self.version)
        self._look()

    @precondition(lambda self: self.scene.fleet.busy)
    @rule(data=st.data(), count=st.integers(1, 6))
    def answer(self, data: st.DataObject, count: int) -> None:
        """Whatever a worker holds; of a unit perhaps one problem alone, of weights proven since."""
        for _ in range(count):
            if not self.scene.fleet.busy:
                return
            name = data.draw(st.sampled_from(self.scene.fleet.busy))
            asked = data.draw(st.sampled_from(list(self.scene.fleet.asked[name].values())))
            if isinstance(asked, Generate) and data.draw(st.booleans()):
                place = data.draw(st.sampled_from(self.scene.fleet.missing[name][asked.id]))
                proven = {each for each in self.scene.fleet.proven[name] if each >= asked.number}
                versions = data.draw(st.lists(st.sampled_from(sorted(proven)), max_size=2))
                good = answers(asked, *sorted(versions))[place]
                self.scene.hear(name, good, self._room_behind(name, good))
            else:
                self.scene.hear(name, *self.scene.good(name, asked))
            self._look()

    def _room_behind(self, name: str, answer: Answered) -> Room:
        (asked,) = (each for each in self.scene.units(name) if each.id == answer.id)
        room = self.scene.room(name)
        return Room(room.sequences + asked.completions, room.after)

    @precondition(lambda self: self.scene.fleet.alive)
    @rule(
        data=st.data(),
        said=st.sampled_from(
            [
                Lost("signal 9"),
                b"\xc1",
                Failure.FAULT,
                Failure.LINK,
                Failure.MISTAKE,
                Opened("e", "d", "t"),
                Answered(0, [], [], id=10**6),
                Qualified(make_certificate(CPU)),
                Qualified(make_certificate(CPU, Trust.REJECT, "forward")),
                Alive(),
            ]
        ),
    )
    def say(self, data: st.DataObject, said: Reply | Lost | Failure | bytes) -> None:
        name = data.draw(st.sampled_from(sorted(self.scene.fleet.alive)))
        asked = list(self.scene.fleet.asked[name].values())
        if said is Failure.MISTAKE and not all(isinstance(each, Generate) for each in asked):
            return  # retires it, and few would be left
        if isinstance(said, Opened) and any(isinstance(each, Open) for each in asked):
            return  # that is right
        qualifying = any(isinstance(each, Qualify) for each in asked)
        if said == Qualified(make_certificate(CPU)) and qualifying:
            return
        self.faults += 1
        if isinstance(said, Failure):
            ids = data.draw(st.sets(st.sampled_from([each.id for each in asked] or [0])))
            said = Failed("for now", said, sorted(ids))
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
        assert self.scene.pool.outcomes.withdrawn == {
            key for key, (worker, before) in self.makers.items() if quarantines[worker] > before
        }
        done = Counter(outcome.key for outcome in self.found)
        under_way = Counter(key for name in NAMES for key in self.scene.unit(name))
        assert not (done + under_way) - Counter(self.ordered), "given out or answered twice"
        for name in NAMES:
            self._look_at(name)

    def _look_at(self, name: str) -> None:
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
        assert (facts.state is WorkerState.GENERATING) == bool(self.scene.units(name))
        found = {outcome.key for outcome in self.found}
        for asked in self.scene.units(name):
            keys = {int(problem.answer) for problem in asked.problems}
            assert not (asked.exact and keys & found), "an exact unit is handed on whole"
            if facts.weight_version is not None:
                assert asked.number <= facts.weight_version
                assert not asked.exact or asked.number == facts.weight_version

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
            if s.pool.all_gone or (not s.fleet.busy and len(self.found) == len(self.ordered)):
                break
            for name in s.fleet.busy:
                if s.fleet.asked[name]:
                    s.answer(name)
                    self._look()
            s.wait(61 if not s.fleet.busy else 0.5, " ".join(s.fleet.alive))
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


def one_sound_worker(sound: str, problems: int, exact: bool, noise: random.Random) -> list[Outcome]:
    """The others fail at random, up to their retirement; units are of one problem each."""
    found: list[Outcome] = []
    with Scene(*NAMES, fleet=FleetSettings(failures=3, strikes=3)) as s:
        s.publish(1)
        for key in range(problems):
            s.order(key, exact=exact)
        for _ in range(200):
            for name in s.fleet.busy:
                if not s.fleet.asked[name]:
                    continue
                if name != sound and noise.random() < 0.5:
                    noise.choice([s.lose, s.fail, lambda name: s.hear(name, b"\xc1")])(name)
                elif noise.random() < 0.7:
                    s.answer(name)
            s.wait(noise.random(), " ".join(s.fleet.alive))
            found += s.outcomes()
    return found
