"""The pool against verifiers that misbehave. Every fault is planted in a file of the user's own."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from remains import gone

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem, Verdict, VerdictStatus
from interlock.tasks.verifier_pool import VerifierPool

TIMEOUT_S = 0.5
FAULTS = """
import ctypes, math, os, signal, subprocess, sys, threading, time

class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no")

def hang(): time.sleep(1e9)
def hang_and_ignore_signals():
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    hang()
def hold_the_gil(): return len(str(9**9**9))
def raises(): raise ValueError("wrong kind of answer")
def raises_unspeakable(): raise Unspeakable
def raises_surrogates(): raise ValueError("\\ud800" * 5000)
def exits(): sys.exit(0)
def dies(): os._exit(3)
def segfaults(): ctypes.string_at(0)
def killed(): os.kill(os.getpid(), signal.SIGKILL)
def bombs(): return len(bytearray(1 << 34))
def bombs_slowly():
    hoard = []
    while True: hoard.append(bytearray(1 << 20))
def fills_the_disk():
    with open("big", "wb") as file:
        for _ in range(1 << 12): file.write(b"x" * (1 << 20))
def recurses(): return recurses()
def none(): return None
def text(): return "1.0"
def nan(): return math.nan
def inf(): return math.inf
def huge(): return 10**400
def true(): return True
def false(): return False
def numpys():
    import numpy
    return numpy.bool_(True)
def in_parts():
    return {"reward": 0.7, "correct": False, "parts": {"answer": 1, "length": -0.3}}
def half(): return 0.5
def one(): return 1
def prints():
    print("junk" * 10_000, flush=True); os.write(1, b"junk"); sys.stderr.write("junk" * 10_000)
    return 1.0
def floods():
    for stream in (sys.stdout, sys.stderr):
        print("junk" * 2_500_000, file=stream, flush=True)
    subprocess.run(["sh", "-c", "head -c 10000000 /dev/zero >&2"], check=True)
    return 1.0
def writes_into_the_pipe():
    for fd in range(3, 20):
        try: os.write(fd, b"\\xff" * 64)
        except OSError: pass
    return 1.0
def closes_everything(): os.closerange(0, 100); hang()
def forks_and_returns(): os.fork(); return 1.0
def environment(): return float(os.environ.get("SECRET") is None)
def orphan():
    child = subprocess.Popen(["sleep", "1000"])
    open(os.environ["TMPDIR"] + "/orphan", "w").write(str(child.pid))
    hang()
def quiet_orphan():
    return float(subprocess.Popen(["sleep", "1000"]).pid)

def verify(problem, answer):
    return globals()[problem["answer"]]() if problem["answer"] != "echo" else float(answer)
