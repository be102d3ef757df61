from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.config.schema import TaskSettings
from interlock.errors import TaskError
from interlock.records.rl import Problem
from interlock.tasks import open_task
from interlock.tasks.sources import ListSource, ProceduralSource, prompt


def _problem(number: int) -> Problem:
    return Problem(id=f"p{number}", messages=[], answer=str(number))


def _ids(problems: list[Problem]) -> list[str]:
    return [problem.id for problem in problems]


def _list_source(size: int, seed: int = 0) -> ListSource:
    held_out = [_problem(1000), _problem(1001)]
    return ListSource([_problem(i) for i in range(size)], held_out, seed, dropped=0)


@given(size=st.integers(1, 40), count=st.integers(1, 40), seed=st.integers(0, 3))
def test_an_epoch_of_a_list_shows_every_problem_at_most_once(
    size: int, count: int, seed: int
) -> None:
    source = _list_source(size, seed)
    if count > size:
        with pytest.raises(TaskError, match="lower problems_per_step"):
            source.train(0, count)
        return
    steps = size // count
    shown = [id for step in range(steps) for id in _ids(source.train(step, count))]
    assert len(shown) == len(set(shown)) == steps * count
    assert set(shown) <= {f"p{i}" for i in range(size)}


def test_a_list_is_shuffled_anew_every_epoch_and_reproducible_by_step() -> None:
    source = _list_source(20)
    epochs = [_ids(source.train(epoch, 20)) for epoch in range(3)]
    assert all(set(epoch) == {f"p{i}" for i in range(20)} for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = _list_source(20)
    assert _ids(again.train(2, 20)) == epochs[2]
    assert _ids(again.train(0, 20)) == epochs[0]
    assert _ids(_list_source(20, seed=1).train(0, 20)) != epochs[0]


def test_a_list_refuses_overlapping_splits() -> None:
    with pytest.raises(AssertionError):
        ListSource([_problem(1)], [_problem(1)], seed=0, dropped=0)


def test_held_out_is_a_prefix_and_has_an_end() -> None:
    source = _list_source(3)
    assert _ids(source.held_out(1)) == ["p1000"]
    assert _ids(source.held_out(2)) == ["p1000", "p1001"]
    with pytest.raises(TaskError, match="3 held-out problems asked for, but the task holds out 2"):
        source.held_out(3)


def _draw(rng: Random) -> Problem:
    return _problem(rng.randrange(12))


def test_a_procedure_draws_everything_but_the_held_out() -> None:
    source = ProceduralSource(_draw, seed=7, held_out=4)
    held_out = set(_ids(source.held_out(4)))
    assert len(held_out) == 4
    everything = {f"p{i}" for i in range(12)}
    for step in range(20):
        assert set(_ids(source.train(step, 8))) == everything - held_out


def test_a_procedure_with_too_few_problems_says_so() -> None:
    source = ProceduralSource(_draw, seed=7, held_out=4)
    with pytest.raises(TaskError, match="found 8 of 9"):
        source.train(0, 9)
    with pytest.raises(TaskError, match="found 12 of 13"):
        ProceduralSource(_draw, seed=7, held_out=13)


def test_the_prompt_puts_the_system_turn_first() -> None:
    user = {"role": "user", "content": "Q"}
    assert prompt(TaskSettings("arithmetic"), "Q") == [user]
    assert prompt(TaskSettings("arithmetic", system="Be brief."), "Q") == [
        {"role": "system", "content": "Be brief."},
        user,
    ]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("arithmetc", "unknown task: 'arithmetc'; did you mean arithmetic?"),
        ("arithmetic/2", "unknown task: 'arithmetic/2'"),
        ("reasoning-gym", "did you mean reasoning-gym/<generator>"),
        ("", "known: arithmetic, gsm8k, jsonl, reasoning-gym/<generator>"),
    ],
)
def test_unknown_tasks_are_named(name: str, complaint: str) -> None:
    with pytest.raises(TaskError) as caught:
        open_task(TaskSettings(name))
    assert complaint in str(caught.value)
