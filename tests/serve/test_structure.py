# ruff: noqa: RUF001  DeepSeek spells its special tokens with a fullwidth bar
import json
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import jsonschema
import llguidance
import numpy as np
import pytest
from tests.serve.test_reader import model
from tests.support.tool_models import WEATHER

from interlock.serve.prompts.families import ToolForm
from interlock.serve.prompts.fields import FieldError
from interlock.serve.prompts.prompting import ChatFormat, ChatPrompt
from interlock.serve.prompts.turns import Tool, tools_of
from interlock.serve.reading.reader import AnswerReader
from interlock.serve.structure.choosing import choice_of
from interlock.serve.structure.forms import structure_of

ASKED = [{"role": "user", "content": "?"}]
OFF = {"enable_thinking": False}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "ages": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        "kind": {"enum": ["a", "b", None]},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}
PLACE = json.loads(json.dumps(WEATHER))
PLACE["function"]["parameters"]["properties"]["city"]["maxLength"] = 4
STRICT = json.loads(json.dumps(PLACE))
STRICT["function"]["strict"] = True
NOW = {"type": "function", "function": {"name": "now"}}


class Plan(NamedTuple):
    """What a request comes to, as serve.chatting makes it ready."""

    form: ChatFormat
    prompt: ChatPrompt
    grammar: str
    after: list[int]
    tools: Sequence[Tool]

    def reader(self) -> AnswerReader:
        return AnswerReader(self.form, self.prompt.stage, self.tools)


def plan(kind: str, tools: Any = None, tool_choice: Any = None, **asked: Any) -> Plan:
    return planned(model(kind)[0], tools, tool_choice, **asked)


def planned(
    form: ChatFormat,
    tools: Any = None,
    tool_choice: Any = None,
    parallel_tool_calls: bool | None = None,
    chat_template_kwargs: Any = None,
    **formats: Any,
) -> Plan:
    choice = choice_of(tool_choice, tools_of(tools), parallel_tool_calls)
    prompt = form.prompt(ASKED, choice.told, chat_template_kwargs)
    structure = structure_of(form, prompt.stage, choice, **formats)
    return Plan(form, prompt, *structure, choice.told)


