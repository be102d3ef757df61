"""What a run looks like in a terminal, live and in a log."""

import io
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from rich.console import Console

from interlock import terminal
from interlock.mismatch import Mismatch
from interlock.records.metrics import (
    Event,
    RolloutMetrics,
    StepMetrics,
    StepSeconds,
    UpdateMetrics,
    WorkerMetrics,
    WorkerState,
)
from interlock.records.rl import (
    Completion,
    FinishReason,
    Group,
    Problem,
    Score,
    ScoredGroup,
    Verdict,
)
from interlock.rundir import RunDir

METRICS = StepMetrics(
    stage=0,
    step=1,
    kind="grpo",
    rollout=RolloutMetrics(reward=0.25, length=11.6, groups_skipped=2),
    update=UpdateMetrics(loss=0.1, entropy=1.5, mismatch=Mismatch(90, 2.5e-4, 0.1, 0.0)),
    seconds=StepSeconds(generate=3.21),
)


def console(is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def scored(
    answer: str,
    reward: float,
    finish: FinishReason = FinishReason.STOP,
    correct: bool | None = None,
) -> ScoredGroup:
    problem = Problem("p", [{"role": "user", "content": "What is 2 + 2?"}], "4")
    completion = Completion.sampled([1], [-0.1], finish, answer, 0)
    return ScoredGroup(Group(problem, [1], [completion], "w"), [Verdict(reward, correct)])


def test_a_log_gets_one_plain_line_per_step() -> None:
    log = console(is_terminal=False)
    with terminal.watching(log) as watch:
        watch.stage(0, "grpo", 0, 40)
        watch.phase("generating", 8)
        watch.advance()
        watch.evaluated(0, Score(0.109, -2.5, 128))
        drawn = Score(0.25, 0.5, 1024, pass_at={1: 0.25, 8: 0.5}, problems=128)
        watch.evaluated(0, drawn)
        watch.step(StepMetrics(stage=0, step=0, accuracy=0.109))  # said already
        watch.step(StepMetrics(stage=0, step=0, held_out_loss=10.5))
        watch.step(METRICS)
        watch.note("[bold]a note[/]")
        watch.event(Event(1.0, "worker_lost", "w is lost", "w"))
    assert text(log).splitlines() == [
        "stage 0: grpo, 40 steps",
        "step 0: accuracy 10.9%, mean reward -2.5 on 128 held-out problems",
        "step 0: accuracy 25.0%, mean reward 0.5, pass@1 25.0%, pass@8 50.0% on 1024 answers to 128"
        " held-out problems",
        "step 0/40: held out 10.500",
        "step 1/40: reward 0.25  length 12  entropy 1.50  mismatch 2.5e-04  skipped 2"
        "  generate 3.2s",
        "[bold]a note[/]",
        "w is lost",
    ]


def test_a_screen_shows_progress_curve_and_steps() -> None:
    screen = console(is_terminal=True)
    watch = terminal.LiveWatch(screen)
    watch.stage(0, "grpo", 0, 40)
    watch.evaluated(0, Score(0.109, -2.5, 128))
    watch.step(METRICS)
    watch.phase("generating", 8)
    watch.advance()
    screen.print(watch.render())
    shown = text(screen)
    for expected in ("stage 0 · grpo", "1/40", "▃", "10.9% @0", "generating", "1/8", "3.2s"):
        assert expected in shown, expected
    watch.phase("updating")
    screen.file = io.StringIO()
    screen.print(watch.render())
    assert "updating" in text(screen) and "generating" not in text(screen)


def worker(state: WorkerState = WorkerState.GENERATING, **changes: Any) -> WorkerMetrics:
    known = WorkerMetrics(
        state, weight_version=7, tokens=900, seconds_generating=3.0, groups=12, restarts=1
    )
    return replace(known, **changes)


def rendered(watch: terminal.LiveWatch) -> list[str]:
    screen = console(is_terminal=True)
    screen.print(watch.render())
    return text(screen).splitlines()


def test_a_screen_shows_what_every_worker_does() -> None:
    watch = terminal.LiveWatch(console(is_terminal=True))
    gaps = {2: Mismatch(5, 0.5), 1: Mismatch(5, 2.5e-4)}
    watch.step(StepMetrics(stage=0, step=0, workers={"torch-0": worker(mismatch=gaps)}))
    watch.step(StepMetrics(stage=0, step=0, workers={"torch-0": worker()}))  # the last k3 stands
    starting = worker(WorkerState.STARTING, weight_version=None, tokens=0, seconds_generating=0.0)
    watch.workers({"torch-0": worker(tokens=1200), "vllm-0": starting})
    *_, head, first, second = [line.split() for line in rendered(watch) if line.strip()]
    assert head == ["worker", "state", "version", "tokens/s", "k3", "groups", "restarts"]
    assert first == ["vllm-0", "starting", "–", "–", "–", "12", "1"]
    assert second == ["torch-0", "generating", "7", "400", "2.5e-04", "12", "1"]


def test_a_large_fleet_shows_those_not_at_work_and_counts_the_rest() -> None:
    watch = terminal.LiveWatch(console(is_terminal=True))
    fleet = {f"w{index}": worker() for index in range(20)}
    watch.workers(fleet | {"w5": worker(WorkerState.READY), "w19": worker(WorkerState.RETIRED)})
    shown = [line.split()[0] for line in rendered(watch) if line.strip()]
    assert shown == ["worker", "w19", *(f"w{index}" for index in range(7)), "and"]
    assert rendered(watch)[-1].strip() == "and 12 generating"


def test_a_log_gets_no_line_for_the_workers() -> None:
    log = console(is_terminal=False)
    with terminal.watching(log) as watch:
        watch.workers({"torch-0": worker()})
    assert text(log) == ""


def test_a_name_cannot_steer_the_terminal() -> None:
    watch = terminal.LiveWatch(console(is_terminal=True))
    watch.workers({"\x1b]0;t\x07[red]x": worker()})
    shown = "\n".join(rendered(watch))
    assert "␛]0;t␇[red]x" in shown and "\x07" not in shown


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], "▁▅█"),
        ([-1.0, 0.5, 2.0], "▁▅█"),
        ([-1e308, 0.0, 1e308], "▁▅█"),
        ([0.0] * 3 + [1.0] * 60, "█" * 60),
        ([], ""),
    ],
)
def test_sparkline(values: list[float], expected: str) -> None:
    assert terminal.sparkline(values) == expected


