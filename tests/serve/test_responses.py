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
from interlock.serve.dialects.responses import messages_of
from interlock.serve.prompts.fields import FieldError

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bö"}}\n</tool_call>'
SAID = f"<think>\nhm\n</think>\n\nHé.\n{CALL}"
TOOL = {"type": "function", **WEATHER["function"], "strict": None}
ASKED: dict[str, Any] = {"model": "tiny", "input": "Rain?", "tools": [TOOL]}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Loopback]:
    with talking(tmp_path, SAID) as running:
        yield running


def events(text: str) -> list[dict[str, Any]]:
    *told, done, empty = text.split("\n\n")
    assert (done, empty) == ("data: [DONE]", "")
    found = []
    for each in told:
        name, data = each.split("\n")
        tree = json.loads(data.removeprefix("data: "))
        assert name == f"event: {tree['type']}"
        found.append(tree)
    assert [each["sequence_number"] for each in found] == list(range(len(found)))
    return found


def bare(item: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in item.items() if k not in ("id", "call_id", "status")}


ITEMS = [
    {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hé.", "annotations": [], "logprobs": []}],
    },
    {"type": "function_call", "name": "get_weather", "arguments": '{"city": "Bö"}'},
]


def test_a_response(served: Loopback) -> None:
    tree = served.post("/v1/responses", ASKED | {"metadata": {"a": "b"}}).json()
    assert [bare(item) for item in tree["output"]] == ITEMS
    assert {item["status"] for item in tree["output"]} == {"completed"}
    assert tree["output"][2]["call_id"].startswith("call_")
    assert (tree["object"], tree["status"], tree["error"]) == ("response", "completed", None)
    assert tree["usage"]["output_tokens_details"] == {"reasoning_tokens": 4}
    assert tree["usage"]["total_tokens"] == (
        tree["usage"]["input_tokens"] + tree["usage"]["output_tokens"]
    )
    assert (tree["metadata"], tree["store"], tree["tools"]) == ({"a": "b"}, False, [TOOL])
    assert tree["interlock"]["version"] == 3


def test_the_events_of_a_stream_add_up_to_the_response(served: Loopback) -> None:
    told = events(served.post("/v1/responses", ASKED | {"stream": True}).text)
    kinds = [each["type"].removeprefix("response.") for each in told]
    shape = [k for i, k in enumerate(kinds) if i == 0 or kinds[i - 1] != k]
    assert shape == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    done = [e["item"] for e in told if e["type"] == "response.output_item.done"]
    assert done == told[-1]["response"]["output"]
    assert [bare(item) for item in done] == ITEMS
    for name, item in (("output_text", done[1]), ("function_call_arguments", done[2])):
        deltas = [e for e in told if e["type"] == f"response.{name}.delta"]
        assert {e["item_id"] for e in deltas} == {item["id"]}
        whole = item["content"][0]["text"] if name == "output_text" else item["arguments"]
        assert "".join(e["delta"] for e in deltas) == whole


def test_an_answer_that_is_cut_is_incomplete(served: Loopback) -> None:
    tree = served.post("/v1/responses", ASKED | {"max_output_tokens": 13}).json()
    assert (tree["status"], tree["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    told = events(
        served.post("/v1/responses", ASKED | {"max_output_tokens": 13, "stream": True}).text
    )
    assert told[-1]["type"] == "response.incomplete"
    assert [i["status"] for i in told[-1]["response"]["output"]] == ["completed", "incomplete"]


def test_a_failure_in_a_stream_is_told_and_ends_it(served: Loopback) -> None:
    served.replicas.hold()
    served.replicas.step(8)
    with served.client() as client:
        body = ASKED | {"stream": True}
        with client.stream("POST", "/v1/responses", json=body) as answer:
            lines = answer.iter_text()
            text = ""
            while "reasoning_text.delta" not in text:
                text += next(lines)
            served.replicas.end_all(Ended(EndKind.LOST, "all replicas died"))
            text += "".join(lines)
    told = events(text)
    assert [each["type"] for each in told[-2:]] == ["error", "response.failed"]
    assert told[-1]["response"]["error"]["message"] == "all replicas died"


def test_a_defect_in_a_stream_ends_it_in_the_same_way(
    served: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Blocks) -> list[BlockEvent]:
        raise ZeroDivisionError("of the server's own")

    monkeypatch.setattr(Blocks, "finish", broken)
    body = ASKED | {"stream": True, "max_output_tokens": 16}
    told = events(served.post("/v1/responses", body).text)
    error = {"code": "internal_error", "message": "the server failed; its log says more"}
    last = told[-2] | {"sequence_number": None}
    assert last == {"type": "error", "sequence_number": None, **error, "param": None}
    assert (told[-1]["type"], told[-1]["response"]["error"]) == ("response.failed", error)
    assert told[-1]["response"]["status"] == "failed"
    assert "own" not in json.dumps(told)
    served.replicas.wait_until(lambda: not served.endpoint.heard)


def test_items_become_messages() -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Rain?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"text": "hm"}]},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Hé.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "wet"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
    ]
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for i, name in ((1, "f"), (2, "g"))
    ]
    assert messages_of("Be brief.", items) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Rain?"}]},
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "content": [{"type": "text", "text": "Hé."}],
            "tool_calls": calls,
        },
        {"role": "tool", "tool_call_id": "c1", "content": "wet"},
        {"role": "assistant", "reasoning_content": "so", "content": "one"},
        {"role": "assistant", "content": "two"},
    ]


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([{"type": "item_reference", "id": "x"}], "input[0].type"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "input[0].content[0].type"),
        ([{"role": "user", "content": []}], "input[0].content"),
        ([{"type": "function_call_output", "output": 3}], "input[0].output"),
        ([{"role": "user", "content": "a", "weight": 2}], "input[0].weight"),
        ([{"type": "reasoning", "encrypted_content": "x"}], "input[0].encrypted_content"),
    ],
)
def test_an_item_that_cannot_be_read_is_named(items: list[Any], param: str) -> None:
    with pytest.raises(FieldError) as caught:
        messages_of(None, items)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice.function.name"),
        ({"input": []}, "input"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_is_not_served_is_refused(served: Loopback, more: dict[str, Any], param: str) -> None:
    answer = served.post("/v1/responses", ASKED | more)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_format_and_a_choice_reach_the_replica(served: Loopback) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    told = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    body = {"model": "tiny", "input": "?", "text": {"format": told}}
    assert served.post("/v1/responses", body).status_code == 200
    assert '"a"' in served.replicas.asked[-1].rules.grammar
    body = ASKED | {"tool_choice": "required", "reasoning": {"effort": "none"}}
    assert served.post("/v1/responses", body).status_code == 200
    assert "get_weather" in served.replicas.asked[-1].rules.grammar
    assert served.replicas.asked[-1].rules.grammar_after == []
