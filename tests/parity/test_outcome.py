"""Verdicts and headlines, from figures that no engine had to make."""

from typing import Any

import pytest

from interlock.config.schema import GuardSettings
from interlock.mismatch import Mismatch
from interlock.parity.figures import Difference, difference, task_result
from interlock.parity.outcome import Agreement, Report, SideFacts, Weights, judged
from interlock.records.rl import Verdict

DOWN = "model.layers.1.mlp.down_proj.weight"


def report(k3: float = 1e-9, sides: str = "ab", dtype: str = "float32", **more: Any) -> Report:
    """Two sides that are `k3` apart in one row, and equal but for what is given."""
    fields: dict[str, Any] = {
        "weights": Weights(272, [], [], [], []),
        "failures": [],
        "differences": [
            difference("all is well", "ab", [-1.0], [-1.0]),
            Difference("the row", sides, Mismatch(10, k3), 0.0, 0.0, 0.0),
        ],
        "task": None,
    }
    facts = [SideFacts(label, "torch", "cpu", dtype) for label in ("torch:x", "vllm:y")]
    rest: dict[str, Any] = {
        "band": GuardSettings(),
        "greedy": None,
        "parted": [],
        "bisection": None,
    }
    rest |= {"answers": [], "left_out": 0, "seconds": 1.0, "created": 0.0}
    return judged(Report("m", *facts, **(fields | rest | more)))


def test_a_significant_loss_on_the_task_is_different_whatever_the_k3() -> None:
    right, wrong = Verdict(1.0), Verdict(0.0)
    a, b = [right] * 50 + [wrong] * 50, [right] * 20 + [wrong] * 80
    found = report(task=task_result("gsm8k", a, b))
    assert found.task is not None and found.task.p == pytest.approx(2 / 2**30)  # 30 heads of 30
    assert found.verdict is Agreement.DIFFERENT
    assert found.headline.startswith("side b (vllm:y) loses on gsm8k, 20.0% right against 50.0%")
    other = report(task=task_result("gsm8k", b, a))
    assert other.verdict is Agreement.DIFFERENT and "side a (torch:x) loses" in other.headline
    chance = report(task=task_result("gsm8k", a, a[:44] + [wrong] * 56))  # p = 2 / 2**6
    assert chance.verdict is Agreement.SAME


def test_different_weights_are_never_the_same() -> None:
    given = Weights(272, [], [], [DOWN], [])
    for k3, verdict in (
        (1e-9, Agreement.CLOSE),
        (5e-3, Agreement.CLOSE),
        (0.5, Agreement.DIFFERENT),
    ):
        found = report(k3, weights=given)
        assert found.verdict is verdict
        assert DOWN in found.reasons[0]
        assert ("given different weights" in found.headline) == (verdict is Agreement.CLOSE)


def test_bfloat16_is_not_blamed_for_its_rounding() -> None:
    """2.7e-3: two healthy engines in bfloat16, docs/vllm.md."""
    found = report(2.7e-3, dtype="bfloat16")
    assert found.verdict is Agreement.CLOSE and "find the cause" not in found.headline
    assert "rounding in bfloat16 alone" in found.headline and "--b-dtype float32" in found.headline
    for finer in ("float32", "float16"):
        assert "more than rounding apart" in report(2.7e-3, dtype=finer).headline
    wide = report(0.3, dtype="bfloat16", band=GuardSettings(1e-3, 1.0))
    assert wide.verdict is Agreement.CLOSE and "more than rounding apart" in wide.headline


def test_the_headline_names_the_sides_of_the_deciding_row() -> None:
    assert report(0.5).headline.startswith("vllm:y does not compute what torch:x computes")
    for k3, said in ((0.5, "does not compute what"), (5e-3, "is close to")):
        found = report(k3, sides="a")
        assert found.headline.startswith(
            f"side a (torch:x), drawing token by token, {said} its own"
        )
        assert "vllm:y" not in found.headline


def test_reasons_are_lines_that_do_not_act() -> None:
    """Names of tensors come from the sides."""
    found = report(weights=Weights(1, [], [], ["\x1b[2J\nSAME: \x9b"], []))
    assert "\u241b[2J SAME: ⟨U+009B⟩" in found.reasons[0]
    assert all(each.isprintable() for each in (found.headline, *found.reasons))