"""

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("quiet")]


def _problem(answer: str, id: str = "p") -> Problem:
    return Problem(id=id, messages=[], answer=answer)


@contextmanager
def _pool(
    directory: Path, source: str = FAULTS, workers: int = 1, timeout_s: float = TIMEOUT_S
) -> Iterator[VerifierPool]:
    (directory / "faults.py").write_text(source)
    options = {"path": "unused", "verifier": f"{directory / 'faults.py'}:verify"}
    task = TaskSettings("jsonl", options, workers=workers, timeout_s=timeout_s, memory_mb=256)
    with VerifierPool(task) as pool:
        yield pool


def _between_good_ones(pool: VerifierPool, fault: str) -> Verdict:
    """The verdict on `fault`, having checked that its neighbours are judged as ever."""
    before, verdict, *after = pool.verify([(_problem(name), "") for name in ["half", fault, "one"]])
    assert before == Verdict(0.5) and after == [Verdict(1.0)]
    return verdict


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("hang", "no verdict within 0.5 s"),
        ("hang_and_ignore_signals", "no verdict within 0.5 s"),
        ("hold_the_gil", "no verdict within 0.5 s"),
        ("raises", "ValueError: wrong kind of answer"),
        ("raises_unspeakable", "Unspeakable"),
        ("raises_surrogates", "ValueError: ⟨U+D800⟩"),
        ("exits", "SystemExit: 0"),
        ("dies", "the verifier's process ended (exit code 3)"),
        ("segfaults", f"the verifier's process ended (signal {signal.SIGSEGV:d})"),
        ("killed", f"the verifier's process ended (signal {signal.SIGKILL:d})"),
        ("bombs", "MemoryError"),
        ("bombs_slowly", "MemoryError"),
        ("fills_the_disk", "OSError: File too large"),
        ("recurses", "RecursionError"),
        ("none", "TypeError: the verifier returned a NoneType, not a number"),
        ("text", "TypeError: the verifier returned a str, not a number"),
        ("nan", "ValueError: the verifier returned nan"),
        ("inf", "ValueError: the verifier returned inf"),
        ("huge", "ValueError: the verifier returned inf"),
        ("writes_into_the_pipe", "the verifier wrote into the pool's pipe"),
        ("closes_everything", "the verifier's process ended (signal 9)"),
    ],
)
def test_a_fault_scores_zero_and_spares_its_neighbours(
    fault: str, cause: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Only what hangs is made to wait for the deadline; a busy machine needs time for the others.
    timeout_s = TIMEOUT_S if cause.startswith("no verdict") else 10.0
    with _pool(tmp_path, timeout_s=timeout_s) as pool:
        started = time.monotonic()
        with caplog.at_level(logging.WARNING):
            verdict = _between_good_ones(pool, fault)
        assert time.monotonic() - started < 8
        assert verdict.reward == 0.0 and not verdict.right and verdict.cause is not None
        assert verdict.cause.startswith(cause) and len(verdict.cause) <= 500
        expected = {
            "no verdict": VerdictStatus.TIMEOUT,
            "the verifier's process": VerdictStatus.CRASHED,
        }
        assert verdict.status is next(
            (status for said, status in expected.items() if cause.startswith(said)),
            VerdictStatus.ERROR,
        )
        assert pool.errors == 1
        assert "verifier failed on p: " in caplog.text


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("true", Verdict(1.0, True)),
        ("false", Verdict(0.0, False)),
        ("prints", Verdict(1.0)),
        ("floods", Verdict(1.0)),  # 10 MB thrice, none of which is kept or counted as a file's
        ("forks_and_returns", Verdict(1.0)),
        ("numpys", Verdict(1.0, True)),
        ("in_parts", Verdict(0.7, False, {"answer": 1.0, "length": -0.3})),
    ],
)
def test_harmless_oddities_score_as_they_say(name: str, verdict: Verdict, tmp_path: Path) -> None:
    with _pool(tmp_path) as pool:
        assert _between_good_ones(pool, name) == verdict
        assert pool.errors == 0


def test_many_faults_in_a_row_and_over_several_calls(tmp_path: Path) -> None:
    names = ["dies", "raises", "exits", "one", "bombs", "hang"]
    with _pool(tmp_path, workers=2) as pool:
        for call in range(2):
            verdicts = pool.verify([(_problem(name), "") for name in names])
            assert [v.reward for v in verdicts] == [float(name == "one") for name in names]
            assert pool.errors == 5 * (call + 1)


def test_verdicts_keep_the_order_over_workers(tmp_path: Path) -> None:
    with _pool(tmp_path, workers=3) as pool:
        verdicts = pool.verify([(_problem("echo"), str(i)) for i in range(200)])
        assert [verdict.reward for verdict in verdicts] == list(range(200))
        assert pool.verify([]) == []


def test_children_of_a_hung_verifier_are_killed_with_it(tmp_path: Path) -> None:
    with _pool(tmp_path) as pool:
        assert _between_good_ones(pool, "orphan").cause == "no verdict within 0.5 s"
        pid = int((Path(pool._directory.name) / "orphan").read_text())
        assert gone(pid)


def test_leaving_the_pool_kills_everything_and_cleans_up(tmp_path: Path) -> None:
    with _pool(tmp_path) as pool:
        [verdict] = pool.verify([(_problem("quiet_orphan"), "")])
        directory, worker = pool._directory.name, pool._workers[0]._child
        assert worker is not None and os.path.isdir(directory)
    assert gone(int(verdict.reward))
    assert gone(worker.pid) and not os.path.exists(directory)


def test_a_worker_ends_when_its_pool_does(tmp_path: Path) -> None:
    """The pool's end of the socket closes with its process, whatever ended that."""
    with _pool(tmp_path) as pool:
        worker = pool._workers[0]._child
        assert worker is not None
        worker._link.shutdown(socket.SHUT_RDWR)
        assert worker._process.wait(5) == 0


