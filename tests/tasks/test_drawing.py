"""Drawing by pass rate: chances by hand, frequencies against them, what is learned and retired."""

import re
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.config.drawing import DrawSettings
from interlock.config.tasks import TaskSettings
from interlock.errors import TaskError
from interlock.records.metrics import PoolMetrics
from interlock.records.rl import Problem
from interlock.tasks.drawing import DrawnSource, GroupOutcome, chances, drawn, weight
from interlock.tasks.mixture import Mixture, open_tasks
from interlock.tasks.sources import ListSource

WHOLE = (0.0, 1.0)
WriteJsonl = Callable[..., Path]


def source(rates: dict[str, float | None], seed: int = 0, **how: Any) -> DrawnSource:
    problems = [Problem(name, [], "") for name in rates]
    known = {name: rate for name, rate in rates.items() if rate is not None}
    return DrawnSource(ListSource(problems, [], seed, rates=known), DrawSettings(**how), seed)


def outcome(problem: str, right: int, answers: int = 4, task: str = "") -> GroupOutcome:
    return GroupOutcome(problem, task, right, answers)


def ids(problems: list[Problem]) -> list[str]:
    return [problem.id for problem in problems]


def test_weights_by_hand() -> None:
    assert [weight(rate, WHOLE) for rate in (0.0, 0.25, 0.5, 1.0)] == [0, 0.1875, 0.25, 0]
    assert weight(None, WHOLE) == weight(None, (0.9, 1.0)) == 0.25  # to be found out
    assert [weight(rate, (0.25, 0.5)) for rate in (0.2, 0.25, 0.5, 0.6)] == [0, 0.1875, 0.25, 0]


def test_chances_by_hand() -> None:
    # 0.1 over four alike, 0.9 by 0.1875 : 0.25 : 0 : 0.0625.
    assert chances([0.1875, 0.25, 0.0, 0.0625], 0.1) == pytest.approx(
        [0.025 + 0.3375, 0.025 + 0.45, 0.025, 0.025 + 0.1125]
    )
    assert chances([0.0, 0.0], 0.1) == [0.5, 0.5]  # nothing is wanted: all are alike
    assert chances([0.25, 0.0], 1.0) == [0.5, 0.5]
    assert chances([5e-324, 0.0], 0.5) == [0.75, 0.25]  # the least that a float can be


@given(
    weights=st.lists(st.floats(0, 0.25), min_size=1, max_size=50),
    floor=st.floats(0.001, 1),
)
def test_none_is_starved_and_they_add_up(weights: list[float], floor: float) -> None:
    found = chances(weights, floor)
    assert sum(found) == pytest.approx(1)
    assert min(found) >= floor / len(weights) * (1 - 1e-9)


def test_frequencies_are_those_of_one_draw_after_the_other() -> None:
    """Against the sum over orders by hand: p(a) p(b) / (1 - p(a)), …"""
    likely, count, times = [0.4, 0.3, 0.2, 0.1], 2, 20_000
    expected = {
        (a, b): likely[a] * likely[b] / (1 - likely[a]) for a, b in permutations(range(4), 2)
    }
    assert sum(expected.values()) == pytest.approx(1)
    found = Counter(tuple(drawn(likely, count, Random(seed))) for seed in range(times))
    chi = sum((found[pair] - times * p) ** 2 / (times * p) for pair, p in expected.items())
    assert chi < 31.3  # 11 degrees of freedom: one in a thousand is above


def test_a_source_draws_by_its_rates_and_never_the_same_twice_in_a_step() -> None:
    rates = {"never": 0.0, "half": 0.5, "rare": 0.1, "always": 1.0, "new": None}
    drawing, times = source(rates, floor=0.2), 5000
    # 0.04 of the floor; 0.8 by 0.25 : 0.09 : 0.25.
    expected = {"never": 0.04, "half": 0.04 + 0.8 * 0.25 / 0.59, "rare": 0.04 + 0.8 * 0.09 / 0.59}
    expected |= {"always": 0.04, "new": expected["half"]}
    firsts = Counter(drawing.train(step, 1)[0].id for step in range(times))
    chi = sum((firsts[name] - times * p) ** 2 / (times * p) for name, p in expected.items())
    assert chi < 18.5  # 4 degrees of freedom
    assert all(len(set(ids(drawing.train(step, 4)))) == 4 for step in range(200))


