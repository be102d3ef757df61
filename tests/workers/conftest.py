"""Scenes of a pool with scripted workers, and a tiny model with its versions for real ones."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from byte_model import make_model, write_tokenizer
from real_workers import Weights
from scripted_pool import Scene


@pytest.fixture
def scene() -> Iterator[Callable[..., Scene]]:
    with ExitStack() as stack:
        yield lambda *names, **given: stack.enter_context(Scene(*names, **given))


@pytest.fixture(scope="session")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token per byte, of which a few end an answer: their lengths differ much."""
    directory = tmp_path_factory.mktemp("chatty")
    write_tokenizer(directory)
    make_model(directory, max_position_embeddings=512)
    ends = {"eos_token_id": [256, *range(0, 300, 40)]}
    (directory / "generation_config.json").write_text(json.dumps(ends))
    return directory


@pytest.fixture
def weights(chatty: Path, tmp_path: Path) -> Weights:
    return Weights(chatty, tmp_path / "store")