def formatted(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def matcher(kind: str, grammar: str) -> llguidance.LLMatcher:
    _, tokenizer = model(kind)
    backend = tokenizer._backend
    made = llguidance.LLTokenizer(backend.to_str(), eos_token=sorted(tokenizer.eos_ids)[0])
    return llguidance.LLMatcher(made, grammar)


def takes(kind: str, grammar: str, text: str) -> bool:
    """Whether the grammar allows exactly this text."""
    machine, tokens = matcher(kind, grammar), model(kind)[1].encode(text)
    assert not machine.is_error(), machine.get_error()
    return machine.try_consume_tokens(tokens) == len(tokens) and machine.is_accepting()


def drawn(kind: str, grammar: str, seed: int) -> str:
    """A random text of the grammar; the end is taken where it may be."""
    machine, rng, found = matcher(kind, grammar), random.Random(seed), []
    while not machine.is_accepting():
        bits = np.unpackbits(np.frombuffer(machine.compute_bitmask(), np.uint8), bitorder="little")
        allowed = [t for t in np.flatnonzero(bits).tolist() if t not in model(kind)[1].eos_ids]
        token = rng.choice(allowed)
        assert machine.consume_token(token)
        found.append(token)
        assert len(found) < 2000
    return model(kind)[1].decode(found, skip_special=False)


@pytest.mark.parametrize("seed", range(12))
def test_answers_are_valid_by_the_schema(seed: int) -> None:
    grammar = plan("hermes", response_format=formatted(SCHEMA), chat_template_kwargs=OFF).grammar
    tree = json.loads(drawn("hermes", grammar, seed))
    jsonschema.validate(tree, SCHEMA)


@pytest.mark.parametrize(
    ("asked", "good", "bad"),
    [
        ({"response_format": {"type": "json_object"}}, '{"a": [1]}', "[1]"),
        ({"structured_outputs": {"regex": "a/b|\\d{3}"}}, "a/b", "a"),
        ({"structured_outputs": {"choice": ["yes", 'n"o\n']}}, 'n"o\n', "y"),
        ({"structured_outputs": {"json": SCHEMA}}, '{"name":"x","kind":null}', '{"name":"x"}'),
        ({"structured_outputs": {"grammar": 'start: "a" b\nb: /[0-9]+/'}}, "a12", "a"),
    ],
)
def test_forms(asked: dict[str, Any], good: str, bad: str) -> None:
    made = plan("hermes", chat_template_kwargs=OFF, **asked)
    assert takes("hermes", made.grammar, good)
    assert not takes("hermes", made.grammar, bad)
    assert made.after == []


def test_text_asks_for_nothing() -> None:
    assert plan("hermes", response_format={"type": "text"}).grammar == ""
    assert plan("hermes", tools=[WEATHER]).grammar == ""


@pytest.mark.parametrize("kind", ["hermes", "deepseek"])
def test_behind_thinking_the_form_begins(kind: str) -> None:
    made = plan(kind, response_format=formatted(SCHEMA))
    assert made.after == [model(kind)[1].token_id("</think>")]
    assert takes(kind, made.grammar, '\n\n{"name": "x", "kind": "a"}')
    made = plan(kind, structured_outputs={"grammar": 'start: "a"'})
    assert takes(kind, made.grammar, "\n\na")


@pytest.mark.parametrize("kind", ["hermes", "deepseek", "xml", "spelt"])
@pytest.mark.parametrize("seed", range(4))
def test_required_calls_are_valid(kind: str, seed: int) -> None:
    place = json.loads(json.dumps(PLACE))
    parameters = place["function"]["parameters"]
    if kind == "xml":  # a bare string has no length, and random text finds its end too late
        parameters["properties"]["city"] = {"type": "string", "enum": ["Kobe", "1"]}
    quiet = OFF if kind == "spelt" else None  # random thinking finds its end too late as well
    made = plan(kind, tools=[place, NOW], tool_choice="required", chat_template_kwargs=quiet)
    text = drawn(kind, made.grammar, seed)
    reader = made.reader()
    reader.push(model(kind)[1].encode("</think>" + text))
    reader.finish()
    schemas = {"get_weather": parameters, "now": {"maxProperties": 0}}
    assert reader.answer.calls
    for call in reader.answer.calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])
    assert reader.answer.content is None


def test_a_mark_of_several_tokens_is_found_by_its_text() -> None:
    asked = {"response_format": formatted(SCHEMA)}
    good = '{"name": "x", "kind": "a"}'
    made = plan("spelt", **asked)
    assert made.after == []
    assert takes("spelt", made.grammar, f"<think>hm {{\n</think>\n\n{good}")
    assert takes("spelt", made.grammar, good)
    assert not takes("spelt", made.grammar, "<think>hm</think>x")
    with pytest.raises(FieldError, match="thinking_budget"):
        plan("spelt", **asked, budget=5)
    assert plan("hermes", **asked, budget=5).after
    _, tokenizer = model("spelt")
    opened = ChatFormat(tokenizer, thinking_marks="opened <think>")
    inside = planned(opened, **asked).grammar
    assert takes("spelt", inside, f"hm</think>{good}") and not takes("spelt", inside, good)
    own = planned(opened, structured_outputs={"grammar": 'start: "a"'}).grammar
    assert takes("spelt", own, "hm</think>\na") and not takes("spelt", own, "a")


def test_deepseek_v31_writes_bare_arguments() -> None:
    _, tokenizer = model("deepseek")
    form = ChatFormat(tokenizer, tool_form=ToolForm.DEEPSEEK_V31)
    made = planned(form, [NOW], "required")
    text = (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>"
    )
    assert takes("deepseek", made.grammar, text)


def test_a_bare_string_is_any_text_up_to_its_end() -> None:
    grammar = plan("xml", tools=[PLACE], tool_choice="required").grammar
    call = (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n{}\n</parameter>\n{}</function>\n"
    )
    call += "</tool_call>"
    assert takes("xml", grammar, call.format('a <b>\n"c"', ""))
    assert takes("xml", grammar, call.format("a", "<parameter=days>\n3\n</parameter>\n"))
    assert not takes("xml", grammar, call.format("a", "<parameter=days>\nthree\n</parameter>\n"))


