"""Greedy answers of our engine against transformers' own, of every family that loads."""

from pathlib import Path

import pytest
import torch
from reference_models import FAMILIES, reference_model

from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.models.checkpoint import load_decoder
from interlock.records.rl import Sampling


class Endless:
    """A vocabulary in which no token ends an answer."""

    eos_ids: frozenset[int] = frozenset()

    def decode(self, ids: list[int]) -> str:
        return "".join(map(self.push, ids))

    def stream(self) -> "Endless":
        return self

    def definition(self) -> str:
        return ""

    def push(self, token: int) -> str:
        return chr(0x100 + token)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = reference_model(family).eval()
    model.save_pretrained(tmp_path)
    noise = torch.Generator().manual_seed(7)
    prompts = [torch.randint(67, (length,), generator=noise) for length in (9, 1, 23)]
    wanted = [
        model.generate(
            prompt[None], do_sample=False, max_new_tokens=20, pad_token_id=0, eos_token_id=None
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    decoder = load_decoder(tmp_path, torch.float32, torch.device("cpu"))
    engine = PortableEngine(decoder, Endless(), slots=3)
    rule = Sampling(temperature=0, max_tokens=20)
    asked = [Request(f"p{i}", p.tolist(), 1, rule, seed=0) for i, p in enumerate(prompts)]
    found = [completions[0].tokens for completions in engine.generate(asked)]
    assert found == wanted
    assert len({token for tokens in wanted for token in tokens}) > 10