def test_model_text_cannot_steer_the_terminal() -> None:
    log = console(is_terminal=False)
    terminal.print_accuracy(log, [scored("\x1b]0;title\x07 [red]4", 1.0)], show=1)
    assert "\x1b" not in text(log) and "\x07" not in text(log)
    assert "[red]4" in text(log)


def test_accuracy_comes_with_its_interval() -> None:
    log = console(is_terminal=False)
    terminal.print_accuracy(log, [scored("4", 1.0), scored("5", 0.0)] * 32, show=1)
    # Wilson's interval of 32 in 64.
    assert "accuracy 50.0% (95 % 38.1% – 61.9%), mean reward 0.5 on 64 problems" in text(log)
    assert text(log).count("What is 2 + 2?") == 1 and "✓ 4" in text(log)


def test_accuracy_counts_right_answers_whatever_they_earned() -> None:
    log = console(is_terminal=False)
    shown = [scored("4", 0.2, correct=True), scored("5", 3.0, correct=False)]
    terminal.print_accuracy(log, [*shown, *shown], show=2)
    assert "accuracy 50.0%" in text(log) and "mean reward 1.6" in text(log)
    assert "✓ 4" in text(log) and "✗ 5" in text(log)


def test_the_outcome_compares_before_and_after(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", {"name": "x"}, {}) as run:
        before = scored("five and so on", 0.0, FinishReason.LENGTH)
        run.ledger.record_evaluation(0, 0, [before])
        run.ledger.record_evaluation(0, 4, [scored("4", 1.0)])
    log = console(is_terminal=False)
    terminal.print_outcome(log, RunDir.read(tmp_path / "run"))
    shown = text(log)
    for expected in ("before", "after", "0.0%", "100.0%", "✗ five and so on …", "✓ 4", "answer: 4"):
        assert expected in shown, expected


def test_the_outcome_keeps_rewards_apart_from_the_share_of_right_answers(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", {"name": "x"}, {}) as run:
        run.ledger.record_evaluation(0, 0, [scored("5", -1.0), scored("4", 1e308)])
        run.ledger.record_evaluation(0, 4, [scored("4", 1e308), scored("4", 1e308)])
    log = console(is_terminal=False)
    terminal.print_outcome(log, RunDir.read(tmp_path / "run"))
    cells = [line.replace("│", " ").split() for line in text(log).splitlines()]
    rows = {line[0]: line for line in cells if line}
    assert rows["before"][1:] == ["0", "50.0%", "9.5%", "–", "90.5%", "2", "5e+307"]
    assert rows["after"][1:] == ["4", "100.0%", "34.2%", "–", "100.0%", "2", "1e+308"]


def test_a_run_without_evaluation_says_so(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", {"name": "x"}, {}) as run:
        run.log(StepMetrics(stage=0, step=1, kind="sft", update=UpdateMetrics(loss=1.0)))
    log = console(is_terminal=False)
    terminal.print_outcome(log, RunDir.read(tmp_path / "run"))
    assert "1 steps done; there was no task" in text(log)


def test_the_outcome_tells_the_held_out_loss_of_each_stage(tmp_path: Path) -> None:
    with RunDir.create(tmp_path / "run", {"name": "x"}, {}) as run:
        for stage, step, loss in ((0, 0, 9.0), (0, 2, 7.0), (0, 4, 5.5), (2, 0, 4.0)):
            run.log(StepMetrics(stage=stage, step=step, held_out_loss=loss))
    log = console(is_terminal=False)
    terminal.print_outcome(log, RunDir.read(tmp_path / "run"))
    assert text(log).splitlines() == [
        "stage 0: held-out loss 9.000 nats per token after step 0, 5.500 after step 4",
        "stage 2: held-out loss 4.000 nats per token after step 0, 4.000 after step 0",
    ]
