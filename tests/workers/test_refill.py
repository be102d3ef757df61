"""A pool over real engines, turn by turn: slots are refilled across units and new weights."""

import copy
from collections import Counter
from pathlib import Path

import pytest
from real_workers import SETTINGS, SLOTS, House, RealWorker, Weights

from interlock.records.metrics import WorkerState
from interlock.records.rl import Group, Problem, Sampling
from interlock.workers.generator import open_generator
from interlock.workers.generators import Purpose, Work

LONGEST = 60
SEED = 11


def problem(key: int) -> Problem:
    return Problem(f"p{key}", [{"role": "user", "content": f"Say {key}."}], str(key))


def make_work(*keys: int, completions: int = 2, exact: bool = False) -> Work:
    problems = tuple(problem(key) for key in keys)
    rule = Sampling(max_tokens=LONGEST)
    return Work(Purpose.TRAIN, keys, problems, completions, rule, SEED, exact)


def collected(house: House) -> dict[int, Group]:
    found = house.pool.collect(Purpose.TRAIN)
    assert all(each.group is not None for each in found)
    return {each.key: each.group for each in found if each.group is not None}


def run(house: House, most: int = 3000) -> dict[int, Group]:
    """Until nothing is left to do."""
    found: dict[int, Group] = {}
    for _ in range(most):
        house.turn()
        found |= collected(house)
        states = {facts.state for facts in house.pool.facts().values()}
        if not house.pool._queue.waiting and WorkerState.GENERATING not in states:
            return found
    raise AssertionError("goes on for ever")


def watched(house: House) -> list[RealWorker]:
    for worker in house.fleet.workers.values():
        worker.watch()
    return list(house.fleet.workers.values())


@pytest.mark.parametrize(("unit", "completions"), [(1, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("every", [1, 2])
def test_no_slot_is_free_while_work_waits(
    weights: Weights, every: int, unit: int, completions: int
) -> None:
    """Also where the pool looks at every second step only: what a worker looks ahead, a quarter of
    its slots, lasts that long. Without it 1.3 % of the slots' steps are idle then.
    """
    house = House(weights, "a", "b")
    house.ready()
    workers = watched(house)
    total = 180 // completions
    for first in range(0, total, unit):
        house.pool.order(make_work(*range(first, first + unit), completions=completions))
    house.pool.attend([])
    found: dict[int, Group] = {}
    while house.pool._queue.waiting:
        before = [len(worker.busy) for worker in workers]
        house.turn(every)
        found |= collected(house)
        assert all(len(w.busy) == n + every for w, n in zip(workers, before, strict=True))
    steps = [busy for worker in workers for busy in worker.busy]
    idle = sum(SLOTS - busy for busy in steps)
    assert len(steps) > 100 and idle <= 0.002 * SLOTS * len(steps) * (every > 1), Counter(steps)
    found |= run(house)
    assert sorted(found) == list(range(total))
    lengths = {len(c.tokens) for group in found.values() for c in group.completions}
    assert min(lengths) < 5 and max(lengths) == LONGEST


def test_nor_while_new_weights_are_loaded_and_proven(weights: Weights) -> None:
    house = House(weights, "a")
    house.ready()
    (worker,) = watched(house)
    for key in range(60):
        house.pool.order(make_work(key))
    house.pool.attend([])
    found: dict[int, Group] = {}
    turn, number = 0, 0
    while house.pool._queue.waiting:
        if turn % 40 == 10 and number < 3:
            number += 1
            house.serve(number)
        if turn % 40 == 20 and worker.fetching:
            worker.fetched()
        turn += 1
        house.turn()
        found |= collected(house)
    # The two sequences that prove the weights take slots like any other.
    assert number == 3 and worker.busy.count(SLOTS) == len(worker.busy), Counter(worker.busy)
    found |= run(house)
    assert sorted(found) == list(range(60)) and house.notes[1:] == []
    assert house.pool.facts()["a"].weight_version == 3
    versions = Counter(
        tuple(answer.weight_versions) for group in found.values() for answer in group.completions
    )
    assert {(0,), (0, 1), (1,), (1, 2), (2,), (2, 3), (3,)} <= versions.keys(), versions


def test_short_answers_arrive_before_long_ones_of_the_same_unit(weights: Weights) -> None:
    house = House(weights, "a")
    house.ready()
    house.pool.order(make_work(*range(SLOTS), completions=1))
    house.pool.attend([])
    arrived: list[int] = []
    for _ in range(LONGEST + 5):
        house.turn()
        arrived += [len(group.completions[0].tokens) for group in collected(house).values()]
    assert len(arrived) == SLOTS and arrived == sorted(arrived) and len(set(arrived)) > 3


def test_an_engine_that_decodes_with_old_weights_is_found_out_in_the_middle(
    weights: Weights,
) -> None:
    """Nothing that it drew since is used, and the other makes it again."""
    house = House(weights, "a", "b")
    house.ready()
    stale = house.fleet.workers["a"].engine
    stale._scheduler._decoder = copy.deepcopy(stale.decoder)
    for key in range(40):
        house.pool.order(make_work(key))
    house.pool.attend([])
    house.turn(5)
    house.serve(1)
    house.turn(5)
    for worker in house.fleet.workers.values():
        worker.fetched()
    found = collected(house)
    for _ in range(200):
        house.turn()
        found |= collected(house)
        if "a" not in house.fleet.workers:
            break
    kinds = [kind for kind, _, _ in house.notes]
    assert kinds.count("worker_unproven") == 1 and "worker_garbage" not in kinds
    assert "decode and prefill disagree at version 1" in house.notes[-1][1]
    found |= run(house)
    assert sorted(found) == list(range(40))
    for group in found.values():
        if group.worker == "a":
            assert {answer.weight_version for answer in group.completions} == {0}
            assert all(answer.weight_versions == [0] for answer in group.completions)


@pytest.mark.parametrize("turns", [1, 4, 9, 20])
def test_an_exact_unit_that_is_killed_in_the_middle_is_made_again_bit_by_bit(
    weights: Weights, chatty: Path, turns: int
) -> None:
    """Whatever of it was finished already."""
    house = House(weights, "a", "b")
    house.ready()
    units = [(0, 1, 2, 3, 4), (5, 6, 7)]
    for unit in units:
        house.pool.order(make_work(*unit, completions=3, exact=True))
    house.pool.attend([])
    found: dict[int, Group] = {}
    for _ in range(turns):
        house.turn()
        found |= collected(house)
    assert not found.keys() & set(units[0]), "none before all of them"
    house.lose("a")
    found |= run(house)
    generator = open_generator(SETTINGS, chatty, None, "b")
    for unit in units:
        rule = Sampling(max_tokens=LONGEST)
        whole = generator.generate([problem(key) for key in unit], 3, rule, SEED)
        assert [found[key] for key in unit] == whole
