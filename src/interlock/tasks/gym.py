"""Any generator of reasoning-gym by name ("reasoning-gym/chain_sum"), judged by its own scorer.

The options are the generator's own settings, and `size`: how many problems it is asked for. Problem
number i of a generator depends on (task.seed, i) alone.
"""

import dataclasses
import hashlib
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy
import reasoning_gym
from reasoning_gym.factory import DATASETS
from reasoning_gym.utils import extract_answer

from interlock import thinking
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks import degenerate
from interlock.tasks.executing import executes, harmless
from interlock.tasks.options import unknown
from interlock.tasks.sources import ProceduralSource, Unfit, fits, prompt

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
    dataset = _dataset(task)

    def draw(rng: random.Random) -> Problem:
        index = rng.randrange(len(dataset))
        entry = _entry(dataset, index)
        digest = hashlib.sha256(entry["question"].encode()).hexdigest()
        return Problem(
            id=f"{task.name}:{digest[:16]}",
            messages=prompt(task, entry["question"]),
            answer="" if entry["answer"] is None else str(entry["answer"]),
            meta={"entry": pack(entry)},
            template=task.template,
        )

    families = len(dataset)
    source = ProceduralSource(
        draw, task.seed, task.held_out, families, unfit=unfit, overlong=task.overlong
    )
    problems = source.held_out(min(degenerate.PROBLEMS, task.held_out))
    if evidence := degenerate.paid(problems, open_verifier(task)):
        raise TaskError(f"{task.name} teaches nothing: {evidence}; choose another generator")
    return source


def open_verifier(task: TaskSettings) -> Callable[[Problem, str], float]:
    # Scoring looks at the settings and the entry, never at other problems.
    dataset = _dataset(task, size=10)

    def verify(problem: Problem, answer: str) -> float:
        text = thinking.after(answer)
        tagged = extract_answer(text)
        found = text.strip() if tagged is None else tagged
        if executes(task) and not harmless(found):
            return 0.0
        score: float = dataset.score_answer(found, unpack(problem.meta["entry"]))
        return score

    return verify


def _dataset(task: TaskSettings, **fixed: int) -> Any:
    """The generator with the task's options. Raises TaskError."""
    generator = task.name.partition("/")[2]
    if generator not in DATASETS:
        raise unknown("reasoning-gym generator", generator, DATASETS)
    known = {field.name for field in dataclasses.fields(DATASETS[generator][1])} - {"seed"}
    for name in task.options:
        if name not in known:
            raise unknown(f"option of task {task.name!r}", name, known)
    settings = {"size": _SIZE, **task.options, **fixed, "seed": task.seed}
    try:
        return reasoning_gym.create_dataset(generator, **settings)
    except Exception as error:  # each generator checks its settings in its own way, often by assert
        reason = str(error) or type(error).__name__
        raise TaskError(f"{task.name} refuses the options {task.options}: {reason}") from None


def _entry(dataset: Any, index: int) -> dict[str, Any]:
    """Problem `index`. A few generators also draw from the global generators, seeded here."""
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    random.seed(index)
    numpy.random.seed(index % 2**32)  # as far as it goes
    try:
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
