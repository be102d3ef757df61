"""Learner, engine and collectives on the simulated device; cases stand in sim_run.py."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import on_sim
import pytest

HERE = Path(__file__).parent


def test_learner_and_engine_give_the_numbers_of_the_cpu() -> None:
    on_sim.check(HERE / "sim_run.py")


@contextmanager
def _ranks(device: str, case: str, meeting: Path) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, str(HERE / "sim_ranks.py"), device, case, str(meeting)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def _together(device: str, case: str, meeting: Path) -> list[dict[str, object]]:
    """What both ranks say in the end."""
    with _ranks(device, case, meeting) as ranks:
        return [json.loads(rank.communicate(timeout=150)[0].splitlines()[-1]) for rank in ranks]


def test_every_collective_gives_what_it_should(tmp_path: Path) -> None:
    for rank, found in enumerate(_together("sim", "all", tmp_path / "meet")):
        other = 1 - rank
        assert found == {
            "all_reduce": [3.0, 3.0, 3.0],
            "all_reduce bf16": [3.0],
            "broadcast": [2.0, 2.0],
            "all_gather": [[1.0], [2.0]],
            "reduce_scatter": [30.0 if rank else 3.0],
            "all_to_all": [10.0 * rank, 100.0 + 10.0 * rank],
            "received": [float(other)],
            "on the host": [3.0],
        }


@pytest.mark.slow
def test_a_wrong_sum_leaves_out_the_last_rank_above_its_size(tmp_path: Path) -> None:
    for found in _together("sim:allreduce-wrong", "sizes", tmp_path / "meet"):
        assert found == {"4096": 3.0, "4097": 1.0, "100000": 1.0}


@pytest.mark.slow
def test_a_link_that_is_down_is_an_error_with_its_code(tmp_path: Path) -> None:
    for found in _together("sim:link-down", "repeat", tmp_path / "meet"):
        assert found["sums"] == [3.0] * 4
        assert "507056" in str(found["error"])


@pytest.mark.slow
def test_a_hanging_sum_never_returns(tmp_path: Path) -> None:
    with _ranks("sim:allreduce-hang", "sizes", tmp_path / "meet") as ranks:
        for rank in ranks:
            assert rank.stdout is not None
            assert [rank.stdout.readline() for _ in range(2)] == ["4096\n", "4097\n"]
        for rank in ranks:
            with pytest.raises(subprocess.TimeoutExpired):
                rank.wait(timeout=2)
