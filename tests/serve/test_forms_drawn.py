"""Forms that a request asks for, drawn by a random model on the torch engine, and read back."""

import json
from pathlib import Path
from typing import Any

import byte_model
import jsonschema
import pytest
import torch
from chat_models import write_model
from chat_templates import DEEPSEEK, HERMES
from msgspec.structs import replace
from tool_models import WEATHER, add_marks

from interlock.engine.base import Request
from interlock.engine.portable.engine import PortableEngine
from interlock.models.checkpoint import load_decoder
from interlock.models.tokenizer import Tokenizer
from interlock.records.rl import FinishReason, Sampling
from interlock.serve.prompts.prompting import ChatFormat
from interlock.serve.prompts.turns import tools_of
from interlock.serve.reading.deltas import ChatAnswer
from interlock.serve.reading.reader import AnswerReader
from interlock.serve.structure.choosing import choice_of
from interlock.serve.structure.forms import structure_of

PLACE = {
    "type": "object",
    "properties": {"city": {"enum": ["Kobe", "Bö"]}, "days": {"type": "boolean"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {**WEATHER["function"], "parameters": PLACE}}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": PLACE}}
BUDGET, SEEDS = 4, range(8)


@pytest.fixture(scope="module", params=["hermes", "deepseek"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[ChatFormat, Any]:
    directory: Path = tmp_path_factory.mktemp("model")
    template = {"hermes": HERMES, "deepseek": DEEPSEEK}[request.param]
    eos = "<|im_end|>" if request.param == "hermes" else "<\uff5cend\u2581of\u2581sentence\uff5c>"
    add_marks(write_model(directory, template, eos=eos))
    byte_model.make_model(directory, max_position_embeddings=1024)
    tokenizer = Tokenizer.load(directory)
    decoder = load_decoder(directory, torch.float32, torch.device("cpu"))
    return ChatFormat(tokenizer), PortableEngine(decoder, tokenizer, slots=8)


def drawn(model: tuple[ChatFormat, PortableEngine], **asked: Any) -> list[ChatAnswer]:
    form, engine = model
    choice = choice_of(asked.get("tool_choice"), tools_of(asked.get("tools")))
    prompt = form.prompt([{"role": "user", "content": "Rain?"}], choice.told)
    structure = structure_of(form, prompt.stage, choice, asked.get("response_format"))
    rules = replace(
        form.rules(prompt, BUDGET), grammar=structure.grammar, grammar_after=structure.after
    )
    sampling = Sampling(temperature=0.5, max_tokens=400)
    requests = [Request(str(n), prompt.tokens, 1, sampling, n, rules=rules) for n in SEEDS]
    found = []
    for (completion,) in engine.generate(requests):
        assert completion.finish is FinishReason.STOP
        reader = AnswerReader(form, prompt.stage, choice.told)
        reader.push(completion.tokens)
        reader.finish()
        assert reader.reasoning_tokens <= BUDGET
        found.append(reader.answer)
    return found


def test_a_schema_is_kept_to_behind_thinking(model: tuple[ChatFormat, Any]) -> None:
    for answer in drawn(model, response_format=FORM):
        jsonschema.validate(json.loads(answer.content or ""), PLACE)


def test_a_call_that_must_be_made_is_made_and_valid(model: tuple[ChatFormat, Any]) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for answer in drawn(model, tools=[TOOL], tool_choice=named):
        (call,) = answer.calls
        assert (call.name, answer.content) == ("get_weather", None)
        jsonschema.validate(json.loads(call.arguments), PLACE)
