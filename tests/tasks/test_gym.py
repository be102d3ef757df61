import json
import subprocess
import sys
from typing import Any

import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reasoning_gym.utils import SYSTEM_PROMPTS

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks import open_task
from interlock.tasks.gym import open_verifier, pack, unpack

# Plain answers, several right answers, tuples in the entry, numpy scalars in the entry.
GENERATORS = ["chain_sum", "countdown", "arc_1d", "knights_knaves", "binary_matrix"]


def _task(generator: str, held_out: int = 4, **options: Any) -> TaskSettings:
    return TaskSettings(f"reasoning-gym/{generator}", options, held_out=held_out)


def _over_the_wire(problem: Problem) -> Problem:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(problem), type=Problem)


@pytest.mark.parametrize("generator", GENERATORS)
def test_the_gold_answer_scores_one_and_nonsense_does_not(generator: str) -> None:
    task = _task(generator)
    source, verify = open_task(task), open_verifier(task)
    for problem in map(_over_the_wire, source.held_out(4) + source.train(0, 4)):
        plain = verify(problem, problem.answer)
        assert plain == {"reward": 1.0, "parts": {"read": 1.0, "tagged": 0.0}}
        tagged = f"<think>no <answer>x</answer></think> so <answer> {problem.answer} </answer>."
        assert verify(problem, tagged) == {"reward": 1.0, "parts": {"read": 1.0, "tagged": 1.0}}
        assert verify(problem, "<answer>nonsense</answer>")["reward"] < 0.5
        assert verify(problem, "")["parts"] == {"read": 0.0, "tagged": 0.0}


def test_the_form_is_told_and_shown() -> None:
    told = open_task(_task("chain_sum")).train(1, 1)[0].messages
    assert [turn["role"] for turn in told] == ["system", "user"]
    assert told[0]["content"] == SYSTEM_PROMPTS["default"]
    source = open_task(_task("chain_sum", shots=2))
    first, second = source.train(1, 1)[0].messages, source.held_out(1)[0].messages
    assert first[0]["content"] == SYSTEM_PROMPTS["direct"]
    assert first[:-1] == second[:-1]  # the same examples in the same order
    verify = open_verifier(_task("chain_sum"))
    for asked, said in zip(first[1:-1:2], first[2:-1:2], strict=True):
        terms = asked["content"].partition(": ")[2].removesuffix(" =")
        assert said["content"] == f"<answer>{eval(terms)}</answer>"
    assert verify(source.train(1, 1)[0], "nothing")["reward"] == 0


def test_examples_are_neither_trained_on_nor_held_out() -> None:
    """Of sums of two digits there are few: all are drawn in time, but for the examples."""
    task = _task("chain_sum", held_out=8, shots=4, max_terms=2, max_digits=1)
    source = open_task(task)
    shown = {turn["content"] for turn in source.held_out(1)[0].messages[1:-1:2]}
    drawn = {p.messages[-1]["content"] for step in range(60) for p in source.train(step, 8)}
    held = {p.messages[-1]["content"] for p in source.held_out(8)}
    assert len(shown) == 4 and not shown & (drawn | held)
    without = open_task(_task("chain_sum", held_out=8, max_terms=2, max_digits=1))
    assert shown <= {p.messages[-1]["content"] for s in range(60) for p in without.train(s, 8)}


def test_a_system_turn_of_the_users_stands_alone() -> None:
    task = TaskSettings("reasoning-gym/chain_sum", held_out=1, system="Say it.")
    assert open_task(task).held_out(1)[0].messages[0]["content"] == "Say it."
    none = open_task(_task("chain_sum", form="none")).held_out(1)[0].messages
    assert [turn["role"] for turn in none] == ["user"]


def test_a_list_of_all_answers_earns_nothing_even_in_part() -> None:
    """The scorer of most generators pays len(right) / len(said) for an answer that holds it."""
    task = _task("letter_counting")
    verify, [problem] = open_verifier(task), open_task(task).held_out(1)
    listed = ", ".join(map(str, range(10)))
    for said in (
        listed,
        f"<answer>{listed}</answer>",
        listed.replace(", ", "\n"),
        f"It is {listed}",
    ):
        assert verify(problem, said)["reward"] == 0
    several = "".join(f"<answer>{number}</answer>" for number in range(10))
    assert verify(problem, several) == {"reward": 0.0, "parts": {"read": 0.0, "tagged": 0.0}}
    prose = f"The letter appears {problem.answer} times."
    assert verify(problem, prose) == {"reward": 1.0, "parts": {"read": 1.0, "tagged": 0.0}}


def test_problems_are_reproducible_distinct_and_split() -> None:
    source, again = open_task(_task("chain_sum")), open_task(_task("chain_sum"))
    assert source.train(5, 8) == again.train(5, 8)
    assert source.train(5, 8) != source.train(6, 8)
    assert source.held_out(4) == again.held_out(4)
    held_out = {problem.messages[-1]["content"] for problem in source.held_out(4)}
    training = [p.messages[-1]["content"] for step in range(20) for p in source.train(step, 8)]
    assert not held_out & set(training)


