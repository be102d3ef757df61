"""Rewards beside a task's verifier: each kind by hand, and their weighted sum through the pool."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from interlock.config.rewards import (
    AccuracyReward,
    FormatReward,
    LengthReward,
    OverlongReward,
    reward_conflicts,
    rewards_at,
)
from interlock.config.tasks import TaskSettings, task_conflicts
from interlock.records.rl import Attempt, FinishReason, Problem, Verdict, VerdictStatus
from interlock.tasks.rewards import earned, form, length, open_rewards
from interlock.tasks.rewards.repetition import repeated
from interlock.tasks.verifier_pool import VerifierPool

TASK = TaskSettings("arithmetic")
SUM = Problem("p", [{"role": "user", "content": "What is 12 + 34?"}], "46")


def rewarded(*tables: dict[str, Any], **more: Any) -> TaskSettings:
    return msgspec.convert({"name": "arithmetic", "reward": tables, **more}, TaskSettings)


@pytest.mark.parametrize(
    ("turn", "text", "boxed", "tag"),
    [
        ("<think>\n12 + 34</think>\n46", 1, 0, 0),
        ("\n[THINK]so[/THINK] \\boxed{46}", 1, 1, 0),
        ("<think>a</think> <answer>46</answer>\n", 1, 0, 1),
        ("<think>a</think> \\boxed{46} \\boxed{47}", 1, 0, 0),
        ("<think>a</think> \\boxed{}", 1, 0, 0),
        ("<think>a</think> <answer>46</answer> <answer>47</answer>", 1, 0, 0),
        ("<think>a</think> <answer> </answer>", 1, 0, 0),
        ("<think>a</think>", 0, 0, 0),
        ("<think>\n</think> \\boxed{46}", 0, 0, 0),
        ("<think>\\boxed{46}", 0, 0, 0),
        ("<think>a<think>b</think> \\boxed{46}", 0, 0, 0),
        ("<think>a</think>b</think> \\boxed{46}", 0, 0, 0),
        ("<think>a[/THINK] \\boxed{46}", 0, 0, 0),
        ("well <think>a</think> \\boxed{46}", 0, 0, 0),
        ("\\boxed{46}", 0, 0, 0),
    ],
)
def test_form(turn: str, text: int, boxed: int, tag: int) -> None:
    for answer, expected in {"text": text, "boxed": boxed, "tag": tag}.items():
        settings = msgspec.convert({"kind": "format", "answer": answer}, FormatReward)
        assert form.open_reward(settings, TASK)(Attempt(SUM, turn)) == expected


@pytest.mark.parametrize(
    ("turn", "text", "boxed"),
    [
        ("<think>\n\n</think>\n\n46", 1, 0),
        ("[THINK][/THINK] \\boxed{46}", 1, 1),
        ("\\boxed{46}", 1, 1),
        ("46", 1, 0),
        ("<think>a</think> \\boxed{46}", 0, 0),
        ("<think>\n\n</think>\n\n", 0, 0),
        ("<think>\n\n</think> 46 <think>a</think>", 0, 0),
        ("<think>46", 0, 0),
        ("a</think> 46", 0, 0),
        (" \n", 0, 0),
    ],
)
def test_the_form_of_an_answer_that_is_not_to_think(turn: str, text: int, boxed: int) -> None:
    for answer, expected in {"text": text, "boxed": boxed}.items():
        table = {"kind": "format", "answer": answer, "thinks": False}
        settings = msgspec.convert(table, FormatReward)
        assert form.open_reward(settings, TASK)(Attempt(SUM, turn)) == expected


def test_a_weight_fades_evenly_and_is_gone_for_what_nothing_learns_from() -> None:
    fading = FormatReward(weight=0.4, fades=4)
    steps = [1, 2, 3, 4, 5, 6, None]
    assert [fading.weight_at(step) for step in steps] == pytest.approx(
        [0.4, 0.3, 0.2, 0.1, 0, 0, 0]
    )
    assert [FormatReward(weight=0.4).weight_at(step) for step in (1, 99, None)] == [0.4] * 3
    [stays, fades] = rewards_at([FormatReward(weight=2), fading], 3)
    assert (stays.weight, fades.weight, fades.fades) == pytest.approx((2, 0.2, 0))


def test_every_weight_may_not_fade() -> None:
    both = [FormatReward(fades=3), LengthReward(free=1, most=2, weight=0)]
    assert any("every weight fades" in why for why in reward_conflicts(both))
    assert not list(reward_conflicts([FormatReward(fades=3), AccuracyReward()]))


def test_what_fades_is_paid_by_the_step_through_the_pool() -> None:
    task = rewarded(
        {"kind": "accuracy"},
        {"kind": "format", "answer": "tag", "thinks": False, "weight": 0.5, "fades": 2},
    )
    figures = 5, FinishReason.STOP, 100
    with VerifierPool(task) as pool:
        verdicts = pool.verify(
            [Attempt(SUM, "<answer>46</answer>", *figures, step) for step in (1, 2, 3, None)]
        )
    assert [each.reward for each in verdicts] == [1.5, 1.25, 1.0, 1.0]
    assert all(each.parts == {"accuracy": 1.0, "format": 1.0} for each in verdicts)


@pytest.mark.parametrize(
    ("tokens", "value"), [(0, 0), (60, 0), (70, -0.25), (90, -0.75), (100, -1)]
)
def test_overlong_is_dapos_soft_punishment(tokens: int, value: float) -> None:
    attempt = Attempt(SUM, "", tokens, FinishReason.STOP, 100)
    assert length.open_reward(OverlongReward(zone=40), TASK)(attempt) == pytest.approx(value)
    settings = LengthReward(free=60, most=100)
    assert length.open_reward(settings, TASK)(attempt) == pytest.approx(value)


def test_repetition_counts_what_was_said_before() -> None:
    assert repeated("a b a B a b", 2) == pytest.approx(3 / 5)  # ab ba ab ba ab
    assert repeated("one two three", 4) == 0
    assert repeated("好好好好", 1) == pytest.approx(3 / 4)


def test_the_sum_is_weighted_and_parts_are_not() -> None:
    task = rewarded(
        {"kind": "accuracy"},
        {"kind": "format", "weight": 0.5},
        {"kind": "overlong", "zone": 40, "weight": 2, "name": "long"},
    )
    turns = ["<think>a</think> 46", "46", "<think>a</think> 47"]
    with VerifierPool(task) as pool:
        verdicts = pool.verify([Attempt(SUM, turn, 70, FinishReason.STOP, 100) for turn in turns])
    parts = [(1.0, 1.0, 1.0), (0.5, 1.0, 0.0), (0.0, 0.0, 1.0)]
    assert verdicts == [
        Verdict(
            reward, correct=bool(right), parts={"accuracy": right, "format": shape, "long": -0.25}
        )
        for reward, right, shape in parts
    ]


def test_without_rewards_the_verdict_is_the_verifiers_own() -> None:
    with VerifierPool(TASK) as pool:
        assert pool.verify([Attempt(SUM, "46", 3, FinishReason.STOP, 9), (SUM, "47")]) == [
            Verdict(1.0, correct=True),
            Verdict(0.0, correct=False),
        ]


def test_an_answer_that_was_not_judged_earns_nothing_else() -> None:
    lost = Verdict.failed(VerdictStatus.UNAVAILABLE, "away")
    task = rewarded({"kind": "format"})
    attempt = Attempt(SUM, "<think>a</think> 46")
    assert earned(attempt, lambda problem, text: lost, open_rewards(task)) == lost


def test_correctness_is_the_verifiers_where_it_earns_nothing() -> None:
    with VerifierPool(rewarded({"kind": "format"})) as pool:
        [right, form_alone] = pool.verify([(SUM, "46"), (SUM, "<think>a</think> 47")])
    assert right == Verdict(0.0, correct=True, parts={"accuracy": 1.0, "format": 0.0})
    assert form_alone == Verdict(1.0, correct=False, parts={"accuracy": 0.0, "format": 1.0})


@pytest.mark.parametrize("sandbox", ["none", "always"])
def test_a_function_of_the_users_keeps_to_its_bounds(tmp_path: Path, sandbox: str) -> None:
    (tmp_path / "most.txt").write_text("8")
    (tmp_path / "short.py").write_text(
        "def short(row, text):\n    return len(text) / int(open('most.txt').read())\n"
    )
    table = {"kind": "python", "function": f"{tmp_path}/short.py:short"}
    with VerifierPool(rewarded(table, sandbox=sandbox)) as pool:
        inside, outside = pool.verify([(SUM, "46"), (SUM, "46 or so, about")])
    assert (inside.reward, inside.correct) == (0.25, True)
    assert outside.status is VerdictStatus.ERROR
    assert "outside of [0.0, 1.0]" in str(outside.cause)


def test_a_judge_leaves_no_place_for_rewards() -> None:
    judge = {"url": "http://127.0.0.1:1/v1", "model": "m"}
    task = rewarded({"kind": "format"}, judge=judge)
    assert "in the verifier's stead" in " ".join(task_conflicts([task]))


@pytest.mark.parametrize(
    ("tables", "why"),
    [
        ([{"kind": "format"}, {"kind": "format"}], "2 are called 'format'"),
        ([{"kind": "accuracy"}, {"kind": "accuracy", "name": "b"}], "one verifier"),
        ([{"kind": "format", "name": "accuracy"}], "another name"),
        ([{"kind": "length", "free": 9, "most": 9}], "free = 9 is not below most = 9"),
        ([{"kind": "accuracy", "low": 1.0}], "low = 1.0 is not below high = 1.0"),
        ([{"kind": "format", "weight": 0}], "every weight is 0"),
    ],
)
def test_what_does_not_go_together_is_refused(tables: list[dict[str, Any]], why: str) -> None:
    assert why in " ".join(task_conflicts([rewarded(*tables)]))
    assert why in " ".join(reward_conflicts(rewarded(*tables).reward))
