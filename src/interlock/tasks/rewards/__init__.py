"""What an answer earns: the task's verifier and other rewards, weighed together.

    Attempt ──verifier──> accuracy ──┐
            ──open_reward──> value ──┴─ within bounds? ──> Verdict(sum of weight * value, parts)

A kind's module offers `open_reward(settings, task) -> Reward`. They run where the verifier does.
Parts hold every value before its weight; whether an answer is right is the verifier's to say alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from interlock.config.rewards import AnyReward
from interlock.config.tasks import TaskSettings
from interlock.records.rl import Attempt, Verdict
from interlock.tasks.packages import module_of
from interlock.tasks.returned import verdict_of

Reward = Callable[[Attempt], float]
Verify = Callable[[Any, str], Any]

_KINDS = {
    "format": "interlock.tasks.rewards.form",
    "language": "interlock.tasks.rewards.language",
    "length": "interlock.tasks.rewards.length",
    "overlong": "interlock.tasks.rewards.length",
    "repetition": "interlock.tasks.rewards.repetition",
    "python": "interlock.tasks.rewards.function",
}


def open_rewards(task: TaskSettings) -> list[tuple[AnyReward, Reward | None]]:
    """Every reward of a task with its settings; None: the task's verifier. Raises TaskError."""
    return [(each, _opened(each, task)) for each in task.reward]


def earned(
    attempt: Attempt, verify: Verify, rewards: Sequence[tuple[AnyReward, Reward | None]]
) -> Verdict:
    """The verdict on one attempt; without rewards the verifier's own.

    Raises what a verifier or reward raises, and ValueError for a value outside of its bounds.
    """
    verdict = verdict_of(verify(attempt.problem, attempt.text))
    if not rewards or not verdict.status.judged:
        return verdict
    parts, total = {"accuracy": verdict.reward}, []
    for settings, reward in rewards:
        value = verdict.reward if reward is None else float(reward(attempt))
        low, high = settings.bounds
        if not low <= value <= high:
            raise ValueError(
                f"reward {settings.called!r} gave {value}, outside of [{low}, {high}]; "
                "set its low and high"
            )
        parts[settings.called] = value
        total.append(settings.weight_at(attempt.step) * value)
    parts |= {f"accuracy/{name}": value for name, value in verdict.parts.items()}
    return Verdict(math.fsum(total), correct=verdict.right, parts=parts)


def _opened(settings: AnyReward, task: TaskSettings) -> Reward | None:
    kind = str(settings.__struct_config__.tag)
    if kind == "accuracy":
        return None
    module = module_of(_KINDS[kind], f"reward {settings.called!r}")
    reward: Reward = module.open_reward(settings, task)
    return reward
