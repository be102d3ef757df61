"""Learner and generators in processes of their own, with real engines, killed at any moment."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from running import (
    DEADLINE,
    ENVIRONMENT,
    finish,
    kill_during,
    logged,
    start,
    wait_for,
    weights,
    workers_of,
)
from safetensors.torch import load_file

from interlock.config.reading import load_recipe
from interlock.errors import ConfigError, TrainingError
from interlock.recipes import fleet
from interlock.recipes.train import train
from interlock.records.rl import ScoredGroup
from interlock.rundir import RunDir

FLEET = """
fleet = { kind = "local", unit = 2, backoff_s = 0.1 }
"""
TWO = 'count = 2\nenv = { OMP_NUM_THREADS = "1" }\n'


@pytest.fixture
def two_generators(tiny_recipe: Path) -> Path:
    """The tiny recipe with two worker processes, synchronous."""
    text = tiny_recipe.read_text().replace("[[generator]]\n", f"{FLEET}\n[[generator]]\n{TWO}")
    path = tiny_recipe.with_name("two.toml")
    path.write_text(text.replace('kind = "grpo"\n', 'kind = "grpo"\nstaleness = 0\n'))
    return path


def answers(run: Path, step: int) -> list[Any]:
    """The groups of one step, whoever made them."""

    def nameless(scored: ScoredGroup) -> Any:
        tree = msgspec.to_builtins(scored)
        del tree["group"]["worker"]
        return tree

    return [nameless(scored) for scored in RunDir.read(run).ledger.read(0, step)]


def test_killed_workers_and_learners_change_no_bit(
    tiny_recipe: Path, two_generators: Path, tmp_path: Path
) -> None:
    """Also against one generator called in the learner's own process: units are the same."""
    inline, killed = tmp_path / "inline", tmp_path / "killed"
    finish(start(tiny_recipe, inline, "fleet.unit=2"))
    moments = random.Random(5)
    process = start(two_generators, killed)
    for step in (1, 3):
        wait_for(lambda step=step: logged(killed, step), process)  # type: ignore[misc]
        os.kill(moments.choice(sorted(workers_of(process))), signal.SIGKILL)
    kill_during(process, killed, 4, moments.uniform(0, 0.2))
    process = start(two_generators, killed, "--resume")
    wait_for(lambda: logged(killed, 6), process)
    os.kill(min(workers_of(process)), signal.SIGKILL)
    finish(process)
    assert weights(killed) == weights(inline)
    for step in range(1, 9):
        assert answers(killed, step) == answers(inline, step)
    kinds = [event.kind for event in RunDir.read(killed).events()]
    assert kinds.count("worker_lost") >= 2 and kinds.count("resumed") == 1


def test_a_killed_learner_takes_its_workers_along(two_generators: Path, tmp_path: Path) -> None:
    """Even a worker that is stopped."""
    run = tmp_path / "run"
    process = start(two_generators, run)
    wait_for(lambda: logged(run, 1), process)
    workers = workers_of(process)
    os.kill(min(workers), signal.SIGSTOP)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while alive := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def asynchronous(recipe: Path, directory: Path, *overrides: str) -> Any:
    settings = ["stage.staleness=2", "stage.eval.every=0", *overrides]
    train(load_recipe(recipe, settings), directory)
    return RunDir.read(directory)


def test_asynchronous_every_problem_is_used_once_and_none_too_old(
    two_generators: Path, tmp_path: Path
) -> None:
    view = asynchronous(two_generators, tmp_path / "run")
    used = [sequence for step in range(1, 9) for sequence in view.ledger.sequences(0, step)]
    assert sorted(used) == list(range(8 * 3))
    assert view.ledger.arrivals(0) == []
    lines = [line for line in view.metrics() if line.step]
    behind = []
    for line in lines:
        assert (line.rollout.staleness_max or 0) <= 2
        for scored in view.ledger.read(0, line.step):
            for answer in scored.group.completions:
                versions = answer.weight_versions  # loaded under it, one after another
                assert versions == sorted(set(versions)) and versions[-1] < line.step
            behind.append(line.step - 1 - scored.group.weight_version)
    assert max(behind) > 0, "generation never ran ahead"
    assert min(behind) == 0


def test_asynchronous_a_killed_learner_uses_nothing_twice(
    two_generators: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ("stage.staleness=2",)
    process = start(two_generators, run, *more)
    kill_during(process, run, 4, 0.1)
    finish(start(two_generators, run, *more, "--resume"))
    view = RunDir.read(run)
    used = [sequence for step in range(1, 9) for sequence in view.ledger.sequences(0, step)]
    assert sorted(used) == list(range(8 * 3)) and view.ledger.count() == 8 * 3


def planted(tmp_path: Path, body: str) -> Path:
    """An "interpreter" whose worker is ours with `body` run before it serves."""
    module = tmp_path / "planted_worker.py"
    module.write_text(f"import interlock.workers.worker as worker\n{body}\nserve = worker.serve\n")
    python = tmp_path / "planted-python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec "{sys.executable}" '
        "-m interlock.processes.entry planted_worker\n"
    )
    python.chmod(0o755)
    return python


