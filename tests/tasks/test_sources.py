from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError, TooFewProblems
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
def test_every_epoch_of_a_list_shows_every_problem_once(size: int, count: int, seed: int) -> None:
    source = _list_source(size, seed)
    if count > size:
        with pytest.raises(TaskError, match="lower problems_per_step"):
            source.train(1, count)
        return
    steps = [_ids(source.train(step, count)) for step in range(1, 4 * size + 1)]
    assert all(len(set(step)) == count for step in steps)
    shown = [id for step in steps for id in step]
    for epoch in range(len(shown) // size):
        ids = shown[epoch * size : (epoch + 1) * size]
        assert sorted(ids) == sorted(f"p{i}" for i in range(size))


def test_the_first_steps_draw_every_row() -> None:
    """8 rows, 2 a step, 4 steps; and 7, of which one would be left over."""
    for size in (8, 7):
        source = _list_source(size)
        assert len({id for step in (1, 2, 3, 4) for id in _ids(source.train(step, 2))}) == size


def test_a_step_in_the_middle_of_a_long_run_needs_none_of_those_before() -> None:
    assert len(_ids(_list_source(7).train(10**9, 3))) == 3


def test_a_procedure_checks_what_it_will_draw() -> None:
    def unfit(problem: Problem) -> str | None:
        return "it is seven; take another" if problem.id == "p7" else None

    def opened(overlong: str) -> ProceduralSource:
        return ProceduralSource(
            _draw, seed=0, held_out=1, families=12, unfit=unfit, overlong=overlong
        )

    with pytest.raises(TaskError, match=r"problem p7: it is seven; take another, or have others"):
        opened("refuse").check(steps=20, count=4)
    source = opened("leave_out")
    source.check(steps=20, count=4)
    assert "p7" not in {id for step in range(1, 21) for id in _ids(source.train(step, 4))}


def test_a_list_is_shuffled_anew_every_epoch_and_reproducible_by_step() -> None:
    source = _list_source(20)
    epochs = [_ids(source.train(epoch, 20)) for epoch in (1, 2, 3)]
    assert all(set(epoch) == {f"p{i}" for i in range(20)} for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = _list_source(20)
    assert _ids(again.train(3, 20)) == epochs[2]
    assert _ids(again.train(1, 20)) == epochs[0]
    assert _ids(_list_source(20, seed=1).train(1, 20)) != epochs[0]


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
    source = ProceduralSource(_draw, seed=7, held_out=4, families=12)
    held_out = set(_ids(source.held_out(4)))
    assert len(held_out) == 4
    everything = {f"p{i}" for i in range(12)}
    for step in range(20):
        assert set(_ids(source.train(step, 8))) == everything - held_out


def test_a_procedure_with_too_few_problems_says_so() -> None:
    source = ProceduralSource(_draw, seed=7, held_out=4, families=20)  # no more than an upper bound
    with pytest.raises(TaskError, match="found 8 of 9"):
        source.train(0, 9)
    with pytest.raises(TaskError, match="found 12 of 13"):
        ProceduralSource(_draw, seed=7, held_out=13, families=20)


def test_what_does_not_fit_is_counted_where_too_few_are_found() -> None:
    def small(problem: Problem) -> str | None:
        return None if problem.id in ("p1", "p2") else "too long"

    with pytest.raises(TooFewProblems) as caught:
        ProceduralSource(_draw, 7, 3, families=20, unfit=small, overlong="leave_out")
    rng = Random("7/held-out")
    drawn = [_draw(rng).id for _ in range(1000 + 100 * 3)]
    unfit = sum(each not in ("p1", "p2") for each in drawn)
    assert f"found 2 of 3, and drew {unfit} that do not fit the model;" in str(caught.value)
    assert caught.value.most == 2


def test_more_problems_than_there_are_cost_no_drawing() -> None:
    def never(rng: Random) -> Problem:
        raise AssertionError("drawn")

    with pytest.raises(TaskError, match="13 different problems are more than the 12"):
        ProceduralSource(never, seed=7, held_out=13, families=12)
    source = ProceduralSource(_draw, seed=7, held_out=4, families=12)
    with pytest.raises(TaskError, match="9 different problems and 4 held out are more than the 12"):
        source.train(0, 9)


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
        ("", "known: arithmetic, code, gsm8k, jsonl, reasoning-gym/<generator>"),
    ],
)
def test_unknown_tasks_are_named(name: str, complaint: str) -> None:
    with pytest.raises(TaskError) as caught:
        open_task(TaskSettings(name))
    assert complaint in str(caught.value)


def test_the_bare_name_of_a_generator_is_told_in_full() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(TaskError) as caught:
        open_task(TaskSettings("chain_sum"))
    meant = "reasoning-gym/chain_sum"
    assert str(caught.value) == f"unknown task: 'chain_sum'; did you mean {meant}?"
    assert open_task(TaskSettings(meant, held_out=1)).train(0, 1)[0].id.startswith(meant)
