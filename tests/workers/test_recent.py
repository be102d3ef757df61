"""A conversation longer than the model's context goes on without its oldest turns."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from interlock.engine.base import Limits
from interlock.errors import ConfigError
from interlock.models.tokenizer import Tokenizer
from interlock.workers.generator import Generator

CONTEXT = 40  # one token a byte, and the template adds none


@pytest.fixture
def generator(chatty: Path) -> Generator:
    engine = SimpleNamespace(limits=Limits(300, CONTEXT, 1))
    return Generator(engine, Tokenizer.load(chatty), "chat")  # type: ignore[arg-type]


def turns(*lengths: int, system: int = 0) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(lengths)
    said = [{"role": "system", "content": "s" * system}] if system else []
    return said + [{"role": r, "content": r[0] * n} for r, n in zip(roles, lengths, strict=False)]


def test_what_fits_stays_whole(generator: Generator) -> None:
    whole = turns(10, 10, 10)
    assert generator.recent(whole, 10) == (whole, 10)
    assert generator.recent(whole, 500) == (turns(10), 30), "half of the context is for the answer"


def test_the_oldest_pairs_go_first_and_the_system_turn_stays(generator: Generator) -> None:
    whole = turns(5, 6, 7, 8, 9, system=4)  # 39
    assert generator.recent(whole, 8) == ([*turns(system=4), *whole[3:]], 8)  # 4 + 24
    assert generator.recent(whole, 20) == ([*turns(system=4), whole[-1]], 20)
    assert len(whole) == 6, "the caller's own is as it was"


def test_a_long_question_gets_a_short_answer_or_is_refused(generator: Generator) -> None:
    assert generator.recent(turns(35), 20) == (turns(35), 5)
    with pytest.raises(ConfigError, match="has 5 tokens more than the model's context of 40"):
        generator.recent(turns(45), 20)
