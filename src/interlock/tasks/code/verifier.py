"""The verifier of answers that are programs; it runs outside of the sandboxes that it starts."""

from collections.abc import Callable

from interlock.config.tasks import TaskSettings
from interlock.records.rl import Problem, Verdict, VerdictStatus
from interlock.sandbox.canary import open_sandbox
from interlock.tasks.code import extract
from interlock.tasks.code.grading import Graded, Grader, ProgramEnd, ProgramTrial
from interlock.tasks.code.problems import data_file, options_of
from interlock.text import one_line

_MOST_CHARACTERS = 1 << 18  # of a program
_WORDS = 400

# What says that a program is wrong is a verdict; what only says that it has none has a name.
_FAILED = {
    ProgramEnd.LATE: VerdictStatus.TIMEOUT,
    ProgramEnd.STARVED: VerdictStatus.STARVED,
    ProgramEnd.ENDED: VerdictStatus.CRASHED,
    ProgramEnd.BROKEN: VerdictStatus.ERROR,
}


def open_verifier(task: TaskSettings) -> Callable[[Problem, str], bool | Verdict]:
    """Raises SandboxError where nothing isolates, TaskError for wrong options."""
    grader = Grader(open_sandbox(), hidden=[data_file(options_of(task))])

    def verify(problem: Problem, answer: str) -> bool | Verdict:
        return verdict(graded(problem, answer, grader, task), problem)

    return verify


def graded(problem: Problem, answer: str, grader: Grader, task: TaskSettings) -> Graded:
    """Raises Unavailable."""
    entry, preamble = problem.meta["entry"], problem.meta["preamble"]
    code = extract.program(answer, entry)
    if len(code) > _MOST_CHARACTERS:
        return Graded(ProgramEnd.WRONG, f"a program of {len(code):,} characters")
    return grader.grade(
        ProgramTrial(
            variants=extract.variants(code, preamble, entry),
            entry=entry,
            preamble=preamble,
            tests=problem.meta["tests"],
            seed=problem.id,
            seconds=task.timeout_s,
            memory_mb=task.memory_mb,
        )
    )


def verdict(found: Graded, problem: Problem) -> bool | Verdict:
    """What a verifier returns of it."""
    if found.outcome not in _FAILED:
        return found.outcome is ProgramEnd.PASSED
    whose = f"the tests of {problem.id}: " if found.outcome is ProgramEnd.BROKEN else ""
    return Verdict.failed(_FAILED[found.outcome], one_line(f"{whose}{found.why}", _WORDS))
