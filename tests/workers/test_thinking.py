"""Thinking that the chat template begins is part of the turn that verifiers judge."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_templates import begun_thinking
from real_workers import SETTINGS, SLOTS, House, Weights

from interlock.recipes.evaluate import score
from interlock.records.rl import Attempt, Group, Problem, Sampling, Verdict
from interlock.tasks import arithmetic
from interlock.workers.generator import open_generator
from interlock.workers.generators import Purpose, Work

TEMPLATE = begun_thinking("<end>")
PROBLEM = Problem("p", [{"role": "user", "content": "1 + 3?"}], "4")
SAMPLING = Sampling(max_tokens=6)


@pytest.fixture
def thinker(chatty: Path, tmp_path: Path) -> Path:
    model = Path(shutil.copytree(chatty, tmp_path / "thinker"))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    return model


def generated(model: Path) -> Group:
    generator = open_generator(SETTINGS, model, None, "g")
    return generator.generate([PROBLEM], 2, SAMPLING, seed=1)[0]


def pooled(model: Path) -> Group:
    house = House(Weights(model, model.parent / "store"), "w", slots=SLOTS)
    house.ready()
    house.pool.order(Work(Purpose.TRAIN, (0,), (PROBLEM,), 2, SAMPLING, 1, False))
    for _ in range(100):
        house.turn()
        for found in house.pool.collect(Purpose.TRAIN):
            assert found.group is not None
            return found.group
    raise AssertionError(house.notes)


@pytest.mark.parametrize("make", [generated, pooled])
def test_a_group_knows_what_its_prompt_began(thinker: Path, make: Any) -> None:
    group = make(thinker)
    assert group.turns == [f"<think>\n{each.text}" for each in group.completions]
    asked: list[tuple[Problem, str]] = []

    def verify(attempts: Sequence[Attempt]) -> list[Verdict]:
        asked.extend((each.problem, each.text) for each in attempts)
        return [Verdict(0.0) for _ in attempts]

    verifier: Any = type("Verifier", (), {"verify": staticmethod(verify)})
    score([group], verifier)
    assert asked == [(PROBLEM, turn) for turn in group.turns]


@pytest.mark.parametrize(
    ("text", "right"), [("so 4", False), ("so 5</think>4", True), ("4</think>5", False)]
)
def test_an_answer_inside_it_is_none(text: str, right: bool) -> None:
    assert arithmetic.verify(PROBLEM, f"<think>\n{text}") is right
