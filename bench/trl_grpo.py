"""TRL's side of grpo_step.py: GRPOTrainer, held before each optimizer step by a callback.

Problems and reward are Interlock's own. One optimizer step is PROBLEMS * COMPLETIONS completions,
generated at once and learned from in micro-batches. No activation checkpointing (TRL's default has
it), reference model, logging or saving; fused AdamW, which is the default. What the two options
change, in CPU seconds of one thread:

    micro-batch   forward and backward of 2, 4, 8 and 16 rows cost the same per row, 1.2-1.4 s. 64
                  rows at once take 6 GB.
    weights       bfloat16 makes generation 12 % cheaper, for fp32 weights are cast at every token,
                  and leaves the update as it is. But then there are no fp32 masters, and an update
                  at this learning rate is mostly lost in rounding: not the same work as ours.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpo_step import Facts, Turns, peak_rss_mb
from interlock.models.fetch import find_model
from interlock.records.rl import Problem
from interlock.tasks import open_task
from workload import (
    COMPLETIONS,
    LEARNING_RATE,
    MAX_TOKENS,
    MODEL,
    PROBLEMS,
    TEMPERATURE,
    closeness,
    task,
)


class Reward:
    """The workload's reward as TRL wants it; keeps count of what it was shown."""

    __name__ = "reward"

    def __init__(self, problems: list[Problem]) -> None:
        self._problems = {problem.id: msgspec.to_builtins(problem) for problem in problems}
        self.tokens = 0

    def __call__(
        self,
        completions: list[list[dict[str, str]]],
        completion_ids: list[list[int]],
        problem: list[str],
        **_: Any,
    ) -> list[float | None]:
        self.tokens = sum(map(len, completion_ids))
        return [
            closeness(self._problems[name], turns[0]["content"])
            for name, turns in zip(problem, completions, strict=True)
        ]


class TimedTrainer(GRPOTrainer):
    """GRPOTrainer with a clock on generation."""

    generate_s = 0.0

    def _generate(self, prompts: list[Any]) -> Any:
        start = time.perf_counter()
        generated = super()._generate(prompts)
        self.generate_s = time.perf_counter() - start
        return generated


class Held(TrainerCallback):
    """Lets a step begin when it is this side's turn."""

    def __init__(self, turns: Turns, trainer: TimedTrainer, reward: Reward) -> None:
        self._turns = turns
        self._trainer = trainer
        self._reward = reward

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        facts = Facts(
            tokens=self._reward.tokens,
            trained_groups=PROBLEMS,
            generate_s=self._trainer.generate_s,
            peak_rss_mb=peak_rss_mb(),
        )
        self._turns.idle(facts if self._reward.tokens else None)


def settings(steps: int, micro_batch: int, weights: str, dtype: str, directory: str) -> GRPOConfig:
    batch = PROBLEMS * COMPLETIONS
    return GRPOConfig(
        output_dir=directory,
        use_cpu=True,
        bf16=dtype == "bfloat16",
        model_init_kwargs={"dtype": weights},
        max_steps=steps + 1,  # the callback stops the side when the last one would begin
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=batch // micro_batch,
        num_generations=COMPLETIONS,
        max_completion_length=MAX_TOKENS,
        temperature=TEMPERATURE,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        beta=0.0,
        num_iterations=1,
        gradient_checkpointing=False,
        shuffle_dataset=False,  # the order of Interlock's side
        dataloader_pin_memory=False,
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="peft's; 0: in full")
    given = parser.parse_args()
    adapter = LoraConfig(r=given.lora, lora_alpha=32, target_modules="all-linear")
    turns = Turns()
    with tempfile.TemporaryDirectory() as directory:
        source = open_task(task(Path(directory)))
        problems = [p for step in range(1, given.steps + 2) for p in source.train(step, PROBLEMS)]
        rows = [{"prompt": problem.messages, "problem": problem.id} for problem in problems]
        reward = Reward(problems)
        trainer = TimedTrainer(
            model=str(find_model(MODEL)),
            reward_funcs=reward,
            args=settings(given.steps, given.micro_batch, given.weights, given.dtype, directory),
            train_dataset=Dataset.from_list(rows),
            peft_config=adapter if given.lora else None,
        )
        trainer.add_callback(Held(turns, trainer, reward))
        trainer.train()


if __name__ == "__main__":
    main()
