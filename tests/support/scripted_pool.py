"""A pool with scripted workers and a clock of the test's own.

    test ── order, publish ──> WorkerPool ── start, send, kill ──> FakeFleet
         ── answer, hear, wait, jump ──────────^ (what the workers say, and the time)

No process runs. FakeFleet keeps the contract of fleet/base.py in the pool's face: no start under a
name in use, no second request to a worker that has not answered the first, and no work for one that
has not proven the weights; and a process is asked for what its program does.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from interlock.chips import certificates
from interlock.config.schema import FleetSettings, GeneratorSettings, GuardSettings
from interlock.errors import ConfigError
from interlock.fleet.base import Event, Lost, Spec
from interlock.records.metrics import WorkerState
from interlock.records.rl import Completion, FinishReason, Group, Problem, Sampling, WeightVersion
from interlock.records.trust import Certificate, Finding, Result, Stack, Trust
from interlock.workers import pool as pool_module
from interlock.workers import protocol, requalification
from interlock.workers.generators import Outcome, Purpose, Work
from interlock.workers.pool import WorkerPool
from interlock.workers.protocol import (
    Alive,
    Canary,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    Open,
    Opened,
    Prefetch,
    Qualified,
    Qualify,
    Reply,
    Request,
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
FOR_NOW, FOR_GOOD = Failed("for now", permanent=False), Failed("for good", permanent=True)
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
        self.sent: dict[str, list[Request]] = {}  # to the present process, and not looked at
        self.asked: dict[str, Open | Load | Generate | Qualify] = {}  # and not answered
        self.modules: dict[str, str] = {}  # what was started last
        self.proven: dict[str, int] = {}  # the version, until a failure
        self._refuses = refuses.split()  # whose start is a ConfigError

    def start(self, spec: Spec) -> None:
        assert spec.name not in self.alive, f"{spec.name} runs already"
        if spec.name in self._refuses:
            raise ConfigError(f"no interpreter for {spec.name}")
        self.alive.add(spec.name)
        self.starts[spec.name] += 1
        self.modules[spec.name] = spec.module
        self.sent[spec.name] = []

    def send(self, name: str, message: bytes, reply_bytes: int | None = None) -> None:
        if name not in self.alive:
            return
        request = protocol.request(message)
        self.sent[name].append(request)
        if isinstance(request, Prefetch):
            assert isinstance(self.asked.get(name), Generate), "a prefetch for an idle worker"
            return
        assert name not in self.asked, f"{name} is asked for two things at a time"
        program = "interlock.qualify.worker" if isinstance(request, Qualify) else "module"
        assert self.modules[name] == program, f"{name} runs another program"
        if isinstance(request, Generate):
            assert self.proven.get(name) == request.number, f"{name} has not proven its weights"
        self.asked[name] = request

    def kill(self, name: str) -> None:
        self.alive.discard(name)
        self.asked.pop(name, None)
        self.proven.pop(name, None)
        self.sent[name] = []

    def said(self, name: str, said: Reply | Lost | bytes) -> None:
        """What becomes of the worker that says this."""
        if isinstance(said, Lost):
            self.alive.discard(name)
        if not isinstance(said, Alive):
            self.asked.pop(name, None)
        match said:
            case Loaded():
                self.proven[name] = said.number
            case Failed(permanent=False):
                self.proven.pop(name, None)

    def poll(self, timeout_s: float) -> list[Event]:
        raise AssertionError("the dispatcher polls, not the pool")

    def wake(self) -> None:
        raise AssertionError("the dispatcher wakes, not the pool")

    def close(self) -> None:
        raise AssertionError("the dispatcher closes, not the pool")


def make_problem(key: int) -> Problem:
    return Problem(f"p{key}", [{"role": "user", "content": str(key)}], str(key))


def make_work(*keys: int, purpose: Purpose = Purpose.TRAIN) -> Work:
    asked = tuple(make_problem(key) for key in keys)
    return Work(purpose, keys, asked, 2, Sampling(max_tokens=3), seed=1000 + keys[0])


def make_target(number: int) -> Target:
    return Target(WeightVersion(number, f"digest-{number}"), [-1.0 - number, -1.0])


def prompt(problem: Problem) -> list[int]:
    return [7, int(problem.answer)]


def proof(asked: Load, shift: float = 0.0) -> Loaded:
    """A good one; `shift` is the rounding of the worker's own canary, in nats per token."""
    text = [value - shift for value in make_target(asked.number).text]
    return Loaded(asked.number, asked.digest, text, [-1.0], [-1.0], 10)