HERMES_CALL = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'


def test_a_named_function_is_called_once() -> None:
    choice = {"type": "function", "function": {"name": "now"}}
    grammar = plan("hermes", tools=[PLACE, NOW], tool_choice=choice).grammar
    call = HERMES_CALL.format("now", "{}")
    assert takes("hermes", grammar, call)
    assert not takes("hermes", grammar, f"{call}\n{call}")
    assert not takes("hermes", grammar, HERMES_CALL.format("get_weather", '{"city": "x"}'))


def test_a_strict_function_keeps_to_its_schema_where_it_is_called() -> None:
    grammar = plan("hermes", tools=[STRICT, NOW]).grammar
    good = HERMES_CALL.format("get_weather", '{"city": "x"}')
    free = HERMES_CALL.format("now", '{"anything": 1}')
    assert takes("hermes", grammar, "Just words, <tool> or not.")
    assert takes("hermes", grammar, f"Words.\n{good}")
    assert takes("hermes", grammar, f"{good}\n{free}")
    assert not takes("hermes", grammar, HERMES_CALL.format("get_weather", '{"town": "x"}'))


def test_a_strict_call_keeps_to_its_schema_where_its_marks_are_text() -> None:
    assert model("spelt")[1].token_id("<tool_call>") is None
    grammar = plan("spelt", tools=[STRICT, NOW]).grammar
    good = HERMES_CALL.format("get_weather", '{"city": "x"}')
    free = HERMES_CALL.format("now", '{"anything": "<tool_call>"}')
    bad = HERMES_CALL.format("get_weather", '{"town": "x"}')
    for text in ("", "Words, <tool> or <tool_call not.", f"Words.\n{good}", f"{good}\n{free}\nSo."):
        assert takes("spelt", grammar, text), text
        assert takes("spelt", grammar, f"<think>\nI {bad}\n</think>\n\n{text}"), text
    assert not takes("spelt", grammar, bad)
    assert not takes("spelt", grammar, f"{good}\n<tool_call>")
    assert not takes("spelt", grammar, f"<think>\nhm\n</think>\n\n{bad}")
    assert not takes("spelt", grammar, "<think>never ended")
    quiet = plan("spelt", tools=[STRICT], chat_template_kwargs=OFF).grammar
    assert takes("spelt", quiet, f"So: {good}") and not takes("spelt", quiet, f"So: {bad}")
    one = plan("spelt", tools=[STRICT], parallel_tool_calls=False).grammar
    assert takes("spelt", one, f"So: {good} <b>") and not takes("spelt", one, f"{good}\n{good}")
    _, tokenizer = model("spelt")
    opened = ChatFormat(tokenizer, thinking_marks="opened <think>")
    inside = planned(opened, [STRICT]).grammar
    assert takes("spelt", inside, f"{bad}</think>{good}")
    assert not takes("spelt", inside, f"{good}</think>{bad}")


