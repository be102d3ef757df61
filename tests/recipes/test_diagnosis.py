"""Each cause of not learning, on figures worked out by hand; and silence on runs that learn."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from interlock.config.stages import Grpo
from interlock.recipes.diagnosis import LONG, WINDOW, LearningWatch, Seen, causes
from interlock.records.metrics import RolloutMetrics, StepMetrics, UpdateMetrics

HEALTHY = Path(__file__).parent / "data" / "learning.jsonl"


def stage(**given: Any) -> Grpo:
    tree = {"steps": 40, "task": [{"name": "arithmetic"}], **given}
    return msgspec.convert(tree, Grpo)


def seen(taught: int = 6, entropy: float | None = 1.0, **rollout: Any) -> Seen:
    """One step of 12 groups, of which so many teach."""
    figures = {"correct": 0.3, "verdict": 0.3, "reward": 0.3, "truncated": 0.1} | rollout
    return Seen(
        RolloutMetrics(groups=12, groups_skipped=12 - taught, **figures),
        UpdateMetrics(entropy=entropy),
    )


def found(steps: list[Seen], **given: Any) -> dict[str, str]:
    settings = stage(**given)
    return dict(causes(steps, settings, settings.loss))


WRONG = {"correct": 0.0, "verdict": 0.0, "reward": 0.0}


def test_a_run_that_learns_has_none() -> None:
    assert found([seen()] * 40) == {}
    # Sure of itself, and right.
    learned = [seen(taught=0, entropy=0.01, correct=0.95, verdict=0.95)] * WINDOW
    assert "entropy_collapsed" not in found([seen()] * 10 + learned)


def test_all_wrong() -> None:
    assert found([seen(taught=0, **WRONG)] * (WINDOW - 1)) == {}
    assert found([seen(taught=1, **WRONG)] + [seen(taught=0, **WRONG)] * (WINDOW - 1)) == {}
    said = found([seen(taught=0, **WRONG)] * WINDOW)
    assert said == {
        "nothing_taught": "no group has taught anything in 5 steps: all answers are wrong (0% "
        "right): take easier problems (stage.task.options), or begin with an sft stage, or a "
        "longer one, or set stage.completions = 16"
    }
    assert (
        "completions"
        not in found([seen(taught=0, **WRONG)] * WINDOW, completions=64)["nothing_taught"]
    )


def test_all_right() -> None:
    said = found([seen(taught=0, correct=1.0, verdict=1.0)] * WINDOW)["nothing_taught"]
    assert "all answers are right (100%): nothing is left to learn; stop here" in said


def test_each_group_of_a_kind() -> None:
    """Half of the problems always right, the others never."""
    given = {"sampling": {"temperature": 0.5}, "optimizer": {"lr": 3e-5}}
    said = found([seen(taught=0, correct=0.5, verdict=0.5)] * WINDOW, **given)
    assert said == {
        "nothing_taught": "no group has taught anything in 5 steps: all answers to a problem earn "
        "the same, 50% are right: set stage.sampling.temperature = 1.0, begin again with "
        "stage.optimizer.lr = 1.5e-05, stage.loss.clip_high = 0.28, stage.loss.kl_beta = 0.001"
    }


def test_a_reward_that_is_never_whole_is_not_called_wrong() -> None:
    said = found([seen(taught=0, correct=0.0, verdict=0.7)] * WINDOW)["nothing_taught"]
    assert "all answers are wrong" not in said and "earn the same" in said


def test_few_groups_teach_as_few_answers_are_right() -> None:
    """As measured with the demo's settings: 1.5 % right, 1 or 2 of 12 groups teach."""
    rare = {"correct": 0.015, "verdict": 0.015}
    steps = [seen(taught=1, **rare), seen(taught=2, **rare)] * LONG
    assert found(steps[: LONG - 1]) == {}
    [(kind, said)] = found(steps[:LONG]).items()
    assert kind == "little_taught"
    assert said.startswith("12% of the groups of 12 steps taught anything, as 1.5% of the answers")
    assert found([seen(taught=2, **rare)] * LONG) == {}  # a sixth
    assert found([seen(taught=1, correct=0.5, verdict=0.5)] * LONG) == {}


@pytest.mark.parametrize("name", ["read", "accuracy/read", "form"])
def test_the_form_is_never_met(name: str) -> None:
    given = {"task": [{"name": "arithmetic", "reward": [{"kind": "format", "name": "form"}]}]}
    formless = seen(taught=0, **WRONG, parts={name: 0.02})
    [(kind, said)] = found([formless] * WINDOW, **given).items()
    assert kind == "form_never_met"  # and that is why nothing is right
    assert said.startswith("2.0% of the answers") and "options.shots = 3" in said
    met = seen(taught=0, **WRONG, parts={name: 0.03})
    assert set(found([met] * WINDOW, **given)) == {"nothing_taught"}
    assert found([seen(parts={"other": 0.0})] * WINDOW, **given) == {}