def test_a_generator_with_few_questions_draws_until_they_differ() -> None:
    task = _task("chain_sum", held_out=3, size=8, max_terms=2, max_digits=1)
    source = open_task(task)
    steps = [[p.id for p in source.train(step, 2)] for step in range(10)]
    assert all(len(set(ids)) == 2 for ids in steps)
    assert not {*steps[0], *steps[-1]} & {p.id for p in source.held_out(3)}


def test_another_process_draws_the_same_problems() -> None:
    """`list_functions` and `pool_matrix` use the global generators of Python and numpy."""
    script = (
        "import json; from interlock.config.tasks import TaskSettings\n"
        "from interlock.tasks import open_task\n"
        "for name in 'list_functions', 'pool_matrix':\n"
        "    source = open_task(TaskSettings(f'reasoning-gym/{name}', held_out=1))\n"
        "    print(json.dumps([problem.id for problem in source.train(0, 60)]))"
    )
    env = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-c", script]
    other = subprocess.run(command, env=env, capture_output=True, check=True).stdout
    for name, line in zip(["list_functions", "pool_matrix"], other.splitlines()[-2:], strict=True):
        source = open_task(_task(name, held_out=1))
        assert json.loads(line) == [problem.id for problem in source.train(0, 60)]


def test_a_generator_without_an_order_is_refused() -> None:
    if not sys.flags.hash_randomization:
        pytest.skip("PYTHONHASHSEED=0 is set")
    with pytest.raises(TaskError, match="set PYTHONHASHSEED=0"):
        open_task(_task("ransom_note"))


@pytest.mark.parametrize(
    ("generator", "options", "complaint"),
    [
        ("chain_sm", {}, "did you mean chain_sum"),
        ("chain_sum", {"min_term": 2}, "did you mean min_terms"),
        ("chain_sum", {"seed": 3}, "unknown option of task 'reasoning-gym/chain_sum': 'seed'"),
        ("chain_sum", {"min_terms": 5, "max_terms": 2}, "refuses the options"),
        ("chain_sum", {"min_terms": "2"}, "refuses the options"),
        ("chain_sum", {"form": "defalt"}, "did you mean default"),
        ("chain_sum", {"shots": 17}, "no whole number up to 16"),
        ("chain_sum", {"shots": 2, "form": "default"}, 'set form = "direct"'),
    ],
)
def test_bad_names_and_options_are_named(
    generator: str, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(TaskError) as caught:
        open_task(_task(generator, **options))
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


_HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
_VALUES = st.recursive(
    _HASHABLE | st.sets(_HASHABLE, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_HASHABLE, inner, max_size=3),
    max_leaves=8,
)


@given(_VALUES)
def test_entries_survive_the_wire_with_their_types(value: Any) -> None:
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(pack(value)))
    assert repr(unpack(wire)) == repr(value) or unpack(wire) == value
    assert type(unpack(wire)) is type(value)


def test_numpy_values_become_plain_and_others_are_refused() -> None:
    entry = {"a": numpy.float64(0.5), "b": numpy.str_("x"), "c": numpy.array([[1, 2]])}
    plain = unpack(msgspec.msgpack.decode(msgspec.msgpack.encode(pack(entry))))
    assert plain == {"a": 0.5, "b": "x", "c": [[1, 2]]}
    with pytest.raises(TaskError, match="a object into a problem"):
        pack({"a": object()})


def test_a_problem_far_along_is_drawn_too() -> None:
    far = _task("basic_arithmetic", size=10**12)  # held-out problems are the last of all
    assert len({problem.id for problem in open_task(far).held_out(4)}) == 4


@pytest.mark.slow
def test_reading_takes_nothing_from_the_right_answer_to_any_generator() -> None:
    """What a generator's own scorer gives its reference answer, it gives it bare and in tags."""
    script = """
from contextlib import redirect_stdout
from io import StringIO
from reasoning_gym.factory import DATASETS
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.tasks import gym
opened = less = 0
for name in sorted(DATASETS):
    task = TaskSettings(f"reasoning-gym/{name}", {"size": 40}, held_out=3)
    try:
        with redirect_stdout(StringIO()):
            problems, verify = gym.open_source(task).held_out(3), gym.open_verifier(task)
    except TaskError:
        continue
    opened += 1
    for problem in filter(lambda each: each.answer, problems):
        own = gym._dataset(task, size=10).score_answer(
            problem.answer, gym.unpack(problem.meta["entry"])
        )
        said = problem.answer, f"<answer>{problem.answer}</answer>"
        less += any(verify(problem, each)["reward"] < own for each in said)
print(opened, less)
"""
    env = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PYTHONHASHSEED": "0"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    opened, less = map(int, done.stdout.split())
    assert opened >= 100 and less == 0
