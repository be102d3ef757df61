"""What runs are said to have used, against the clock and /proc; and budgets that stop them."""

import os
import select
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace
from running import DEADLINE, finish, kill_during, start, weights

from interlock.config.reading import load_recipe
from interlock.errors import BudgetSpent, ConfigError
from interlock.recipes.train import train
from interlock.rundir import RunDir, RunView

PRICES = """
[[price]]
chip = "cpu"
per_hour = 0.5
currency = "EUR"
date = 2026-11-01
source = "an offer"
"""
SHORT = ["stage.eval.every=0", "stage.steps=4", "checkpoint_every=0"]


class Lifetimes(threading.Thread):
    """Of this process's children that are workers, by /proc and the kernel's word of their end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.began: dict[int, float] = {}  # by pid; seconds since the machine's start
        self.ended: dict[int, float] = {}
        self._open: dict[int, int] = {}  # pids by their descriptors
        self._poll = select.poll()

    @property
    def alive(self) -> list[int]:
        return sorted(self.began.keys() - self.ended.keys())

    @property
    def seconds(self) -> float:
        return sum(self.ended[pid] - self.began[pid] for pid in self.began)

    def run(self) -> None:
        looked = 0.0
        while self._open or not self.over.is_set():
            for number, _ in self._poll.poll(20):
                self._poll.unregister(number)
                os.close(number)
                self.ended[self._open.pop(number)] = time.clock_gettime(time.CLOCK_BOOTTIME)
            if time.monotonic() - looked > 0.2:
                looked = time.monotonic()
                self._find()

    def _find(self) -> None:
        for pid in self._children():
            stat = Path(f"/proc/{pid}/stat")
            try:
                command = (stat.parent / "cmdline").read_bytes()
                if pid in self.began or b"interlock.workers.worker" not in command:
                    continue
                fields = stat.read_text().rpartition(")")[2].split()
                number = os.pidfd_open(pid)
            except OSError:
                continue
            self.began[pid] = int(fields[19]) / os.sysconf("SC_CLK_TCK")
            self._open[number] = pid
            self._poll.register(number, select.POLLIN)

    def _children(self) -> set[int]:
        """Of all our threads."""
        found: set[int] = set()
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):
                found.update(map(int, (task / "children").read_text().split()))
        return found


def sampled_of(view: RunView) -> int:
    """Tokens of all recorded answers."""
    groups = [group for place in view.ledger.steps() for group in view.ledger.read(*place)]
    for place in view.ledger.evaluation_steps():
        groups += view.ledger.read_evaluation(*place)
    return sum(sum(c.mask) for scored in groups for c in scored.group.completions)


@pytest.mark.slow
def test_a_fleet_is_metered_as_the_clock_and_proc_say(two_generators: Path, tmp_path: Path) -> None:
    """One of two workers is killed on the way. All compute on one CPU, which is one chip."""
    (tmp_path / "prices.toml").write_text(PRICES)
    recipe = load_recipe(two_generators, [f"prices={tmp_path}/prices.toml"])
    lives = Lifetimes()
    lives.start()

    def kill_one() -> None:
        deadline = time.monotonic() + DEADLINE
        metrics = tmp_path / "run" / "metrics.jsonl"
        while not (metrics.exists() and '"step":2,' in metrics.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(lives.alive[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    began = time.monotonic()
    train(recipe, tmp_path / "run")
    wall = time.monotonic() - began
    killer.join()
    lives.over.set()
    lives.join()
    view = RunDir.read(tmp_path / "run")
    cost = view.cost()
    made = sum(row.process_s for row in cost.rows() if row.role == "generator")
    counted = cost.hours * 3600, cost.chip_hours * 3600
    print(f"\nwall {wall:.3f} s, metered {counted[0]:.3f} s, chips {counted[1]:.3f} s")
    print(f"workers by /proc {lives.seconds:.3f} s, metered {made:.3f} s")
    assert len(lives.began) == 3 and "worker_lost" in {event.kind for event in view.events()}
    assert cost.hours * 3600 == pytest.approx(wall, rel=0.02)
    assert cost.chip_hours * 3600 == pytest.approx(wall, rel=0.02)
    of = {
        role: [row for row in cost.rows() if row.role == role] for role in ("learner", "generator")
    }
    assert sum(row.process_s for row in of["generator"]) == pytest.approx(lives.seconds, rel=0.02)
    assert sum(row.process_s for row in of["learner"]) == pytest.approx(wall, rel=0.02)
    assert cost.money()["EUR"].middle == pytest.approx(wall / 3600 * 0.5, rel=0.02)
    lines = view.metrics()
    sampled = sum(row.tokens for row in of["generator"])
    assert sampled == sampled_of(view)
    assert sum(row.tokens for row in of["learner"]) == sum(m.update.tokens or 0 for m in lines)
    assert sum(row.bytes for row in of["learner"]) == sum(m.published.bytes or 0 for m in lines)
    assert 0 < sum(row.busy_s for row in of["generator"]) < lives.seconds


def test_a_budget_stops_a_run_that_then_goes_on_bit_for_bit(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(tiny_recipe, ["model.clock=2026-01-01T00:00:00", *SHORT])
    train(recipe, tmp_path / "whole")
    line = RunDir.read(tmp_path / "whole").metrics()[2]
    assert line.cost.tokens is not None
    limit = int(line.cost.tokens)  # reached by step 2, at the latest

    def limited(tokens: int) -> None:
        asked = replace(recipe, budget=replace(recipe.budget, tokens=tokens))
        train(asked, tmp_path / "run", resume=(tmp_path / "run").exists())

    with pytest.raises(BudgetSpent, match=r"budget\.tokens = .* stage 0 step 2 is kept, raise it"):
        limited(limit)
    view = RunDir.read(tmp_path / "run")
    assert view.status == "stopped by budget"
    assert view.manifest.reason is not None and "tokens are used" in view.manifest.reason
    newest = view.latest_checkpoint()
    assert newest is not None and (newest.stage, newest.step) == (0, 2)
    assert [event.kind for event in view.events()][-2:] == ["budget_low", "budget_spent"] or [
        event.kind for event in view.events()
    ][-1] == "budget_spent"
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    with pytest.raises(ConfigError, match=r"budget\.tokens = \d+: \d+ tokens are used by .*raise"):
        limited(limit)
    assert {p: p.read_bytes() for p in (tmp_path / "run").glob("*.json*")} == before
    limited(10 * limit)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    ours, theirs = RunDir.read(tmp_path / "run"), RunDir.read(tmp_path / "whole")
    assert ours.status == "finished" and len(ours.cost().sessions) == 2
    assert ours.cost().tokens == theirs.cost().tokens
    limited(limit)  # nothing is left to do


def test_a_stage_that_has_nothing_left_to_draw_is_done_whatever_its_budget(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    tiny_recipe.with_name("reward.py").write_text("def reward(problem, answer):\n    return 1.0\n")
    drawn = "[stage.task.draw]\nretire = 1\n"
    tiny_recipe.write_text(tiny_recipe.read_text().replace("held_out = 8", "held_out = 36") + drawn)
    recipe = load_recipe(tiny_recipe, ["stage.problems_per_step=2", "budget.tokens=1"])
    with pytest.raises(BudgetSpent, match="stage 0 step 1 is kept"):
        train(recipe, tmp_path / "run")
    spent = int(RunDir.read(tmp_path / "run").cost().tokens)
    # Of four problems two are left after a step, and none after the second, which is the last.
    raised = replace(recipe, budget=replace(recipe.budget, tokens=spent + 1))
    for _ in range(2):
        train(raised, tmp_path / "run", resume=True)
        view = RunDir.read(tmp_path / "run")
        assert view.status == "finished" and view.metrics()[-1].step == 2
        assert view.cost().tokens > spent + 1
    longer = load_recipe(tiny_recipe, ["stage.problems_per_step=2", "stage.steps=9"])
    with pytest.raises(ConfigError, match=r"budget\.tokens = 1: \d+ tokens are used by"):
        train(replace(longer, budget=recipe.budget), tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_budget_a_kill_and_a_larger_budget_change_no_bit(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(start(tiny_recipe, whole, "stage.steps=6"))
    stopped = start(tiny_recipe, run, "stage.steps=6", "budget.tokens=1")
    _, errors = stopped.communicate(timeout=DEADLINE)
    assert stopped.returncode == 4 and b"stage 0 step 1 is kept" in errors, errors.decode()
    again = start(tiny_recipe, run, "stage.steps=6", "budget.tokens=1", "--resume")
    _, errors = again.communicate(timeout=DEADLINE)
    (line,) = errors.decode().splitlines()
    assert again.returncode == 2 and line.startswith("interlock: budget.tokens = 1: ")
    killed: subprocess.Popen[bytes] = start(
        tiny_recipe, run, "stage.steps=6", "budget.tokens=1000000", "--resume"
    )
    kill_during(killed, run, 3, 0.05)
    used = RunDir.read(run).cost()
    finish(start(tiny_recipe, run, "stage.steps=6", "--resume"))
    assert weights(run) == weights(whole)
    cost = RunDir.read(run).cost()
    assert [session.ended for session in cost.sessions] == [True, False, True]
    assert cost.sessions[:2] == used.sessions and len(list(cost.cut_off())) == 1


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("budget.money=5", r"budget\.money = 5 USD cannot be kept: no price of .* is known; give"),
        ("prices=nowhere.toml", r"^prices nowhere\.toml: .*give \[\[price\]\] tables"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_told_before_anything_is_written(
    asked: str, complaint: str, tiny_recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        train(load_recipe(tiny_recipe, [asked]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (["budget.hours=0"], r"budget\.hours"),
        (["budget.warn_at=2", "budget.hours=1"], r"budget\.warn_at"),
        (["budget.warn_at=0.5"], "budget.warn_at = 0.5 is a share of limits, and there is none"),
        (["budget.currency=EUR"], "is that of budget.money, which is not set"),
        (["budget.currency=euro", "budget.money=1"], r"budget\.currency"),
        (["budget.hour=1"], "hour"),
    ],
)
def test_slips_in_a_budget(asked: list[str], complaint: str, tiny_recipe: Path) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_recipe(tiny_recipe, asked)
