"""Learner and generators in processes of their own, with real engines, killed at any moment."""

import os
import random
import signal
import subprocess
import sys
import time
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
from interlock.errors import ConfigError
from interlock.recipes import fleet
from interlock.recipes.train import train
from interlock.records.rl import ScoredGroup
from interlock.rundir import RunDir


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


def test_an_interpreter_that_is_not_there_is_the_users_mistake(
    two_generators: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(two_generators, ["generator.python=/nowhere/python"])
    with pytest.raises(
        ConfigError, match=r"generator\.python = '/nowhere/python' of generator-0-0"
    ):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_of_one_learner_train_the_same_weights(
    tiny_recipe: Path, two_generators: Path, tmp_path: Path
) -> None:
    """torchrun, FSDP2 over gloo, and two generators, against one process for all."""
    alone, several = tmp_path / "alone", tmp_path / "several"
    more = ["stage.steps=3", "stage.eval.every=0"]
    finish(start(tiny_recipe, alone, "fleet.unit=2", *more))
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
