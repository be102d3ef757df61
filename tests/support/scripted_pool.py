"""A worker pool with scripted workers and a clock of the test's own.

    test ── order, publish ──> WorkerPool ── start, send, kill ──> FakeFleet
         ── answer, hear, wait, jump ──────────^ (what the workers say, and the time)

No process runs. FakeFleet keeps the contracts of fleet/base.py and workers/protocol.py in the
pool's face: no start under a name in use, one Load at a time, an exact unit alone, no work for a
worker that has not proven the weights or has no room; and a process is asked for what its program
does.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from findings import findings_for
from msgspec.structs import replace
from readers import Believer

from interlock.chips import certificates
from interlock.chips.verdict import judge
from interlock.config.schema import FleetSettings, GeneratorSettings, GuardSettings
from interlock.errors import ConfigError
from interlock.fleet.base import Event, Lost, Spec
from interlock.records.metrics import WorkerState
from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Problem,
    Sampling,
    Segment,
    WeightVersion,
)
from interlock.records.trust import Certificate, Finding, Result, Stack, Trust
from interlock.workers import placement, protocol, requalification
from interlock.workers import pool as pool_module
from interlock.workers.generators import Outcome, Purpose, Work
from interlock.workers.pool import WorkerPool
from interlock.workers.protocol import (
    Abort,
    Alive,
    Answered,
    Ask,
    Canary,
    Failed,
    Failure,
    Generate,
    Load,
    Loaded,
    Open,
    Opened,
    Qualified,
    Qualify,
    Reply,
    Room,
)
from interlock.workers.replies import Target

VOCAB = 20
CANARY = Canary(text=[1, 2, 3], prompts=[[4]], tokens=2)
QUIET = FleetSettings(
    start_s=100,
    load_s=50,
    unit_s=200,
    silence_s=30,
    backoff_s=1,
    failures=5,
    strikes=3,
    qualify_s=300,
    requalify=0,
)
ROOM = 10  # sequences that a scripted worker takes: its slots, and what it looks ahead
GUARD = GuardSettings(warn=1e-3, quarantine=1e-2)
CPU = Stack("cpu", "a chip", "", "", "", "2.13.0", "", "0.1")
NPU = Stack("npu", "Chip 1", "25.1", "7.7", "CANN 9", "2.13.0", "torch_npu 2.13.0", "0.1")
WALL = 1e6  # seconds since 1970: that clock stands still
LOOK_S = 4.0  # between two looks at the workers: a longer gap does not count against them


class FakeFleet:
    """Worker processes that exist only as what was sent to them."""

    def __init__(self, refuses: str) -> None:
        self.alive: set[str] = set()
        self.starts: Counter[str] = Counter()
        self.sent: dict[str, list[Ask]] = {}  # to the present process, and not looked at
        self.asked: dict[str, dict[int, Ask]] = defaultdict(dict)  # and not answered, by number
        self.missing: dict[str, dict[int, list[int]]] = {}  # places of units not answered
        self.last: Counter[str] = Counter()  # number of the last ask
        self.generate: Counter[str] = Counter()  # and of the last Generate
        self.room: Counter[str] = Counter()
        self.modules: dict[str, str] = {}  # what was started last
        self.proven: dict[str, list[int]] = {}  # versions; none is served after a failure
        self._refuses = refuses.split()  # whose start is a ConfigError

    @property
    def busy(self) -> list[str]:
        return sorted(name for name in self.alive if self.asked[name])

    def start(self, spec: Spec) -> None:
        assert spec.name not in self.alive, f"{spec.name} runs already"
        if spec.name in self._refuses:
            raise ConfigError(f"no interpreter for {spec.name}")
        self.kill(spec.name)
        self.alive.add(spec.name)
        self.starts[spec.name] += 1
        self.modules[spec.name] = spec.module

    def send(self, name: str, message: bytes, reply_bytes: int | None = None) -> None:
        if name not in self.alive:
            return
        asked = protocol.ask(message)
        assert asked.id > self.last[name], "a number again"
        self.last[name] = asked.id
        self.sent[name].append(asked)
        program = "interlock.qualify.worker" if isinstance(asked, Qualify) else "module"
        assert self.modules[name] == program, f"{name} runs another program"
        beside = list(self.asked[name].values())
        match asked:
            case Open() | Qualify():
                assert not beside
            case Load():
                kinds = (Open, Load, Qualify)
                assert not any(isinstance(each, kinds) for each in beside)
                assert not any(isinstance(each, Generate) and each.exact for each in beside)
            case Generate():
                self._check_unit(name, asked, beside)
                self.generate[name] = asked.id
                self.missing[name][asked.id] = list(range(len(asked.problems)))
                self.room[name] -= len(asked.problems) * asked.completions
        self.asked[name][asked.id] = asked

    def _check_unit(self, name: str, asked: Generate, beside: Sequence[Ask]) -> None:
        assert self.proven[name][-1:] == [asked.number], f"{name} has not proven its weights"
        if asked.exact:
            assert not beside, "exact beside something else"
        else:
            assert not any(isinstance(each, Generate) and each.exact for each in beside)
            assert self.room[name] > 0, f"{name} has no room"

    def kill(self, name: str) -> None:
        self.alive.discard(name)
        self.asked[name].clear()
        self.proven[name] = []
        self.missing[name], self.sent[name] = {}, []
        self.room[name] = self.generate[name] = 0

    def said(self, name: str, said: Reply | Lost | bytes) -> None:
        """What becomes of the worker that says this."""
        asked = self.asked[name]
        match said:
            case Lost():
                self.alive.discard(name)
                asked.clear()
            case Room():
                later = sum(
                    len(each.problems) * each.completions
                    for number, each in asked.items()
                    if isinstance(each, Generate) and number > said.after
                )
                self.room[name] = said.sequences - later
            case Failed():
                for number in said.ids:
                    asked.pop(number, None)
                    self.missing[name].pop(number, None)
                if said.kind is Failure.FAULT:
                    self.proven[name].append(-1)
            case Answered():
                places = self.missing[name].get(said.id, [])
                if said.index in places:
                    places.remove(said.index)
                if not places:
                    asked.pop(said.id, None)
            case Opened() | Qualified():
                asked.pop(said.id, None)
            case Loaded() if asked.pop(said.id, None):
                self.proven[name].append(said.number)

    def pid(self, name: str) -> int | None:
        return None

    def poll(self, timeout_s: float) -> list[Event]:
        raise AssertionError("the dispatcher polls, not the pool")

    def wake(self) -> None:
        raise AssertionError("the dispatcher wakes, not the pool")

    def close(self) -> None:
        raise AssertionError("the dispatcher closes, not the pool")


def make_problem(key: int) -> Problem:
    return Problem(f"p{key}", [{"role": "user", "content": str(key)}], str(key))


def make_work(*keys: int, purpose: Purpose = Purpose.TRAIN, exact: bool = True) -> Work:
    asked = tuple(make_problem(key) for key in keys)
    return Work(purpose, keys, asked, 2, Sampling(max_tokens=3), 1000 + keys[0], exact)


def make_target(number: int) -> Target:
    return Target(WeightVersion(number, f"digest-{number}"), [-1.0 - number, -1.0])


def prompt(problem: Problem) -> list[int]:
    return [7, int(problem.answer)]


def proof(asked: Load, shift: float = 0.0) -> Loaded:
    """A good one; `shift` is the rounding of the worker's own canary, in nats per token."""
    text = [value - shift for value in make_target(asked.number).text]
    return Loaded(asked.number, asked.digest, text, [-1.0], [-1.0], 10, id=asked.id)


