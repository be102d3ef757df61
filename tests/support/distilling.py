"""Recipes of distill stages, their models, and what a model says of a group."""

from pathlib import Path

import torch
from byte_model import make_model, write_tokenizer

from interlock.config.reading import load_recipe
from interlock.models.attention import causal
from interlock.models.checkpoint import load_decoder
from interlock.recipes.train import train
from interlock.records.metrics import StepMetrics
from interlock.records.rl import (
    Group,
)
from interlock.rundir import RunDir

RECIPE = """
checkpoint_every = 2
model.path = "{student}"
learner.dtype = "float32"

[[generator]]
dtype = "float32"
slots = 16

[[stage]]
kind = "distill"
steps = 4
problems_per_step = 4
completions = 2
sampling.max_tokens = 10
optimizer = {{ lr = 1e-2 }}
eval.problems = 2
{more}

[stage.task]
name = "arithmetic"
held_out = 8

[[stage.teacher]]
{teacher}
"""
# Asked twice, two seconds apart; what is well answers within them on a busy machine too.
SOON = "patience_s = 3.0\nbackoff_s = 2.0\n"


def a_model(directory: Path, **changes: object) -> Path:
    directory.mkdir()
    make_model(directory, **changes)
    write_tokenizer(directory)
    return directory


def a_recipe(directory: Path, student: Path, teacher: str, more: str = "") -> Path:
    path = directory / "recipe.toml"
    path.write_text(RECIPE.format(student=student, teacher=teacher, more=more))
    return path


def distilled(recipe: Path, run: Path, *overrides: str, resume: bool = False) -> list[StepMetrics]:
    train(load_recipe(recipe, list(overrides)), run, resume=resume)
    return [line for line in RunDir.read(run).metrics() if line.step]


def logprobs(model: Path, group: Group) -> torch.Tensor:
    """Of what follows each token of the first completion, [N, V]."""
    decoder = load_decoder(model, torch.float32, torch.device("cpu"))
    tokens = torch.tensor(group.prompt_tokens + group.completions[0].tokens)
    attend = causal(len(tokens), tokens.device)
    with torch.no_grad():
        found = decoder.logits(decoder(tokens, attend.positions, attend)).log_softmax(-1)
    return found[len(group.prompt_tokens) - 1 : -1]
