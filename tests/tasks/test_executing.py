"""Verifiers that execute what the model wrote: in a sandbox, and each answer for itself."""

import ast
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import reasoning_gym
from attacks import ATTACKS, attack
from remains import DEADLINE_S, descendants, gone
from ways_here import any_usable, usable

from interlock.config.tasks import TaskSettings
from interlock.errors import SandboxError, TaskError
from interlock.records.rl import Problem, Verdict, VerdictStatus
from interlock.sandbox import ways
from interlock.sandbox.ways import WAYS, Way
from interlock.tasks import degenerate, open_task, verifier_pool
from interlock.tasks.executing import EXECUTING, executes, harmless
from interlock.tasks.gym import open_verifier
from interlock.tasks.verifier_pool import VerifierPool

_EXECUTE = {"eval", "exec", "parse_expr", "sympify", "S", "parse_latex", "__import__"}
# These execute what the generator made; no scorer hands an answer to them.
_OWN_CODE_ONLY = {
    "basic_arithmetic",  # the expression it generated
    "bitwise_arithmetic",  # the problem
    "codeio",  # its own data
    "generators_00_49",  # of gsm_symbolic: fractions it drew
    "generators_50_99",
    "number_sorting",  # the reference answer
    "propositional_logic",  # a parser of its own of that name
}


def _called(source: str) -> set[str]:
    functions = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = {function.id for function in functions if isinstance(function, ast.Name)}
    return names | {function.attr for function in functions if isinstance(function, ast.Attribute)}


def test_every_scorer_that_executes_is_known() -> None:
    """A release of reasoning-gym with another one fails here: look at it, then name it."""
    files = Path(reasoning_gym.__file__).parent.rglob("*.py")
    sources = {file.stem: file.read_text() for file in files}
    suspects = (stem for stem, text in sources.items() if any(f"{it}(" in text for it in _EXECUTE))
    found = {stem for stem in suspects if _called(sources[stem]) & _EXECUTE}
    assert found == EXECUTING | _OWN_CODE_ONLY


@pytest.mark.parametrize("generator", sorted(EXECUTING))
def test_right_answers_are_harmless(generator: str) -> None:
    dataset = reasoning_gym.create_dataset(generator, size=12, seed=1)
    references = [str(dataset[index]["answer"]) for index in range(12)]
    # What reasoning-gym could not integrate stands as the question again.
    assert all(harmless(text) for text in references if "Integral" not in text)


@pytest.mark.parametrize(
    ("answer", "is_harmless"),
    [
        ("2*x**2 + exp(-x)/3 - sqrt(2)*log(x) + C", True),
        ("[['Q', '_'], ['_', 'Q']]", True),
        ('["A", "B"]', True),
        ("[[0, 1], [1, 0]]", True),
        ("ABCDEABC", True),
        ("(8 - 2)*4 + 0.5e1 - 1.e5", True),
        ("entry['answer']", False),
        ("oracle_answer", False),
        ("setattr(type(self),'score_answer',lambda s,a,e:1.0)", False),
        ("__import__('os').system('id')", False),
        ("().__class__.__base__.__subclasses__()", False),
        ("(1).real", False),
        ("x .__class__", False),
        ("1if 1else exit()", False),
        ("sympify('__import__(\"os\")')", False),
        ("S('exit()')", False),
        ("\uff45val('1')", False),
        ("f'{exit()}'", False),
        ("[c for c in ()]", False),
        ("Integral(x, x)", False),
    ],
)
def test_harmless(answer: str, is_harmless: bool) -> None:
    assert harmless(answer) is is_harmless


def _problems(generator: str) -> tuple[TaskSettings, list[Problem]]:
    task = TaskSettings(f"reasoning-gym/{generator}", held_out=2)
    return task, open_task(task).held_out(2)


def test_an_answer_changes_no_scorer_and_reads_no_reference(tmp_path: Path) -> None:
    any_usable()
    task, (first, second) = _problems("string_insertion")
    assert executes(task)
    told = tmp_path / "told"
    hostile = [
        "setattr(type(self),'score_answer',lambda s,a,e:1.0)",
        "entry['answer']",
        "[oracle_answer]",
        f"open({str(told)!r},'w')",
        f"__import__('os').system('touch {told}')",
        "__import__('os')._exit(0)",
    ]
    with VerifierPool(task) as pool:
        tagged = [f"<answer>{text}</answer>" for text in hostile]
        verdicts = pool.verify([(first, text) for text in [*tagged, "x", first.answer]])
        assert [verdict.reward for verdict in verdicts] == [0.0] * 7 + [1.0]
        assert pool.errors == 0
        again = pool.verify([(second, "wrong"), (second, second.answer)])
        assert [verdict.reward for verdict in again] == [0.0, 1.0]
    assert not told.exists()