def sampled(*versions: int, token: int = VOCAB - 1) -> Completion:
    """Two tokens; the second may be of newer weights than the first."""
    if len(versions) == 1:
        drawn = [Segment([0, token], [-0.5, -0.5], versions[0])]
    else:
        drawn = [Segment([token], [-0.5], version) for version in versions]
    return Completion(drawn, FinishReason.STOP, "x")


def answers(asked: Generate, *versions: int, token: int = VOCAB - 1) -> list[Answered]:
    """Right ones, of these weights; none given: of those that were asked for."""
    one = sampled(*(versions or (asked.number,)), token=token)
    return [
        Answered(place, prompt(problem), [one] * asked.completions, id=asked.id)
        for place, problem in enumerate(asked.problems)
    ]


def groups_of(asked: Generate, worker: str) -> list[Group]:
    """What the pool makes of right answers."""
    pairs = zip(asked.problems, answers(asked), strict=True)
    return [
        Group(problem, answer.prompt_tokens, answer.completions, worker)
        for problem, answer in pairs
    ]


def make_certificate(
    stack: Stack = NPU,
    trust: Trust = Trust.GENERATE,
    failed: str = "",
    world_size: int = 2,
    device: str = "",
    issued: float = WALL,
) -> Certificate:
    """`failed`: the ids of the checks that did; "": those that `findings_for` picks for `trust`."""
    device = device or stack.kind
    off = {check: Finding(check, Result.FAIL, f"{check} is off") for check in failed.split()}
    kept = [each for each in findings_for(Trust.TRAIN if off else trust) if each.check not in off]
    findings = [*kept, *off.values()]
    _, reasons = judge(findings)
    return certificates.seal(
        Certificate(stack, device, world_size, "quick", trust, reasons, findings, issued)
    )


