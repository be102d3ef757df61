"""What follows the gradients: schedule, clipping, AdamW, and steps that are not finite."""

import math

import numpy as np
import pytest
import torch
from learning import LENGTHS, Sampled, Tiny, assert_same, exploding, gradients, make, masters
from rounding import assert_close
from torch import Tensor

from interlock.config.losses import LossSettings
from interlock.config.stages import OptimizerSettings
from interlock.errors import TrainingError
from interlock.learner.optimizer import learning_rate
from interlock.models.decoder import Decoder


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # lr 8, two steps of warm-up, six in all, down to a quarter
        ("constant", [4, 8, 8, 8, 8, 8, 8]),
        ("linear", [4, 8, 8, 6, 4, 2, 2]),
        ("cosine", [4, 8, 8, 6.5, 3.5, 2, 2]),  # 2 + 6 (1 + cos(pi / 3)) / 2 = 6.5
    ],
)
def test_the_schedule_by_hand(schedule: str, expected: list[float]) -> None:
    settings = OptimizerSettings(lr=8, warmup_steps=2, schedule=schedule, final_lr=0.25)  # type: ignore
    # Warm-up ends at step 1; the way down begins at step 2: steps 2 to 5 are 0 to 3 thirds of it.
    assert [learning_rate(settings, step, 6) for step in range(7)] == pytest.approx(expected)


def test_a_schedule_of_one_step_is_its_end() -> None:
    settings = OptimizerSettings(lr=8, schedule="linear", final_lr=0.25)
    assert learning_rate(settings, 0, 1) == 2
    assert learning_rate(OptimizerSettings(lr=8), 0, 1) == 8


def test_clipping_and_adamw_by_formula(tiny: Tiny, sampled: Sampled) -> None:
    optimizer = OptimizerSettings(
        lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, clip_norm=0.05, warmup_steps=2
    )
    decoder, groups = tiny(), sampled(LENGTHS)
    learner = make(decoder, optimizer)
    by_formula = [AdamW(decoder, optimizer, dtype) for dtype in (np.float64, np.float32)]
    for step in (1, 2):
        caught = gradients(make(tiny_copy(decoder, tiny)), groups, LossSettings())
        squares = torch.cat([gradient.flatten() for gradient in caught.values()]) ** 2
        norm = math.sqrt(squares.double().sum())
        assert norm > 0.05  # so that clipping is tested
        result = learner.step(groups, LossSettings())
        # One term after the other: no order of summation errs more.
        assert_close(result.grad_norm, norm, math.sqrt(np.add.accumulate(squares.numpy())[-1]))
        assert result.lr == pytest.approx(1e-2 * step / 2)
        exact, plain = (each.step(step, caught, norm, result.lr) for each in by_formula)
        for name, value in masters(decoder).items():
            assert_close(value, exact[name], plain[name], where=name)


class AdamW:
    """Its formula, and the clipping before it, in numpy."""

    def __init__(self, decoder: Decoder, settings: OptimizerSettings, dtype: type) -> None:
        self.settings, self.dtype = settings, dtype
        self.weights = {name: x.numpy().astype(dtype) for name, x in masters(decoder).items()}
        self.first = {name: np.zeros_like(x) for name, x in self.weights.items()}
        self.second = {name: np.zeros_like(x) for name, x in self.weights.items()}

    def step(
        self, number: int, gradients: dict[str, Tensor], norm: float, lr: float
    ) -> dict[str, Tensor]:
        (beta1, beta2), rule = self.settings.betas, self.settings
        for name, weight in self.weights.items():
            gradient = gradients[name].numpy().astype(self.dtype) * (rule.clip_norm / norm)
            self.first[name] = beta1 * self.first[name] + (1 - beta1) * gradient
            self.second[name] = beta2 * self.second[name] + (1 - beta2) * gradient**2
            if weight.ndim > 1:
                weight *= 1 - lr * rule.weight_decay
            mean = self.first[name] / (1 - beta1**number)
            spread = self.second[name] / (1 - beta2**number)
            weight -= lr * mean / (np.sqrt(spread) + rule.eps)
        return {name: torch.from_numpy(weight.copy()) for name, weight in self.weights.items()}


def tiny_copy(decoder: Decoder, tiny: Tiny) -> Decoder:
    copied = tiny()
    copied.load_state_dict(decoder.state_dict())
    return copied


def test_a_step_that_is_not_finite_changes_nothing(tiny: Tiny, sampled: Sampled) -> None:
    groups = sampled(LENGTHS)
    optimizer = OptimizerSettings(lr=1e-2, schedule="linear")
    left, right = tiny(), tiny()
    disturbed, calm = make(left, optimizer), make(right, optimizer)
    for learner in (disturbed, calm):
        learner.step(groups, LossSettings())
    bad = disturbed.step(exploding(groups), LossSettings(tis_cap=1e9))
    assert bad.skipped and not math.isfinite(bad.loss)
    assert (disturbed.steps, disturbed.bad_steps, disturbed.bad_in_row) == (1, 1, 1)
    assert_same(masters(left), masters(right))
    results = [learner.step(groups, LossSettings()) for learner in (disturbed, calm)]
    assert results[0] == results[1] and not results[0].skipped
    assert_same(masters(left), masters(right))
    assert (disturbed.steps, disturbed.bad_steps, disturbed.bad_in_row) == (2, 1, 0)


def test_bad_steps_in_a_row_stop_the_run(tiny: Tiny, sampled: Sampled) -> None:
    groups, learner = sampled(LENGTHS), make(tiny(), max_bad_steps=2)
    bad, loss = exploding(groups), LossSettings(tis_cap=1e9)
    learner.step(bad, loss)
    learner.step(groups, loss)
    learner.step(bad, loss)
    with pytest.raises(TrainingError, match=r"step 4: loss .*inf.* norm .*2 steps in a row"):
        learner.step(bad, loss)
