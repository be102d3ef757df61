"""A run that is killed and resumed ends in the same weights, bit for bit, as one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from interlock.rundir import RunDir

# One thread and hidden GPUs: the promise is for one machine and one number of threads.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
DEADLINE = 120  # seconds for any one wait


def start(recipe: Path, run: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "interlock.cli",
        "train",
        str(recipe),
        "--run",
        str(run),
        *more,
    ]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors.decode()


def weights(run: Path) -> str:
    return sha256((run / "weights" / "model.safetensors").read_bytes()).hexdigest()


def kill_during(process: subprocess.Popen[bytes], run: Path, step: int, delay: float) -> None:
    """SIGKILL some time after `step` was logged."""
    deadline = time.monotonic() + DEADLINE
    metrics = run / "metrics.jsonl"
    while not (metrics.exists() and f'"step":{step},' in metrics.read_text()):
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"


@pytest.mark.parametrize("seed", [1])
def test_three_kills_change_no_bit(tiny_recipe: Path, tmp_path: Path, seed: int) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start(tiny_recipe, undisturbed))
    moments = random.Random(seed)
    process = start(tiny_recipe, killed)
    for step in sorted(moments.sample(range(7), 3)):
        kill_during(process, killed, step, moments.uniform(0, 0.15))
        process = start(tiny_recipe, killed, "--resume")
    finish(process)
    assert weights(killed) == weights(undisturbed)
    ours, theirs = RunDir.read(killed), RunDir.read(undisturbed)
    assert [event["kind"] for event in ours.events()].count("resumed") == 3
    for step in range(1, 9):
        assert ours.ledger.read(0, step) == theirs.ledger.read(0, step)
    assert ours.ledger.count() == 8 * 3
    timeless = {"seconds_", "time"}
    for mine, their in zip(ours.metrics(), theirs.metrics(), strict=True):
        assert {k: v for k, v in mine.items() if not k.startswith(tuple(timeless))} == {
            k: v for k, v in their.items() if not k.startswith(tuple(timeless))
        }


def test_the_weights_were_trained_and_differ_by_seed(tiny_recipe: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    for run, seed in zip(runs, ("seed=0", "seed=1"), strict=True):
        finish(start(tiny_recipe, run, seed, "stage.steps=3", "stage.eval.every=0"))
    assert weights(runs[0]) != weights(runs[1])
