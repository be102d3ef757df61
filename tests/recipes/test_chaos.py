"""Three generators, disturbed at random: the run ends, has learned, and its ledger is exact."""

import random
import subprocess
import time
from pathlib import Path
from statistics import fmean

import pytest
from chaos import Chaos
from running import DEADLINE, finish, start

from interlock.rundir import RunDir, RunView

# A reward that two random layers can learn: a fifth of the letters shall be one letter. It begins
# at about 0.5, and ends at 1 for every answer: then no group teaches anything, and nothing moves.
REWARD = """
def reward(problem, answer):
    return min(1.0, 5 * answer.count("e") / max(1, len(answer)))
"""
PROBLEMS, COMPLETIONS = 4, 8
UNLEARNED, LEARNED = 0.6, 0.95
RATE = 1.65  # times 1 / steps: learned after a third of them, on a busy machine two thirds


@pytest.fixture
def recipe(tiny_recipe: Path) -> Path:
    (tiny_recipe.parent / "reward.py").write_text(REWARD)
    text = tiny_recipe.read_text()
    deadlines = "silence_s = 6, start_s = 40"  # a worker may be stopped while it starts, too
    fleet = f"fleet = {{ kind = 'local', unit = 2, backoff_s = 0.1, {deadlines}, failures = 8 }}"
    three = 'count = 3\nenv = { OMP_NUM_THREADS = "1" }\n'
    changes = {
        "[[generator]]\n": f"{fleet}\nsync = {{ anchor_every = 4 }}\n\n[[generator]]\n{three}",
        "problems_per_step = 3": f"problems_per_step = {PROBLEMS}\nstaleness = 2",
        "completions = 4": f"completions = {COMPLETIONS}",
        'lr = 1e-3, warmup_steps = 1, schedule = "cosine"': "lr = 1e-3",
        "eval = { every = 4, problems = 5 }": "eval = { every = 0, problems = 5 }",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = tiny_recipe.with_name("chaos.toml")
    path.write_text(text)
    return path


def asked(recipe: Path, run: Path, steps: int) -> tuple[Path, Path, str, str]:
    return recipe, run, f"stage.steps={steps}", f"stage.optimizer.lr={RATE / steps}"


def check(view: RunView, steps: int) -> None:
    """It learned what an undisturbed run learns, from each problem once, none of it too old."""
    assert view.status == "finished"
    used = [sequence for step in range(1, steps + 1) for sequence in view.ledger.sequences(0, step)]
    aside = view.ledger.set_asides(0)
    assert len(used) == len(set(used)) and not used & aside.keys()  # type: ignore[operator]
    assert sorted([*used, *aside]) == list(range(steps * PROBLEMS + len(aside)))
    assert view.ledger.arrivals(0) == []
    for step in range(1, steps + 1):
        for scored in view.ledger.read(0, step):
            assert len(scored.group.completions) == COMPLETIONS
            for answer in scored.group.completions:
                versions = answer.weight_versions  # loaded under it, one after another
                assert versions == sorted(set(versions)) and all(answer.mask)
    lines = [line for line in view.metrics() if line.step]
    assert all(0 <= (line.rollout.staleness_max or 0) <= 2 for line in lines)
    rewards = [line.rollout.reward or 0.0 for line in lines]
    assert fmean(rewards[:5]) < UNLEARNED and fmean(rewards[-5:]) > LEARNED, rewards
    assert (lines[-1].weight_version or 0) > steps / 4, "too few versions that could be disturbed"


def disturbed(process: subprocess.Popen[bytes], chaos: Chaos, strikes: int, seed: int) -> None:
    """Strike now and then; what comes after the last strike is up to the run."""
    pauses, deadline = random.Random(seed), time.monotonic() + DEADLINE
    while process.poll() is None and strikes:
        assert time.monotonic() < deadline, chaos.done
        time.sleep(pauses.uniform(0.5, 2.0))
        strikes -= chaos.strike(process)
    finish(process)


@pytest.mark.parametrize("seed", [3])
def test_a_disturbed_run_learns_as_much_and_loses_nothing(
    seed: int, recipe: Path, tmp_path: Path
) -> None:
    run, steps = tmp_path / "run", 60
    chaos = Chaos(run, seed)
    disturbed(start(*asked(recipe, run, steps)), chaos, 8, seed)
    check(RunDir.read(run), steps)
    assert chaos.done.total() >= 5, chaos.done


def test_an_undisturbed_run_sets_the_level(recipe: Path, tmp_path: Path) -> None:
    run, steps = tmp_path / "run", 60
    finish(start(*asked(recipe, run, steps)))
    view = RunDir.read(run)
    check(view, steps)
    kinds = {event.kind for event in view.events()}
    assert not kinds & {"worker_lost", "worker_silent", "worker_garbage"}


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
def test_long(seed: int, recipe: Path, tmp_path: Path) -> None:
    """Many more strikes; the learner, and so the coordinator, is killed three times as well."""
    run, steps = tmp_path / "run", 160
    chaos, moments = Chaos(run, seed), random.Random(seed)
    process = start(*asked(recipe, run, steps))
    for _ in range(3):
        for _ in range(10):
            time.sleep(moments.uniform(0.5, 3.0))
            chaos.strike(process)
        process.kill()
        process.communicate()
        process = start(*asked(recipe, run, steps), "--resume")
    disturbed(process, chaos, 10, seed)
    check(RunDir.read(run), steps)
    assert chaos.done.total() >= 20, chaos.done
