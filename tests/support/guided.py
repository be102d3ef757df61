"""Requests with rules, of a model with a token per byte."""

import json
from dataclasses import replace
from typing import Any

from llguidance import LLMatcher

from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import Completion, Sampling, Segment
from interlock.records.serving import Rules

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "rain"]}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
SIZE = 300  # the model's vocabulary: 256 bytes, the end token, and rows of no token


def of_schema(schema: object) -> str:
    compact = {"whitespace_flexible": False} if isinstance(schema, dict) else None
    return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=compact)


GRAMMAR = of_schema(SCHEMA)


def asked(tokenizer: Tokenizer, rules: Rules, tokens: int = 120, **changes: Any) -> Request:
    rule = Sampling(max_tokens=tokens)
    request = Request("p", tokenizer.encode("Who?"), 1, rule, seed=1, rules=rules)
    return replace(request, **changes)


def one(engine: PortableEngine, request: Request) -> Completion:
    return engine.generate([request])[0][0]


def cut(whole: Completion, at: int) -> list[Segment]:
    return [Segment(whole.tokens[:at], whole.logprobs[:at], 0)]


def assert_every_cut_goes_on(engine: PortableEngine, request: Request, whole: Completion) -> None:
    cuts = range(1, len(whole.tokens))
    again = engine.generate([replace(request, drawn=cut(whole, at)) for at in cuts])
    assert [found.tokens for (found,) in again] == [whole.tokens] * len(cuts)
    assert {found.finish for (found,) in again} == {whole.finish}
