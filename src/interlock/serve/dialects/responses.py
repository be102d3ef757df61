"""/v1/responses in terms of a chat: the request's items become messages. Nothing is kept.

instructions, input ──┬─> messages, tools, … ──> ChatRequest
function_call(_output)┘
"""

from typing import Any

from interlock.serve.prompts.fields import FieldError, known, list_of, not_empty, object_of, text_of

_TEXTS = ("input_text", "output_text", "text")
_ITEM = {"id", "status", "type"}  # what every item may have; ids of what is not kept say nothing


def messages_of(instructions: str | None, given: Any) -> list[dict[str, Any]]:
    """The chat's messages. Raises FieldError on an item that cannot be one."""
    found: list[dict[str, Any]] = []
    if instructions is not None:
        found.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    for i, item in enumerate(list_of(given, "input")):
        _add(found, object_of(item, f"input[{i}]"), f"input[{i}]")
    for message in found:
        if message["role"] == "assistant" and set(message) == {"role", "reasoning_content"}:
            message["content"] = ""
    return found


def _add(found: list[dict[str, Any]], item: dict[str, Any], param: str) -> None:
    kind = item.get("type", "message")
    match kind:
        case "message":
            known(item, _ITEM | {"role", "content", "phase"}, param)
            where = f"{param}.content"
            role, content = item.get("role"), _content(item.get("content"), where)
            if role == "assistant":
                _assistant(found, "content")["content"] = content or ""
            else:
                if isinstance(content, list):
                    not_empty(content, where)
                found.append({"role": role, "content": content})
        case "reasoning":
            known(item, _ITEM | {"summary", "content", "encrypted_content"}, param)
            if item.get("encrypted_content"):
                raise FieldError(f"{param}.encrypted_content", "is not supported; leave it out")
            if text := _thought(item, param):
                _assistant(found, "reasoning_content")["reasoning_content"] = text
        case "function_call":
            known(item, _ITEM | {"call_id", "name", "arguments"}, param)
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            _assistant(found, "").setdefault("tool_calls", []).append(call)
        case "function_call_output":
            known(item, _ITEM | {"call_id", "output"}, param)
            content = _content(item.get("output"), f"{param}.output") or ""
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        case _:
            raise FieldError(f"{param}.type", f"{ascii(kind)[:60]} is not supported; leave it out")


def _assistant(found: list[dict[str, Any]], member: str) -> dict[str, Any]:
    """The turn of the assistant that an item belongs to: a turn thinks, then says, then calls."""
    order = ["reasoning_content", "content", "tool_calls", ""]
    later = order[order.index(member) : -1]
    if found and found[-1]["role"] == "assistant" and not any(m in found[-1] for m in later):
        return found[-1]
    found.append({"role": "assistant"})
    return found[-1]


def _content(content: Any, param: str) -> Any:
    if not isinstance(content, list):
        return text_of(content, param)
    return [
        _part(object_of(part, f"{param}[{i}]"), f"{param}[{i}]") for i, part in enumerate(content)
    ]


def _part(part: dict[str, Any], param: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "refusal":
        known(part, {"type", "refusal"}, param)
        return {"type": "text", "text": part.get("refusal")}
    if kind not in _TEXTS:
        raise FieldError(
            f"{param}.type", f"{ascii(kind)[:60]} is not supported; this model reads text alone"
        )
    known({k: v for k, v in part.items() if v != []}, {"type", "text"}, param)
    return {"type": "text", "text": part.get("text")}


def _thought(item: dict[str, Any], param: str) -> str:
    parts = list_of(item.get("content") or item.get("summary") or [], f"{param}.content")
    texts = [object_of(part, f"{param}.content[{i}]") for i, part in enumerate(parts)]
    return "\n".join(text_of(t.get("text"), f"{param}.content[{i}]") for i, t in enumerate(texts))


def tools_for_chat(tools: Any) -> list[dict[str, Any]] | None:
    """The chat's tools: a function's fields stand in an object of their own there."""
    if tools is None:
        return None
    found = []
    for i, tool in enumerate(list_of(tools, "tools")):
        tool, param = object_of(tool, f"tools[{i}]"), f"tools[{i}]"
        if tool.get("type") != "function":
            raise FieldError(
                f"{param}.type", f"{ascii(tool.get('type'))[:60]} is not supported; use functions"
            )
        known(tool, {"type", "name", "description", "parameters", "strict"}, param)
        function = {k: v for k, v in tool.items() if k != "type"}
        found.append({"type": "function", "function": function})
    return found


def choice_for_chat(choice: Any) -> Any:
    """The chat's tool_choice."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function":
        known(choice, {"type", "name"}, "tool_choice")
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools":
        known(choice, {"type", "mode", "tools"}, "tool_choice")
        named = list_of(choice.get("tools"), "tool_choice.tools")
        tools = [
            {
                "type": "function",
                "function": {"name": object_of(n, "tool_choice.tools").get("name")},
            }
            for n in named
        ]
        allowed = {"mode": choice.get("mode"), "tools": tools}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return choice


def format_for_chat(text: Any) -> dict[str, Any] | None:
    """The chat's response_format for `text`."""
    if text is None:
        return None
    known(object_of(text, "text"), {"format", "verbosity"}, "text")
    if text.get("verbosity") not in (None, "medium"):
        raise FieldError("text.verbosity", "is not supported; leave it out")
    if text.get("format") is None:
        return None
    told = object_of(text["format"], "text.format")
    if told.get("type") != "json_schema":
        return told
    inner = {k: v for k, v in told.items() if k != "type"}
    return {"type": "json_schema", "json_schema": inner}
