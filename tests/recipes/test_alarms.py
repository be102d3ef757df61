"""The alarms of the ratios, on figures worked out by hand."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from interlock.config.stages import Grpo
from interlock.config.tasks import TaskSettings
from interlock.mismatch import Mismatch
from interlock.recipes.alarms import EARLY, RECENT, Alarms, alarms
from interlock.records.metrics import RolloutMetrics, StepMetrics, UpdateMetrics
from interlock.records.rl import Score


def update(size: float | None = 1.0, masked: float | None = 0.0, k3: float = 1e-5) -> UpdateMetrics:
    return UpdateMetrics(
        effective_share=size, masked_share=masked, mismatch=Mismatch(tokens=100, k3=k3)
    )


def kinds(seen: list[UpdateMetrics]) -> list[str]:
    return [kind for kind, _ in alarms(seen)]


def test_the_sample_size_against_its_early_level() -> None:
    early = [update(0.9)] * EARLY
    assert kinds([*early, *[update(0.46)] * RECENT]) == []
    assert kinds([*early, *[update(0.44)] * RECENT]) == ["sample_size_fell"]
    assert kinds([*early, *[update(0.44)] * (RECENT - 1)]) == []  # too few steps to tell
    # Steps without an update say nothing.
    assert kinds([*early, update(None), *[update(0.44)] * RECENT]) == ["sample_size_fell"]


@pytest.mark.parametrize(
    ("masked", "k3", "raised"),
    [
        (0.009, 3e-4, True),
        (0.011, 3e-4, False),  # the mask still works
        (0.009, 1.5e-4, False),  # k3 has not doubled
        (0.05, 3e-3, False),  # more apart, and more is masked: as it should be
    ],
)
def test_a_mask_that_loosens_while_k3_rises(masked: float, k3: float, raised: bool) -> None:
    seen = [update(masked=0.02, k3=1e-4)] * EARLY + [update(masked=masked, k3=k3)] * RECENT
    assert kinds(seen) == ["mask_loosened"] * raised


def test_rounding_and_masks_that_did_nothing_raise_none() -> None:
    faint = [update(masked=0.02, k3=1e-8)] * EARLY + [update(masked=0.0, k3=9e-5)] * RECENT
    assert kinds(faint) == []
    idle = [update(masked=5e-4, k3=1e-4)] * EARLY + [update(masked=0.0, k3=1e-2)] * RECENT
    assert kinds(idle) == []


def test_an_off_policy_mask_without_a_threshold() -> None:
    off, idle = UpdateMetrics(), UpdateMetrics(off_policy_share=0.0)
    works = UpdateMetrics(off_policy_share=0.0, off_policy_threshold=0.01)
    assert kinds([idle] * (EARLY + RECENT - 1)) == []
    assert kinds([off] * 5 + [idle] * (EARLY + RECENT)) == ["off_policy_idle"]
    assert kinds([idle] * (EARLY + RECENT) + [works]) == []
    assert kinds([off] * 40) == []


def test_a_steady_run_with_noise_raises_none() -> None:
    noise = random.Random(0)
    seen = []
    for _ in range(300):
        figures = noise.gauss(0.9, 0.05), noise.gauss(0.02, 0.004), noise.gauss(5e-4, 1e-4)
        seen.append(update(*figures))
        assert kinds(seen) == []


class Watched:
    """What the alarms ask of a stage."""

    index, done = 1, 0
    settings = Grpo(task=[TaskSettings("arithmetic")], steps=99)

    def __init__(self, lines: list[StepMetrics]) -> None:
        self.run: Any = SimpleNamespace(metrics=lambda: lines)
        self.events: list[tuple[str, str]] = []

    def event(self, kind: str, message: str) -> None:
        self.events.append((kind, message))


def test_each_alarm_is_one_event_also_of_a_resumed_run() -> None:
    seen = [update(0.9)] * EARLY + [update(0.3)] * (RECENT + 3)
    stage: Any = Watched([])
    watch = Alarms(stage)
    for step, each in enumerate(seen, 1):
        watch.look(step, each, RolloutMetrics(), None)
    assert [kind for kind, _ in stage.events] == ["sample_size_fell"]
    assert stage.events[0][1].startswith("step 16: effective sample size 0.3 of the tokens, 0.9")
    # Of another stage, of step 0, of steps that are done again: none of these is history.
    lines = [StepMetrics(stage=0, step=1, update=update(0.1)), StepMetrics(stage=1, step=0)]
    lines += [StepMetrics(stage=1, step=s, update=each) for s, each in enumerate(seen, 1)]
    again: Any = Watched(lines)
    again.done = 13
    watch = Alarms(again)
    for step, each in enumerate(seen[13:], 14):
        watch.look(step, each, RolloutMetrics(), None)
    assert again.events == stage.events
    again = Watched(lines)
    again.done = 17
    watch = Alarms(again)
    watch.look(18, seen[17], RolloutMetrics(), None)
    assert again.events == []


def test_a_hacked_reward_is_one_event() -> None:
    """Length that is paid and moves: three steps tell."""
    stage: Any = Watched([StepMetrics(stage=1, step=0, accuracy=0.5)])
    watch = Alarms(stage)
    for step in range(1, 7):
        paid = RolloutMetrics(
            reward=1 + 0.2 * step, reward_error=0.04, verdict=0.4, verdict_error=0.03,
            length=20.0 + 3 * step, length_share=0.6, length_slope=2.0, length_tie=0.0,
            length_tie_error=0.09,
        )  # fmt: skip
        watch.look(step, update(), paid, Score(0.5, 0.5, 128))
    [(kind, message)] = stage.events
    assert kind == "reward_hacked" and message.startswith("step 3: length explains 60% of what")
    assert message.endswith("look at such answers, and mend the reward")
