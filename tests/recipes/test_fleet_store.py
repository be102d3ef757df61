"""A store of weights that is damaged or full: the run ends in the same weights, or says why."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from running import DEADLINE, finish, start, weights

from interlock.rundir import RunDir


def test_a_damaged_store_is_fetched_anew(two_generators: Path, tmp_path: Path) -> None:
    """Every delta that is published is cut in half as soon as it is seen."""
    run = tmp_path / "run"
    # Of float32 weights all would change, and every version would be whole.
    more = ("stage.steps=6", "sync.anchor_every=3", "learner.dtype=bfloat16")
    more += ("stage.optimizer.lr=1e-4",)
    process = start(two_generators, run, *more)
    broken: set[Path] = set()

    def spoil() -> bool:
        with suppress(FileNotFoundError):  # collected meanwhile
            for path in (run / "sync").rglob("*.delta"):
                if path not in broken:
                    broken.add(path)
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return process.poll() is not None

    deadline = time.monotonic() + DEADLINE
    while not spoil():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    reference = tmp_path / "reference"
    if process.returncode == 0:  # every reader was faster, or came back at an anchor
        finish(start(two_generators, reference, *more))
        assert weights(run) == weights(reference)
    else:  # no version could be had: the run stops with its reason and what it had learned
        view = RunDir.read(run)
        assert view.status == "failed" and "no generator is left" in (view.manifest.reason or "")
        finish(start(two_generators, run, *more, "--resume"))
        assert RunDir.read(run).status == "finished"
    assert broken


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB: the first version fits, and a few deltas."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(mount)], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"cannot mount a small disk: {made.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_store_stops_the_run_which_goes_on_elsewhere(
    tiny_recipe: Path, two_generators: Path, small_disk: Path, tmp_path: Path
) -> None:
    run, reference = tmp_path / "run", tmp_path / "reference"
    # Every step moves every weight: no delta is small.
    more = ["stage.steps=6", "stage.eval.every=0", "stage.optimizer.warmup_steps=0"]
    process = start(two_generators, run, *more, f"sync.url={small_disk}")
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2 and b"no space left on the disk" in errors, errors
    assert b"Traceback" not in errors
    view = RunDir.read(run)
    done = max(line.step for line in view.metrics())
    assert 0 < done < 6 and [point.step for point in view.checkpoints()] == [done]
    finish(start(two_generators, run, *more, "--resume"))
    finish(start(tiny_recipe, reference, "fleet.unit=2", *more))
    assert weights(run) == weights(reference)
