"""A tiny model, and pools of real worker processes that serve it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from byte_model import make_model, write_tokenizer
from live_pool import EXACT, LivePool


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token per byte; hardly any of them ends an answer."""
    directory = tmp_path_factory.mktemp("endless")
    write_tokenizer(directory)
    return make_model(directory, max_position_embeddings=2048)


@pytest.fixture
def live(endless: Path, tmp_path: Path) -> Iterator[Callable[..., LivePool]]:
    with ExitStack() as stack:

        def opened(*names: str, model: Path = endless, **given: Any) -> LivePool:
            replicas = given.pop("replicas", None) or dict.fromkeys(names, EXACT)
            made = LivePool(model, tmp_path / "logs", replicas, **given)
            stack.callback(made.pool.close, 0.0)
            return made

        yield opened