class Scene:
    """A pool, its fleet and the time."""

    def __init__(
        self,
        *names: str,
        fleet: FleetSettings = QUIET,
        guard: GuardSettings = GUARD,
        device: str = "cpu",
        unqualified: bool = False,
        **given: str,
    ) -> None:
        self.now = 1000.0
        self.fleet = FakeFleet(given.get("refuses", ""))
        self.events: list[tuple[str, str, str]] = []
        self.kept: list[int] = []
        self.made: dict[int, str] = {}  # worker of each group that is kept and not withdrawn
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: WALL)
        self._patches = [
            mock.patch.object(module, "time", clock)
            for module in (pool_module, placement, requalification)
        ]
        for patch in self._patches:
            patch.start()
        workers = {
            name: (
                Spec(name, "module", Path(f"{name}.log")),
                Open(name, "model", GeneratorSettings(device=device), None, "store", CANARY),
            )
            for name in names
        }
        self.pool = WorkerPool(
            self.fleet, workers, fleet, guard, Believer(prompt, VOCAB), self._note, unqualified
        )
        self.pool.outcomes.keep, self.pool.outcomes.forget = self._keep, self._forget

    def _keep(self, found: Sequence[tuple[int, Group]]) -> None:
        self.kept += [key for key, _ in found]
        self.made |= {key: group.worker for key, group in found}

    def _forget(self, worker: str) -> list[int]:
        made = [key for key, maker in self.made.items() if maker == worker]
        self.made = {key: maker for key, maker in self.made.items() if maker != worker}
        return made

    def _note(self, *event: str) -> None:
        kind, message, worker = event
        self.events.append((kind, message, worker))

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *_: Any) -> None:
        for patch in self._patches:
            patch.stop()

    def publish(self, number: int) -> None:
        self.pool.serve(make_target(number))
        self.pool.attend([])

    def order(self, *keys: int, purpose: Purpose = Purpose.TRAIN, exact: bool = True) -> None:
        """One unit."""
        self.pool.order(make_work(*keys, purpose=purpose, exact=exact))
        self.pool.attend([])

    def stream(self, *keys: int) -> None:
        """Units of one problem that are not exact, all ordered at once."""
        for key in keys:
            self.pool.order(make_work(key, exact=False))
        self.pool.attend([])

    def hear(self, name: str, *said: Reply | Lost | bytes) -> None:
        """The worker says this at once, and the pool attends to it."""
        for each in said:
            self.fleet.said(name, each)
        self.pool.attend(
            [(name, e if isinstance(e, bytes | Lost) else protocol.encode(e)) for e in said]
        )

    def lose(self, *names: str) -> None:
        for name in names:
            self.hear(name, Lost("signal 9"))

    def fail(self, name: str, kind: Failure = Failure.FAULT) -> None:
        """The worker could do nothing of what it was asked."""
        reason = "for good" if kind is Failure.MISTAKE else "for now"
        failed = Failed(reason, kind, list(self.fleet.asked[name]))
        was_up = bool(self.fleet.proven[name])
        self.hear(name, failed)
        if was_up and name in self.fleet.alive:
            self.hear(name, self.room(name))

    def answer(self, *names: str) -> None:
        """Each worker does well what it was asked first, all of it."""
        for name in names:
            asked = next(iter(self.fleet.asked[name].values()))
            self.hear(name, *self.good(name, asked))

    def answer_problem(self, name: str, key: int, *versions: int) -> None:
        """The worker answers one of the problems that it holds."""
        for asked in self.fleet.asked[name].values():
            if isinstance(asked, Generate):
                for answer in answers(asked, *versions):
                    if asked.problems[answer.index] == make_problem(key):
                        self.hear(name, answer)
                        self.hear(name, self.room(name))
                        return
        raise AssertionError(f"{name} does not hold {key}")

    def loading(self, name: str) -> Load:
        """What the worker was told to load, and has not proven."""
        (asked,) = (each for each in self.fleet.asked[name].values() if isinstance(each, Load))
        return asked

    def load(self, *names: str) -> None:
        """Each worker serves and proves the weights that it was told to load."""
        for name in names:
            self.hear(name, proof(self.loading(name)))

    def good(self, name: str, asked: Ask) -> list[Reply]:
        """What a sound worker says to this."""
        match asked:
            case Open():
                npu = asked.settings.device != "cpu"
                found = (NPU, make_certificate()) if npu else (CPU, None)
                facts = "torch 2", asked.settings.device, "float32"
                return [Opened(*facts, *found, id=asked.id), Room(ROOM, 0)]
            case Qualify():
                stack = CPU if asked.device == "cpu" else NPU
                return [Qualified(make_certificate(stack), id=asked.id)]
            case Load():
                return [proof(asked)]
            case Generate():
                left = self.fleet.missing[name][asked.id]
                return [*(answers(asked)[place] for place in left), self.room(name, asked.id)]
            case Abort():
                return []

    def room(self, name: str, done: int = 0) -> Room:
        """What the worker has room for, once it is through with the unit `done`."""
        held = sum(
            len(self.fleet.missing[name][number]) * each.completions
            for number, each in self.fleet.asked[name].items()
            if isinstance(each, Generate) and number != done
        )
        return Room(ROOM - held, self.fleet.generate[name])

    def wait(self, seconds: float, alive: str = "") -> None:
        """Time passes; the workers named in `alive` give signs of life all along."""
        while seconds > 0:
            self.jump(min(LOOK_S, seconds), alive)
            seconds -= LOOK_S

    def jump(self, seconds: float, alive: str = "") -> None:
        """Time passes, and nobody looks until the end of it, when those in `alive` have spoken."""
        self.now += seconds
        self.pool.attend([(name, protocol.encode(Alive())) for name in alive.split()])

    def hush(self, name: str) -> None:
        """Only this worker says nothing, for as long as it takes to be noticed."""
        others = " ".join(self.fleet.alive - {name})
        self.wait(QUIET.silence_s - 1, others)
        assert name in self.fleet.alive
        self.wait(1, others)

    def dawdle(self, name: str) -> None:
        """This worker lives, and does not get done what it was asked until it is too late."""
        limits = {WorkerState.STARTING: 100, WorkerState.LOADING: 50, WorkerState.GENERATING: 200}
        limits[WorkerState.QUALIFYING] = 300
        everyone = " ".join(self.fleet.alive)
        self.wait(limits[self.state(name)] - 1, everyone)
        assert name in self.fleet.alive
        self.wait(1, everyone)

    def new(self, name: str) -> list[Ask]:
        """What was sent to the worker since the last look, without its numbers."""
        sent, self.fleet.sent[name] = self.fleet.sent[name], []
        return [replace(each, id=0) for each in sent]

    def units(self, name: str) -> list[Generate]:
        return [each for each in self.fleet.asked[name].values() if isinstance(each, Generate)]

    def asked(self, name: str) -> Generate:
        """The only unit that the worker holds."""
        (asked,) = self.units(name)
        return asked

    def unit(self, name: str) -> tuple[int, ...]:
        """The keys of what the worker was asked to generate, and has not answered."""
        return tuple(
            int(asked.problems[place].answer)
            for asked in self.units(name)
            for place in self.fleet.missing[name][asked.id]
        )

    def state(self, name: str) -> WorkerState:
        return self.pool.facts()[name].state

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.events]

    def outcomes(self, purpose: Purpose = Purpose.TRAIN) -> list[Outcome]:
        return self.pool.collect(purpose)

    def ready(self, version: int = 1) -> "Scene":
        """Every worker up, with weights."""
        self.publish(version)
        while busy := [n for n in self.fleet.busy if not self.units(n)]:
            self.answer(busy[0])
        for name in self.fleet.alive:
            self.new(name)
        return self

    def put(self, name: str, state: WorkerState) -> "Scene":
        """Bring a worker that was just started into a state; version 1, problems 0 and 1."""
        if state is not WorkerState.STARTING:
            self.answer(name)
        if state in (WorkerState.LOADING, WorkerState.GENERATING):
            self.publish(1)
        if state is WorkerState.GENERATING:
            self.answer(name)
            self.order(0, 1)
        assert self.state(name) is state
        return self


def in_quarantine(s: Scene) -> Scene:
    """Worker a; its device is being qualified."""
    s.ready()
    s.pool.quarantine("a", "k3 0.5", ("engine-parity", "stale-weights"))
    s.pool.attend([])
    return s