# The planted engine answers with the weights it was opened with, whatever it is given.
STALE_DECODE = """
import copy
from interlock.engine.portable.engine import PortableEngine
opened = PortableEngine.__init__
def open_engine(self, *given):
    opened(self, *given)
    self._scheduler._decoder = copy.deepcopy(self.decoder)
PortableEngine.__init__ = open_engine
"""
# It keeps the new weights where they can be read, and computes with the old ones.
STALE_EVERYWHERE = """
from interlock.engine.portable.engine import PortableEngine
def load(self, tensors, version):
    self.kept, self.version = {n: t.clone() for n, t in tensors.items()}, version
PortableEngine.load = load
PortableEngine.held = lambda self: iter(self.kept.items())
"""
WRONG_COPY = """
from interlock.engine.portable.engine import PortableEngine
real = PortableEngine.load
def load(self, tensors, version):
    changed = {n: t.clone() for n, t in tensors.items()}
    changed["model.norm.weight"][3] += 1
    real(self, changed, version)
PortableEngine.load = load
"""


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (STALE_DECODE, "decode and prefill disagree"),
        (STALE_EVERYWHERE, "it still serves version"),
        (WRONG_COPY, "the weights it holds are not those of version"),
    ],
)
def test_a_planted_engine_with_stale_weights_is_caught(
    body: str, why: str, two_generators: Path, tmp_path: Path
) -> None:
    python = planted(tmp_path, body)
    text = two_generators.read_text().replace(TWO, f'python = "{python}"\n')
    recipe = tmp_path / "planted.toml"
    recipe.write_text(text)
    overrides = ["stage.steps=4", "stage.eval.every=0", "fleet.failures=1"]
    overrides += ["stage.optimizer.lr=0.05", "stage.optimizer.warmup_steps=0"]
    with pytest.raises(TrainingError, match=f"no generator is left .*{why}"):
        train(load_recipe(recipe, overrides), tmp_path / "run")
    view = RunDir.read(tmp_path / "run")
    assert view.status == "failed" and why in (view.manifest.reason or "")
    # What was learned before it was caught is kept, all of it from right weights.
    done = max((line.step for line in view.metrics()), default=0)
    assert [c.step for c in view.checkpoints()] == ([done] if done else [])
    assert len(view.ledger.steps()) == done


def test_a_worker_that_never_starts_ends_the_run_with_its_reason(
    two_generators: Path, tmp_path: Path
) -> None:
    python = planted(tmp_path, "raise SystemExit('libcann.so is missing')")
    text = two_generators.read_text().replace(TWO, f'python = "{python}"\n')
    recipe = tmp_path / "planted.toml"
    recipe.write_text(text)
    with pytest.raises(TrainingError, match=r"no generator is left .*libcann\.so is missing"):
        train(load_recipe(recipe, ["fleet.failures=2"]), tmp_path / "run")


def test_an_interpreter_that_is_not_there_is_the_users_mistake(
    two_generators: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(two_generators, ["generator.python=/nowhere/python"])
    with pytest.raises(
        ConfigError, match=r"generator\.python = '/nowhere/python' of generator-0-0"
    ):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


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

    deadline = time.monotonic() + 120
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


def test_two_processes_of_one_learner_train_the_same_weights(
    two_generators: Path, tmp_path: Path
) -> None:
    """torchrun, FSDP2 over gloo, and two generators."""
    alone, several = tmp_path / "alone", tmp_path / "several"
    more = ["stage.steps=3", "stage.eval.every=0"]
    finish(start(two_generators, alone, *more))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--standalone", "-m", "--", "interlock.cli", "train", str(two_generators)]
    done = subprocess.run(
        [*command, "--run", str(several), *more],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr.decode()
    ours = load_file(several / "weights" / "model.safetensors")
    theirs = load_file(alone / "weights" / "model.safetensors")
    begun = load_file(Path(RunDir.read(alone).config["model"]["path"]) / "model.safetensors")
    assert ours.keys() == theirs.keys()
    moved = max((theirs[name] - begun[name]).abs().max().item() for name in theirs)
    apart = max((ours[name] - theirs[name]).abs().max().item() for name in theirs)
    assert moved > 1e-3 and apart < moved / 20, (moved, apart)
    assert done.stdout.count(b"run directory:") == 1


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
    two_generators: Path, small_disk: Path, tmp_path: Path
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
    finish(start(two_generators, reference, *more))
    assert weights(run) == weights(reference)


def test_a_fleet_that_cannot_be_had_leaves_nothing_behind(
    two_generators: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(settings: object) -> Any:
        raise ConfigError("no cluster at 127.0.0.1:1")

    monkeypatch.setitem(fleet._FLEETS, "local", refuse)
    (theirs := tmp_path / "theirs").mkdir()
    recipe = load_recipe(two_generators, [f"sync.url={theirs}/weights"])
    with pytest.raises(ConfigError, match="no cluster"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists() and list(theirs.iterdir()) == []
