"""The messages and tools of a chat request, checked, in the form that chat templates read.

OpenAI's messages ──turns_of──> [{role, content, reasoning_content, tool_calls, …}]
OpenAI's tools    ──tools_of──> Tool: name, schema of its parameters, strict
"""

import json
import re
from typing import Any, NamedTuple

from interlock.serve.prompts.fields import (
    FieldError,
    known,
    list_of,
    not_empty,
    object_of,
    one_of,
    text_of,
)

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_TOOLS = 128

_MEMBERS = {"role", "content", "name", "tool_calls", "tool_call_id"}
_MEMBERS |= {"reasoning_content", "reasoning"}
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


class Tool(NamedTuple):
    """One function that may be called. `told` is what the template is given of it."""

    name: str
    parameters: dict[str, Any] | None  # JSON schema; None: not said
    strict: bool
    told: dict[str, Any]


def turns_of(messages: Any, param: str = "messages") -> list[dict[str, Any]]:
    """The messages for a template; arguments of calls are objects. Raises FieldError."""
    turns = [_turn(m, f"{param}[{i}]") for i, m in enumerate(list_of(messages, param))]
    if not turns:
        raise FieldError(param, "is empty; send at least one message")
    return turns


def _turn(message: Any, param: str) -> dict[str, Any]:
    message = object_of(message, param)
    role = one_of(message.get("role"), ROLES, f"{param}.role")
    # Clients send back what they were given, with the empty members that OpenAI's answers have.
    known({k: v for k, v in message.items() if v not in ([], "")}, _MEMBERS, param)
    turn: dict[str, Any] = {"role": role}
    calls = message.get("tool_calls") or None
    thought = message.get("reasoning_content") or message.get("reasoning")
    for name, value in (("tool_calls", calls), ("reasoning_content", thought)):
        if value is not None and role != "assistant":
            raise FieldError(f"{param}.{name}", f"a {role} message has none; leave it out")
    turn["content"] = _content(message.get("content"), role, calls is not None, f"{param}.content")
    if thought is not None:
        turn["reasoning_content"] = text_of(thought, f"{param}.reasoning_content")
    if calls is not None:
        where = f"{param}.tool_calls"
        turn["tool_calls"] = [
            _call(call, f"{where}[{i}]") for i, call in enumerate(list_of(calls, where))
        ]
    for name in ("name", "tool_call_id"):
        if message.get(name) is not None:
            turn[name] = text_of(message[name], f"{param}.{name}")
    return turn


def _content(content: Any, role: str, calls: bool, param: str) -> str | None:
    """None where nothing but calls was said, which some templates ask for."""
    if content is None:
        if role != "assistant":
            raise FieldError(param, f"is null; a {role} message needs text")
        return None if calls else ""
    if isinstance(content, list):
        not_empty(content, param)
        parts = [_part(part, f"{param}[{i}]") for i, part in enumerate(content)]
        return "\n".join(parts)
    return text_of(content, param)


def _part(part: Any, param: str) -> str:
    part = object_of(part, param)
    if part.get("type") not in ("text", "refusal"):
        raise FieldError(
            f"{param}.type", f"{part.get('type')!a} is not supported; this model reads text alone"
        )
    kind = str(part["type"])
    known(part, {"type", kind}, param)
    return text_of(part.get(kind), f"{param}.{kind}")


def _call(call: Any, param: str) -> dict[str, Any]:
    call = object_of(call, param)
    known(call, {"id", "type", "function", "index"}, param)
    one_of(call.get("type", "function"), ("function",), f"{param}.type")
    function = object_of(call.get("function"), f"{param}.function")
    known(function, {"name", "arguments"}, f"{param}.function")
    where = f"{param}.function.arguments"
    written = text_of(function.get("arguments"), where)
    try:
        arguments = json.loads(written) if written.strip() else {}
    except (ValueError, RecursionError):
        raise FieldError(where, "is no JSON; send the arguments as they were told") from None
    name = text_of(function.get("name"), f"{param}.function.name")
    made: dict[str, Any] = {"type": "function"}
    if call.get("id") is not None:
        made["id"] = text_of(call["id"], f"{param}.id")
    return made | {"function": {"name": name, "arguments": object_of(arguments, where)}}


def tools_of(tools: Any, param: str = "tools") -> list[Tool]:
    """The functions that may be called. Raises FieldError."""
    if tools is None:
        return []
    if len(list_of(tools, param)) > MOST_TOOLS:
        raise FieldError(param, f"has {len(tools)} tools; send at most {MOST_TOOLS}")
    found = [_tool(tool, f"{param}[{i}]") for i, tool in enumerate(tools)]
    names = [tool.name for tool in found]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise FieldError(param, f"two tools are named {double[0]!a}; give each a name of its own")
    return found


def _tool(tool: Any, param: str) -> Tool:
    tool = object_of(tool, param)
    known(tool, {"type", "function"}, param)
    one_of(tool.get("type"), ("function",), f"{param}.type")
    where = f"{param}.function"
    function = object_of(tool.get("function"), where)
    known(function, {"name", "description", "parameters", "strict"}, where)
    name = text_of(function.get("name"), f"{where}.name")
    if not _NAME.fullmatch(name):
        raise FieldError(
            f"{where}.name", f"{name[:80]!a} is no name; use 1 to 64 of A-Z a-z 0-9 _ - ."
        )
    if function.get("description") is not None:
        text_of(function["description"], f"{where}.description")
    parameters = function.get("parameters")
    if parameters is not None:
        object_of(parameters, f"{where}.parameters")
    strict = function.get("strict")
    if strict not in (None, True, False):
        raise FieldError(f"{where}.strict", f"{strict!a} is neither true nor false")
    told = {k: v for k, v in function.items() if k != "strict" and v is not None}
    return Tool(name, parameters, bool(strict), {"type": "function", "function": told})