POOL = """
import sys
from interlock.config.tasks import TaskSettings
from interlock.tasks.verifier_pool import VerifierPool
options = {"path": "unused", "verifier": sys.argv[1] + ":verify"}
with VerifierPool(TaskSettings("jsonl", options)):
    pass
"""


def test_a_verifier_that_hangs_at_its_import_dies_with_a_killed_run(tmp_path: Path) -> None:
    told = tmp_path / "told"
    (tmp_path / "slow.py").write_text(
        f"import os, time\nopen({str(told)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, "-c", POOL, str(tmp_path / "slow.py")]
    with subprocess.Popen(command, env=environment) as run:
        deadline = time.monotonic() + 60
        while not (told.exists() and told.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        run.kill()
    assert gone(int(told.read_text()), seconds=5)


def test_the_verifier_sees_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    with _pool(tmp_path) as pool:
        assert pool.verify([(_problem("environment"), "")]) == [Verdict(1.0)]


def test_a_verifier_imports_and_opens_what_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the run was started, and however its path was given."""
    beside = tmp_path / "verifiers"
    (beside / "package").mkdir(parents=True)
    (beside / "neighbour.py").write_text("BONUS = 0.5\n")
    (beside / "package" / "__init__.py").write_text("from package.inner import more\n")
    (beside / "package" / "inner.py").write_text("def more(): import neighbour; return 0.125\n")
    (beside / "table.txt").write_text("0.25")
    source = """
from __future__ import annotations
from dataclasses import dataclass
import neighbour

AT_IMPORT = float(open("table.txt").read())

@dataclass
class Found:
    reward: float

def verify(problem, answer):
    from package import more
    return Found(neighbour.BONUS + AT_IMPORT + float(open("table.txt").read()) + more())
"""
    (beside / "mine.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    for place in ("verifiers/mine.py", str(beside / "mine.py")):
        task = TaskSettings("jsonl", {"path": "unused", "verifier": f"{place}:verify"})
        with VerifierPool(task) as pool:
            assert pool.verify([(_problem("x"), "")]) == [Verdict(1.125)]


def test_any_text_reaches_the_verifier_unchanged(tmp_path: Path) -> None:
    texts = ["", "\x00", "\ud800 \udfff", "é\n\U0001f600", "x" * 300_000]
    source = f"texts = {texts!r}\ndef verify(problem, answer):\n    return texts.index(answer)\n"
    with _pool(tmp_path, source) as pool:
        verdicts = pool.verify([(_problem("x"), text) for text in texts])
        assert [verdict.reward for verdict in verdicts] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("raise RuntimeError('broken file')", "does not load: RuntimeError: broken file"),
        ("def other(): pass", "has no function 'verify'"),
        ("def verify(row): return 1", "cannot be called with the row and the answer's text"),
        ("def verify(:", "does not load: SyntaxError"),
        ("import os; os._exit(7)", "the verifier's process ended (exit code 7)"),
        ("hoard = bytearray(1 << 34)", "does not load: MemoryError"),
    ],
)
def test_a_verifier_that_does_not_load_is_the_users_error(
    source: str, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError) as caught, _pool(tmp_path, source):
        pass
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_a_verifier_that_no_longer_loads_costs_its_answers_only(tmp_path: Path) -> None:
    with _pool(tmp_path) as pool:
        (tmp_path / "faults.py").write_text("raise RuntimeError('edited')")
        good, dead, lost = pool.verify([(_problem(name), "") for name in ["one", "dies", "one"]])
        assert good == Verdict(1.0) and dead.status is VerdictStatus.CRASHED
        assert lost.reward == 0.0 and "RuntimeError: edited" in str(lost.cause)
        assert lost.status is VerdictStatus.UNAVAILABLE


UNAVAILABLE = """
from pathlib import Path
from interlock.errors import Unavailable
def verify(problem, answer):
    tried = Path(problem["id"])
    before = len(tried.read_text()) if tried.exists() else 0
    tried.write_text("x" * (before + 1))
    if before < int(problem["answer"]):
        raise Unavailable(f"the service is\\ndown ({before})")
    return 0.5
"""


def test_what_is_not_there_is_asked_again_and_then_left_out(tmp_path: Path) -> None:
    with _pool(tmp_path, UNAVAILABLE, timeout_s=10.0) as pool:
        process = pool._workers[0]._child
        asked = [_problem(str(fails), f"p{fails}") for fails in (0, 1, 3, 4, 99)]
        verdicts = pool.verify([(problem, "") for problem in asked])
        lost = Verdict.failed(VerdictStatus.UNAVAILABLE, "the service is down (3)")
        assert verdicts == [Verdict(0.5)] * 3 + [lost, lost]
        assert [(tmp_path / f"p{fails}").read_text() for fails in (0, 1, 3, 4, 99)] == [
            "x" * tries for tries in (1, 2, 4, 4, 4)
        ]
        assert (pool.errors, pool.retried) == (2, 4 + 3 + 3)
        assert pool._workers[0]._child is process  # nothing was started anew for it


def test_arithmetic_answers_take_milliseconds() -> None:
    pairs = [(_problem("46"), f"12 + 34 = {number}") for number in range(64)]
    with VerifierPool(TaskSettings("arithmetic")) as pool:
        elapsed, verdicts = [], []
        for _ in range(5):
            started = time.monotonic()
            verdicts = pool.verify(pairs)
            elapsed.append(time.monotonic() - started)
        assert [index for index, verdict in enumerate(verdicts) if verdict.reward == 1.0] == [46]
        assert min(elapsed) < 0.1


@pytest.mark.parametrize(
    ("task", "answer", "meta"),
    [
        (TaskSettings("gsm8k", {"path": "unused"}), "18", {}),
        (
            TaskSettings("reasoning-gym/chain_sum"),
            "18",
            {"entry": {"dict": [["question", "9 + 9"], ["answer", "18"]]}},
        ),
    ],
)
def test_every_task_has_a_verifier_in_the_pool(task: TaskSettings, answer: str, meta: dict) -> None:
    problem = Problem(id="p", messages=[], answer=answer, meta=meta)
    with VerifierPool(task) as pool:
        verdicts = pool.verify([(problem, "18"), (problem, "19"), (problem, "")])
        assert [(verdict.reward, verdict.right) for verdict in verdicts] == [
            (1.0, True), (0.0, False), (0.0, False)
        ]  # fmt: skip


def test_math_that_never_ends_is_cut_short() -> None:
    problem = _problem("18")
    with VerifierPool(TaskSettings("gsm8k", {"path": "unused"}, timeout_s=2.0)) as pool:
        endless, right = pool.verify([(problem, r"\boxed{9^{9^{9^{9}}}!}"), (problem, "18")])
        assert endless.reward == 0.0 and right.reward == 1.0


def test_a_missing_verifier_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "raise ModuleNotFoundError(\"No module named 'math_verify'\", name='math_verify')\n"
    (tmp_path / "math_verify.py").write_text(missing)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    task = TaskSettings("jsonl", options={"path": str(tmp_path / "rows.jsonl")})
    needs = r"it needs the package 'math_verify'; pip install 'interlock\[tasks\]'$"
    says = f"does not load: TaskError: {needs}"
    with pytest.raises(TaskError, match=says), VerifierPool(task):
        pass
