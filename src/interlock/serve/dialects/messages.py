"""/v1/messages in terms of a chat: blocks become messages.

system, messages with blocks ──> messages: a tool's results before what the user says
tools, tool_choice, thinking ──> those of the chat
"""

import json
from typing import Any

from interlock.serve.prompts.fields import (
    FieldError,
    known,
    list_of,
    not_empty,
    object_of,
    one_of,
    text_of,
)

Turns = list[dict[str, Any]]

# Where a prompt's beginning is to be kept: every prompt's is, as far as there is room.
_HINT = {"cache_control"}


def turns_of_messages(system: Any, messages: Any) -> Turns:
    """The chat's messages. Raises FieldError on a block that cannot be read."""
    found: Turns = []
    if system:
        text = system if isinstance(system, str) else _texts(system, "system")
        found.append({"role": "system", "content": text})
    for i, message in enumerate(list_of(messages, "messages")):
        param = f"messages[{i}]"
        message = object_of(message, param)
        known(message, {"role", "content"}, param)
        role, content = message.get("role"), message.get("content")
        one_of(role, ("user", "assistant"), f"{param}.role")
        where = f"{param}.content"
        if isinstance(content, str):
            found.append({"role": role, "content": content})
            continue
        blocks = list_of(content, where)
        not_empty(blocks, where)
        if role == "user":
            found += _user(blocks, where)
        else:
            found.append(_assistant(blocks, where))
    return found


def _user(blocks: list[Any], param: str) -> Turns:
    """Results of tools are turns of their own, before the user's."""
    results: Turns = []
    said = []
    for i, block in enumerate(blocks):
        where = f"{param}[{i}]"
        if object_of(block, where).get("type") != "tool_result":
            said.append(_text(block, where))
            continue
        known(block, {"type", "tool_use_id", "content", "is_error"} | _HINT, where)
        content = block.get("content")
        if content is None or isinstance(content, list):
            content = _texts(content or [], f"{where}.content")
        told = text_of(content, f"{where}.content")
        if block.get("is_error"):  # nothing else says so to a template
            told = f"Error: {told}"
        results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": told})
    if said or not results:
        results.append({"role": "user", "content": "\n".join(said)})
    return results


def _assistant(blocks: list[Any], param: str) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "assistant"}
    said, thought, calls = [], [], []
    for i, block in enumerate(blocks):
        where = f"{param}[{i}]"
        match object_of(block, where).get("type"):
            case "thinking":
                known(block, {"type", "thinking", "signature"} | _HINT, where)
                thought.append(text_of(block.get("thinking"), f"{where}.thinking"))
            case "tool_use":
                known(block, {"type", "id", "name", "input"} | _HINT, where)
                given = object_of(block.get("input"), f"{where}.input")
                written = json.dumps(given, ensure_ascii=False)
                function = {"name": block.get("name"), "arguments": written}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case _:
                said.append(_text(block, where))
    turn["content"] = "\n".join(said) if said or not calls else None
    if thought:
        turn["reasoning_content"] = "\n".join(thought)
    if calls:
        turn["tool_calls"] = calls
    return turn


def _texts(blocks: Any, param: str) -> str:
    return "\n".join(
        _text(block, f"{param}[{i}]") for i, block in enumerate(list_of(blocks, param))
    )


def _text(block: Any, param: str) -> str:
    kind = object_of(block, param).get("type")
    if kind != "text":
        raise FieldError(
            f"{param}.type", f"{ascii(kind)[:60]} is not supported; this model reads text alone"
        )
    known({k: v for k, v in block.items() if v != []}, {"type", "text"} | _HINT, param)
    return text_of(block.get("text"), f"{param}.text")


def tools_of_messages(tools: Any) -> list[dict[str, Any]] | None:
    """The chat's tools."""
    if tools is None:
        return None
    found = []
    for i, tool in enumerate(list_of(tools, "tools")):
        param = f"tools[{i}]"
        tool = object_of(tool, param)
        if tool.get("type") not in (None, "custom"):
            raise FieldError(
                f"{param}.type", f"{ascii(tool['type'])[:60]} is not supported; use your own tools"
            )
        known(tool, {"type", "name", "description", "input_schema", "strict"} | _HINT, param)
        function = {
            "name": tool.get("name"),
            "description": tool.get("description"),
            "parameters": object_of(tool.get("input_schema"), f"{param}.input_schema"),
            "strict": tool.get("strict"),
        }
        found.append({"type": "function", "function": function})
    return found


def choice_of_messages(choice: Any) -> tuple[Any, bool | None]:
    """The chat's tool_choice and parallel_tool_calls."""
    if choice is None:
        return None, None
    kind = one_of(
        object_of(choice, "tool_choice").get("type"),
        ("auto", "any", "tool", "none"),
        "tool_choice.type",
    )
    members = {"type", "disable_parallel_tool_use"} | ({"name"} if kind == "tool" else set())
    known(choice, members, "tool_choice")
    alone = choice.get("disable_parallel_tool_use")
    if alone not in (None, True, False):
        raise FieldError("tool_choice.disable_parallel_tool_use", "is neither true nor false")
    told: Any = {"auto": "auto", "any": "required", "none": "none"}.get(kind)
    if kind == "tool":
        told = {"type": "function", "function": {"name": choice.get("name")}}
    return told, False if alone else None


def thinking_of(thinking: Any, thinks: bool, switch: bool) -> dict[str, Any]:
    """The chat's fields for `thinking`.

    Args:
        thinks: the model does.
        switch: it can be told whether to.
    """
    if thinking is None:
        return {}
    kind = one_of(
        object_of(thinking, "thinking").get("type"),
        ("enabled", "disabled", "adaptive"),
        "thinking.type",
    )
    known(thinking, {"type"} | ({"budget_tokens"} if kind == "enabled" else set()), "thinking")
    if kind == "disabled" and not thinks:
        return {}
    if not thinks:
        raise FieldError("thinking", "this model does not think; leave it out")
    if kind == "disabled" and not switch:
        raise FieldError("thinking.type", "this model always thinks; leave it out")
    found: dict[str, Any] = {}
    if switch:
        found["chat_template_kwargs"] = {"enable_thinking": kind != "disabled"}
    if kind == "enabled" and thinking.get("budget_tokens") is not None:
        found["thinking_budget"] = thinking["budget_tokens"]
    return found


def format_of_messages(output: Any) -> dict[str, Any] | None:
    """The chat's response_format for output_config."""
    if output is None:
        return None
    known(object_of(output, "output_config"), {"format"}, "output_config")
    if output.get("format") is None:
        return None
    param = "output_config.format"
    told = object_of(output["format"], param)
    one_of(told.get("type"), ("json_schema",), f"{param}.type")
    known(told, {"type", "schema"}, param)
    inner = {"name": "answer", "schema": told.get("schema")}
    return {"type": "json_schema", "json_schema": inner}
