"""Interlock's side of grpo_step.py: the GRPO recipe as it is, held before each step.

A real run is measured, with its ledger and metrics in a temporary directory. The recipe announces
"generating" to whoever watches when a step begins, and hands over its metrics when it is done.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Literal

from grpo_step import Facts, Turns, peak_rss_mb
from interlock.config.schema import GeneratorSettings, LearnerSettings, ModelSettings, Recipe
from interlock.config.stages import Grpo, OptimizerSettings
from interlock.config.tasks import EvaluationSettings
from interlock.recipes.sinks import Sink
from interlock.recipes.train import train
from interlock.records.adapters import AdapterForm
from interlock.records.metrics import StepMetrics
from interlock.records.rl import Sampling
from workload import COMPLETIONS, LEARNING_RATE, MAX_TOKENS, MODEL, PROBLEMS, TEMPERATURE, task


def recipe(
    steps: int, dtype: Literal["float32", "bfloat16"], directory: Path, rank: int = 0
) -> Recipe:
    """The workload, with an adapter of this rank (0: in full). One step more than is taken, for the
    last one ends with an evaluation.
    """
    stage = Grpo(
        task=[task(directory)],
        steps=steps + 1,
        problems_per_step=PROBLEMS,
        completions=COMPLETIONS,
        sampling=Sampling(temperature=TEMPERATURE, max_tokens=MAX_TOKENS),
        optimizer=OptimizerSettings(lr=LEARNING_RATE),
        eval=EvaluationSettings(problems=1),
    )
    return Recipe(
        model=ModelSettings(path=MODEL),
        stage=[stage],
        learner=LearnerSettings(dtype=dtype, lora=AdapterForm(rank) if rank else None),
        generator=[GeneratorSettings(dtype=dtype)],
        checkpoint_every=0,
    )


class Held(Sink):
    """Lets a step begin when it is this side's turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._facts: Facts | None = None
        self._start = self._generated = 0.0  # of the step, and of its last group so far

    def phase(self, name: str, total: int = 0) -> None:
        if name == "generating":
            self._turns.idle(self._facts)
            self._start = time.perf_counter()

    def advance(self) -> None:
        self._generated = time.perf_counter()

    def step(self, metrics: StepMetrics) -> None:
        rollout = metrics.rollout
        if rollout.tokens is None:  # step 0
            return
        self._facts = Facts(
            tokens=rollout.tokens,
            trained_groups=(rollout.groups or 0) - (rollout.groups_skipped or 0),
            generate_s=self._generated - self._start,
            peak_rss_mb=peak_rss_mb(),
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--lora", type=int, default=0, metavar="RANK")
    given = parser.parse_args()
    turns = Turns()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        train(
            recipe(given.steps, given.dtype, place, given.lora), place / "run", sinks=[Held(turns)]
        )


if __name__ == "__main__":
    main()