def test_calls_that_stand_together_are_held_to_a_form_where_their_marks_are_text() -> None:
    _, tokenizer = model("spelt")
    form = ChatFormat(tokenizer, thinking_marks="none", tool_form=ToolForm.DEEPSEEK)
    grammar = planned(form, [STRICT]).grammar
    call = (
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{}\n```"
        "<｜tool▁call▁end｜>"
    )
    all_of = "<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>"
    good, bad = call.format('{"city": "x"}'), call.format('{"town": "x"}')
    for text in ("Words.", f"Words.{all_of.format(good)}", all_of.format(f"{good}\n{good}")):
        assert takes("spelt", grammar, text), text
    assert not takes("spelt", grammar, all_of.format(bad))
    assert not takes("spelt", grammar, all_of.format(f"{good}\n{bad}"))


@pytest.mark.parametrize("kind", ["hermes", "spelt"])
def test_what_thinking_says_of_a_call_is_neither_held_to_a_form_nor_read(kind: str) -> None:
    made = plan(kind, tools=[STRICT])
    text = "Words. " + HERMES_CALL.format("get_weather", '{"city": "x"}')
    thought = "<think>\n<tool_call>\n</think>\n\n"
    assert takes(kind, made.grammar, text if made.after else thought + text)
    reader = made.reader()
    reader.push(model(kind)[1].encode(thought + text))
    reader.finish()
    (call,) = reader.answer.calls
    assert (call.name, call.arguments) == ("get_weather", '{"city": "x"}')
    assert (reader.answer.reasoning, reader.answer.content) == ("<tool_call>", "Words.")


def test_one_call_alone_and_a_form_beside_calls() -> None:
    call = HERMES_CALL.format("now", "{}")
    one = plan("hermes", tools=[NOW], parallel_tool_calls=False).grammar
    assert takes("hermes", one, call) and not takes("hermes", one, f"{call}\n{call}")
    both = plan("hermes", tools=[NOW], response_format={"type": "json_object"}).grammar
    assert takes("hermes", both, call) and takes("hermes", both, "{}")
    assert not takes("hermes", both, "words")
    spelt = plan("spelt", tools=[NOW], response_format={"type": "json_object"}).grammar
    assert takes("spelt", spelt, call) and takes("spelt", spelt, "{}")
    assert not takes("spelt", spelt, "words")


def test_no_tool_is_told_where_none_may_be_called() -> None:
    made = plan("hermes", tools=[NOW], tool_choice="none")
    assert "now" not in made.prompt.text
    assert made.grammar == "" and made.tools == ()


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def exploding() -> dict[str, Any]:
    both = lambda kinds: {"allOf": kinds}  # noqa: E731
    one = lambda a: {"anyOf": [{"properties": {f"{a}{i}": {"type": "integer"}}} for i in range(4)]}  # noqa: E731
    return both([one(f"k{a}_") for a in range(10)])


RF = "response_format"
BAD_SCHEMAS = [
    ({"not": {"type": "string"}}, '"not"'),
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "object", "properties": {"a": {"$ref": "http://x/y"}}}, "schema.properties.a.$ref"),
    ({"$ref": "file:///etc/passwd"}, "points outside"),
    ({"$ref": "#/$defs/none"}, "does not exist"),
    ({"$ref": "#"}, "no value can satisfy"),
    ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, ""),
    ({"type": "wat"}, "wat"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"type": "string", "pattern": "a" * 1001}, "1001 characters"),
    ({"x-guidance": {"whitespace_pattern": "a"}}, "x-guidance"),
    (nested(40), "nested deeper"),
    ({"enum": [["x" * 70_000]]}, "bytes"),
    ({"enum": list(range(5000))}, "members"),
    ({"oneOf": [{"type": "object"}, {"type": "object"}]}, "oneOf"),
    (exploding(), "too large"),
    ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "unsatisfiable"),
]


@pytest.mark.parametrize(("schema", "said"), BAD_SCHEMAS)
def test_a_schema_that_cannot_be_kept_to_is_refused(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(FieldError) as caught:
        plan("hermes", response_format=formatted(schema))
    assert caught.value.param.startswith("response_format.json_schema.schema")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


def test_names_that_look_like_keywords_and_data_are_no_keywords() -> None:
    schema = {
        "type": "object",
        "properties": {"$ref": {"type": "integer"}, "pattern": {"const": {"$ref": "http://x"}}},
        "required": ["$ref"],
    }
    assert plan("hermes", response_format=formatted(schema)).grammar


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({RF: {"type": "xml"}}, f"{RF}.type"),
        ({RF: []}, RF),
        ({RF: {"type": "json_schema"}}, f"{RF}.json_schema"),
        ({RF: {"type": "json_object", "schema": {}}}, f"{RF}.schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a\\"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a" * 2001}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "start: <[5]>"}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "start: a"}}, "structured_outputs.grammar"),
        (
            {"structured_outputs": {"regex": "a"}, RF: {"type": "json_object"}},
            "structured_outputs",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "some"}, "tool_choice"),
        (
            {"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name",
        ),
        ({"tools": [NOW, NOW]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs.a"),
    ],
)
def test_a_wrong_field_is_named(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(FieldError) as caught:
        plan("hermes", **asked)
    assert caught.value.param == param