# A user's verifier that trusts the model with everything.
TRUSTING = """
def verify(problem, answer):
    scope = {"verify": verify, "problem": problem}
    exec(answer, scope)
    return scope.get("x") == 42
"""
REPLACING = """
module = sys.modules["user_verifier"]
module.verify = lambda problem, answer: True
verify.__code__ = (lambda problem, answer: True).__code__
import interlock.tasks.verifier_worker as worker
worker.verdict_of = lambda value: 1 / 0
import builtins
builtins.exec = lambda *_: None
"""
FORGING = """
import os, msgspec
forged = {forged}
for number in range(3, 64):
    try: os.write(number, forged if isinstance(forged, bytes) else msgspec.msgpack.encode(forged))
    except OSError: pass
os._exit(0)
"""
FORGED = (
    {"number": 7, "verdict": "nonsense"},
    {"reward": float("inf")},
    {"reward": float("nan"), "correct": True},
    {"reward": 1.0, "parts": {"": 1.0}},
    {"reward": 1.0, "cause": "x"},
    {"reward": 0.0, "status": "unavailable"},  # so that the answer would not count at all
    {"reward": 1.0, "status": "error", "cause": "\x1b[2J\n" * 1000},
    b"\x91" * 60_000,  # nested without end
)
KILLING = """
import os, signal
for number in signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM:
    for pid in -1, 1, os.getppid(), os.getpgid(0):
        try: os.kill(pid, number)
        except OSError: pass
"""
LIMITING = """
import os, resource
for kind in resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC:
    resource.prlimit(os.getppid(), kind, (0, 0))
"""
LEAVING = "open('/tmp/left', 'w').write('x')\nimport os\nos.mkdir('/tmp/left-too')"
WRITING_MEMORY = """
import os
memory = open(f"/proc/{os.getppid()}/mem", "r+b")
print(memory.read(1))
"""


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of the host."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture(params=WAYS, ids=lambda kind: kind.name)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    found = usable(request.param)
    monkeypatch.setattr(verifier_pool, "open_sandbox", lambda: found)
    return found


def _forging(forged: object) -> str:
    return FORGING.replace(
        "{forged}", repr(forged).replace("inf", "1e999").replace("nan", "1e999-1e999")
    )


def _trusting(tmp_path: Path, timeout_s: float = 20.0, **settings: object) -> TaskSettings:
    (tmp_path / "trusting.py").write_text(TRUSTING)
    options = {"path": "unused", "verifier": f"{tmp_path / 'trusting.py'}:verify"}
    return TaskSettings("jsonl", options, sandbox="always", timeout_s=timeout_s, **settings)  # type: ignore[arg-type]


def test_no_answer_meets_another(way: Way, tmp_path: Path, victim: subprocess.Popen[bytes]) -> None:
    """The verifier executes whatever it is given; every second answer is an honest one."""
    problem = Problem("p", [], "42")
    with VerifierPool(_trusting(tmp_path)) as pool:
        facts = {
            "port": 1,
            "secret": str(tmp_path / "trusting.py") + ".secret",
            "parent": os.getpid(),
            "victim": victim.pid,
            "forks": False,
        }
        (tmp_path / "trusting.py.secret").write_text("x")
        process = pool._workers[0]._child
        hostile = [REPLACING, KILLING, LIMITING, LEAVING, WRITING_MEMORY, "exit()"]
        hostile += [_forging(forged) for forged in FORGED]
        hostile += [attack(name, **facts) for name in ATTACKS if name not in _SLOW]
        answers = [answer for each in hostile for answer in (each, "x = 6 * 7", "x = 41")]
        verdicts = pool.verify([(problem, answer) for answer in answers])
        rewards = [0.0, 1.0, 0.0] * len(hostile)
        judged = zip(answers, verdicts, rewards, strict=True)
        assert [each for each in judged if each[1].reward != each[2]] == []
        assert all(verdict.status.judged for verdict in verdicts[1::3] + verdicts[2::3])
        assert victim.poll() is None and pool._workers[0]._child is process


# Each would take the whole of its second; one of them is enough, below.
_SLOW = {
    "fork bomb that swallows errors",
    "memory",
    "memory, shared",
    "output",
    "output, errors",
    "recursion",
    "SIGTERM ignored",
    "the processor",
}


