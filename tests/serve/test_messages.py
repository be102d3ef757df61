import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoints import Loopback
from talking import talking
from tool_models import WEATHER

from interlock.records.serving import Ended, EndKind
from interlock.serve.dialects.blocks import BlockEvent, Blocks
from interlock.serve.dialects.messages import thinking_of, turns_of_messages
from interlock.serve.prompts.fields import FieldError

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bö"}}\n</tool_call>'
SAID = f"<think>\nhm\n</think>\n\nHé.\n{CALL}"
FUNCTION = WEATHER["function"]
TOOL = {
    "name": "get_weather",
    "description": FUNCTION["description"],
    "input_schema": FUNCTION["parameters"],
}
ASKED: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 120,
    "messages": [{"role": "user", "content": "Rain?"}],
    "tools": [TOOL],
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Loopback]:
    with talking(tmp_path, SAID) as running:
        yield running


def events(text: str) -> list[dict[str, Any]]:
    *told, empty = text.split("\n\n")
    assert empty == ""
    found = []
    for each in told:
        name, data = each.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_message(served: Loopback) -> None:
    tree = served.post("/v1/messages", ASKED).json()
    called = tree["content"][2].pop("id")
    assert called.startswith("call_")
    assert tree["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "Hé."},
        {"type": "tool_use", "name": "get_weather", "input": {"city": "Bö"}},
    ]
    assert (tree["type"], tree["role"], tree["model"]) == ("message", "assistant", "tiny")
    assert (tree["stop_reason"], tree["stop_sequence"]) == ("tool_use", None)
    drawn = len(served.endpoint.tokenizer.encode(SAID)) + 1
    assert tree["usage"]["output_tokens"] == drawn
    prompt = len(served.replicas.asked[0].prompt)
    assert sum(v for k, v in tree["usage"].items() if k != "output_tokens") == prompt


