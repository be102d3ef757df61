"""Any generator of reasoning-gym by name ("reasoning-gym/chain_sum"), judged by its own scorer.

    system turn: the form ─┐
    `shots` worked examples ├─> Problem ──model──> turn ──claims.py──> one answer ──scorer──> reward
    the question ──────────┘

The options are the generator's own settings; `size`, how many problems it is asked for; and `form`
and `shots`, how the model is told in which form to answer. Problem number i of a generator depends
on (task.seed, i) alone.
"""

import dataclasses
import hashlib
import random
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import numpy
import reasoning_gym
from msgspec.structs import replace
from reasoning_gym.factory import DATASETS
from reasoning_gym.utils import SYSTEM_PROMPTS

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks import degenerate
from interlock.tasks.claims import claimed, kind_of, wordings
from interlock.tasks.executing import executes, harmless
from interlock.tasks.options import unknown
from interlock.tasks.sources import ProceduralSource, Unfit, fits, prompt

_FORMS = {**SYSTEM_PROMPTS, "none": ""}
_WITHOUT_REASONING = ("direct", "none")
_MOST_SHOTS = 16
_OURS = {"form", "shots"}  # of the options; the others are the generator's
_SIZE = 10_000  # some generators build tables of this length, one refuses more than 20,000
# These walk over sets of strings, whose order differs from one process to the next.
_UNORDERED = {
    "isomorphic_strings",
    "knight_swap",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
}
_COLLECTIONS: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def open_source(task: TaskSettings, unfit: Unfit = fits) -> ProceduralSource:
    generator = task.name.partition("/")[2]
    if generator in _UNORDERED and sys.flags.hash_randomization:
        raise TaskError(
            f"{task.name} gives other problems in every process; set PYTHONHASHSEED=0 in the "
            "environment, so that a resumed run sees the same ones"
        )
    dataset, told = _dataset(task), _told(task)
    shots = _shots(task, dataset)
    before = [turn for entry in shots for turn in _worked(entry, told)]
    if told.system is not None:
        task = replace(task, system=told.system)

    def draw(rng: random.Random) -> Problem:
        index = rng.randrange(len(dataset))
        entry = _entry(dataset, index)
        return Problem(
            id=_id(task, entry),
            messages=prompt(task, entry["question"], before),
            answer="" if entry["answer"] is None else str(entry["answer"]),
            meta={"entry": pack(entry)},
            template=task.template,
        )

    families = len(dataset)
    source = ProceduralSource(
        draw,
        task.seed,
        task.held_out,
        families,
        unfit=unfit,
        overlong=task.overlong,
        aside=[_id(task, entry) for entry in shots],
    )
    problems = source.held_out(min(degenerate.PROBLEMS, task.held_out))
    verify = open_verifier(task)
    if evidence := degenerate.paid(problems, lambda *answer: float(verify(*answer)["reward"])):
        raise TaskError(f"{task.name} teaches nothing: {evidence}; choose another generator")
    return source


def open_verifier(task: TaskSettings) -> Callable[[Problem, str], dict[str, Any]]:
    """Of its parts, "read" is 1 where the turn gives one answer, "tagged" where that is in tags."""
    # Scoring looks at the settings and the entry, never at other problems.
    dataset = _dataset(task, size=10)

    def verify(problem: Problem, answer: str) -> dict[str, Any]:
        kind = kind_of(problem.answer)
        claim = claimed(answer, kind)
        parts = {"read": float(claim is not None), "tagged": float(claim is not None)}
        if claim is None:
            return {"reward": 0.0, "parts": parts}
        entry = unpack(problem.meta["entry"])
        scores = []
        for each in wordings(claim, kind):
            if not executes(task) or harmless(each):
                score = float(dataset.score_answer(each, entry))
                scores.append(0.0 if _dilutes(each, problem.answer, score) else score)
        parts["tagged"] = float(claim.form == "tag")
        return {"reward": max(scores, default=0.0), "parts": parts}

    return verify


def open_solver(task: TaskSettings) -> Callable[[Problem], str]:
    """A problem's reference answer as the task asks for it, which its own scorer pays in full.

    Raises TaskError where the form asks for reasoning, which no generator has, where examples show
    the form already, and for a problem whose answer is not paid in full.
    """
    form = task.options.get("form")
    if task.options.get("shots"):
        raise TaskError(f"{task.name}: shots show what worked teaches; remove one of them")
    if task.system is None and form not in _WITHOUT_REASONING:
        raise TaskError(
            f"{task.name} has answers without reasoning, and form = {form or 'default'!r} asks for "
            'reasoning; set options.form = "direct" for worked'
        )
    told, verify = _told(task), open_verifier(task)

    def solve(problem: Problem) -> str:
        turn = told.worked.format(problem.answer)
        if (paid := verify(problem, turn)["reward"]) < 1:
            raise TaskError(
                f"{task.name} pays its own answer {problem.answer!r} {paid:g} instead of 1; give "
                "data in place of worked"
            )
        return turn

    return solve