def test_answers_that_are_cut() -> None:
    cut = seen(truncated=0.5, correct=0.1)
    said = found([cut] * WINDOW)["answers_cut"]
    assert said.startswith("50% of the answers are cut off at max_tokens = 64, and 10% are right")
    assert 'stage.sampling.max_tokens = 128; or end them sooner, by sampling.stop = ["\\n"]' in said
    given = {"sampling": {"stop": ["\n"], "max_tokens": 32}}
    assert found([cut] * WINDOW, **given)["answers_cut"].endswith("max_tokens = 64")
    assert found([seen(truncated=0.49, correct=0.1)] * WINDOW) == {}
    assert found([seen(truncated=0.9, correct=0.5)] * WINDOW) == {}
    # As it is at the beginning of a run that learns to end.
    assert found([seen(truncated=each) for each in (0.63, 0.25, 0.17, 0.09, 0.0)]) == {}


def test_entropy_that_collapsed() -> None:
    early = [seen(entropy=2.0)] * 8
    late = {"taught": 1, "correct": 0.4, "verdict": 0.4}
    said = found([*early, *[seen(entropy=0.2, **late)] * WINDOW])["entropy_collapsed"]
    assert said.startswith(
        "entropy fell from 2 to 0.2 nats per token, 8% of the groups teach and 40% of the answers "
        "are right"
    )
    # The same cause, and the same event, where by chance no group teaches at all.
    none = [seen(entropy=0.2, **late | {"taught": 0})] * WINDOW
    assert list(found([*early, *none])) == ["entropy_collapsed"]
    assert found([*early, *[seen(entropy=0.21, **late)] * WINDOW]) == {}
    assert found([*early, *[seen(entropy=0.2, **late | {"taught": 2})] * WINDOW]) == {}
    # A step without an update has no entropy.
    steps = [*early, *[seen(entropy=0.2, **late)] * WINDOW, seen(entropy=None, **late)]
    assert "entropy_collapsed" in found(steps)


def test_accuracy_that_fell() -> None:
    good, bad = {"correct": 0.4, "verdict": 0.4, "reward": 0.4}, {"correct": 0.19, "verdict": 0.19}
    steps = [seen()] * 4 + [seen(**good)] * WINDOW
    late = [seen(truncated=0.9, **bad, reward=0.19)] * WINDOW
    assert found([*steps, *late], optimizer={"lr": 2e-5}, loss={"kl_beta": 0.1}) == {
        "accuracy_fell": "19.0% of the answers are right, and 40% were in the best 5 steps: begin "
        "again with stage.optimizer.lr = 1e-05, stage.loss.clip_high = 0.28"
    }
    half = [seen(correct=0.2, verdict=0.2)] * WINDOW
    assert found([*steps, *half]) == {}
    paid = [{"kind": "accuracy"}, {"kind": "format"}]
    task = {"task": [{"name": "arithmetic", "reward": paid}]}
    hacked = [seen(**bad, reward=0.4)] * WINDOW
    assert "while the reward rose: something else pays" in str(found([*steps, *hacked], **task))
    # Guesses that come and go are no fall.
    few = [seen(correct=0.09, verdict=0.09)] * WINDOW + [seen(taught=3, **WRONG)] * WINDOW
    assert found(few) == {}


class Watched:
    """What a diagnosis asks of a stage."""

    index, done = 1, 0

    def __init__(self, lines: list[StepMetrics]) -> None:
        self.settings = stage()
        self.run: Any = SimpleNamespace(metrics=lambda: lines)
        self.events: list[tuple[str, str]] = []

    def event(self, kind: str, message: str) -> None:
        self.events.append((kind, message))


def test_each_is_said_once_while_it_lasts_also_of_a_resumed_run() -> None:
    steps = [seen(taught=0, **WRONG)] * 8
    steps += [seen(12, correct=0.09)] * 3 + [seen(taught=0, **WRONG)] * 6
    watched: Any = Watched([])
    diagnosis = LearningWatch(watched, watched.settings.loss)
    for step, each in enumerate(steps, 1):
        diagnosis.look(step, *each)
    assert [(kind, said.split(":")[0]) for kind, said in watched.events] == [
        ("nothing_taught", "step 5"),
        ("nothing_taught", "step 16"),
    ]
    lines = [StepMetrics(stage=0, step=1), StepMetrics(stage=1, step=0)]
    lines += [
        StepMetrics(stage=1, step=step, rollout=each.rollout, update=each.update)
        for step, each in enumerate(steps, 1)
    ]
    again: Any = Watched(lines)
    again.done = 7
    diagnosis = LearningWatch(again, again.settings.loss)
    for step, each in enumerate(steps[7:], 8):
        diagnosis.look(step, *each)
    assert [said.split(":")[0] for _, said in again.events] == ["step 16"]


def test_recorded_runs_that_learned_were_in_no_step_said_not_to() -> None:
    """The figures of one run of the demo, 7.8 % right before and 77 % after."""
    lines = [msgspec.json.decode(line, type=StepMetrics) for line in HEALTHY.open("rb")]
    steps = [Seen(line.rollout, line.update) for line in lines if line.step]
    settings = stage(sampling={"max_tokens": 32, "stop": ["\n"]})
    assert len(steps) == 20
    assert [dict(causes(steps[: n + 1], settings, settings.loss)) for n in range(20)] == [{}] * 20