def test_a_draw_hangs_on_seed_number_and_what_was_learned_alone() -> None:
    rates = {f"p{number}": number / 20 for number in range(20)}
    one, other = source(rates), source(rates)
    other.train(1, 5)
    assert ids(one.train(7, 8)) == ids(other.train(7, 8)) != ids(one.train(8, 8))
    assert ids(source(rates, seed=1).train(7, 8)) != ids(one.train(7, 8))
    one.learn([outcome("p3", 4)] * 3)  # retired
    assert ids(one.train(7, 8)) != ids(other.train(7, 8))
    other.learn([outcome("p3", 4)])
    other.learn([outcome("p3", 4)] * 2)  # in another step: only the order counts
    assert ids(one.train(7, 8)) == ids(other.train(7, 8))


def test_pass_rates_by_hand() -> None:
    drawing = source({"told": 0.5, "new": None}, newest=0.25, retire=0)
    drawing.learn([outcome("told", 4), outcome("new", 1), outcome("new", 3)])
    # 0.5 + (1 - 0.5) / 4; the first of an untried one whole, then 0.25 + (0.75 - 0.25) / 4.
    assert drawing.rates == {"told": 0.625, "new": 0.375}
    drawing.learn([outcome("told", 0, answers=1), outcome("told", 0, answers=0)])
    assert drawing.rates["told"] == 0.625  # of fewer than two answers nothing is learned
    drawing.learn([outcome("told", 1, answers=2)])
    assert drawing.rates["told"] == 0.625 - 0.125 / 4


def test_solved_in_a_row_it_is_retired_and_what_comes_late_of_it_changes_nothing() -> None:
    drawing = source({"a": None, "b": 1.0, "c": None}, retire=2)
    assert drawing.learn([outcome("a", 4), outcome("b", 4), outcome("a", 3)]) == []
    assert drawing.learn([outcome("a", 4)]) == []  # the wrong one in between broke the row
    assert drawing.learn([outcome("a", 2, answers=2), outcome("b", 4)]) == ["a", "b"]
    assert drawing.learn([outcome("a", 0)]) == []
    assert {name for step in range(50) for name in ids(drawing.train(step, 1))} == {"c"}
    never = source({"a": None}, retire=0)
    assert never.learn([outcome("a", 4)] * 100) == []


def test_standing_by_hand() -> None:
    rates = {"a": 0.0, "b": 0.01, "c": 0.25, "d": 0.5, "e": 0.51, "f": 0.99, "g": 1.0, "h": None}
    drawing = source(rates | {"i": None}, retire=1)
    drawing.learn([outcome("i", 4)])
    counted = {"0%": 1, "to 25%": 2, "to 50%": 1, "to 75%": 1, "below 100%": 1, "100%": 1}
    assert drawing.standing() == PoolMetrics(problems=9, retired=1, untried=1, rates=counted)


def test_it_ends_when_fewer_are_left_than_a_step_wants() -> None:
    drawing = source({"a": None, "b": None, "c": None}, retire=1)
    drawing.learn([outcome("a", 4)])
    assert not drawing.ended(2) and len(drawing.train(1, 2)) == 2
    drawing.learn([outcome("b", 4)])
    assert drawing.ended(2) and drawing.train(1, 2) == [] and not drawing.ended(1)
    with pytest.raises(TaskError, match="a step of 4 problems is to be drawn from 3"):
        drawing.check(1, 4)


def mixture(retire: int = 1) -> Mixture:
    names = {"a": 6, "b": 40}
    tasks = [
        TaskSettings("jsonl", label="a", weight=3.0, draw=DrawSettings(retire=retire)),
        TaskSettings("jsonl", label="b", weight=1.0),
    ]
    drawn_one = source({f"a{number}": None for number in range(names["a"])}, retire=retire)
    listed = ListSource([Problem(f"b{number}", [], "") for number in range(names["b"])], [], 0)
    return Mixture(tasks, [drawn_one, listed])


