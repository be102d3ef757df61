"""Collectives on real ranks, sound and disturbed; and what the watch makes of what ranks say."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest
import torch
from remains import gone

from interlock.errors import UserError
from interlock.fleet.base import Event, Lost
from interlock.fleet.local import LocalFleet
from interlock.qualify import collectives, ranks
from interlock.qualify.check import Evidence, Level, Subject
from interlock.qualify.collectives import _RankWatch, exact
from interlock.qualify.ranks import CaseBegun, CaseEnded, CaseFailed, RankMessage, RankPlan

CHECK = """
import sys, torch
torch.set_num_threads(1)
from interlock.chips import device
from interlock.qualify import collectives
from interlock.qualify.check import Level, Subject
collectives._CASE_S = float(sys.argv[2])
collectives.exact(Subject(device.claim(sys.argv[1]), Level.QUICK))
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
PLAN = RankPlan("cpu", "gloo", 0, 2, 0, 0, [1], 1, 10, 2, 5)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Evidence]:
    """The evidence when the ranks, and only they, have the device of that name."""

    def check(name: str, case_s: float = 20) -> Evidence:
        monkeypatch.setattr(collectives, "_name", lambda place, rank: name)
        monkeypatch.setattr(collectives, "_CASE_S", case_s)
        monkeypatch.setattr(collectives.device, "backend", lambda place: "cpu:gloo,npu:gloo")
        return exact(Subject(torch.device("cpu"), Level.QUICK))

    return check


def test_a_sound_device_passes() -> None:
    found = exact(Subject(torch.device("cpu"), Level.QUICK))
    assert found.passed, found.summary
    assert found.world_size == 2
    names = [measure.name for measure in found.measures]
    assert len(names) == len(set(names)) == found.figures["cases"]
    for name in ranks._COLLECTIVES:
        for dtype in ("float32", "bfloat16", "int64"):
            assert f"{name} {dtype} [1025]" in names
    assert f"all_reduce sum float32 [{(1 << 24) + 1}]" in names
    assert {"barrier, rank 0 late", "first collective", "group 10 made, used and destroyed"} <= set(
        names
    )


def test_a_sum_without_one_rank_is_found(checked: Callable[..., Evidence]) -> None:
    found = checked("sim:allreduce-wrong")
    assert not found.passed
    wrong = {each.name.partition(":")[0]: each.value for each in found.measures if each.value > 0}
    assert wrong["all_reduce sum float32 [65537]"] == 8  # the largest operand
    assert wrong["all_reduce sum int64 [65537]"] == float(8 * ranks._LARGE)
    assert not any(name.startswith(("broadcast", "all_gather", "send")) for name in wrong)


def test_a_sum_that_is_wrong_once_in_500_is_found(checked: Callable[..., Evidence]) -> None:
    found = checked("sim:allreduce-worn")
    assert not found.passed
    (wrong,) = (each.name for each in found.measures if each.value > 0)
    assert wrong.startswith("600 small sums in a row: rank ")


def test_a_hang_is_found_and_named(checked: Callable[..., Evidence]) -> None:
    found = checked("sim:allreduce-hang", case_s=4)
    assert not found.passed
    assert found.figures["stopped in"] == "all_reduce sum float32 [65537]"
    assert "hangs: ranks 0, 1 had not returned after 4 s" in found.summary


@pytest.mark.slow
def test_a_link_that_is_down_is_found(checked: Callable[..., Evidence]) -> None:
    found = checked("sim:link-down")
    assert not found.passed
    assert (found.figures["fault"], found.figures["kind of fault"]) == ("507056", "link")
    assert "fails" in found.summary and "look at the links" in str(found.figures["advice"])