def groups_for(asked: Generate, worker: str, token: int = VOCAB - 1) -> list[Group]:
    one = Completion.sampled([0, token], [-0.5, -0.5], FinishReason.STOP, "x", asked.number)
    answers = [one] * asked.completions
    return [Group(each, prompt(each), answers, worker) for each in asked.problems]


def make_certificate(
    stack: Stack = NPU,
    trust: Trust = Trust.GENERATE,
    failed: str = "",
    world_size: int = 2,
    device: str = "",
    issued: float = WALL,
) -> Certificate:
    """`failed`: the ids of the checks that did."""
    device = device or stack.kind
    findings = [Finding("forward", Result.PASS, "right")]
    findings += [Finding(check, Result.FAIL, f"{check} is off") for check in failed.split()]
    reasons = [f"{check} failed: {check} is off" for check in failed.split()]
    return certificates.seal(
        Certificate(stack, device, world_size, "quick", trust, reasons, findings, issued)
    )


def good_answer(asked: Request, worker: str) -> Reply:
    match asked:
        case Open():
            npu = asked.settings.device != "cpu"
            found = (NPU, make_certificate()) if npu else (CPU, None)
            return Opened("torch 2", asked.settings.device, "float32", *found)
        case Qualify():
            return Qualified(make_certificate(CPU if asked.device == "cpu" else NPU))
        case Load():
            return proof(asked)
        case Generate():
            return Finished(asked.unit, groups_for(asked, worker))
    raise AssertionError(asked)


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
            mock.patch.object(module, "time", clock) for module in (pool_module, requalification)
        ]
        for patch in self._patches:
            patch.start()
        workers = {
            name: (
                Spec(name, "module", Path(f"{name}.log")),
                Open(name, "model", None, GeneratorSettings(device=device), "store", CANARY),
            )
            for name in names
        }
        self.pool = WorkerPool(
            self.fleet, workers, fleet, guard, prompt, VOCAB, self._note, unqualified
        )
        self.pool.keep, self.pool.forget = self._keep, self._forget

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

    def order(self, *keys: int, purpose: Purpose = Purpose.TRAIN) -> None:
        """One unit."""
        self.pool.order(make_work(*keys, purpose=purpose))
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

    def answer(self, *names: str) -> None:
        """Each worker does well what it was asked last."""
        for name in names:
            self.hear(name, good_answer(self.fleet.asked[name], name))

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

    def new(self, name: str) -> list[Request]:
        """What was sent to the worker since the last look."""
        sent, self.fleet.sent[name] = self.fleet.sent[name], []
        return sent

    def asked(self, name: str) -> Generate:
        asked = self.fleet.asked[name]
        assert isinstance(asked, Generate)
        return asked

    def unit(self, name: str) -> tuple[int, ...]:
        """The keys of what the worker was asked to generate."""
        asked = self.fleet.asked.get(name)
        return tuple(int(p.answer) for p in asked.problems) if isinstance(asked, Generate) else ()

    def state(self, name: str) -> WorkerState:
        return self.pool.facts()[name].state

    def kinds(self) -> list[str]:
        return [kind for kind, _, _ in self.events]

    def outcomes(self, purpose: Purpose = Purpose.TRAIN) -> list[Outcome]:
        return self.pool.collect(purpose)

    def ready(self, version: int = 1) -> "Scene":
        """Every worker up, with weights."""
        self.publish(version)
        while busy := [n for n, a in self.fleet.asked.items() if not isinstance(a, Generate)]:
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
