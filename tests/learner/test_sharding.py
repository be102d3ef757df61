"""Real processes, as torchrun would start them, on the CPU: ranks.py is what each of them runs."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rounding import allowed, assert_close

from interlock.config.schema import LearnerSettings
from interlock.config.stages import OptimizerSettings
from interlock.errors import ConfigError
from interlock.learner.checkpoint import load
from interlock.learner.distributed.ranks import Ranks, join
from interlock.learner.learner import Learner
from interlock.models.decoder import Decoder

DEADLINE_S = 120.0
ORDERS = ("reversed", "turned", "turned twice", "even before odd")  # ranks.py's
Start = Callable[..., list[subprocess.Popen[str]]]


def start_ranks(kind: str, directory: Path, size: int = 2, **more: str) -> Iterator[Any]:
    # As torchrun does: the one who starts the ranks keeps the store where they meet.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    env = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": str(size),
        "TIMEOUT_S": "100",
    }
    script = Path(__file__).with_name("ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), kind, str(directory)],
            env=env | more | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
        del store


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks made of everything, beside what one process did."""
    directory = tmp_path_factory.mktemp("equal")
    for ranks in start_ranks("equal", directory):
        errors = [rank.communicate(timeout=DEADLINE_S)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    return json.loads((directory / "found.json").read_text())


class Same:
    """Equal but for the order in which fp32 numbers were added up, which others show."""

    def __init__(self, alone: Any, together: Any, again: Sequence[Any], where: str) -> None:
        # Of each figure, the values of one step after the other: what rounding did stays there.
        self._steps: dict[str, list[tuple[float, ...]]] = {}
        self._compare(alone, together, again, where, where)

    def _compare(
        self, alone: Any, together: Any, again: Sequence[Any], figure: str, where: str
    ) -> None:
        if isinstance(alone, dict):
            assert all(alone.keys() == each.keys() for each in (together, *again)), where
            for key in alone:
                parts = alone[key], together[key], [each[key] for each in again]
                self._compare(*parts, f"{figure}/{key}", f"{where}/{key}")
        elif isinstance(alone, list) and alone and isinstance(alone[0], float):
            assert_close(together, alone, *again, where=where)
        elif isinstance(alone, list):
            assert all(len(alone) == len(each) for each in (together, *again)), where
            for step, (one, two, *rest) in enumerate(zip(alone, together, *again, strict=True)):
                self._compare(one, two, rest, figure, f"{where}/{step}")
        elif isinstance(alone, float):
            self._steps.setdefault(figure, []).append((alone, *again))
            limit = allowed(*map(list, zip(*self._steps[figure], strict=True)))[-1]
            assert abs(together - alone) <= limit, (where, together, alone, limit)
        else:
            assert all(alone == each for each in (together, *again)), where


def apart(found: dict[str, Any]) -> tuple[Any, Any, list[Any]]:
    """Of what EACH made: one process, several, and one in other orders."""
    return found["alone"], found["together"], [found[order] for order in ORDERS]


@pytest.mark.parametrize(
    "kind",
    [
        "tied",
        "tied sft",
        "untied",
        "untied geometric",
        "experts",
        "recomputed",
        "bfloat16",
        "stages",
        "updates",
        "renewed",
    ],
)
def test_many_processes_learn_what_one_learns(found: dict[str, Any], kind: str) -> None:
    alone = found[kind]["alone"]
    Same(*apart(found[kind]), kind)
    results = alone["results"]
    assert len(results) in (5, 10) and not any(result["skipped"] for result in results)
    # Something was learned, some gradients were clipped, and both labels were seen.
    assert max(result["grad_norm"] for result in results) > 0.5
    assert ("worker 1" in results[0]["by_label"]) == (kind not in ("tied sft", "stages"))
    if "score" in alone:
        assert max(map(abs, map(float.__sub__, alone["score"], alone["rescore"]))) > 0.01


def test_a_reference_is_renewed_on_every_rank(found: dict[str, Any]) -> None:
    """Right after it the KL is nothing, and at the second update it is something again."""
    kl = [result["kl"] for result in found["renewed"]["together"]["results"]]
    assert kl[0] == pytest.approx(0, abs=1e-9) and kl[4] == pytest.approx(0, abs=1e-9)
    assert min(kl[1:4] + kl[5:]) > 1e-5


def test_experts_are_balanced_by_the_load_of_all(found: dict[str, Any]) -> None:
    name = "layers.1.mlp.router.correction"
    alone, together = (found["experts"][who]["masters"][name] for who in ("alone", "together"))
    assert together == alone and len(alone) == 4
    # Five steps of 1e-3 up or down from where rank 0's file had them.
    started = found["start"][name]
    moves = [round((now - then) / 1e-3) for now, then in zip(alone, started, strict=True)]
    assert any(moves) and all(abs(move) <= 5 for move in moves)


def test_a_step_that_is_not_finite_is_skipped_by_all(found: dict[str, Any]) -> None:
    expected = {"changed": False, "skipped": True, "counted": [5, 1, 1]}
    assert found["skipped"] == {"alone": expected, "together": expected}


def test_published_weights_are_the_same_bits(found: dict[str, Any]) -> None:
    alone, together = found["published"]["alone"], found["published"]["together"]
    assert together == alone
    dtypes = {name: tensor[0] for name, tensor in together["tensors"].items()}
    correction = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert dtypes.pop(correction) == "torch.float32"
    assert set(dtypes.values()) == {"torch.bfloat16"}


def test_checkpoints_pass_between_one_process_and_many(found: dict[str, Any]) -> None:
    crossed = found["crossed"]
    expected = crossed["alone-alone"]
    again = [crossed[f"{order}-{order}"] for order in ORDERS]
    for writer in ("alone", "together"):
        on = crossed[f"{writer}-on"]
        for reader in ("alone", "together"):
            after = crossed[f"{writer}-{reader}"]
            # What was loaded and saved again is the same files, bit for bit.
            assert after["equal"] == [True] * 5
            assert after["extra"] == {"step": 2} and after["number"] == 1
            Same(expected, after, again, f"{writer}-{reader}")
            if reader == writer:  # as if it had never been stopped
                assert {name: after[name] for name in on} == on


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    begun: list[Iterator[Any]] = []

    def begin(**more: str) -> list[subprocess.Popen[str]]:
        begun.append(start_ranks("die", tmp_path, **more))
        ranks = next(begun[-1])
        until = time.monotonic() + DEADLINE_S
        while not (tmp_path / "training").exists():
            assert all(rank.poll() is None for rank in ranks)
            assert time.monotonic() < until
            time.sleep(0.05)
        return ranks

    yield begin
    for ranks in begun:
        next(ranks, None)


def test_when_one_is_killed_the_others_end(
    start: Start, tmp_path: Path, tiny: Callable[..., Decoder]
) -> None:
    ranks = start(size=3)
    ranks[2].kill()
    errors = [rank.communicate(timeout=DEADLINE_S)[1] for rank in ranks]
    ended = json.loads((tmp_path / "found.json").read_text())
    gone = "the learner's processes are no longer together"
    assert ended["error"].startswith(f"rank 0 of 3: {gone}") and "\n" not in ended["error"]
    assert ended["again"] == ended["error"]
    assert ranks[1].returncode == 1 and f"TrainingError: rank 1 of 3: {gone}" in errors[1]
    learner = Learner(tiny(), LearnerSettings(), OptimizerSettings(lr=1e-2), 5)
    assert load(learner, tmp_path / "saved") == {"step": 1} and learner.steps == 1


def test_waiting_is_no_silence_but_a_frozen_process_is(start: Start, tmp_path: Path) -> None:
    ranks = start(TIMEOUT_S="5", IDLE_S="6")
    ranks[1].send_signal(signal.SIGSTOP)
    ranks[0].communicate(timeout=DEADLINE_S)
    assert ranks[0].returncode == 0
    assert "no longer together" in json.loads((tmp_path / "found.json").read_text())["error"]
    # Awake again, it finds that rank 0 is gone.
    ranks[1].send_signal(signal.SIGCONT)
    _, error = ranks[1].communicate(timeout=DEADLINE_S)
    assert ranks[1].returncode == 1 and "TrainingError: rank 1 of 2: the learner" in error


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cpu") as ranks:
        assert (ranks.rank, ranks.size, ranks.device) == (0, 1, torch.device("cpu"))
    assert not dist.is_initialized()


def test_a_shared_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"'cuda:0' gives every process the same.* write 'cuda'"):
        join("cuda:0")


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_batch_has_one_rank_and_all_ranks_make_as_many_passes(count: int, size: int) -> None:
    batches = list(range(count))
    seen = [Ranks(rank=rank, size=size) for rank in reversed(range(size))]
    shares = [list(ranks.shard(batches)) for ranks in seen]
    assert sorted(batch for share in shares for batch in share) == batches
    passes = {
        len(share) + ranks.needs_padding(batches) for share, ranks in zip(shares, seen, strict=True)
    }
    assert passes == {-(-count // size)}
