"""A stage that draws by pass rate: what a draw knows, that it is kept, and how the stage ends."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from ticking_generators import STAGE, FakeGenerators, Killed, constant, open_stage

from interlock.config.drawing import DrawSettings
from interlock.config.tasks import TaskSettings
from interlock.errors import RunError, TrainingError
from interlock.recipes.rollouts import Rollouts
from interlock.recipes.stage import Clock
from interlock.records.metrics import RolloutMetrics
from interlock.records.rl import Attempt, DrawnProblems, Problem, ScoredGroup, Verdict
from interlock.rundir import RunDir
from interlock.rundir.draws import Draws
from interlock.tasks.drawing import DrawnSource
from interlock.tasks.mixture import Mixture
from interlock.tasks.sources import ListSource
from interlock.workers.generators import Work

PROBLEMS, STEPS = 4, 8


class Judge:
    """Of three problems one is always solved, one never, and one by the first of two answers."""

    retried = 0

    def verify(self, answers: Sequence[Attempt]) -> list[Verdict]:
        return [
            Verdict(float([True, False, place % 2 == 0][int(problem.id) % 3]))
            for place, (problem, *_) in enumerate(answers)
        ]

    def spent(self) -> dict[str, float]:
        return {}


class Solving(Judge):
    def verify(self, answers: Sequence[Attempt]) -> list[Verdict]:
        return [Verdict(1.0)] * len(answers)


def differ(scored: ScoredGroup) -> bool:
    return len(set(scored.rewards)) > 1


class Life:
    """One process's time on a stage whose task has `size` problems."""

    def __init__(
        self,
        run: RunDir,
        generators: FakeGenerators,
        size: int = 24,
        retire: int = 2,
        judge: Judge | None = None,
        extra: int = 0,
        cap: int = 0,
        done: int = 0,
    ) -> None:
        self.run, self.generators, self.judge = run, generators, judge or Judge()
        stage = open_stage(run, generators, steps=STEPS, problems=PROBLEMS, cap=cap, unit=2)
        how = DrawSettings(retire=retire, floor=0.25)
        task = replace(stage.settings.task[0], draw=how)
        stage.settings = replace(stage.settings, task=[task], extra_groups=extra)
        stage.restored(done)
        self.stage = stage
        listed = ListSource([Problem(str(number), [], "") for number in range(size)], [], 0)
        self.task = Mixture([task], [DrawnSource(listed, how, 0)])
        self.rollouts = Rollouts(stage, self.task, extra)
        self.metrics: list[RolloutMetrics] = []

    def live(self) -> list[list[str]]:
        """The problems of every step until the stage ends."""
        used = []
        for step in self.stage.steps():
            self.stage.learner.version = self.generators.version = step - 1
            judge: Any = self.judge
            scored = self.run.ledger.read(STAGE, step) or self.rollouts.judged(
                step, judge, Clock(), differ
            )
            self.rollouts.learned(step)
            self.metrics.append(
                self.rollouts.metrics(step, scored, sum(not differ(each) for each in scored))
            )
            used.append([each.group.problem.id for each in scored])
            self.stage.restored(step)
        return used


def draws(run: RunDir) -> list[DrawnProblems]:
    return Draws(run.ledger, STAGE).read()


def drawn_again(run: RunDir, size: int, retire: int) -> list[DrawnProblems]:
    """What each draw is by what the ledger holds of the steps that it knew: a plain loop."""
    listed = ListSource([Problem(str(number), [], "") for number in range(size)], [], 0)
    found, known, retired = [], 0, list[str]()
    how = DrawSettings(retire=retire, floor=0.25)
    rates: dict[str, float] = {}
    row: dict[str, int] = {}
    left = [problem.id for problem in listed.pool(0)]
    for number, recorded in enumerate(draws(run), start=1):
        for step in range(known + 1, recorded.known + 1):
            for each in run.ledger.read(STAGE, step):
                name, share = each.group.problem.id, sum(each.right) / len(each.right)
                if name in left:
                    rates[name] = (rates[name] + share) / 2 if name in rates else share
                    row[name] = row.get(name, 0) + 1 if share == 1 else 0
                    if row[name] == retire:
                        left.remove(name)
                        retired.append(name)
        known = max(known, recorded.known)
        kept = [Problem(name, [], "") for name in left]
        again = DrawnSource(
            ListSource(kept, [], 0, rates={n: r for n, r in rates.items() if n in left}), how, 0
        )
        ended = len(left) < PROBLEMS
        problems = [] if ended else again.train(number, PROBLEMS)
        named = [replace(problem, task="arithmetic") for problem in problems]
        found.append(DrawnProblems(recorded.known, named, retired, ["arithmetic"] * ended))
        retired = []
    return found


