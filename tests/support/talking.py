"""The endpoint on loopback with a model that thinks and calls tools, and says what a test wants."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import endpoints
import pytest
from chat_models import write_model
from chat_templates import HERMES
from tool_models import add_marks

from interlock.models.tokenizer import Tokenizer


def tokenizer_in(directory: Path) -> Tokenizer:
    return Tokenizer.load(add_marks(write_model(directory, HERMES)))


@contextmanager
def talking(directory: Path, *texts: str) -> Iterator[endpoints.Loopback]:
    """Every answer is the next text, over and over."""
    said = iter(list(texts) * 100)

    def script(tokenizer: Tokenizer) -> endpoints.Script:
        end = [tokenizer.eos_id or 0]
        return lambda generation, number: tokenizer.encode(next(said)) + end

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endpoints, "tokenizer_in", tokenizer_in)
        with endpoints.loopback(directory, script) as running:
            yield running
