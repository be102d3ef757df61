"""The GRPO step that grpo_step.py measures, told once for both sides.

The reward falls with the distance between the last number of an answer and the sum, instead of
being 1 for the sum alone. The untrained model answers so few sums right at temperature 1 that
whole steps would have nothing to learn from: Interlock would then skip the update, and TRL would
do it all the same. With this reward practically every group has an update on either side.
"""

import json
from pathlib import Path
from typing import Any

from interlock.config.tasks import TaskSettings
from interlock.tasks.answers import last_number

MODEL = "smollm2-135m-instruct"
PROBLEMS = 8  # per step
COMPLETIONS = 8  # of each problem
MAX_TOKENS = 48
TEMPERATURE = 1.0
LEARNING_RATE = 1e-6


def task(directory: Path) -> TaskSettings:
    """Sums of two-digit numbers, written to `directory`, in the same order wherever it is."""
    rows = [
        {"question": f"What is {a} + {b}?", "answer": a + b}
        for a in range(10, 100)
        for b in range(10, 100)
    ]
    path = directory / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {"path": str(path), "verifier": f"{Path(__file__).resolve()}:closeness"}
    return TaskSettings(name="jsonl", options=options, held_out=1)


def closeness(problem: dict[str, Any], answer: str) -> float:
    """1 / (1 + distance of the last number from the sum); 0 without a number."""
    number = last_number(answer)
    return 0.0 if number is None else 1 / (1 + abs(float(number) - float(problem["answer"])))
