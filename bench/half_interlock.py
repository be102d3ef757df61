"""Interlock's side of time_to_half.py: the GRPO recipe as it is, held before each step."""

import argparse
import tempfile
import time
from pathlib import Path

from grpo_step import Turns
from interlock.config.schema import GeneratorSettings, LearnerSettings, ModelSettings, Recipe
from interlock.config.stages import Grpo, OptimizerSettings
from interlock.config.tasks import EvaluationSettings
from interlock.recipes.sinks import Sink
from interlock.recipes.train import train
from interlock.records.metrics import StepMetrics
from interlock.records.rl import Score
from time_to_half import (
    BETAS,
    COMPLETIONS,
    HELD_OUT,
    LEARNING_RATE,
    MODEL,
    PROBLEMS,
    RULE,
    Progress,
    task,
)


def recipe(seed: int, steps: int) -> Recipe:
    """One step more than is taken: the side is stopped when that would begin."""
    stage = Grpo(
        task=[task(seed)],
        steps=steps + 1,
        problems_per_step=PROBLEMS,
        completions=COMPLETIONS,
        sampling=RULE,
        optimizer=OptimizerSettings(lr=LEARNING_RATE, betas=BETAS),
        eval=EvaluationSettings(every=1, problems=HELD_OUT),
    )
    return Recipe(
        model=ModelSettings(path=MODEL),
        stage=[stage],
        seed=seed,
        learner=LearnerSettings(dtype="float32"),
        generator=[GeneratorSettings(dtype="float32", slots=PROBLEMS * COMPLETIONS)],
        checkpoint_every=0,
    )


class Held(Sink):
    """Lets a step begin when it is this side's turn; its clock stops for evaluations."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._metrics: StepMetrics | None = None
        self._start = self._pause = self._paused = 0.0

    def phase(self, name: str, total: int = 0) -> None:
        now = time.perf_counter()
        if name == "evaluating":
            self._pause = now
        if name == "generating":
            self._turns.idle(self._progress(now - self._start - self._paused))
            self._start, self._paused = time.perf_counter(), 0.0

    def evaluated(self, step: int, score: Score) -> None:
        self._paused += time.perf_counter() - self._pause

    def step(self, metrics: StepMetrics) -> None:
        self._metrics = metrics if metrics.step else None

    def _progress(self, seconds: float) -> Progress | None:
        if self._metrics is None:
            return None
        accuracy, tokens = self._metrics.accuracy, self._metrics.rollout.tokens
        assert accuracy is not None and tokens is not None
        return Progress(seconds, accuracy, tokens)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    given = parser.parse_args()
    turns = Turns()
    with tempfile.TemporaryDirectory() as directory:
        train(recipe(given.seed, given.steps), Path(directory) / "run", sinks=[Held(turns)])


if __name__ == "__main__":
    main()