def test_of_several_tasks_weights_hold_until_one_has_ended() -> None:
    """Three quarters of eight problems; what has ended leaves its places, and shifts nothing."""
    tasks, whole = mixture(), mixture()
    for step in (1, 2, 3):
        assert Counter(p.task for p in tasks.train(step, 8)) == {"a": 6, "b": 2}
    assert tasks.learn([outcome("a: a1", 4, task="a"), outcome("b: b1", 4, task="b")]) == ["a: a1"]
    assert tasks.ended(8) == {"a": True, "b": False}
    assert tasks.standing()["a"].retired == 1 and tasks.standing().keys() == {"a"}
    for step in (4, 5):
        left = {p.id for p in whole.train(step, 8) if p.task == "b"}
        assert {p.id for p in tasks.train(step, 8)} == left and len(left) == 2


def settings(path: Any, **given: Any) -> list[TaskSettings]:
    how = DrawSettings(**given)
    return [TaskSettings("jsonl", options={"path": str(path)}, held_out=1, draw=how)]


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"question": f"{number}?", "answer": str(number)} | more


def test_the_column_of_the_data_is_read(write_jsonl: WriteJsonl) -> None:
    rates = [0, 1, 0.5, None, 0.25]
    rows = [row(number, pass_rate=rate) for number, rate in enumerate(rates)]
    tasks = open_tasks(settings(write_jsonl("a.jsonl", *rows, row(9))))
    held_out = int(tasks.held_out(1)[0].answer)
    told = [*rates, *[None] * 5][:held_out] + [*rates, *[None] * 5][held_out + 1 :]
    counts = tasks.standing()["jsonl"]
    assert counts.problems == 5 and sum(counts.rates.values()) + (counts.untried or 0) == 5
    assert counts.rates["0%"] == told.count(0) and counts.rates["100%"] == told.count(1)
    named = open_tasks(
        settings(write_jsonl("b.jsonl", *(row(n, p=0.5) for n in range(4))), column="p")
    )
    assert named.standing()["jsonl"].rates["to 50%"] == 3


@pytest.mark.parametrize(
    ("value", "said"),
    [(1.5, "is 1.5"), (-1, "is -1"), ("half", 'is "half"'), (True, "is true"), ([1], "is [1]")],
)
def test_what_is_no_pass_rate_is_named(write_jsonl: WriteJsonl, value: Any, said: str) -> None:
    path = write_jsonl("a.jsonl", row(1), row(2, pass_rate=value))
    expected = f"a.jsonl:2: the column 'pass_rate' {said}, no pass rate from 0 to 1"
    with pytest.raises(TaskError, match=re.escape(expected)):
        open_tasks(settings(path))


def test_a_column_that_no_row_has_is_named(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("a.jsonl", row(1), row(2))
    with pytest.raises(TaskError, match="no row has a value in the column 'rate'; mend"):
        open_tasks(settings(path, column="rate"))


def test_without_drawing_the_column_is_not_looked_at(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("a.jsonl", row(1, pass_rate="?"), row(2))
    plain = TaskSettings("jsonl", options={"path": str(path)}, held_out=1)
    assert open_tasks([plain]).standing() == {}


def test_a_procedure_makes_a_pool_and_a_list_has_one(write_jsonl: WriteJsonl) -> None:
    def tasks(pool: int) -> Mixture:
        return open_tasks([TaskSettings("arithmetic", held_out=8, draw=DrawSettings(pool=pool))])

    made = tasks(20)
    assert made.standing()["arithmetic"].problems == 20
    seen = {p.id for step in range(60) for p in made.train(step, 4)}
    assert len(seen) == 20 and not seen & {p.id for p in made.held_out(8)}
    with pytest.raises(TaskError, match=r"without an end; set draw\.pool to how many"):
        tasks(0)
    with pytest.raises(TaskError, match=r"more than the 4095 .* lower .*draw\.pool"):
        tasks(5000)
    with pytest.raises(TaskError, match=r"draw\.pool = 5 is of a task that makes its problems"):
        open_tasks(settings(write_jsonl("a.jsonl", row(1), row(2)), pool=5))
