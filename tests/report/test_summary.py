import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.records.metrics import RolloutMetrics, StepMetrics
from interlock.records.rl import Verdict, VerdictStatus
from interlock.report import summary
from interlock.rundir import Session

MakeRun = Callable[..., Any]
MakeGroup = Callable[..., Any]


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson(right: int, total: int, low: float, high: float) -> None:
    assert summary.wilson(right / total, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilson_ends_solve_the_score_equation(total: int, share: float) -> None:
    low, high = summary.wilson(share, total)
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
    for end in (low, high):
        if 1e-9 < end < 1 - 1e-9:
            score = abs(share - end) / math.sqrt(end * (1 - end) / total)
            assert score == pytest.approx(1.959964, rel=1e-3)


def test_evaluations_are_of_the_recorded_answers_else_as_they_were_logged(
    make_run: MakeRun, make_group: MakeGroup
) -> None:
    run = make_run()
    answers = [("x", 1.0)], [("y", 0.5)], [("z", 0.0)], [("w", 1.0)]
    scored = [make_group(f"q{i}", *answer) for i, answer in enumerate(answers)]
    scored[1].verdicts[0] = Verdict(0.5, correct=True)  # a number that would not say it
    run.ledger.record_evaluation(0, 0, scored)
    run.ledger.record_evaluation(0, 2, scored)
    for step, accuracy in ((1, None), (2, 1.1), (3, 0.25)):  # 1.1: a mean reward, of old versions
        run.log(StepMetrics(stage=0, step=step, accuracy=accuracy))
    run.log(StepMetrics(stage=0, step=4, accuracy=0.5, held_out_reward=-2.0))
    assert [each[:5] for each in summary.evaluations(run, run.metrics())] == [
        (0, 0, 0.75, 4, 0.625),
        (0, 2, 0.75, 4, 0.625),
        (0, 3, 0.25, None, None),
        (0, 4, 0.5, None, -2.0),
    ]


def test_no_interval_where_the_number_of_answers_is_unknown() -> None:
    assert summary.Evaluation(0, 0, 0.5, None).interval is None
    assert summary.Evaluation(0, 0, 0.8, 10).interval == summary.wilson(0.8, 10)


def test_before_and_after_are_of_the_same_problems(
    make_run: MakeRun, make_group: MakeGroup
) -> None:
    run = make_run()
    run.ledger.record_evaluation(0, 0, [make_group("other", ("?", 0.0))])
    run.ledger.record_evaluation(1, 0, [make_group("q", ("wrong", 0.0))])
    run.ledger.record_evaluation(1, 5, [make_group("q", ("middling", 0.5))])
    run.ledger.record_evaluation(1, 9, [make_group("q", ("right", 1.0))])
    pair = summary.before_after(run, summary.evaluations(run, []))
    assert pair is not None and pair.after is not None
    assert (pair.before.stage, pair.before.step, pair.before.accuracy) == (1, 0, 0.0)
    assert (pair.after.stage, pair.after.step, pair.after.accuracy) == (1, 9, 1.0)
    [comparison] = summary.comparisons(run, pair, 3)
    assert (comparison.question, comparison.reference) == ("q", "q!")
    assert (comparison.before.text, comparison.after.text) == ("wrong", "right")
    assert (comparison.before.reward, comparison.after.reward) == (0.0, 1.0)


def test_one_evaluation_is_a_before_without_an_after(
    make_run: MakeRun, make_group: MakeGroup
) -> None:
    run = make_run()
    assert summary.before_after(run, []) is None
    run.ledger.record_evaluation(0, 0, [make_group("q", ("a", 1.0))])
    pair = summary.before_after(run, summary.evaluations(run, []))
    assert pair is not None and pair.before.accuracy == 1.0 and pair.after is None
    assert summary.comparisons(run, pair, 3) == []


def test_samples_are_of_the_first_middle_and_last_step(
    make_run: MakeRun, make_group: MakeGroup
) -> None:
    run = make_run()
    assert summary.samples(run, 2, 2) == []
    for step in range(1, 8):
        groups = [make_group(f"{step}{x}", ("a", 0), ("b", 1), ("c", 0)) for x in "xyz"]
        run.ledger.record(0, step, groups, range(3 * step, 3 * step + 3))
    chosen = summary.samples(run, groups=2, completions=2)
    assert [sample.question for sample in chosen] == ["1x", "1y", "4x", "4y", "7x", "7y"]
    assert [answer.text for answer in chosen[0].answers] == ["a", "b"]


def test_pauses_and_what_a_kill_cut_short_do_not_count_as_time() -> None:
    sessions = [Session(100.0, 160.0), Session(1000.0), Session(5000.0, 5030.0)]
    times = [110.0, 150.0, 1005.0, 1042.0, 5001.0]
    assert summary.active_seconds(sessions, times) == 60.0 + 42.0 + 30.0
    assert summary.active_seconds([Session(100.0)], []) == 0.0


def test_a_total_is_of_the_steps_that_have_the_figure() -> None:
    metrics = [
        StepMetrics(stage=0, step=step, rollout=RolloutMetrics(tokens=tokens))
        for step, tokens in enumerate([None, 2, 3])
    ]
    assert summary.total(metrics, lambda m: m.rollout.tokens) == 5
    assert summary.total(metrics[:1], lambda m: m.rollout.tokens) is None


def test_a_run_is_void_where_its_weights_stay_or_nothing_was_judged(make_run: MakeRun) -> None:
    run = make_run()
    skipped = RolloutMetrics(groups=4, completions=8, groups_skipped=4, verifier_errors=0)
    failed = RolloutMetrics(groups=4, completions=8, groups_skipped=2, verifier_errors=8)
    fine = RolloutMetrics(groups=4, completions=8, groups_skipped=4, verifier_errors=7)
    for stage, (rollout, version) in enumerate(
        [(skipped, 0), (fine, 1), (RolloutMetrics(), 1), (failed, 2), (RolloutMetrics(), 3)]
    ):
        run.log(StepMetrics(stage=stage, step=0))
        run.log(StepMetrics(stage=stage, step=1, rollout=rollout, weight_version=version))
    run.event("verifier_error", "step 1: 8 answers score 0: KeyError: 'x'")
    assert summary.void(run) == [
        "stage 0 learned nothing: in each of its 4 groups all rewards are equal",
        "stage 2 learned nothing: no update was finite",
        "stage 3: the verifier failed on every answer: step 1: 8 answers score 0: KeyError: 'x'",
    ]


def test_an_evaluation_is_void_when_no_answer_was_judged(
    make_run: MakeRun, make_group: MakeGroup
) -> None:
    run = make_run()
    groups = [make_group("q", ("a", 0.0)), make_group("r", ("b", 0.0))]
    groups[0].verdicts[0] = Verdict.failed(VerdictStatus.ERROR, "KeyError: 'x'")
    run.log(StepMetrics(stage=0, step=1, weight_version=1))
    assert summary.not_judged(groups) is None and summary.not_judged(groups[:1]) == "KeyError: 'x'"
    run.ledger.record_evaluation(0, 1, groups[:1])
    assert summary.void(run) == ["stage 0: the verifier failed on every answer: KeyError: 'x'"]
