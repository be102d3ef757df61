"""What is exported: a model directory, or the weights a run ended with.

RUN ─── its weights/, named as the run; the card tells of it
MODEL ─ a directory, hf:org/name or a model of the demo; its own card, where it has one
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from interlock import hub
from interlock.models.fetch import find_model


class Source(NamedTuple):
    """`name` is the model's, for its card and its file; `run` is None for a plain model."""

    directory: Path
    name: str
    run: Path | None = None


def find_source(model: str, tell: Callable[[str], None] | None = None) -> Source:
    """Raises ModelError or RunError as models.fetch.find_model does."""
    directory = find_model(model, tell)
    given = Path(model).expanduser()
    if given.is_dir() and directory != given:
        return Source(directory, given.resolve().name, given)
    if model.startswith(hub.PREFIX):
        return Source(directory, re.split("[/@]", model)[1])
    return Source(directory, directory.resolve().name)
