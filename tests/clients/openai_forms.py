"""Tools, JSON schemas and the parse helpers of the openai package, and its responses."""

import json
from typing import Any

import openai
from openai_common import ASK, TOOLS, Sum, client
from reporting import MODEL, caught


def tools() -> dict[str, Any]:
    ask: dict[str, Any] = {
        "model": MODEL,
        "temperature": 0,
        "tools": TOOLS,
        "max_completion_tokens": 128,
        "messages": [{"role": "user", "content": "What is 12 + 30?"}],
    }
    required = client.chat.completions.create(**ask, tool_choice="required")
    named = {"type": "function", "function": {"name": "multiply"}}
    picked = client.chat.completions.create(**ask, tool_choice=named)
    calls = required.choices[0].message.tool_calls or []
    whole: list[dict[str, str]] = []
    finish, fragments = None, 0
    for chunk in client.chat.completions.create(**ask, tool_choice="required", stream=True):
        for call in chunk.choices[0].delta.tool_calls or [] if chunk.choices else []:
            while len(whole) <= call.index:
                whole.append({"id": "", "name": "", "arguments": ""})
            whole[call.index]["id"] += call.id or ""
            if call.function:
                whole[call.index]["name"] += call.function.name or ""
                whole[call.index]["arguments"] += call.function.arguments or ""
                fragments += bool(call.function.arguments)
        if chunk.choices and chunk.choices[0].finish_reason:
            finish = chunk.choices[0].finish_reason
    turns = [
        *ask["messages"],
        required.choices[0].message,
        *({"role": "tool", "tool_call_id": call.id, "content": "42"} for call in calls),
    ]
    after = client.chat.completions.create(**ask | {"messages": turns}, tool_choice="none")
    return {
        "finish": required.choices[0].finish_reason,
        "calls": [[c.function.name, json.loads(c.function.arguments)] for c in calls],
        "ids": [call.id for call in calls],
        "named": [c.function.name for c in picked.choices[0].message.tool_calls or []],
        "named_finish": picked.choices[0].finish_reason,
        "streamed": [[call["name"], json.loads(call["arguments"])] for call in whole],
        "streamed_ids": [call["id"] for call in whole],
        "streamed_finish": finish,
        "fragments": fragments,
        "after": [after.choices[0].message.content, after.choices[0].message.tool_calls],
    }


def tool_helper() -> dict[str, Any]:
    """The package's own accumulation of streamed calls, with a strict tool."""
    with client.chat.completions.stream(
        model=MODEL, temperature=0, messages=ASK, max_completion_tokens=128,
        tools=[openai.pydantic_function_tool(Sum)], tool_choice="required",
    ) as events:  # fmt: skip
        kinds = [event.type for event in events]
        final = events.get_final_completion()
    call = (final.choices[0].message.tool_calls or [])[0]
    parsed = call.function.parsed_arguments
    return {
        "name": call.function.name,
        "parsed": parsed.model_dump() if isinstance(parsed, Sum) else None,
        "deltas": kinds.count("tool_calls.function.arguments.delta"),
        "done": kinds.count("tool_calls.function.arguments.done"),
    }


def structured() -> dict[str, Any]:
    ask: list[Any] = [{"role": "user", "content": "Write 3 + 4 as JSON."}]
    common: dict[str, Any] = {"model": MODEL, "messages": ask, "max_completion_tokens": 96}
    common |= {"temperature": 0}
    parsed = client.chat.completions.parse(**common, response_format=Sum)
    with client.chat.completions.stream(**common, response_format=Sum) as events:
        for _ in events:
            pass
        streamed = events.get_final_completion()
    free = client.chat.completions.create(
        **common | {"max_completion_tokens": 16}, response_format={"type": "json_object"}
    )
    one, two = parsed.choices[0].message.parsed, streamed.choices[0].message.parsed
    cut = common | {"max_completion_tokens": 2}
    return {
        "parsed": one.model_dump() if one else None,
        "streamed": two.model_dump() if two else None,
        "finish": parsed.choices[0].finish_reason,
        "cut": caught(lambda: client.chat.completions.parse(**cut, response_format=Sum))["class"],
        "object": [free.choices[0].message.content, free.choices[0].finish_reason],
    }


def responses() -> dict[str, Any]:
    whole = client.responses.create(
        model=MODEL, input="Name three colours.", temperature=0, max_output_tokens=8, store=False
    )
    kinds: list[str] = []
    text = ""
    for event in client.responses.create(
        model=MODEL, input="Name three colours.", temperature=0, max_output_tokens=8, store=False,
        stream=True,
    ):  # fmt: skip
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            text += event.delta
    parsed = client.responses.parse(
        model=MODEL, input="Write 3 + 4 as JSON.", temperature=0, max_output_tokens=96,
        store=False, text_format=Sum,
    )  # fmt: skip
    function = TOOLS[0]["function"]
    called = client.responses.create(
        model=MODEL, input="What is 12 + 30?", temperature=0, max_output_tokens=96, store=False,
        tools=[{"type": "function", "strict": True, **function}], tool_choice="required",
    )  # fmt: skip
    calls = [each for each in called.output if each.type == "function_call"]
    return {
        "text": whole.output_text,
        "status": whole.status,
        "usage": whole.usage.model_dump() if whole.usage else None,
        "streamed": text,
        "kinds": list(dict.fromkeys(kinds)),
        "parsed": parsed.output_parsed.model_dump() if parsed.output_parsed else None,
        "calls": [[each.name, json.loads(each.arguments)] for each in calls],
        "wrong": caught(
            lambda: client.responses.create(model=MODEL, input="a", previous_response_id="r")
        ),
    }
