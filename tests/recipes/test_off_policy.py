"""Which answers off-policy sequence masking leaves out, and by which threshold."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from interlock.config.losses import LossSettings
from interlock.learner.packing import TrainingGroup
from interlock.recipes import grpo
from interlock.recipes.off_policy import ENOUGH, WINDOW, OffPolicy, gaps_of, threshold
from interlock.records.metrics import UpdateMetrics
from interlock.records.rl import Sampling

SETTINGS = LossSettings(off_policy_quantile=0.99, off_policy_least=0.01)


def group(label: str = "w/0") -> TrainingGroup:
    """Three answers: bad, good, and bad with a token that was given."""
    return TrainingGroup(
        prompt=[1],
        completions=[[2, 3], [4], [5, 6, 7]],
        weights=[[-0.5, -0.5], [0.5], [-0.5, 0.0, -0.5]],
        sampler_logprobs=[[-1.0, -2.0], [-1.0], [-1.0, 0.0, -3.0]],
        kl_weights=[[0.1, 0.1], [0.1], [0.1, 0.0, 0.1]],
        label=label,
    )


def logprobs(first: float, second: float, third: float) -> list[torch.Tensor]:
    """Of the learner, so that the gaps are these."""
    return [
        torch.tensor([-1.0, -2.0]) - first,
        torch.tensor([-1.0]) - second,
        torch.tensor([-1.0, -9.0, -3.0]) - third,
    ]


def masks(memory: dict[str, Any] | None = None) -> OffPolicy:
    return OffPolicy(SETTINGS, {} if memory is None else memory)


def test_gaps_by_hand() -> None:
    assert gaps_of(group(), logprobs(0.5, -0.25, 0.125)) == pytest.approx([0.5, -0.25, 0.125])
    own = logprobs(0.5, 0.0, 0.0)
    own[0][0] = math.nan  # says nothing: (0 + 0.5) / 2
    assert gaps_of(group(), own)[0] == pytest.approx(0.25)


def test_the_threshold_is_a_quantile_of_what_was_measured() -> None:
    gaps = [number / 1000 for number in range(1, 201)]
    assert threshold(gaps, SETTINGS) == 0.198  # 198 of 200 are no larger
    assert threshold(gaps[: ENOUGH - 1], SETTINGS) is None
    assert threshold([1e-7] * ENOUGH, SETTINGS) == 0.01  # of rounding alone


def test_what_is_bad_and_far_off_is_left_out() -> None:
    mask = masks({"on_policy_gaps": [0.02] * ENOUGH})
    (found,) = mask.kept([group()], *[[logprobs(0.03, 0.9, 0.01)]] * 2)
    assert found.weights == [[0.0, 0.0], [0.5], [-0.5, 0.0, -0.5]]
    assert found.kl_weights == group().kl_weights
    assert found.completions == group().completions
    metrics = mask.finish(UpdateMetrics(loss=1.0))
    assert metrics.off_policy_share == pytest.approx(1 / 3)
    assert (metrics.loss, metrics.off_policy_threshold) == (1.0, 0.02)


def test_too_little_is_known_at_first() -> None:
    mask = masks()
    assert mask.kept([group()], *[[logprobs(9.0, 9.0, 9.0)]] * 2) == [group()]
    metrics = mask.finish(UpdateMetrics())
    assert (metrics.off_policy_share, metrics.off_policy_threshold) == (0.0, None)


def test_only_on_policy_answers_are_measured_and_only_finished_steps_count() -> None:
    memory: dict[str, Any] = {}
    mask = masks(memory)
    both = [logprobs(0.5, 0.25, 0.75), logprobs(7, 7, 7)]
    mask.kept([group("w/0"), group("w/10")], both, both)
    assert memory == {}
    mask.finish(UpdateMetrics())
    assert memory["on_policy_gaps"] == pytest.approx([0.5, 0.25, 0.75])
    memory["on_policy_gaps"] = [0.0] * WINDOW
    mask.kept([group()], *[[logprobs(0.5, 0.25, 0.75)]] * 2)
    mask.finish(UpdateMetrics())
    assert len(memory["on_policy_gaps"]) == WINDOW
    assert memory["on_policy_gaps"][-3:] == pytest.approx([0.5, 0.25, 0.75])


def test_a_later_update_masks_by_the_policy_of_now_and_measures_by_that_of_before() -> None:
    memory: dict[str, Any] = {"on_policy_gaps": [0.02] * ENOUGH}
    mask = masks(memory)
    now, before = [logprobs(0.01, 0.0, 0.5)], [logprobs(0.03, 0.0, -0.25)]
    (found,) = mask.kept([group()], now, before)
    assert found.weights == [[-0.5, -0.5], [0.5], [0.0, 0.0, 0.0]]
    mask.finish(UpdateMetrics())
    assert memory["on_policy_gaps"][ENOUGH:] == pytest.approx([0.03, 0.0, -0.25])


class OneMove:
    """A learner whose every update moves all log-probabilities by one nat."""

    def __init__(self) -> None:
        self.moved = 0.0
        self.stepped: list[list[list[float]]] = []

    def logprobs(self, batch: list[TrainingGroup], temperature: float) -> list[list[torch.Tensor]]:
        return [logprobs(*[0.01 + self.moved] * 3) for _ in batch]

    def step(self, batch: list[TrainingGroup], *_: Any) -> None:
        self.stepped += [list(map(list, each.weights)) for each in batch]
        self.moved += 1.0


@pytest.mark.parametrize("updates", [1, 3])
def test_each_of_several_updates_is_measured_as_it_began(updates: int) -> None:
    memory = {"on_policy_gaps": [0.02] * ENOUGH}
    learner: Any = OneMove()
    settings: Any = SimpleNamespace(loss=SETTINGS, sampling=Sampling(temperature=1.0))
    mask = masks(memory)
    grpo._update(learner, settings, [[group()]] * updates, mask)
    # The first update sees what was sampled; at each later one the bad answers are far off.
    assert [weights[0][0] for weights in learner.stepped] == [-0.5, 0.0, 0.0][:updates]
    share = mask.finish(UpdateMetrics()).off_policy_share
    assert share == pytest.approx(2 * (updates - 1) / (3 * updates))
    assert memory["on_policy_gaps"][ENOUGH:] == pytest.approx([0.01] * 3 * updates)
