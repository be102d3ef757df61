"""TRL's side of time_to_half.py: GRPOTrainer at its best settings here (see trl_grpo.py).

Its completions end where Interlock's do: with any token that holds a line break, as with an end
token. Its weights are evaluated by Interlock's engine, on a copy, while its clock stands still.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from grpo_step import Turns
from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.models.checkpoint import load_decoder
from interlock.models.fetch import find_model
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Problem, Sampling
from interlock.tasks import open_task
from interlock.tasks.verifier_pool import VerifierPool
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

MICRO_BATCH = 8


class Judge:
    """The task's verifier, as TRL's reward and for the evaluation."""

    __name__ = "reward"

    def __init__(self, problems: Sequence[Problem], verifier: VerifierPool) -> None:
        self._problems = {problem.id: problem for problem in problems}
        self._verifier = verifier
        self.tokens = 0

    def __call__(
        self,
        completions: list[list[dict[str, str]]],
        completion_ids: list[list[int]],
        problem: list[str],
        **_: Any,
    ) -> list[float | None]:
        self.tokens = sum(map(len, completion_ids))
        answers = [
            (self._problems[name], turns[0]["content"].partition("\n")[0])
            for name, turns in zip(problem, completions, strict=True)
        ]
        return [verdict.reward for verdict in self._verifier.verify(answers)]


class Examiner:
    """Greedy accuracy of a model in training on the held-out problems."""

    def __init__(self, held_out: Sequence[Problem], verifier: VerifierPool) -> None:
        model = find_model(MODEL)
        self._tokenizer = Tokenizer.load(model)
        decoder = load_decoder(model, torch.float32, torch.device("cpu"))
        self._engine = PortableEngine(decoder, self._tokenizer, slots=96)
        self._problems, self._verifier = held_out, verifier

    def accuracy(self, model: torch.nn.Module) -> float:
        tensors = dict(model.state_dict())
        del tensors["lm_head.weight"]  # the embedding, which is there already
        self._engine.load(tensors, version=1)
        greedy = Sampling(temperature=0.0, max_tokens=RULE.max_tokens, stop=RULE.stop)
        asked = [
            Request(problem.id, self._tokenizer.chat(problem.messages), 1, greedy, 0)
            for problem in self._problems
        ]
        texts = [answers[0].text for answers in self._engine.generate(asked)]
        verdicts = self._verifier.verify(list(zip(self._problems, texts, strict=True)))
        return sum(verdict.right for verdict in verdicts) / len(texts)


class Held(TrainerCallback):
    """Lets a step begin when it is this side's turn."""

    def __init__(self, turns: Turns, examiner: Examiner, judge: Judge) -> None:
        self._turns, self._examiner, self._judge = turns, examiner, judge
        self._progress: Progress | None = None
        self._start = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._turns.idle(self._progress)
        self._start = time.perf_counter()

    def on_step_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        seconds = time.perf_counter() - self._start
        self._progress = Progress(seconds, self._examiner.accuracy(model), self._judge.tokens)


def settings(seed: int, steps: int, directory: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=directory,
        seed=seed,
        use_cpu=True,
        bf16=False,  # TRL's default is True
        model_init_kwargs={"dtype": "float32"},
        max_steps=steps + 1,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=PROBLEMS * COMPLETIONS // MICRO_BATCH,
        num_generations=COMPLETIONS,
        max_completion_length=RULE.max_tokens,
        temperature=RULE.temperature,
        learning_rate=LEARNING_RATE,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
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


def end_with_the_line(trainer: GRPOTrainer) -> None:
    """Every token whose text holds a line break ends a completion."""
    tokenizer: Any = trainer.processing_class
    breaks = [token for token in range(len(tokenizer)) if "\n" in tokenizer.decode([token])]
    trainer.eos_token_ids += [token for token in breaks if token not in trainer.eos_token_ids]
    trainer.generation_config.eos_token_id = trainer.eos_token_ids


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    given = parser.parse_args()
    turns, exercise = Turns(), task(given.seed)
    source = open_task(exercise)
    problems = [p for step in range(1, given.steps + 2) for p in source.train(step, PROBLEMS)]
    rows = [{"prompt": problem.messages, "problem": problem.id} for problem in problems]
    with tempfile.TemporaryDirectory() as directory, VerifierPool(exercise) as verifier:
        judge = Judge(problems, verifier)
        trainer = GRPOTrainer(
            model=str(find_model(MODEL)),
            reward_funcs=judge,
            args=settings(given.seed, given.steps, directory),
            train_dataset=Dataset.from_list(rows),
        )
        end_with_the_line(trainer)
        examiner = Examiner(source.held_out(HELD_OUT), verifier)
        trainer.add_callback(Held(turns, examiner, judge))
        trainer.train()


if __name__ == "__main__":
    main()
