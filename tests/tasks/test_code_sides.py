"""The two sides of a program's trial, each before a counterpart that lies; without any sandbox."""

import gzip
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.processes.deadline import ProcessDeadline
from interlock.sandbox.dialogue import DialogueOver
from interlock.tasks import open_task
from interlock.tasks.code import grader_side, grading, problems, wire

LOOP = "for got, want in zip(map(f, [1, 2]), [1, 4]):\n    assert got == want"


class Replies:
    """A wire whose other end says these."""

    def __init__(self, *said: Any) -> None:
        self._said = deque(map(wire.dumped, said))

    def send(self, message: bytes) -> None:
        pass

    def receive(self) -> bytes:
        return self._said.popleft()


def examined(tests: str, *said: Any) -> str:
    given = {"seed": "0", "entry": "f", "preamble": "", "tests": tests}
    candidate = grader_side.Candidate(Replies(*said))  # type: ignore[arg-type]
    return grader_side.examined(given, candidate)[0]


@pytest.mark.parametrize("name", ["StopIteration", "StopAsyncIteration"])
def test_an_exception_that_ends_loops_passes_no_test(name: str) -> None:
    assert examined(LOOP, {"value": 1}, {"value": 4}) == grader_side.PASSED
    assert examined(LOOP, {"raised": [name, ""]}) == grader_side.WRONG


class Liar:
    """A program that says at its start what takes the reader forever to put into a set."""

    pid = 1

    def send(self, message: bytes, deadline: ProcessDeadline) -> None:
        pass

    def receive(self, deadline: ProcessDeadline, most: int) -> bytes:
        modulus = (1 << 61) - 1  # all its multiples have one hash
        slow = wire.dumped({"value": {number * modulus for number in range(700)}})
        if len(slow) > most:
            raise DialogueOver("too long")
        return slow


def test_what_is_read_outside_of_sandboxes_is_short() -> None:
    exam = grading.ProgramTrial(["x"], "f", "", "", "0", 5.0, 64)
    deadline = ProcessDeadline(5.0, [])
    sitting = grading._Sitting(exam, Liar(), Liar(), deadline)  # type: ignore[arg-type]
    assert sitting.graded().why == "the program ended when it was loaded (too long)"


@pytest.mark.parametrize(
    "content", [b"no archive", gzip.compress(b"{", mtime=0), gzip.compress(b"{}", mtime=0)[:-9]]
)
def test_a_broken_archive_is_named(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems, "open_sandbox", lambda: None)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(TaskError, match=r"rows\.jsonl\.gz is no compressed JSONL"):
        open_task(TaskSettings("code", {"path": str(path)}))


def test_the_template_of_a_task_reaches_its_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "open_sandbox", lambda: None)
    task = TaskSettings("code", held_out=1, template={"enable_thinking": False})
    source = open_task(task)
    assert [each.template for each in (*source.train(1, 1), *source.held_out(1))] == [
        {"enable_thinking": False}
    ] * 2