def test_every_draw_is_what_the_ledger_says_of_the_steps_before(run: RunDir) -> None:
    life = Life(run, FakeGenerators(constant(0)))
    used = life.live()
    assert [draw.known for draw in draws(run)] == list(range(STEPS))
    assert draws(run) == drawn_again(run, 24, 2)
    assert used == [[problem.id for problem in draw.problems] for draw in draws(run)]
    retired = {name for draw in draws(run) for name in draw.retired}
    assert retired and all(int(name) % 3 == 0 for name in retired)
    for place, draw in enumerate(draws(run)):
        later = {name for step in used[place:] for name in step}
        assert not later & set(draw.retired)


def test_figures_are_of_the_problems_after_the_step(run: RunDir) -> None:
    life = Life(run, FakeGenerators(constant(0)), retire=1)
    used = life.live()
    assert [len(metrics.pools) for metrics in life.metrics] == [1] * STEPS
    last = life.metrics[-1].pools["arithmetic"]
    seen = {name for step in used for name in step}
    assert last.untried == 24 - len(seen)
    assert last.retired == sum(int(name) % 3 == 0 for name in seen)
    assert last.rates["0%"] == sum(int(name) % 3 == 1 for name in seen)
    assert last.rates["to 50%"] == sum(int(name) % 3 == 2 for name in seen)


def unit(work: Work) -> tuple[Any, ...]:
    return work.keys, tuple(problem.id for problem in work.problems), work.seed


