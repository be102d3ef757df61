"""Runs as processes of their own, to be killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

# One thread and hidden GPUs: the promise is for one machine and one number of threads.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
DEADLINE = 240  # seconds for any one wait


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


def workers_of(process: subprocess.Popen[bytes]) -> dict[int, str]:
    """The generator processes of a run: state letter (R, S, T, …) by process id."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == process.pid and b"interlock.processes.entry" in command:
            if b"verifier" in command or b"interlock.models.templates" in command:
                continue
            found[int(status.parent.name)] = fields[0]
    return found


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Wait until the condition holds, while the run goes on."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def logged(run: Path, step: int) -> bool:
    metrics = run / "metrics.jsonl"
    return metrics.exists() and f'"step":{step},' in metrics.read_text()