def _dilutes(answer: str, reference: str, score: float) -> bool:
    """Whether it is paid in part for naming the right answer among other things.

    Many scorers give len(right) / len(said) for that: a list of all answers would earn something.
    """
    return 0 < score < 1 and bool(reference) and answer != reference and reference in answer


class _Told(NamedTuple):
    """How a model learns of the form."""

    system: str | None  # None: not by us
    worked: str  # an example's answer stands in it


def _told(task: TaskSettings) -> _Told:
    """Raises TaskError."""
    form, shots = task.options.get("form"), task.options.get("shots", 0)
    if form is not None and (not isinstance(form, str) or form not in _FORMS):
        raise unknown(f"form of task {task.name!r}", str(form), _FORMS)
    if form is not None and task.system is not None and form != "none":
        raise TaskError(
            f"{task.name}: form = {form!r} and system both say what the system turn is; remove one"
        )
    if not isinstance(shots, int) or isinstance(shots, bool) or not 0 <= shots <= _MOST_SHOTS:
        raise TaskError(f"{task.name}: shots = {shots!r} is no whole number up to {_MOST_SHOTS}")
    form = form or ("none" if task.system is not None else "direct" if shots else "default")
    if shots and form not in _WITHOUT_REASONING:
        raise TaskError(
            f"{task.name}: shots show answers without reasoning, and form = {form!r} asks for it; "
            'set form = "direct", or remove shots'
        )
    return _Told(_FORMS[form] or None, "{}" if form == "none" else "<answer>{}</answer>")


def _shots(task: TaskSettings, dataset: Any) -> list[dict[str, Any]]:
    """The examples that every problem begins with: different ones, with their answers."""
    rng, found = random.Random(f"{task.seed}/shots"), dict[str, dict[str, Any]]()
    for _ in range(100 * task.options.get("shots", 0)):
        entry = _entry(dataset, rng.randrange(len(dataset)))
        if entry["answer"] is None:
            raise TaskError(f"{task.name} has problems without a reference answer; remove shots")
        found[entry["question"]] = entry
        if len(found) == task.options["shots"]:
            break
    return list(found.values())


def _worked(entry: dict[str, Any], told: _Told) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": entry["question"]},
        {"role": "assistant", "content": told.worked.format(entry["answer"])},
    ]


def _id(task: TaskSettings, entry: dict[str, Any]) -> str:
    digest = hashlib.sha256(entry["question"].encode()).hexdigest()
    return f"{task.name}:{digest[:16]}"


def _dataset(task: TaskSettings, **fixed: int) -> Any:
    """The generator with the task's options. Raises TaskError."""
    generator = task.name.partition("/")[2]
    if generator not in DATASETS:
        raise unknown("reasoning-gym generator", generator, DATASETS)
    known = {field.name for field in dataclasses.fields(DATASETS[generator][1])} - {"seed"}
    for name in task.options:
        if name not in known | _OURS:
            raise unknown(f"option of task {task.name!r}", name, known | _OURS)
    own = {name: value for name, value in task.options.items() if name not in _OURS}
    settings = {"size": _SIZE, **own, **fixed, "seed": task.seed}
    try:
        return reasoning_gym.create_dataset(generator, **settings)
    except Exception as error:  # each generator checks its settings in its own way, often by assert
        reason = str(error) or type(error).__name__
        raise TaskError(f"{task.name} refuses the options {task.options}: {reason}") from None


def _entry(dataset: Any, index: int) -> dict[str, Any]:
    """Problem `index`. A few generators also draw from the global generators, seeded here.

    And a few print on their way, which is kept out of what a verb says on stdout.
    """
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    random.seed(index)
    numpy.random.seed(index % 2**32)  # as far as it goes
    try:
        with redirect_stdout(sys.stderr):
            entry: dict[str, Any] = dataset[index]
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
    return entry


def pack(value: Any) -> Any:
    """An entry as plain msgpack types that `unpack` turns back: scorers tell tuples from lists.

    Raises TaskError for a type that has no such form.
    """
    match value:
        case None | bool():
            return value
        case int():
            return int(value) if -(1 << 63) <= value < 1 << 63 else {"int": str(value)}
        case float():
            return float(value)  # numpy's float64 and str_ are subclasses that msgpack refuses
        case str():
            return str(value)
        case list():
            return [pack(item) for item in value]
        case tuple() | set() | frozenset():
            kind = next(kind for kind in _COLLECTIONS.values() if isinstance(value, kind))
            return {kind.__name__: [pack(item) for item in value]}
        case dict():
            return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    if hasattr(value, "tolist"):  # numpy's other scalars, and arrays
        return pack(value.tolist())
    raise TaskError(f"reasoning-gym put a {type(value).__name__} into a problem; it cannot be sent")


def unpack(value: Any) -> Any:
    """The entry that `pack` was given, but for numpy's types, which come back as Python's."""
    match value:
        case list():
            return [unpack(item) for item in value]
        case {"int": digits}:
            return int(digits)
        case {"dict": pairs}:
            return {unpack(key): unpack(item) for key, item in pairs}
        case dict():
            [(name, items)] = value.items()
            return _COLLECTIONS[name](unpack(item) for item in items)
    return value
