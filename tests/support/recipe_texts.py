"""A recipe as text, and what it is once read."""

from pathlib import Path

from interlock.config.reading import load_recipe
from interlock.config.schema import Recipe

BASE = """
[model]
path = "m"
[[stage]]
kind = "grpo"
steps = 3
task = { name = "arithmetic", options = { digits = 2 } }
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return load_recipe(path, overrides)
