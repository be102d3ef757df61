"""A whole recipe with its data and verifier, for the tiny model."""

import json
from pathlib import Path

REWARD = '''
def reward(problem, answer):
    """Any function of the text that differs between random answers."""
    return sum(map(ord, answer)) % 17 / 16
'''


def write_tiny_recipe(directory: Path, model: Path) -> Path:
    """A GRPO stage of 8 steps, as a TOML file."""
    verifier = directory / "reward.py"
    verifier.write_text(REWARD)
    problems = directory / "problems.jsonl"
    rows = ({"question": f"Say {number}.", "answer": str(number)} for number in range(40))
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = directory / "recipe.toml"
    recipe.write_text(
        f"""
name = "tiny"
checkpoint_every = 3
model.path = "{model}"
learner.dtype = "float32"

[[generator]]
dtype = "float32"
slots = 8

[[stage]]
kind = "grpo"
steps = 8
problems_per_step = 3
completions = 4
sampling.max_tokens = 12
optimizer = {{ lr = 1e-3, warmup_steps = 1, schedule = "cosine" }}
eval = {{ every = 4, problems = 5 }}

[stage.task]
name = "jsonl"
held_out = 8
options = {{ path = "{problems}", verifier = "{verifier}:reward" }}
"""
    )
    return recipe