@pytest.mark.parametrize("extra", [0, 3])
@pytest.mark.parametrize("after", range(0, 24, 2))
def test_killed_anywhere_it_draws_and_retires_the_same(
    run: RunDir, after: int, extra: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with RunDir.create(tmp_path_factory.mktemp("whole") / "run", {}, {}) as other:
        other.ledger._database.execute("PRAGMA synchronous=OFF")
        undisturbed = FakeGenerators(constant(1))
        life = Life(other, undisturbed, extra=extra)
        expected, figures, drawn = life.live(), life.metrics, draws(other)
    first = FakeGenerators(constant(1))
    first.kill_after = after
    with pytest.raises(Killed):
        Life(run, first, extra=extra).live()
    second = FakeGenerators(constant(1))
    again = Life(run, second, extra=extra)
    assert again.live() == expected and draws(run) == drawn
    assert [replace(each, retried=None, judge={}) for each in again.metrics] == [
        replace(each, retried=None, judge={}) for each in figures
    ]
    whole = {unit(work) for work in undisturbed.ordered}
    assert {unit(work) for work in [*first.ordered, *second.ordered]} == whole


def test_in_place_of_groups_that_teach_nothing_come_the_next_that_were_drawn(run: RunDir) -> None:
    """They are drawn by what was known before the step, and so is the rest of their stretch."""
    life = Life(run, FakeGenerators(constant(0)), extra=3)
    used = life.live()
    assert any(len(step) > PROBLEMS for step in used)
    stream = [problem.id for draw in draws(run) for problem in draw.problems]
    assert [name for step in used for name in step] == stream[: sum(map(len, used))]
    known, wanted = [], 0
    for step, own in enumerate(used, start=1):
        wanted += len(own)
        known += [step - 1] * (-(-wanted // PROBLEMS) - len(known))
    assert [draw.known for draw in draws(run)][: len(known)] == known
    assert draws(run) == drawn_again(run, 24, 2)


@pytest.mark.parametrize("seed", range(4))
def test_ahead_of_the_learner_a_draw_knows_what_the_ledger_held_and_a_kill_changes_none(
    run: RunDir, seed: int
) -> None:
    noise = random.Random(seed)
    delays: Callable[[], int] = lambda: noise.randrange(4)  # noqa: E731
    first = FakeGenerators(delays)
    first.kill_after = noise.randrange(4, 12)
    with pytest.raises(Killed):
        Life(run, first, cap=2, extra=2).live()
    before = draws(run)
    second = FakeGenerators(delays)
    used = Life(run, second, cap=2, extra=2).live()
    assert len(used) == STEPS and draws(run)[: len(before)] == before
    assert draws(run) == drawn_again(run, 24, 2)
    assert [draw.known for draw in draws(run)][:3] == [0, 0, 0]
    order = [
        sequence for step in range(1, STEPS + 1) for sequence in run.ledger.sequences(STAGE, step)
    ]
    stream = [problem.id for draw in draws(run) for problem in draw.problems]
    assert [name for step in used for name in step] == [stream[at] for at in order]


@pytest.mark.parametrize("cap", [0, 2])
def test_when_all_is_solved_the_stage_ends_and_says_so(run: RunDir, cap: int) -> None:
    life = Life(run, FakeGenerators(constant(0)), size=12, retire=1, judge=Solving(), cap=cap)
    used = life.live()
    assert sum(map(len, used)) >= 9  # of twelve no more than three are left
    assert life.stage.last == len(used) < STEPS
    assert draws(run)[-1].ended == ["arithmetic"] and draws(run)[-1].problems == []
    retired = [name for draw in draws(run) for name in draw.retired]
    told = [event.message for event in run.events() if event.kind == "task_solved"]
    assert told == [
        f"arithmetic: {len(retired)} of 12 problems are solved, and the {12 - len(retired)} left "
        "are fewer than a step wants: no more are drawn; nothing is left, and the stage ends with "
        "what was drawn before"
    ]
    assert life.generators.unfinished == set()
    # Who goes on with it finds it at its end, wherever the last checkpoint was.
    for done in (0, len(used)):
        idle = FakeGenerators(constant(0))
        again = Life(run, idle, size=12, retire=1, judge=Solving(), done=done)
        assert again.live() == used[done:] and again.stage.last == len(used)
        assert not idle.ordered


def test_a_task_whose_weight_is_nothing_beside_one_that_is_solved_is_not_drawn_for_ever(
    run: RunDir,
) -> None:
    life = Life(run, FakeGenerators(constant(0)), size=8, retire=1, judge=Solving())
    drawn, endless = life.stage.settings.task[0], TaskSettings("arithmetic", label="b", weight=1e-9)
    life.stage.settings = replace(life.stage.settings, task=[drawn, endless])
    how = drawn.draw
    assert how is not None
    listed = ListSource([Problem(str(number), [], "") for number in range(8)], [], 0)
    other = ListSource([Problem(str(number), [], "") for number in range(8, 16)], [], 0)
    task = Mixture([drawn, endless], [DrawnSource(listed, how, 0), other])
    life.rollouts = Rollouts(life.stage, task)
    with pytest.raises(TrainingError, match="in 200 draws nothing came of the tasks that are left"):
        life.live()
    assert 200 <= len(draws(run)) <= 210


def test_a_ledger_that_lost_its_draws_is_refused(run: RunDir) -> None:
    Life(run, FakeGenerators(constant(0))).live()
    run.ledger._database.execute("DELETE FROM draws WHERE number = 3")
    with pytest.raises(RunError, match="number 4: the one before it is lost"):
        Life(run, FakeGenerators(constant(0)))
    run.ledger._database.execute("DROP TABLE draws")
    with pytest.raises(RunError, match="has lost which problems were drawn"):
        Life(run, FakeGenerators(constant(0)))


def test_another_draw_of_the_same_number_is_refused_and_a_damaged_one(run: RunDir) -> None:
    kept, first = Draws(run.ledger, STAGE), DrawnProblems(0, [Problem("1", [], "")])
    kept.record(1, first)
    kept.record(1, first)
    with pytest.raises(RunError, match="holds another draw 1 of stage 1"):
        kept.record(1, DrawnProblems(0, []))
    assert kept.read() == [first] and Draws(run.ledger, 0).read() == []
    run.ledger._database.execute("UPDATE draws SET stage = 0")
    with pytest.raises(RunError, match="draws, stage 0 number 1 is damaged"):
        Draws(run.ledger, 0).read()
