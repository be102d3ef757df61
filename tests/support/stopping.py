"""Runs in this process that are stopped in their middle."""

from contextlib import suppress
from pathlib import Path

from interlock.config.schema import Recipe
from interlock.recipes.sinks import Sink
from interlock.recipes.train import train
from interlock.records.metrics import StepMetrics


class _Stop(Sink):
    def __init__(self, step: int) -> None:
        self._step = step

    def step(self, metrics: StepMetrics) -> None:
        if metrics.step == self._step:
            raise KeyboardInterrupt


def train_until(recipe: Recipe, run: Path, step: int, resume: bool = False) -> None:
    """Go on until a step is logged; beyond the last: to the end."""
    with suppress(KeyboardInterrupt):
        train(recipe, run, resume=resume, sinks=[_Stop(step)])
