from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interlock.records import Completion, FinishReason, Group, Problem, ScoredGroup, Verdict
from interlock.rundir import RunDir

CONFIG: dict[str, Any] = {"name": "test", "model": {"path": "m"}, "stage": [{"kind": "grpo"}]}


def scored_group(problem: str, *answers: tuple[str, float]) -> ScoredGroup:
    """One group of (text, reward) answers to the question "<problem>?"."""
    completions = [
        Completion([7], [-0.5], FinishReason.STOP, text, weight_version=0) for text, _ in answers
    ]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": problem}]
    group = Group(Problem(problem, messages, f"{problem}!"), [1], completions, "w0")
    return ScoredGroup(group, [Verdict(reward) for _, reward in answers])


@pytest.fixture
def make_group() -> Callable[..., ScoredGroup]:
    return scored_group


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDir]:
    def make(config: dict[str, Any] = CONFIG) -> RunDir:
        return RunDir.create(tmp_path / "run", config, {"interlock": "0.1", "torch": "2.13.0"})

    return make


@pytest.fixture
def grpo_step() -> Callable[..., dict[str, Any]]:
    """The line of one GRPO step, whose numbers follow from `step`."""

    def line(stage: int, step: int, **changes: Any) -> dict[str, Any]:
        return {
            "stage": stage, "kind": "grpo", "step": step, "reward": step / 100, "accuracy": None,
            "length": 20.0 + step, "truncated": step / 1000, "entropy": 1 / step, "loss": -step,
            "grad_norm": 2.0 * step, "lr": 1e-6 * step, "mismatch_k3": 1e-4 * step,
            "mismatch_max": 0.5, "mismatch_share_above_2": 1e-3 * step, "clipped": 0.0,
            "vetoed": 0.0, "seconds_generate": 5.0, "seconds_verify": 0.5, "seconds_update": 4.0,
            "seconds_step": 10.0, "generated_tokens": 1000 * step, "trained_tokens": 800 * step,
            "groups": 8, "groups_skipped": 2, "bad_steps": 0, "verifier_errors": 1,
            "weight_version": step,
        } | changes  # fmt: skip

    return line
