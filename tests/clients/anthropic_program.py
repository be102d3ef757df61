"""What a user of the anthropic package does against /v1/messages."""

import os
from typing import Any

import anthropic
from reporting import BASE_URL, KEY, MODEL, caught, report

client = anthropic.Anthropic(
    base_url=BASE_URL.removesuffix("/v1"), api_key=KEY, timeout=120, max_retries=0
)
ASK: Any = [{"role": "user", "content": "Name three colours."}]
# The package has no temperature any more, though the API has.
COLD: Any = {"extra_body": {"temperature": 0}}
GREEDY: dict[str, Any] = {"model": MODEL, "messages": ASK, "max_tokens": 8} | COLD
ADD: Any = {
    "name": "add",
    "description": "add two whole numbers",
    "input_schema": {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "minimum": 0, "maximum": 99},
            "b": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}


def message() -> dict[str, Any]:
    told = client.messages.create(**GREEDY)
    counted = client.messages.count_tokens(model=MODEL, messages=ASK)
    return {
        "text": "".join(block.text for block in told.content if block.type == "text"),
        "stop": told.stop_reason,
        "usage": [told.usage.input_tokens, told.usage.output_tokens],
        "counted": counted.input_tokens,
        "role": told.role,
        "type": told.type,
    }


def stream() -> dict[str, Any]:
    kinds: list[str] = []
    with client.messages.stream(**GREEDY, system="Be brief.") as events:
        for event in events:
            kinds.append(event.type)
        final = events.get_final_message()
    whole = client.messages.create(**GREEDY, system="Be brief.")
    return {
        "kinds": list(dict.fromkeys(kinds)),
        "text": final.content[0].text,
        "whole": whole.content[0].text,
        "usage": [final.usage.input_tokens, final.usage.output_tokens],
    }


def tools() -> dict[str, Any]:
    ask = GREEDY | {
        "messages": [{"role": "user", "content": "What is 12 + 30?"}],
        "max_tokens": 128,
        "tools": [ADD],
        "tool_choice": {"type": "tool", "name": "add"},
    }
    told = client.messages.create(**ask)
    with client.messages.stream(**ask) as events:
        for _ in events:
            pass
        streamed = events.get_final_message()
    calls = [block for block in told.content if block.type == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "42"} for call in calls]
    turns = [
        *ask["messages"],
        {"role": "assistant", "content": told.content},
        {"role": "user", "content": results},
    ]
    after = client.messages.create(**ask | {"messages": turns, "tool_choice": {"type": "none"}})
    return {
        "stop": told.stop_reason,
        "calls": [[call.name, call.input] for call in calls],
        "streamed": [[b.name, b.input] for b in streamed.content if b.type == "tool_use"],
        "after": [block.type for block in after.content],
    }


def errors() -> dict[str, Any]:
    def asked(**more: Any) -> dict[str, Any]:
        return caught(lambda: client.messages.create(**GREEDY | more))

    stranger = client.with_options(api_key="not-the-key-of-this-server")
    return {
        "model": asked(model="claude"),
        "temperature": asked(extra_body={"temperature": 3}),
        "tokens": asked(max_tokens=0),
        "key": caught(lambda: stranger.messages.create(**GREEDY)),
    }


if __name__ == "__main__":
    os.environ.pop("ANTHROPIC_AUTH_TOKEN", None)
    report({"message": message, "stream": stream, "tools": tools, "errors": errors})
