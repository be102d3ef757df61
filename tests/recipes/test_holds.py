"""Chips' time shared out over roles and stages, against hand counts and a plain loop."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.recipes.holds import Held, Hold, Stages, held
from interlock.records.cost import HeldChip


def hold(place: str, begun: float, ended: float | None, chips: int = 1) -> Hold:
    return Hold("generator", "g", HeldChip("X", place), begun, ended, chips)


def test_a_chip_of_ones_own_is_held_from_start_to_end_whatever_stage_it_is() -> None:
    found = held([hold("a", 2.0, 10.0)], [(0.0, 0), (5.0, 1), (7.0, None)], 20.0)
    assert found == {(0, 0): Held(3, 3), (1, 0): Held(2, 2), (None, 0): Held(3, 3)}


def test_a_shared_chip_is_counted_once() -> None:
    found = held([hold("a", 0.0, None), hold("a", 4.0, 8.0), hold("b", 0.0, 10.0)], [], 10.0)
    assert found == {(None, 0): Held(8, 10), (None, 1): Held(2, 4), (None, 2): Held(10, 10)}


def test_a_worker_on_several_chips_holds_each() -> None:
    assert held([hold("a", 0.0, 3.0, chips=8)], [], 3.0) == {(None, 0): Held(24, 3)}


TIMES = st.integers(0, 12)
HOLDS = st.lists(st.tuples(st.sampled_from("ab"), TIMES, TIMES), max_size=6)


@given(HOLDS, st.lists(st.tuples(TIMES, st.sampled_from([0, 1, None])), max_size=4))
def test_as_a_loop_over_seconds_counts_it(
    made: list[tuple[str, int, int]], entered: list[tuple[int, int | None]]
) -> None:
    holds = [hold(place, *map(float, sorted(times))) for place, *times in made]
    stages: Stages = sorted(((float(at), stage) for at, stage in entered), key=lambda s: s[0])
    expected: dict[tuple[int | None, int], Held] = defaultdict(lambda: Held(0.0, 0.0))
    for second in range(12):
        stage = next((s for at, s in reversed(stages) if at <= second), None)
        there = [n for n, h in enumerate(holds) if h.begun <= second < (h.ended or 0.0)]
        for number in there:
            place = holds[number].chip.place
            beside = sum(holds[other].chip.place == place for other in there)
            expected[stage, number] = expected[stage, number].plus(Held(1 / beside, 1.0))
    found = held(holds, stages, 12.0)
    assert found.keys() == expected.keys()
    for key, share in expected.items():
        assert found[key] == pytest.approx(share)
