"""Kills at random moments, full disks and read-only disks: what was confirmed stays readable."""

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from interlock.errors import RunError
from interlock.rundir import RunDir

# Writes step after step and prints what each call confirmed by returning.
WRITER = """
import sys
from pathlib import Path
from interlock.records.metrics import StepMetrics, UpdateMetrics
from interlock.records.rl import Completion, FinishReason, Group, Problem, ScoredGroup, Verdict
from interlock.rundir import RunDir

def groups(step):
    completion = Completion.sampled([step], [-0.5], FinishReason.STOP, "x" * 20_000, step)
    problem = Problem(f"p{step}", [{"role": "user", "content": "q"}], "a")
    return [ScoredGroup(Group(problem, [1], [completion], "w"), [Verdict(float(step))])] * 3

path = Path(sys.argv[1])
exists = (path / "manifest.json").exists()
run = RunDir.open(path) if exists else RunDir.create(path, {"seed": 1}, {})
print("open", 0, flush=True)
newest = run.latest_checkpoint()
step = newest.step if newest else 0
while True:
    step += 1
    scored = groups(step)
    run.ledger.record(0, step, scored, [100 * step + at for at in range(len(scored))])
    print("ledger", step, flush=True)
    update = UpdateMetrics(loss=step / 2)
    run.log(StepMetrics(stage=0, step=step, kind="y" * 5_000, update=update))
    print("metrics", step, flush=True)
    with run.checkpoint(0, step, keep=2) as directory:
        for name in "ab":
            (directory / name).write_text(f"{step} " * 5_000)
    print("checkpoint", step, flush=True)
"""
LIMITED = (
    "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n" + WRITER
)


def check(path: Path, confirmed: dict[str, int]) -> None:
    """Everything confirmed is there, and whatever is there is whole."""
    view = RunDir.read(path)
    steps = view.ledger.steps()
    assert [step for _, step in steps] == list(range(1, len(steps) + 1))
    assert len(steps) >= confirmed.get("ledger", 0)
    for stage, step in steps:
        groups = view.ledger.read(stage, step)
        assert [group.rewards for group in groups] == [[float(step)]] * 3
    losses = [line.update.loss for line in view.metrics()]
    assert losses == [step / 2 for step in range(1, len(losses) + 1)]
    assert len(losses) >= confirmed.get("metrics", 0)
    newest = view.latest_checkpoint()
    assert (newest.step if newest else 0) >= confirmed.get("checkpoint", 0)
    for checkpoint in view.checkpoints():
        for name in "ab":
            assert (checkpoint.path / name).read_text() == f"{checkpoint.step} " * 5_000
    view.close()


def confirmations(output: str) -> dict[str, int]:
    pairs = [line.split() for line in output.splitlines(keepends=True) if line.endswith("\n")]
    return {what: int(step) for what, step in pairs}  # the last of each kind stands


def test_sigkill_loses_nothing_confirmed(
    tmp_path: Path, child: Callable[..., subprocess.Popen[str]]
) -> None:
    moments = random.Random(20)
    confirmed: dict[str, int] = {}
    for _ in range(8):
        process = child(WRITER, tmp_path)
        assert process.stdout is not None
        assert process.stdout.readline() == "open 0\n"
        time.sleep(moments.uniform(0.0, 0.15))
        process.kill()
        output, errors = process.communicate()
        assert errors == ""
        confirmed |= confirmations(output)
        check(tmp_path, confirmed)
    assert confirmed["checkpoint"] > 8  # the kills hit a run that was getting somewhere
    RunDir.open(tmp_path).finish()
    assert not list(tmp_path.rglob(".tmp-*")) and not list(tmp_path.rglob(".old-*"))
    check(tmp_path, confirmed)


def test_a_full_disk_is_one_clear_line(
    tmp_path: Path,
    small_disk: Callable[[str], Path],
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    disk = small_disk("size=1500k")
    output, errors = child(WRITER, disk / "run").communicate(timeout=30)
    last = errors.strip().splitlines()[-1]
    assert f"RunError: {disk / 'run'}" in last and "no space left on the disk" in last
    confirmed = confirmations(output)
    assert confirmed["ledger"] > 3
    check(disk / "run", confirmed)


def test_after_making_room_a_full_run_goes_on(
    tmp_path: Path,
    small_disk: Callable[[str], Path],
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    disk = small_disk("size=2m")
    (disk / "other").write_bytes(b"x" * 1_000_000)
    first, _ = child(WRITER, disk / "run").communicate(timeout=30)
    (disk / "other").unlink()
    second, errors = child(WRITER, disk / "run").communicate(timeout=30)
    assert "no space left on the disk" in errors
    assert confirmations(second)["ledger"] > confirmations(first)["ledger"]
    check(disk / "run", confirmations(first) | confirmations(second))


def test_a_file_size_limit_is_one_clear_line(
    tmp_path: Path, child: Callable[..., subprocess.Popen[str]]
) -> None:
    output, errors = child(LIMITED, tmp_path).communicate(timeout=30)
    last = errors.strip().splitlines()[-1]
    assert f"RunError: {tmp_path}: the disk failed or refused a write" in last
    confirmed = confirmations(output)
    assert confirmed["ledger"] > 3
    check(tmp_path, confirmed)


def test_a_read_only_disk(
    tmp_path: Path,
    small_disk: Callable[[str], Path],
    child: Callable[..., subprocess.Popen[str]],
) -> None:
    disk = small_disk("size=4m")
    process = child(WRITER, disk / "run")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(10)]
    process.kill()
    process.wait()
    RunDir.open(disk / "run").finish()  # merges the write-ahead log
    small_disk("remount,ro")
    with pytest.raises(RunError, match=r"disk/new.*read-only"):
        RunDir.create(disk / "new", {}, {})
    with pytest.raises(RunError, match=r"disk/run: the file system is read-only"):
        RunDir.open(disk / "run")
    check(disk / "run", confirmations("".join(lines)))