def ranks_of(parent: int) -> list[int]:
    """Its children but the reaper."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
            command = (entry.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and b"interlock.processes.entry" in command:
            found.append(int(entry.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_rank_outlives_a_check_that_is_killed() -> None:
    check = subprocess.Popen(
        [sys.executable, "-c", CHECK, "sim:allreduce-hang", "100"], env=ENVIRONMENT
    )
    try:
        until = time.monotonic() + 60
        while len(ranks_of(check.pid)) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        started = ranks_of(check.pid)
        assert len(started) == 2
        check.send_signal(signal.SIGKILL)
        check.wait()
        assert gone(*started)
    finally:
        check.kill()
        check.wait()


# The watch, with ranks that follow a script.


class Script:
    """A fleet whose `poll` gives one batch after the other, and then nothing."""

    def __init__(self, *batches: list[tuple[int, RankMessage | Lost]]) -> None:
        self._batches = list(batches)

    def pid(self, name: str) -> int | None:
        return None

    def poll(self, timeout_s: float) -> list[Event]:
        if not self._batches:
            return []
        return [
            (str(rank), said if isinstance(said, Lost) else msgspec.msgpack.encode(said))
            for rank, said in self._batches.pop(0)
        ]


def watched(*batches: list[tuple[int, RankMessage | Lost]]) -> Evidence:
    watch = _RankWatch(cast(LocalFleet, Script(*batches)), 2, 0.02)
    watch.run()
    return watch.evidence(PLAN)


def both(word: RankMessage) -> list[tuple[int, RankMessage | Lost]]:
    return [(0, word), (1, word)]


def test_ranks_that_end_everything_pass() -> None:
    found = watched(both(CaseBegun("a")), both(CaseEnded("a", 0, "x")), both(CaseBegun("")))
    assert found.passed and found.world_size == 2


def test_a_wrong_result_names_the_rank_and_how_far() -> None:
    ended: list[tuple[int, RankMessage | Lost]] = [
        (0, CaseEnded("a", 0, "")),
        (1, CaseEnded("a", 2.5, "")),
    ]
    found = watched(both(CaseBegun("a")), ended, both(CaseBegun("")))
    assert not found.passed
    assert found.measures[0].name == "a: rank 1 is off by 2.5"
    assert found.measures[0].value == 2.5


def test_different_bits_on_the_ranks_are_wrong() -> None:
    ended: list[tuple[int, RankMessage | Lost]] = [
        (0, CaseEnded("a", 0, "x")),
        (1, CaseEnded("a", 0, "y")),
    ]
    found = watched(both(CaseBegun("a")), ended, both(CaseBegun("")))
    assert not found.passed and "different bits" in found.summary


def test_a_hang_is_where_the_hindmost_rank_is() -> None:
    """Rank 0 never returns from `a`; rank 1 did, and waits for it in `b`."""
    found = watched(both(CaseBegun("a")), [(1, CaseEnded("a", 0, "")), (1, CaseBegun("b"))])
    assert not found.passed
    assert found.figures["stopped in"] == "a"
    assert "hangs: rank 0 had not returned after 0.02 s" in found.summary


def test_a_rank_that_never_comes_is_named() -> None:
    found = watched(both(CaseBegun("a")), both(CaseEnded("a", 0, "")), [(0, CaseBegun("b"))])
    assert "b: hangs: rank 0 had not returned after 0.02 s, rank 1 never came" in found.summary


def test_ranks_that_do_not_meet_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "_START_S", 0.02)
    assert "did not meet within 0.02 s" in watched().summary


def test_the_rank_that_failed_is_told_and_not_those_who_lost_it() -> None:
    closed = CaseFailed("a", "RuntimeError: [pair.cc:5] Connection closed by peer [127.0.0.1]")
    cause = CaseFailed("a", "RuntimeError: first line, error code is 507035\nsecond line")
    found = watched(both(CaseBegun("a")), [(0, closed)], [(1, cause)])
    assert not found.passed
    assert "rank 1 fails: RuntimeError: first line, error code is 507035 (software" in found.summary
    assert found.measures[0].value == torch.inf


def test_a_rank_that_dies_is_told_with_its_case() -> None:
    found = watched(both(CaseBegun("a")), [(1, Lost("signal 11"))])
    assert "a: rank 1 fails: its process died: signal 11" in found.summary


# Figures.


@pytest.mark.parametrize(
    ("found", "expected", "off"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), 0.0),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, -1.5]), 3.5),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]), torch.inf),
        (torch.tensor([(1 << 60) + 1]), torch.tensor([1 << 60]), 1.0),  # equal as floats
    ],
)
def test_how_far_a_result_is_off(found: torch.Tensor, expected: torch.Tensor, off: float) -> None:
    assert ranks._off(found, [expected]) == off


def test_a_long_result_is_held_against_its_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """[2, 10] of periods of three, in pieces of two of them."""
    monkeypatch.setattr(ranks, "_PIECE", 2)
    up, down = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 8.0, 7.0])
    found = torch.cat([up.repeat(4)[:10], down.repeat(4)[:10]])
    assert ranks._off(found, [up, down]) == 0
    assert ranks._off(found, [down, up]) == 8
    for place in (0, 9, 10, 16, 19):
        wrong = found.clone()
        wrong[place] += 5
        assert ranks._off(wrong, [up, down]) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_sums_of_sixteen_ranks_are_exact(dtype: torch.dtype) -> None:
    rank = ranks._Rank(PLAN, torch.device("cpu"), torch.distributed.HashStore())
    parts = [rank.period(each, dtype, at=5) for each in range(16)]
    assert torch.equal(parts[3][7:], rank.period(3, dtype, at=12)[:-7])  # of the same numbers
    up, down = parts[0].clone(), parts[-1].clone()
    for each in parts[1:]:
        up += each
    for each in reversed(parts[:-1]):
        down += each
    assert torch.equal(up, down)
    assert any(not torch.equal(parts[0], each) for each in parts[1:])
    wide = torch.stack([each.double() for each in parts]).sum(0)
    assert dtype == torch.int64 or torch.equal(up.double(), wide)


def test_a_rank_without_its_device_is_no_failure_of_collectives() -> None:
    refused = ranks.DeviceRefused("device 'cuda:1' cannot be used here: busy; 'cpu' always works")
    with pytest.raises(UserError, match="rank 1 of 2: device 'cuda:1' cannot be used"):
        watched([(0, CaseBegun("a"))], [(1, refused)])


def test_a_real_rank_without_its_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "_name", lambda place, rank: "cuda:99")
    with pytest.raises(UserError, match="of 2: device 'cuda:99' cannot be used"):
        exact(Subject(torch.device("cpu"), Level.QUICK))


def test_the_device_under_test_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives.device, "count", lambda place: 16)
    names = [collectives._name(torch.device("cuda:12"), rank) for rank in range(8)]
    assert names == [f"cuda:{n}" for n in (12, 13, 14, 15, 0, 1, 2, 3)]


def test_vendors_get_more_time_than_the_host() -> None:
    for backend, seconds in [
        ("gloo", 20),
        ("cpu:gloo,npu:gloo", 20),
        ("cpu:gloo,cuda:nccl", 120),
        ("cpu:gloo,npu:hccl", 120),
    ]:
        assert collectives._patience(backend) == seconds


@pytest.mark.parametrize(
    ("backend", "wrong", "advice"),
    [
        ("cpu:gloo,cuda:nccl", ranks.ROUNDED, "NCCL_ALGO=^NVLS"),
        ("cpu:gloo,npu:hccl", ranks.ROUNDED, "HCCL_DETERMINISTIC=true"),
        ("gloo", ranks.ROUNDED, ""),
        ("cpu:gloo,cuda:nccl", "broadcast", ""),
    ],
)
def test_an_order_that_changes_is_told_how_to_be_kept(
    backend: str, wrong: str, advice: str
) -> None:
    cases = [ranks.ROUNDED + ", 5 times", "broadcast float32 [1]"]
    batches = [
        batch
        for case in cases
        for batch in (
            both(CaseBegun(case)),
            both(CaseEnded(case, float(case.startswith(wrong)), "")),
        )
    ]
    watch = _RankWatch(cast(LocalFleet, Script(*batches, both(CaseBegun("")))), 2, 20)
    watch.run()
    found = watch.evidence(msgspec.structs.replace(PLAN, backend=backend))
    assert not found.passed
    assert ("only the order of summation changes" in found.summary) == bool(advice)
    assert advice in found.summary


@pytest.mark.parametrize(
    ("count", "free", "elements"),
    [
        (8, 80 << 30, (1 << 28) + 1),
        (8, 4 << 30, 1 << 27),
        (1, 80 << 30, (1 << 25) + 1),
        (1, 1 << 20, 1 << 13),
    ],
)
def test_the_largest_case_fits(
    count: int, free: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collectives.device, "count", lambda place: count)
    monkeypatch.setattr(collectives.device, "room", lambda place: free)
    assert collectives._largest(Subject(torch.device("cpu")), 2) == elements


def test_ranks_share_a_device_only_through_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    npu = torch.device("cuda")
    for count, backend, world_size in [
        (1, "cpu:gloo,cuda:nccl", 1),
        (1, "cpu:gloo,cuda:gloo", 2),
        (4, "cpu:gloo,cuda:nccl", 4),
        (16, "cpu:gloo,cuda:nccl", 8),
    ]:
        monkeypatch.setattr(collectives.device, "count", lambda place, count=count: count)
        assert collectives._world_size(npu, backend) == world_size
    monkeypatch.undo()
    assert collectives._world_size(torch.device("cpu"), "gloo") == 2
