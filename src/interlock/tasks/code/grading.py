"""Grading one program: two sandboxes are started, and what each says is handed to the other.

    ProgramTrial ──> grader_side.py ── call ──> bounded, timed ──> program_side.py
                          └── outcome, nonce ──> Graded

The program's process gets its own source and calls, the grader's gets the tests and values. They
share no file, no memory and no user, and neither can start anything.
"""

import secrets
import sys
import sysconfig
from enum import StrEnum
from functools import cache
from pathlib import Path

import msgspec

from interlock.errors import Unavailable
from interlock.processes.deadline import ProcessDeadline
from interlock.sandbox.canary import retried
from interlock.sandbox.dialogue import Dialogue, DialogueLate, DialogueOver
from interlock.sandbox.limits import ResourceLimits
from interlock.sandbox.running import NotStarted
from interlock.sandbox.slots import Slot
from interlock.sandbox.ways import Scene, Way
from interlock.tasks.code import grader_side, program_side, wire

_MOST_BYTES = 1 << 20  # of one call, or of what one returns
_MOST_LOADED = 1 << 14  # of what it says before any call, which is read outside of all sandboxes
_MOST_CALLS = 100_000


class ProgramEnd(StrEnum):
    PASSED = "passed"
    WRONG = "wrong"  # a test failed, or it raised, or there is no such function
    LATE = "late"
    STARVED = "starved"  # late, for others held the processors
    ENDED = "ended"  # itself, or by a limit of memory or processor time
    BROKEN = "broken"  # the tests are at fault


class ProgramTrial(msgspec.Struct, frozen=True):
    """What a program is graded by; `seconds` of its own time and the tests', together."""

    variants: list[str]  # of its source
    entry: str  # its function
    preamble: str  # what the tests may use beside it; code of the data's
    tests: str
    seed: str  # of tests that draw at random
    seconds: float
    memory_mb: int


class Graded(msgspec.Struct, frozen=True):
    outcome: ProgramEnd
    why: str = ""  # one line; what the program caused is of its own words


class Grader:
    """Grades one program after another, with the same two users. Close it at the end."""

    def __init__(self, way: Way, hidden: list[Path]) -> None:
        """`hidden`: files that no program may read, such as the tests."""
        self._way = way
        self._scene = Scene(hidden=[*_packages(), *hidden], packages=False)
        self._program, self._grader = Slot(), Slot()

    def close(self) -> None:
        self._program.close()
        self._grader.close()

    def grade(self, exam: ProgramTrial) -> Graded:
        """Raises Unavailable when a sandbox does not start."""
        limits = ResourceLimits(memory_mb=exam.memory_mb, cpu_s=int(exam.seconds) + 2)
        try:
            with (
                retried(lambda: self._open(program_side, self._program, limits)) as program,
                retried(lambda: self._open(grader_side, self._grader, limits)) as grader,
            ):
                deadline = ProcessDeadline(exam.seconds, [program.pid, grader.pid])
                return _Sitting(exam, program, grader, deadline).graded()
        except NotStarted as error:
            raise Unavailable(f"no sandbox: {error}") from None

    def _open(self, side: object, slot: Slot, limits: ResourceLimits) -> Dialogue:
        scene = self._scene
        return Dialogue(self._way, _source(side), slot=slot, limits=limits, scene=scene)


class _Sitting:
    """One program before one grader."""

    def __init__(
        self, exam: ProgramTrial, program: Dialogue, grader: Dialogue, deadline: ProcessDeadline
    ) -> None:
        self._exam, self._program, self._grader = exam, program, grader
        self._deadline = deadline
        self._nonce = secrets.token_hex(16)

    def graded(self) -> Graded:
        try:
            return self._loaded() or self._examined()
        except DialogueLate:
            end = ProgramEnd.STARVED if self._deadline.starved else ProgramEnd.LATE
            return Graded(end, f"the program was not done within {self._deadline}")

    def _loaded(self) -> Graded | None:
        """What is wrong with it before any test."""
        setup = {"variants": self._exam.variants, "entry": self._exam.entry}
        try:
            match wire.loaded(self._asked(wire.dumped(setup), _MOST_LOADED)):
                case {"value": None}:
                    return None
                case {"raised": [str(name), str(words)]}:
                    return Graded(ProgramEnd.WRONG, f"{name}: {words}")
        except wire.NotPlain:
            pass
        except DialogueOver as error:
            return Graded(ProgramEnd.ENDED, f"the program ended when it was loaded ({error})")
        return Graded(ProgramEnd.WRONG, "the program sent no message")

    def _examined(self) -> Graded:
        exam = self._exam
        names = ("tests", "preamble", "entry", "seed")
        setup = {name: getattr(exam, name) for name in names} | {"nonce": self._nonce}
        message = wire.dumped(setup)
        try:
            for _ in range(_MOST_CALLS):
                self._grader.send(message, self._deadline)
                said = self._grader.receive(self._deadline, _MOST_BYTES)
                if said[:1] == b"d":
                    return self._outcome(said[1:])
                try:
                    message = self._asked(said[1:])
                except DialogueOver as error:
                    return Graded(ProgramEnd.ENDED, f"the program ended in its tests ({error})")
        except DialogueOver as error:
            return Graded(ProgramEnd.BROKEN, f"the tests ended without an outcome ({error})")
        return Graded(ProgramEnd.BROKEN, f"the tests make more than {_MOST_CALLS:,} calls")

    def _asked(self, message: bytes, most: int = _MOST_BYTES) -> bytes:
        """What the program says to it. Raises DialogueOver, DialogueLate."""
        self._program.send(message, self._deadline)
        return self._program.receive(self._deadline, most)

    def _outcome(self, said: bytes) -> Graded:
        try:
            match wire.loaded(said):
                case {"nonce": self._nonce, "outcome": str(outcome), "why": str(why)}:
                    return Graded(ProgramEnd(outcome), why)
        except (wire.NotPlain, ValueError):
            pass
        return Graded(ProgramEnd.BROKEN, "the tests wrote an outcome of their own")


@cache
def _source(side: object) -> str:
    """All that one side is made of, as one program: it can import nothing of ours."""
    modules = [(each.__name__, Path(str(each.__file__)).read_text()) for each in (wire, side)]  # type: ignore[attr-defined]
    return f"""
import sys, types
for name, text in {modules!r}:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), vars(module))
module.main()
"""


@cache
def _packages() -> tuple[Path, ...]:
    """Where installed packages lie, of which one may bring the tests."""
    library = Path(sysconfig.get_path("stdlib")).parent
    roots = {library, Path(sys.base_prefix) / "lib", Path("/usr/lib"), Path("/usr/local/lib")}
    found = {each for root in roots for each in root.glob("python3*/*-packages")}
    return tuple(sorted(found))