def test_the_events_of_a_stream_add_up_to_the_message(served: Loopback) -> None:
    told = events(served.post("/v1/messages", ASKED | {"stream": True}).text)
    kinds = [each["type"] for each in told]
    shape = [k for i, k in enumerate(kinds) if i == 0 or kinds[i - 1] != k]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert shape == ["message_start", *block * 3, "message_delta", "message_stop"]
    begun = [e["content_block"]["type"] for e in told if e["type"] == "content_block_start"]
    assert begun == ["thinking", "text", "tool_use"]
    added = ["", "", ""]
    for each in told:
        if each["type"] == "content_block_delta":
            delta = each["delta"]
            kind = delta["type"]
            if kind != "signature_delta":
                names = {"input_json_delta": "partial_json"}
                added[each["index"]] += delta[names.get(kind, kind.removesuffix("_delta"))]
    assert added == ["hm", "Hé.", '{"city": "Bö"}']
    assert told[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert told[-2]["usage"]["output_tokens"] == len(served.endpoint.tokenizer.encode(SAID)) + 1
    assert told[0]["message"]["content"] == []


def test_why_it_stopped(tmp_path: Path) -> None:
    with talking(tmp_path, "one two three") as served:

        def stop(**more: Any) -> tuple[str, str | None, str]:
            tree = served.post("/v1/messages", {**ASKED, "tools": None, **more}).json()
            return tree["stop_reason"], tree["stop_sequence"], tree["content"][0]["text"]

        assert stop() == ("end_turn", None, "one two three")
        assert stop(max_tokens=5) == ("max_tokens", None, "one tw")
        assert stop(stop_sequences=["xx", " th"]) == ("stop_sequence", " th", "one two")


def test_a_failure_in_a_stream_is_one_event(served: Loopback) -> None:
    served.replicas.hold()
    served.replicas.step(8)
    with (
        served.client() as client,
        client.stream("POST", "/v1/messages", json=ASKED | {"stream": True}) as answer,
    ):
        lines, text = answer.iter_text(), ""
        while "thinking_delta" not in text:
            text += next(lines)
        served.replicas.end_all(Ended(EndKind.LOST, "all replicas died"))
        text += "".join(lines)
    last = events(text)[-1]
    assert (last["type"], last["error"]["message"]) == ("error", "all replicas died")


def test_a_defect_in_a_stream_is_the_same_event(
    served: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Blocks) -> list[BlockEvent]:
        raise ZeroDivisionError("of the server's own")

    monkeypatch.setattr(Blocks, "finish", broken)
    told = events(served.post("/v1/messages", ASKED | {"stream": True, "max_tokens": 8}).text)
    assert told[0]["type"] == "message_start"
    error = {
        "message": "the server failed; its log says more",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert told[-1] == {"type": "error", "error": error}
    assert [each["type"] for each in told].count("error") == 1
    served.replicas.wait_until(lambda: not served.endpoint.heard)


def test_tokens_are_counted_as_they_are_drawn_from(served: Loopback) -> None:
    body = {k: v for k, v in ASKED.items() if k != "max_tokens"}
    counted = served.post("/v1/messages/count_tokens", body).json()
    served.post("/v1/messages", ASKED)
    assert counted == {"input_tokens": len(served.replicas.asked[0].prompt)}


def test_a_key_may_come_as_their_clients_send_it(served: Loopback) -> None:
    with served.client(
        None,
    ) as client:
        headers = {"x-api-key": "k" * 20, "anthropic-version": "2023-06-01"}
        assert client.post("/v1/messages", json=ASKED, headers=headers).status_code == 200


def test_blocks_become_messages() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Rain?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "Hé."},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "ö"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "no", "is_error": True},
                {"type": "tool_result", "tool_use_id": "t2", "content": [TEXT("a"), TEXT("b")]},
                {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]
    call = {"name": "f", "arguments": '{"a": "ö"}'}
    assert turns_of_messages([TEXT("Be brief."), TEXT("Be kind.")], messages) == [
        {"role": "system", "content": "Be brief.\nBe kind."},
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": "Hé.",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "t1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "Error: no"},
        {"role": "tool", "tool_call_id": "t2", "content": "a\nb"},
        {"role": "user", "content": "And?"},
    ]


def TEXT(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def test_thinking_is_asked_of_models_that_think() -> None:
    enabled, off = {"type": "enabled", "budget_tokens": 9}, {"type": "disabled"}
    asked = {"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget": 9}
    assert thinking_of(enabled, thinks=True, switch=True) == asked
    assert thinking_of(enabled, thinks=True, switch=False) == {"thinking_budget": 9}
    assert thinking_of(off, thinks=False, switch=False) == {}
    assert thinking_of(None, thinks=True, switch=True) == {}
    for asked, thinks in ((enabled, False), (off, True)):
        with pytest.raises(FieldError):
            thinking_of(asked, thinks=thinks, switch=False)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "messages[0].content[0].type",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "x"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.function.name"),
        ({"thinking": {"type": "some"}}, "thinking.type"),
        ({"temperature": 1.5}, "temperature"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_is_not_served_is_refused(served: Loopback, more: dict[str, Any], param: str) -> None:
    answer = served.post("/v1/messages", ASKED | more)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_choices_and_forms_reach_the_replica(served: Loopback) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    told = {"format": {"type": "json_schema", "schema": schema}}
    assert served.post("/v1/messages", ASKED | {"output_config": told}).status_code == 200
    assert '"a"' in served.replicas.asked[-1].rules.grammar
    body = ASKED | {"tool_choice": {"type": "any"}, "thinking": {"type": "disabled"}}
    assert served.post("/v1/messages", body).status_code == 200
    assert "get_weather" in served.replicas.asked[-1].rules.grammar
    assert served.replicas.asked[-1].rules.grammar_after == []
    body = ASKED | {"thinking": {"type": "enabled", "budget_tokens": 7}}
    assert served.post("/v1/messages", body).status_code == 200
    assert served.replicas.asked[-1].rules.thinking_budget == 7
