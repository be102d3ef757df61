"""Ledgers with bytes changed or cut off: what is read is what was written, or one line of ours."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.errors import RunError
from interlock.records.rl import ScoredGroup
from interlock.rundir.ledger import Ledger

MakeGroup = Callable[..., ScoredGroup]
Kept = dict[tuple[object, ...], object]


class Whole(NamedTuple):
    data: bytes
    kept: Kept

    def __repr__(self) -> str:
        return "an undamaged ledger"


@pytest.fixture
def whole(tmp_path_factory: pytest.TempPathFactory, make_group: MakeGroup) -> Whole:
    path = tmp_path_factory.mktemp("whole") / "ledger.sqlite"
    ledger = Ledger(path)
    for step in range(3):
        groups = [make_group(f"p{step}-{n}", 1.0, 0.5) for n in range(2)]
        ledger.record(0, step, groups, [2 * step, 2 * step + 1])
        ledger.record_evaluation(0, step, groups[:1])
        ledger.arrive(0, [(10 + step, groups[0].group)])
        ledger.set_aside(0, 20 + step, "too long")
    kept = everything(ledger)
    ledger.close()
    return Whole(path.read_bytes(), kept)


def everything(ledger: Ledger) -> Kept:
    """What of it is content, by where it stands; that the rest does not break is all there is."""
    found: Kept = {}
    for stage, step in ledger.steps():
        for scored in ledger.read(stage, step):
            found["group", stage, step, scored.group.problem.id] = scored
        ledger.sequences(stage, step)
    for stage, step in ledger.evaluation_steps():
        for scored in ledger.read_evaluation(stage, step):
            found["evaluation", stage, step, scored.group.problem.id] = scored
    found |= {("arrival", sequence): group for sequence, group in ledger.arrivals(0)}
    ledger.set_asides(0)
    ledger.used(0)
    ledger.count()
    return found


HEADS = st.builds(lambda page, at: 4096 * page + at, st.integers(0, 12), st.integers(0, 200))
DAMAGE = st.lists(st.tuples(st.integers(0) | HEADS, st.integers(0, 255)), max_size=20)


@pytest.mark.parametrize("opened", [Ledger, Ledger.read_only])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DAMAGE, st.integers(0, 10))
def test_a_damaged_ledger_is_named_or_right(
    tmp_path: Path,
    whole: Whole,
    opened: Callable[[Path], Ledger],
    damage: list[tuple[int, int]],
    cut: int,
) -> None:
    data = bytearray(whole.data)
    for at, byte in damage:
        data[at % len(data)] = byte
    if cut == 0:
        del data[len(data) // 2 :]
    path = Path(mkdtemp(dir=tmp_path), "ledger.sqlite")
    path.write_bytes(data)
    try:
        ledger = opened(path)
    except RunError as error:
        assert "\n" not in str(error)
        return
    try:
        found = everything(ledger)
    except RunError as error:
        assert "\n" not in str(error)
    else:
        assert all(whole.kept.get(key) == value for key, value in found.items())
    finally:
        ledger.close()


def test_a_ledger_that_does_not_open_keeps_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"no database" * 1000)
    for opened in (Ledger, Ledger.read_only):
        with pytest.raises(RunError) as caught:
            opened(path)
        held = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
        assert str(path) not in held, caught.value  # which holds the frames, and what was opened