def test_an_answer_that_takes_too_long_costs_its_own_time(way: Way, tmp_path: Path) -> None:
    problem = Problem("p", [], "42")
    with VerifierPool(_trusting(tmp_path, timeout_s=2.0, memory_mb=64)) as pool:
        answers = [ATTACKS["SIGTERM ignored"], "x = 42", "held = bytearray(1 << 30)", "x = 42"]
        answers[0] = textwrap.dedent(answers[0])
        late, first, large, second = pool.verify([(problem, answer) for answer in answers])
        assert late.status is VerdictStatus.TIMEOUT
        assert str(late.cause).startswith("no verdict within 2 s")
        assert large.status is VerdictStatus.ERROR and "MemoryError" in str(large.cause)
        assert first == second == Verdict(1.0, correct=True)


def test_a_sandbox_that_does_not_start_is_no_zero(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, and then the answer counts as not judged."""
    problem = Problem("p", [], "42")
    with VerifierPool(_trusting(tmp_path)) as pool:
        pool._workers[0].stop()
        with monkeypatch.context() as broken:
            broken.setattr(ways, "_inside", lambda *_, **__: ["/bin/false"])
            [lost] = pool.verify([(problem, "x = 42")])
        assert lost.status is VerdictStatus.UNAVAILABLE
        assert pool.verify([(problem, "x = 42")]) == [Verdict(1.0, correct=True)]


def test_without_a_sandbox_it_is_refused_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> Way:
        raise SandboxError("nothing here isolates")

    monkeypatch.setattr(verifier_pool, "open_sandbox", nothing)
    task, [problem, _] = _problems("spiral_matrix")
    with pytest.raises(SandboxError):
        VerifierPool(task)
    bare = TaskSettings(task.name, held_out=2, sandbox="none")
    with VerifierPool(bare) as pool:
        assert [each.reward for each in pool.verify([(problem, problem.answer)])] == [1.0]
    with VerifierPool(TaskSettings("arithmetic")):
        pass  # it executes nothing


def test_a_sandbox_does_not_show_a_home_directory(
    way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(TaskError, match=f"that is all of {tmp_path}; move it"):
        VerifierPool(_trusting(tmp_path)).__enter__()


NEIGHBOURLY = """
import ctypes, os
from helper import right
def verify(problem, answer):
    held = open("data").read() == "42" and open(__file__).read().startswith("\\nimport")
    parts = {"uid": float(os.getuid()), "capabilities": float(capabilities())}
    return {"reward": float(right(answer) and held), "parts": parts}
def capabilities():
    found = (ctypes.c_uint32 * 6)()
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert ctypes.CDLL(None).capget(header, found) == 0
    return any(found[0:2]) or any(found[3:5])  # effective and permitted, of 32 each
"""


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_a_verifier_reads_what_lies_beside_it_whoever_else_may(
    way: Way, tmp_path: Path, mode: int
) -> None:
    """Root's own files too, which the uid of a slot could not read; then it has root's name."""
    folder = tmp_path / "private" / "mine"
    folder.mkdir(parents=True)
    (folder / "v.py").write_text(NEIGHBOURLY)
    (folder / "helper.py").write_text("def right(answer): return answer == '42'")
    (folder / "data").write_text("42")
    for file in folder.iterdir():
        file.chmod(mode & 0o666)
    folder.chmod(mode)
    folder.parent.chmod(0o700)
    options = {"path": "unused", "verifier": f"{folder / 'v.py'}:verify"}
    with VerifierPool(TaskSettings("jsonl", options, sandbox="always")) as pool:
        [verdict, wrong] = pool.verify([(Problem("p", [], ""), text) for text in ("42", "41")])
    assert (verdict.cause, verdict.reward, wrong.reward) == (None, 1.0, 0.0)
    assert verdict.parts["capabilities"] == 0
    own_uid = os.geteuid() == 0 and mode == 0o755 and way.name == "bubblewrap"
    assert (verdict.parts["uid"] == os.geteuid()) is not own_uid


@pytest.mark.parametrize(
    ("generator", "evidence"),
    [
        ("game_of_life_halting", "'nan' in 8 of 8"),
        ("complex_arithmetic", "'nan' in 8 of 8"),
        ("puzzle24", "the answer to another problem in 8 of 8"),
        ("coin_flip", "'0' in 7 of 8"),
        ("string_insertion", "the prompt's last word is the answer in 7 of 8"),
    ],
)
def test_a_scorer_that_can_be_had_for_nothing_is_refused(generator: str, evidence: str) -> None:
    with pytest.raises(TaskError) as caught:
        open_task(TaskSettings(f"reasoning-gym/{generator}", held_out=8))
    assert evidence in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_right_by_accident_is_no_evidence() -> None:
    problems = [Problem(str(i), [{"role": "user", "content": "?"}], "0") for i in range(8)]
    assert degenerate.paid(problems, lambda problem, answer: float(answer == "0")) is None
    problems = [Problem(str(i), [{"role": "user", "content": "?"}], str(i)) for i in range(8)]
    assert (
        degenerate.paid(problems, lambda problem, answer: float(answer == problem.answer)) is None
    )
    assert degenerate.paid(problems, lambda problem, answer: 0.9) is None
    asked = [{"role": "user", "content": "Is it? Say yes or no"}]
    problems = [Problem(str(i), asked, ["yes", "no"][i % 7 == 0]) for i in range(8)]
    assert (
        degenerate.paid(problems, lambda problem, answer: float(answer == problem.answer)) is None
    )
    problems = [Problem(str(i), [{"role": "user", "content": "?"}], str(i)) for i in range(8)]
    found = degenerate.paid(problems, lambda problem, answer: 1.0)
    assert found == "its scorer pays in full for '' in 8 of 8 problems"


def test_what_a_scorer_prints_and_raises_while_it_is_tried_is_not_shown(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def loud(problem: Problem, answer: str) -> float:
        print("Error validating move")
        print(answer, file=sys.stderr)
        raise LookupError

    problems = [Problem(str(i), [{"role": "user", "content": "?"}], str(i)) for i in range(8)]
    assert degenerate.paid(problems, loud) is None
    assert capfd.readouterr() == ("", "")


def test_the_whole_of_reasoning_gym_has_scorers_that_do_not_raise_where_it_executes() -> None:
    """Nonsense to the nine is a zero, not an error."""
    unordered = {"polynomial_multiplication"}  # opened in processes of one order alone
    for generator in sorted(EXECUTING - {"puzzle24", "intermediate_integration"} - unordered):
        task, [problem, _] = _problems(generator)
        assert open_verifier(task)(problem, "<answer>import os</answer>")["reward"] == 0.0


HANGING = """
import sys
from interlock.config.tasks import TaskSettings
from interlock.records.rl import Problem
from interlock.sandbox.ways import WAYS
from interlock.tasks import verifier_pool
verifier_pool.open_sandbox = lambda: {kind.name: kind for kind in WAYS}[sys.argv[2]]()
options = {"path": "unused", "verifier": sys.argv[1] + ":verify"}
task = TaskSettings("jsonl", options, sandbox="always", timeout_s=600.0)
with verifier_pool.VerifierPool(task) as pool:
    print("ready", flush=True)
    pool.verify([(Problem("p", [], ""), sys.argv[3])])
"""
STAYING = """
import ctypes, os, signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
for attempt in (lambda: ctypes.CDLL(None).prctl(1, 0), os.setsid, lambda: os.setpgid(0, 0)):
    try: attempt()
    except OSError: pass
while True: time.sleep(1)
"""


def test_nothing_outlives_a_killed_run(way: Way, tmp_path: Path) -> None:
    """Nor an answer that forgets its parent, leaves its group and heeds no signal."""
    _trusting(tmp_path)
    command = [sys.executable, "-c", HANGING, str(tmp_path / "trusting.py"), way.name, STAYING]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stdout.readline() == b"ready\n"
        started: list[int] = []
        deadline = time.monotonic() + DEADLINE_S
        # The reaper, bubblewrap and its first process, what has loaded the verifier, its fork.
        while len(started) < (5 if way.name == "bubblewrap" else 3):
            assert time.monotonic() < deadline
            started = descendants(run.pid)
        time.sleep(0.5)  # for the answer to do what it can
        run.kill()
    assert gone(*started)


RUNNING = """
from interlock.sandbox.canary import open_sandbox
from interlock.sandbox.running import run
from interlock.sandbox.slots import Slot
def verify(problem, answer):
    with Slot() as slot:
        return run(open_sandbox(), answer, slot=slot).output.strip() == problem["answer"].encode()
"""


def test_a_verifier_may_run_a_program_and_judge_its_output_outside(tmp_path: Path) -> None:
    any_usable()
    (tmp_path / "v.py").write_text(RUNNING)
    options = {"path": "unused", "verifier": f"{tmp_path / 'v.py'}:verify"}
    answers = ["print(6 * 7)", "print(41)", "import socket\nsocket.socket()", "print('42')"]
    with VerifierPool(TaskSettings("jsonl", options, timeout_s=60.0)) as pool:
        verdicts = pool.verify([(Problem("p", [], "42"), answer) for answer in answers])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 0.0, 1.0]
